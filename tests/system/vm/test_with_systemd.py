"""The service as the package lays it out, on a real kernel: user, devices, limits, a camera that is unplugged."""

import json
import os
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from tests.fakes.broker import Broker, Listener, eventually
from tests.system.vm.conftest import DEADLINE_S, NODE, ROWS, Row, Watched, bind, load_driver

SOURCE = Path(__file__).resolve().parents[3]
UNIT = "edge-agent@cam.service"
SETTINGS = """
EDGE_AGENT_NODE=cam
EDGE_AGENT_CAMERAS__DOOR__URI=v4l2:/dev/video0
EDGE_AGENT_CAMERAS__DOOR__WIDTH=320
EDGE_AGENT_CAMERAS__DOOR__HEIGHT=180
EDGE_AGENT_MODEL__BACKEND=scripted
EDGE_AGENT_MODEL__MODEL=scripted
EDGE_AGENT_CROPS__ENABLED=false
EDGE_AGENT_OUTBOX__MIN_FREE_BYTES=0
EDGE_AGENT_HEALTH__INTERVAL_S=1
EDGE_AGENT_MQTT__HOST=127.0.0.1
"""
INSTALL = """
set -e
scripts/package/lay-out /
systemd-sysusers edge-agent.conf
systemd-tmpfiles --create edge-agent.conf
mkdir -p /opt/edge-agent/current/bin /etc/systemd/system/edge-agent@.service.d
ln -sf /usr/local/bin/edge-agent /opt/edge-agent/current/bin/
cp /usr/share/edge-agent/drop-ins/jetpack6.conf /etc/systemd/system/edge-agent@.service.d/
systemctl daemon-reload
"""


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def show(name: str) -> str:
    return run("systemctl", "show", "-p", name, "--value", UNIT)


class Service:
    """As `tests.fakes.agent.AgentProcess`."""

    @property
    def log(self) -> str:
        return run("journalctl", "-u", UNIT, "-o", "cat", "--no-pager")

    @property
    def pid(self) -> int:
        return int(show("MainPID"))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    load_driver()
    run("sh", "-c", INSTALL)
    with Broker(tmp_path_factory.mktemp("broker")) as broker, Listener(broker, "edge-agent/#") as listener:
        Path("/etc/edge-agent/cam.env").write_text(f"{SETTINGS}EDGE_AGENT_MQTT__PORT={broker.port}\n")
        run("systemctl", "start", UNIT)
        watched = Watched(Service(), listener, "cam")
        watched.sees()
        yield watched
        run("systemctl", "stop", UNIT)
        assert show("Result") == "success"


def opens(node: str) -> bool:
    """Whether root may open the node in the service's control group: only the list of devices is in its way."""
    group = Path("/sys/fs/cgroup") / show("ControlGroup").lstrip("/")
    script = 'echo $$ >"$1/cgroup.procs" && exec 3<"$2"'
    return subprocess.run(["sh", "-c", script, "sh", group, node], check=False, timeout=DEADLINE_S).returncode == 0


def test_it_opens_cameras_as_its_own_user_and_no_device_beyond_its_list(service: Watched) -> None:
    status = Path(f"/proc/{show('MainPID')}/status").read_text("ascii").split("\n")
    assert {line.split()[1] for line in status if line.startswith("Uid:")} == {run("id", "-u", "edge-agent")}
    assert "Seccomp:\t2" in status
    os.close(os.open("/dev/kmsg", os.O_RDONLY))
    assert opens(NODE) and opens("/dev/null") and not opens("/dev/kmsg")
    ROWS.append(Row("devices of jetpack6.conf", None, None, "/dev/video0 opens, /dev/kmsg does not"))


def test_check_finds_nothing_wrong_while_it_runs(service: Watched) -> None:
    """The agent holds the camera, so no other process can open it."""
    report = json.loads(run("edge-agent", "check", "--json", "--env-file", "/etc/edge-agent/cam.env"))
    found = {finding["name"]: finding for finding in report["findings"]}
    assert report["ok"] and "the running service uses it" in found["camera door"]["found"], found["camera door"]
    assert found["checked as"]["found"].startswith("edge-agent, with") and found["camera devices"]["state"] == "ok"


def test_its_memory_is_bounded_by_the_kernel(service: Watched) -> None:
    bound = Path("/sys/fs/cgroup") / show("ControlGroup").lstrip("/") / "memory.max"
    assert int(bound.read_text("ascii")) == 2 * 1024**3


def test_a_camera_is_taken_away_and_given_back(service: Watched) -> None:
    """The camera returns as a new node; udev grants the service's group access a moment later."""
    before, pid = service.counters(), show("MainPID")
    service.mark()
    bind("unbind")
    blind_s = service.blind()
    eventually(lambda: service.cannot_see("lost"), f"{service.camera()}", DEADLINE_S)
    eventually(lambda: "1 cannot see" in show("StatusText"), "its status reports it", DEADLINE_S)
    bind("bind")
    back_s = service.sees()
    assert service.published()[0] == b"None"
    eventually(lambda: service.counters()["recoveries"] > before["recoveries"], "recoveries", DEADLINE_S)
    assert (show("MainPID"), show("NRestarts")) == (pid, "0")
    ROWS.append(Row("unbind, bind under systemd", blind_s, back_s, "restarts +0, recoveries +1"))
    assert back_s < 15
