"""`edge-agent config`, as a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOOR = "EDGE_AGENT_CAMERAS__DOOR__URI"


def edge_agent(*arguments, **environ):
    clean = {name: value for name, value in os.environ.items() if not name.upper().startswith("EDGE_AGENT_")}
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", "config", *arguments],
        cwd=ROOT,
        env={**clean, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_check_prints_ok_in_one_line(tmp_path):
    path = tmp_path / "agent.env"
    path.write_text(f"{DOOR}=test://one\nEDGE_AGENT_LOG_LEVEL=debug\n")
    done = edge_agent("check", "--env-file", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok: 2 settings given, cameras: door\n", "")


def test_check_passes_the_example_it_prints(tmp_path):
    path = tmp_path / "agent.env"
    path.write_text(edge_agent("example").stdout)
    assert path.read_text() == (ROOT / "config" / "edge-agent.env.example").read_text()
    assert edge_agent("check", "--env-file", str(path)).returncode == 0


def test_check_fails_with_one_line_per_fault_and_no_traceback(tmp_path):
    path = tmp_path / "agent.env"
    path.write_text(f"{DOOR}=test://\nEDGE_AGENT_LOG_LEVEL=loud\n")
    done = edge_agent("check", "--env-file", str(path), EDGE_AGENT_HEALTH__INTERVALS="5")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.splitlines() == [
        "edge-agent: EDGE_AGENT_HEALTH__INTERVALS: unknown setting; "
        "did you mean EDGE_AGENT_HEALTH__INTERVAL_S? [environment]",
        "edge-agent: EDGE_AGENT_LOG_LEVEL: 'loud' is not a choice; expected one of debug, info, warning, error "
        f"[{path}:2]",
    ]


def test_check_fails_without_a_camera_and_without_the_named_file(tmp_path):
    done = edge_agent("check")
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert "no camera is set" in done.stderr
    done = edge_agent("check", EDGE_AGENT_ENV_FILE=str(tmp_path / "no.env"))
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert "no.env: the env file cannot be read: No such file" in done.stderr


def test_show_prints_value_and_source_and_hides_credentials(tmp_path):
    path = tmp_path / "agent.env"
    path.write_text("EDGE_AGENT_HEALTH__INTERVAL_S=12\nEDGE_AGENT_CAMERAS__DOOR__CONTROLS__GAIN=3\n")
    environ = {DOOR: "rtsp://user:hunter2@host/1", "EDGE_AGENT_ENV_FILE": str(path)}
    done = edge_agent("show", **environ)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert f"{DOOR}=rtsp://***@host/1  # environment" in lines
    assert f"EDGE_AGENT_HEALTH__INTERVAL_S=12.0  # {path}:1" in lines
    assert f'EDGE_AGENT_CAMERAS__DOOR__CONTROLS={{"gain": 3}}  # {path}:2' in lines
    assert "EDGE_AGENT_LOG_LEVEL=info  # default" in lines
    as_json = edge_agent("show", "--json", **environ)
    shown = json.loads(as_json.stdout)
    assert shown["settings"][DOOR] == {"value": "rtsp://***@host/1", "source": "environment", "reload": "restart"}
    assert shown["settings"]["EDGE_AGENT_HEALTH__INTERVAL_S"]["value"] == 12.0
    assert len(shown["fingerprint"]) == 64
    assert "hunter2" not in done.stdout + done.stderr + as_json.stdout + as_json.stderr
