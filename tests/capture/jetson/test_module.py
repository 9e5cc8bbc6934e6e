"""Detection of NVIDIA's jetson-utils, and the errors when it is missing."""

import subprocess
import sys
from pathlib import Path
from typing import Dict

import pytest

from edge_agent.capture.jetson.module import remedy

REPOSITORY = Path(__file__).resolve().parents[3]
FAKE = """
from tests.fakes.jetson_utils import Board, FakeJetsonUtils
fake = FakeJetsonUtils(Board())
def __getattr__(name):
    return getattr(fake, name)
"""
# As pip leaves it: the name is taken, by modules that import without any fault.
STRANGER = {"jetson_utils/__init__.py": "class JetsonUtils: pass", "jetson_serial/__init__.py": ""}
PYTHON_HALF = {"jetson_utils/__init__.py": "HAS_JETSON_UTILS_EXT = False"}
OPEN = """
from edge_agent.capture import open_source
from edge_agent.errors import MissingPackage
try:
    print("opened", type(open_source("csi://0")).__name__, type(open_source("jetson:rtsp://h/x")).__name__)
except MissingPackage as error:
    print(error)
"""


def output(folder: Path, files: Dict[str, str], code: str = OPEN) -> str:
    """The output of a process with these files on its Python path."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    path = f"{folder}:{REPOSITORY}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path}, check=False
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("beside", [{}, STRANGER, PYTHON_HALF], ids=["alone", "beside PyPI's", "version 2"])
def test_the_extension_decides_not_the_name(tmp_path: Path, beside: Dict[str, str]) -> None:
    assert output(tmp_path, {**beside, "jetson_utils_python.py": FAKE}) == "opened JetsonSource JetsonSource\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "jetson-utils is not installed"),
        (STRANGER, "from PyPI is installed, an unrelated project; NVIDIA's is not (pip uninstall jetson-utils)"),
        (PYTHON_HALF, "only the Python half"),
        ({"jetson_utils_python.py": "videoOutput = None"}, "not NVIDIA's: no videoSource, cudaAllocMapped"),
        (
            {"jetson_utils_python.py": "raise ImportError('libcudart.so.12: cannot open shared object file')"},
            "cannot be loaded: libcudart.so.12",
        ),
        ({"jetson_utils_python.py": "import termcolor_of_version_2"}, "cannot be loaded: No module named 'termcolor"),
    ],
    ids=["absent", "PyPI's", "no extension", "another", "library missing", "dependency missing"],
)
def test_anything_else_is_a_missing_package_with_a_remedy(tmp_path: Path, files: Dict[str, str], expected: str) -> None:
    line = output(tmp_path, files)
    assert line.startswith("csi://0: ")
    assert expected in line
    assert "dusty-nv/jetson-inference" in line
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("# R32 (release), REVISION: 7.1", ["on JetPack 4:", "Python 3.8"]),
        ("# R35 (release), REVISION: 5.0", ["on JetPack 5:", "Python 3.8"]),
        ("# R36 (release), REVISION: 4.3", ["on JetPack 6:", "Python 3.10"]),
        ("# R38 (release), REVISION: 2.0", ["on JetPack 7:", "Python 3.12", "delete compute_53, 62 and 72"]),
        ("# R34 (release), REVISION: 1.1", ["on JetPack 5:", "Python 3.8"]),
        ("# R39 (release), REVISION: 2.1", ["on JetPack 7:", "Python 3.12", "delete compute_53, 62 and 72"]),
        ("# R99 (release), REVISION: 1.0", ["need a Jetson"]),
        (None, ["need a Jetson", "v4l2:/dev/"]),
    ],
)
def test_the_remedy_fits_the_jetpack(tmp_path: Path, release: str, expected: str) -> None:
    if release is not None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/nv_tegra_release").write_text(f"{release}, GCID: 1, BOARD: generic\n# KERNEL_VARIANT: oot\n")
    text = remedy(tmp_path)
    assert all(each in text for each in expected), text
    assert ("--system-site-packages" in text) == ("Jetson" not in text)


CHECK = """
import json
from edge_agent.commands.check import probes
print(json.dumps(vars(probes._jetson_utils())))
"""


@pytest.mark.parametrize(
    ("files", "state", "expected"),
    [
        ({}, "note", "not installed"),
        (STRANGER, "fail", "unrelated project"),
        ({"jetson_utils_python.py": FAKE}, "ok", "NVIDIA's extension"),
    ],
)
def test_check_distinguishes_them(tmp_path: Path, files: Dict[str, str], state: str, expected: str) -> None:
    line = output(tmp_path, files, CHECK)
    assert f'"state": "{state}"' in line
    assert expected in line
