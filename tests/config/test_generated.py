"""The files generated from the settings' declarations are up to date, complete and correct."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from edge_agent.config import docs as config_docs
from edge_agent.config import settings as config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "config" / "edge-agent.env.example"


def generate(*arguments):
    command = [sys.executable, "-m", "edge_agent.config.docs", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_generated_files_are_fresh():
    done = generate("--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_stale_file_is_reported_and_written_again(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    stale = tmp_path / "config" / "README.md"
    stale.write_text("old")
    done = generate("--check", "--root", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "config/README.md: stale; run scripts/generate\n")
    assert stale.read_text() == "old"
    done = generate("--root", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "config/README.md: written\n")
    assert generate("--check", "--root", str(tmp_path)).returncode == 0


def test_the_example_loads_as_it_is():
    settings = config.load_settings({}, EXAMPLE)
    config.require_cameras(settings)
    bare = config.load_settings({"EDGE_AGENT_CAMERAS__DOOR__URI": "v4l2:/dev/video0"})
    assert config.changes(bare, settings) == ([], [])


def test_the_example_loads_with_every_line_in_force(tmp_path):
    path = tmp_path / "all.env"
    path.write_text(re.sub(r"(?m)^#(?=EDGE_AGENT_)", "", EXAMPLE.read_text("utf-8")), "utf-8")
    loaded = config.load({}, path)
    assert len(loaded.origins) == len(config.CATALOGUE.variables)
    assert loaded.settings.cameras["door"].controls == {"gain": 100}


def test_the_example_holds_every_default(tmp_path):
    examples = {path for path in config_docs._EXAMPLES if path[-1] != "*"}
    text = re.sub(r"(?m)^#(?=EDGE_AGENT_)", "", EXAMPLE.read_text("utf-8"))
    path = tmp_path / "all.env"
    path.write_text(text, "utf-8")
    bare = config.values(config.load_settings({"EDGE_AGENT_CAMERAS__DOOR__URI": "v4l2:/dev/video0"}))
    for where, (variable, value) in config.values(config.load_settings({}, path)).items():
        if variable.path not in examples and where[-1] not in ("zones", "controls"):
            assert value == bare[where][1], where


def test_every_setting_is_in_both_files():
    table, example = config_docs.readme(), config_docs.example()
    for variable in config.CATALOGUE.variables:
        if variable.member:
            continue
        name = "EDGE_AGENT_" + "__".join(variable.path).upper()
        assert f"`{name.replace('*', '<CAMERA>')}`" in table
        assert f"\n{'' if variable.required else '#'}{name.replace('*', 'DOOR')}=" in example


def test_nothing_of_this_machine_is_in_the_files():
    for make in config_docs.FILES.values():
        assert f"={config.default_node()}\n" not in make()
        assert str(ROOT) not in make()
