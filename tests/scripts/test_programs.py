"""The programs of scripts/lib: each has a help text; tests of the parts that need no broker."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest

from scripts.lib import generated, home_assistant, node_red
from scripts.lib.bench import readme
from scripts.lib.soak.plot import plot

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = (
    "bench.__main__", "bench.idle", "bench.micro", "bench.post", "bench.publish", "bench.scale", "bench.start",
    "bench.programs.parts", "bench.programs.script", "chaos.run", "generate", "gpu_check.run", "home_assistant",
    "dim_table", "node_red", "record_topics", "soak.run", "stream_loss", "track_table",
)  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_program_has_a_help_text(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    program = importlib.import_module(f"scripts.lib.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"]) if name == "home_assistant" else program.main()
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and shown.startswith("usage: ") and len(shown.splitlines()) > 3


def test_every_program_is_listed_above() -> None:
    folder = ROOT / "scripts" / "lib"
    found = {path for path in folder.rglob("*.py") if "\ndef main(" in path.read_text("utf-8")}
    listed = {folder / f"{name.replace('.', '/')}.py" for name in PROGRAMS}
    assert found - {folder / "bench" / "camera.py"} == listed, "bench.camera takes its orders as JSON, not as arguments"


def test_every_script_names_a_program_that_exists() -> None:
    for script in (ROOT / "scripts").iterdir():
        if script.is_file():
            words = script.read_text("utf-8").replace("\n", " ").split()
            for module in (word for word in words if word.startswith("scripts.lib.")):
                path = ROOT / module.replace(".", "/")
                assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{script.name}: {module}"


def test_only_stale_files_are_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = {"a/new.txt": "1\n", "same.txt": "2\n"}
    (tmp_path / "same.txt").write_text("2\n")
    assert generated.update(files, check=True, root=tmp_path) == 1
    assert capsys.readouterr().out == "a/new.txt: stale; run scripts/generate\n" and not (tmp_path / "a").exists()
    assert generated.update(files, check=False, root=tmp_path) == 0
    assert capsys.readouterr().out == "a/new.txt: written\n" and (tmp_path / "a/new.txt").read_text() == "1\n"
    assert generated.update(files, check=True, root=tmp_path) == 0


def test_generated_files_are_up_to_date() -> None:
    command = [sys.executable, "-m", "scripts.lib.generate", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_page_gets_the_table_of_the_run_that_it_names() -> None:
    source = "scripts/lib/bench/measured/bench.json"
    stale = f"before\n<!-- scripts/bench --table {source} -->\nold\n<!-- end -->\nafter\n"
    new = readme.renewed(stale)
    assert new.startswith("before\n<!-- ") and new.endswith("\n<!-- end -->\nafter\n")
    assert "old" not in new and "| arm |" in new and readme.renewed(new) == new


def test_the_soak_is_drawn(tmp_path: Path) -> None:
    rows = [{"t_s": float(t), "rss_mb": 50.0 + t, "fds": 9.0} for t in range(20)]
    plot(rows, ["rss_mb", "fds"], [(3.0, 5.0, "disk-full")], tmp_path / "soak.png")
    image = cv2.imread(str(tmp_path / "soak.png"))
    assert image.shape == (64 + 2 * (130 + 32), 900 + 2 * 64, 3) and len(set(image.reshape(-1, 3).sum(1))) > 5


def test_home_assistants_answer_is_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    answer = {"entities": [{"entity_id": "sensor.x", "state": "3"}], "log": ["a warning"]}
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho starting\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
    program.chmod(0o755)
    scenario = home_assistant.Scenario.__new__(home_assistant.Scenario)  # without a broker
    scenario._arguments = argparse.Namespace(python=str(program), check="check.py")
    scenario.broker, scenario.failures = SimpleNamespace(port=1883), 0
    assert home_assistant.states(scenario.home_assistant()) == {"sensor.x": "3"}
    assert scenario.failures == 1 and "FAIL no warning in the log: ['a warning']" in capsys.readouterr().out
    wanted = home_assistant.wanted()
    assert len(wanted) == len(set(wanted)) == 24 and "event.front_door_face" in wanted


def test_node_red_gets_the_shipped_flow_and_our_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "node"
    program.write_text("#!/bin/sh\necho Connected to broker\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    broker: Any = SimpleNamespace(port=4711)
    with node_red.node_red("red.js", tmp_path, broker) as lines:
        assert lines == ["Connected to broker\n"]
    flow = json.loads((tmp_path / "flow.json").read_text("utf-8"))
    assert [node["port"] for node in flow if node["type"] == "mqtt-broker"] == ["4711"]
    names = {node.get("name") for node in flow if node["type"] == "debug"}
    assert {*node_red.LIVE, *node_red.REST, node_red.BLIND} <= names
