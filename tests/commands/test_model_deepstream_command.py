"""`edge-agent model import-deepstream` and `export-deepstream`, up to the detector."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, List

import cv2
import numpy as np
import pytest

from edge_agent.cli import main
from tests.fakes import graphs

ROOT = Path(__file__).resolve().parents[2]
PEOPLENET = """[property]
net-scale-factor=0.0039215697906911373
onnx-file=p.onnx
labelfile-path=names.txt
infer-dims=3;544;960
network-mode=0
num-detected-classes=3
cluster-mode=2
[class-attrs-all]
topk=20
nms-iou-threshold=0.5
pre-cluster-threshold=0.4
"""


@dataclass
class Done:
    """Exit status and output of a command."""

    returncode: int
    stdout: str
    stderr: str


Agent = Callable[..., Done]


@pytest.fixture
def agent(folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Run the command line in this process, in the folder, without this machine's settings."""
    for name in os.environ:
        if name.startswith("EDGE_AGENT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    monkeypatch.chdir(folder)

    def call(*words: str) -> Done:
        code = main(list(words))
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call


def process(folder: Path, *words: str) -> Done:
    """Run the same in a process of its own."""
    command = [sys.executable, "-m", "edge_agent", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder, timeout=60)
    return Done(done.returncode, done.stdout, done.stderr)


def faults(done: Done) -> List[str]:
    assert done.returncode == 1
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PeopleNet of the tests' own: on a white cell the coverage of class k is sigmoid(10 - k)."""
    root = tmp_path_factory.mktemp("deepstream")
    graphs.gridbox(root / "p.onnx", net=(960, 544), classes=3, suffix=":0", batch="N")
    (root / "names.txt").write_text("Person\nBag\nFace\n")
    (root / "pgie.txt").write_text(PEOPLENET)
    return root


def test_settings_go_to_stdout_and_the_report_to_stderr(agent: Agent, folder: Path) -> None:
    done = agent("model", "import-deepstream", "pgie.txt")
    assert done.returncode == 0, done.stderr
    assert f"EDGE_AGENT_MODEL__MODEL={folder}/p.onnx\n" in done.stdout
    assert "EDGE_AGENT_MODEL__CLASS_NAME=Face\n" in done.stdout
    assert done.stderr.startswith("taken:\n  line 3: onnx-file=p.onnx -> EDGE_AGENT_MODEL__MODEL=")
    report = json.loads(agent("model", "import-deepstream", "pgie.txt", "--json").stdout)
    assert report["settings"]["EDGE_AGENT_DETECTION__TOP_K"] == "20"
    assert report["differs"] == []


def test_imported_settings_survive_an_export_and_configure_the_agent(agent: Agent, folder: Path) -> None:
    """The imported file drives `config show`, is exported again, and names the same settings."""
    done = agent("model", "import-deepstream", "pgie.txt", "--output", "made.env")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("wrote made.env\n")
    assert "already exists" in faults(agent("model", "import-deepstream", "pgie.txt", "--output", "made.env"))[0]
    checked = agent("check", "--env-file", "made.env").stdout
    assert "ok    engine: p.onnx on onnxruntime, fp32" in checked
    done = agent("model", "export-deepstream", "again.txt", "--env-file", "made.env")
    assert (done.returncode, done.stdout) == (0, "wrote again.txt\n"), done.stderr
    assert "filter-out-class-ids=0;1" in (folder / "again.txt").read_text()
    first, second = (agent("model", "import-deepstream", name, "--json") for name in ("pgie.txt", "again.txt"))
    there = json.loads(second.stdout)["settings"]
    assert there.pop("EDGE_AGENT_MODEL__WORKSPACE_MB") == "256"
    shown = json.loads(agent("config", "show", "--json", "--env-file", "made.env").stdout)["settings"]
    before = json.loads(first.stdout)["settings"]
    assert {name: value for name, value in there.items() if name in before} == before
    assert all(float(value) == shown[name]["value"] for name, value in there.items() if name not in before)


def test_a_multi_class_model_is_evaluated_by_its_face_class(folder: Path) -> None:
    pixels = np.zeros((544, 960), np.uint8)
    pixels[256:272, 480:496] = 255
    # graphs.BOX around that cell: 35 px left and 70 down of its corner and half a pixel, 17.5 up, 8.75 right.
    box = [480.5 - 35.0, 256.5 - 17.5, 35.0 + 8.75, 17.5 + 70.0]
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "a.png"), pixels)
    coco: Any = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "face"}]}
    coco["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box}]
    (folder / "coco.json").write_text(json.dumps(coco))
    words = ("evaluate", "--images", "images", "--labels", "coco.json", "--model", "p.onnx", "--json", "out.json")
    done = process(folder, *words, "--labels-file", "names.txt", "--iou", "0.95")
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "out.json").read_text())
    assert (figures["found"], figures["false_alarms"]) == (1, 0)
    (fault, hint) = faults(process(folder, *words))
    assert "no class is called 'face'" in fault
    assert "0, 1, 2" in hint
    assert process(folder, *words, "--class-name", "2").returncode == 0


def test_differences_are_reported_and_fail(agent: Agent, folder: Path) -> None:
    (folder / "other.txt").write_text(PEOPLENET.replace("0.0039215697906911373", "1.0"))
    done = agent("model", "import-deepstream", "other.txt")
    assert done.returncode == 1
    heading = "DIFFERS: this agent behaves differently, or the model contradicts:"
    assert f"{heading}\n  line 2: net-scale-factor=1.0: " in done.stderr
    assert "EDGE_AGENT_MODEL__MODEL=" in done.stdout


def test_faults_are_one_line(agent: Agent, folder: Path) -> None:
    (folder / "broken.txt").write_text(PEOPLENET.replace("cluster-mode=2", "cluster-mode"))
    done = process(folder, "model", "import-deepstream", "broken.txt")
    assert (done.returncode, done.stdout) == (1, "")
    (fault,) = done.stderr.splitlines()
    assert fault == ("edge-agent: broken.txt:8: 'cluster-mode': expected [group], key=value, or '#' before a comment")
    assert "cannot decode centerface" in faults(agent("model", "export-deepstream", "x.txt"))[0]
    assert "not YAML" in faults(agent("model", "export-deepstream", "x.yml"))[0]
    assert not (folder / "x.txt").exists()
