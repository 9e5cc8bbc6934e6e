"""`scripts/install-jetson` on fake root folders: found and missing parts are reported; `--check` changes nothing."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Iterable, List

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "install-jetson"
PACKAGES = {
    4: ("python3.8", "python3.8-venv", "python3-libnvinfer"),
    5: ("python3-venv", "python3-dev", "python3-libnvinfer", "python3-systemd", "g++"),
}
PYTHONS = {4: "3.8", 5: "3.8", 6: "3.10", 7: "3.12"}
RELEASES = {4: (32, "7.4"), 5: (35, "4.1"), 6: (36, "4.3"), 7: (38, "2.0")}
DRIVERS = {4: "tegra/libcuda.so.1.1", 5: "tegra/libcuda.so.1.1", 6: "nvidia/libcuda.so.1.1", 7: "libcuda.so.1"}


class Board:
    """The root folder of a Jetson with every package installed."""

    def __init__(self, root: Path, jetpack: int) -> None:
        self.root, self.python = root, PYTHONS[jetpack]
        release, revision = RELEASES[jetpack]
        self.write(
            "etc/nv_tegra_release",
            f"# R{release} (release), REVISION: {revision}, GCID: 33958178, BOARD: t186ref, EABI: aarch64\n",
        )
        self.write("proc/device-tree/model", "NVIDIA Jetson Test Kit\0")
        self.packages(dict.fromkeys(PACKAGES[min(jetpack, 5)], "1.0-1"))
        self.write(f"usr/lib/aarch64-linux-gnu/{DRIVERS[jetpack]}")
        self.write(f"usr/lib/python3.{'6' if jetpack == 4 else self.python[2:]}/dist-packages/tensorrt/__init__.py")
        self.venv = "opt/edge-agent/venv"
        self.site = f"{self.venv}/lib/python{self.python}/site-packages"
        self.environment(sees=jetpack != 4)
        self.write(f"{self.venv}/bin/edge-agent")
        self.write(f"{self.site}/numpy-1.24.4.dist-info/METADATA")
        if jetpack != 4:
            self.write("usr/local/cuda-12.6/bin/nvcc")
            self.write(f"{self.site}/pycuda-2025.1.dist-info/METADATA")

    def write(self, path: str, text: str = "") -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def packages(self, versions: Dict[str, str], gone: Iterable[str] = ()) -> None:
        """Dpkg's package list; packages in `gone` are removed but still configured."""
        rows = [(name, "install ok installed", version) for name, version in versions.items()]
        rows += [(name, "deinstall ok config-files", "1.0-1") for name in gone]
        text = "\n".join(f"Package: {name}\nStatus: {state}\nVersion: {version}\n" for name, state, version in rows)
        self.write("var/lib/dpkg/status", text)

    def environment(self, sees: bool) -> None:
        self.write(f"{self.venv}/pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = {str(sees).lower()}\n")

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        environ = {**os.environ, "INSTALL_ROOT": str(self.root)}
        return subprocess.run([str(SCRIPT), *words], env=environ, capture_output=True, text=True, check=False)

    def check(self, code: int) -> str:
        before = tree(self.root)
        done = self.run("--check")
        assert (done.returncode, done.stderr) == (code, ""), done.stdout + done.stderr
        assert tree(self.root) == before
        return done.stdout


def tree(root: Path) -> List[str]:
    return sorted(f"{path} {path.stat().st_mtime_ns}" for path in root.rglob("*"))


@pytest.mark.parametrize("jetpack", [4, 5, 6, 7])
def test_a_complete_board_has_no_missing_parts(tmp_path: Path, jetpack: int) -> None:
    text = Board(tmp_path, jetpack).check(0)
    assert "NVIDIA Jetson Test Kit" in text and f"JetPack                {jetpack} " in text
    assert "missing   " not in text
    assert ("in a worker of python3.6" in text) == (jetpack == 4)
    assert ("pycuda" in text) == (jetpack != 4)


@pytest.mark.parametrize("jetpack", [4, 5, 6, 7])
def test_on_a_bare_board_every_missing_part_has_a_remedy(tmp_path: Path, jetpack: int) -> None:
    board = Board(tmp_path, jetpack)
    for folder in ("usr", "opt", "var"):
        shutil.rmtree(tmp_path / folder)
    text = board.check(1)
    lines = text.splitlines()
    missing = [index for index, line in enumerate(lines) if line.startswith("missing ")]
    assert len(missing) == {4: 6}.get(jetpack, 9)
    assert all("->" in lines[index + 1] for index in missing)


@pytest.mark.parametrize(
    ("jetpack", "harm", "expected"),
    [
        (4, lambda board: board.environment(sees=True), "which are Python 3.6's"),
        (6, lambda board: board.environment(sees=False), "so not TensorRT"),
        (6, lambda board: board.write(f"{board.site}/numpy-2.2.6.dist-info/METADATA"), "'numpy<2'"),
        (6, lambda board: board.write(f"{board.site}/jetson_serial/__init__.py"), "unrelated PyPI package"),
        (5, lambda board: board.packages({"g++": "9"}, gone=PACKAGES[5][:4]), "apt-get install python3-libnvinfer"),
        (7, lambda board: shutil.rmtree(board.root / board.site), "is not of Python 3.12"),
        (5, lambda board: shutil.rmtree(board.root / "usr/local"), "no nvcc"),
    ],
)  # fmt: skip
def test_each_fault_is_reported(tmp_path: Path, jetpack: int, harm: object, expected: str) -> None:
    board = Board(tmp_path, jetpack)
    if expected == "'numpy<2'":
        shutil.rmtree(tmp_path / board.site / "numpy-1.24.4.dist-info")
    harm(board)  # type: ignore[operator]
    assert expected in board.check(1)


def test_jetson_utils_is_reported_with_its_path(tmp_path: Path) -> None:
    board = Board(tmp_path, 4)
    assert "only csi:// cameras need it" in board.check(0)
    board.write("usr/lib/python3.8/dist-packages/jetson_utils_python.so")
    assert "jetson-utils.pth" in board.check(0)
    board.write(f"{board.site}/jetson-utils.pth")
    assert "optional" not in board.check(0)


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        (None, "this is no Jetson"),
        ("# R32 (release), REVISION: 5.2, GCID: 1", "needs JetPack 4.6"),
        ("# R28 (release), REVISION: 2.1, GCID: 1", "expected R32"),
    ],
)
def test_an_unknown_jetson_is_reported_in_one_line(tmp_path: Path, release: str, expected: str) -> None:
    board = Board(tmp_path, 4)
    (tmp_path / "etc/nv_tegra_release").unlink()
    if release:
        board.write("etc/nv_tegra_release", release + "\n")
    for words in (["--check"], ["--dry-run"], []):
        done = board.run(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert expected in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_commands_are_those_of_the_jetpack(tmp_path: Path) -> None:
    printed = {jetpack: Board(tmp_path / str(jetpack), jetpack).run("--dry-run").stdout for jetpack in PYTHONS}
    for jetpack, text in printed.items():
        assert ("--system-site-packages" in text) == (jetpack != 4)
        assert ("pycuda" in text) == (jetpack != 4)
        assert (r"numpy\<2" in text) == (jetpack != 7)
        assert "nvidia-jetpack" not in text  # nvcc is there
    assert "/usr/bin/python3.8 -m venv /opt/edge-agent/venv" in printed[4]


def test_shellcheck_reports_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck: apt-get install shellcheck")
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)
