"""Virtual cameras of the kernel's `vivid` driver, an agent on one of them, and a table of the faults."""

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Protocol

import pytest

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually

NODE = "/dev/video0"
DRIVER = Path("/sys/bus/platform/drivers/vivid")
DEADLINE_S = 120.0
SEEING = (b"ON", b"OFF")
ONE_CAMERA = ("n_devs=1", "node_types=0x1", "num_inputs=1", "input_types=0x0", "multiplanar=1")


class Row(NamedTuple):
    """One fault: seconds until `None` was published, and from the return of the camera until it saw again."""

    fault: str
    blind_s: Optional[float]
    back_s: Optional[float]
    counted: str


ROWS: List[Row] = []


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table."""
    if not ROWS:
        return
    terminalreporter.write_line("| what | None after, s | sees again after, s | counted |")
    terminalreporter.write_line("|---|---|---|---|")
    for row in ROWS:
        blind, back = ("-" if value is None else f"{value:.1f}" for value in (row.blind_s, row.back_s))
        terminalreporter.write_line(f"| {row.fault} | {blind} | {back} | {row.counted} |")


def load_driver(*more: str) -> None:
    """Load the module again with these parameters; no process may have a node open."""
    subprocess.run(["modprobe", "-r", "vivid"], check=True, timeout=DEADLINE_S)
    subprocess.run(["modprobe", "vivid", *ONE_CAMERA, *more], check=True, timeout=DEADLINE_S)
    eventually(lambda: os.access(NODE, os.R_OK | os.W_OK), f"{NODE} is there", DEADLINE_S)


def bind(how: str) -> None:
    """`unbind` removes the camera while it is in use; `bind` restores it."""
    (DRIVER / how).write_text("vivid.0")


def control(**values: Any) -> None:
    """Set controls of the camera; buttons take any number."""
    chosen = ",".join(f"{name}={value}" for name, value in values.items())
    subprocess.run(["v4l2-ctl", "-d", NODE, "-c", chosen], check=True, timeout=DEADLINE_S)


@pytest.fixture(scope="session", autouse=True)
def _virtual_machine() -> None:
    if os.environ.get("LANE_VM") != "1":
        pytest.skip("needs a kernel whose cameras may be broken: scripts/vm-lane")


@pytest.fixture
def driver(_virtual_machine: None) -> Iterator[None]:
    """Load the driver with one camera and its defaults."""
    load_driver()
    yield


class Agent(Protocol):
    """Started by the test, or by systemd."""

    @property
    def log(self) -> str:
        """What it has written."""

    @property
    def pid(self) -> int:
        """Of its process."""


class Watched:
    """The agent with one camera, `door`, seen through its broker."""

    def __init__(self, agent: Agent, listener: Listener, node: str = "n") -> None:
        self._agent, self._listener, self._base = agent, listener, f"edge-agent/{node}"
        self._since: Dict[str, int] = {}

    @property
    def presence(self) -> Optional[bytes]:
        """Retained now."""
        return self._listener.last(f"{self._base}/door/presence")

    @property
    def log(self) -> str:
        """What the agent has written."""
        return self._agent.log

    def camera(self) -> Dict[str, Any]:
        """Of the newest health."""
        health = json.loads(self._listener.last(f"{self._base}/health") or b"{}")
        return dict(health.get("cameras", {}).get("door", {"counters": {}, "sight": ""}))

    def counters(self) -> Dict[str, int]:
        """Of the camera."""
        return dict(self.camera()["counters"])

    def sees(self, deadline_s: float = DEADLINE_S) -> float:
        """Wait until presence is known; returns the seconds."""
        return self._wait(lambda: self.presence in SEEING, "the camera sees", deadline_s)

    def blind(self, deadline_s: float = DEADLINE_S) -> float:
        """Wait for `None`; returns the seconds."""
        return self._wait(lambda: self.presence == b"None", "None is published", deadline_s)

    def cannot_see(self, sight: str) -> bool:
        """Whether the camera is published as unavailable, with this reason everywhere."""
        attributes = json.loads(self._listener.last(f"{self._base}/door/presence/attributes"))
        offline = self._listener.last(f"{self._base}/door/availability") == b"offline"
        return offline and attributes["reason"] == sight == self.camera()["sight"]

    def descriptors(self) -> Dict[str, int]:
        """Number of open descriptors, and how many of them are video nodes."""
        links = []
        for entry in Path(f"/proc/{self._agent.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(entry))
        return {"all": len(links), "video": sum(link.startswith("/dev/video") for link in links)}

    def mark(self) -> None:
        """Let `published` return only values from now on."""
        self._since = {topic: len(self._heard(topic)) for topic in ("presence", "availability")}

    def published(self, topic: str = "presence") -> List[bytes]:
        """Every value since `mark`."""
        return self._heard(topic)[self._since[topic] :]

    def grows(self, name: str, by: int = 1) -> str:
        """Wait until a counter has grown since now; returns it in words."""
        before = self.counters().get(name, 0)
        self._wait(lambda: self.counters().get(name, 0) >= before + by, f"{name} grows", DEADLINE_S)
        return f"{name} +{self.counters()[name] - before}"

    def _heard(self, topic: str) -> List[bytes]:
        return self._listener.payloads(f"{self._base}/door/{topic}")

    def _wait(self, true: Any, what: str, deadline_s: float) -> float:
        began_t = time.monotonic()
        eventually(true, f"{what}; {self.camera()}\n{self.log[-2000:]}", deadline_s)
        return time.monotonic() - began_t


@contextlib.contextmanager
def watched(folder: Path, uri: str, **more: Any) -> Iterator[Watched]:
    """`edge-agent run` with a camera `door`, and a mosquitto beside it."""
    settings = {
        "CAMERAS__DOOR__URI": uri, "HEALTH__INTERVAL_S": 1, "CROPS__ENABLED": "false", "OUTBOX__MIN_FREE_BYTES": 0,
        **more,
    }  # fmt: skip
    with Broker(folder) as broker, Listener(broker, "edge-agent/#") as listener:
        with AgentProcess({**settings, "MQTT__PORT": broker.port}) as agent:
            it = Watched(agent, listener)
            it.sees()
            yield it
            assert agent.stop() < 60
            assert agent.process.returncode == 0
