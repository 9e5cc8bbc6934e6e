"""A day of visits on an injected clock, one every ten seconds: memory, files and threads stay bounded."""

import gc
import json
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from edge_agent.core.presence.crops import CropParams
from edge_agent.core.protocol.topics import Topics
from edge_agent.mqtt.client import MqttClient
from edge_agent.mqtt.encoder import EventEncoder
from edge_agent.mqtt.params import MqttParams
from edge_agent.mqtt.publisher import Publisher, last_will
from edge_agent.outbox.params import OutboxParams
from edge_agent.outbox.sqlite import SqliteOutbox
from tests.core.presence.staged_camera import StagedCamera, textured
from tests.fakes.broker import DEADLINE_S, Broker, Gate, Listener, eventually, needs_mosquitto
from tests.fakes.mqtt_agent import fake_jpeg

VISITS = 8_640
SETTLED = VISITS // 4
EVERY_S, GONE_S = 10.0, 2.5
OUTAGES = (range(1_000, 1_360), range(5_000, 5_360))
"""The broker is away for an hour, once before and once after things have settled."""
RSS_GROWTH_BYTES = 6_000_000
FILE_BYTES = 12_000_000
BOOT = 41
SWITCH_INTERVAL_S = 0.0005
FACE, SIDE = (320.0, 240.0), 32


class Counting(Listener):
    """Keeps only the numbers of the messages."""

    seqs: List[int]

    def _note(self, client: Any, data: Any, message: Any) -> None:
        self.seqs.append(json.loads(message.payload)["seq"])


class Day:
    """Pipeline, publisher, outbox on disk and client, on the stage's clock; the test's thread is the publish thread."""

    def __init__(self, port: int, folder: Path) -> None:
        self.stage = StagedCamera()
        self.notices: queue.Queue[object] = queue.Queue()
        topics = Topics("edge-agent", "lobby")
        params = MqttParams(host="127.0.0.1", port=port, retry_min_s=0.02, retry_max_s=0.05)
        self.client = MqttClient(params, "day", last_will(topics), self.notices.put)
        bounds = OutboxParams(max_bytes=4_000_000, max_crop_bytes=2_000_000, synchronous="normal", min_free_bytes=0)
        self.outbox = SqliteOutbox(bounds, folder, self.stage.clock, "kernel", BOOT)
        self.outbox.open()
        encoder = EventEncoder(topics, BOOT, CropParams(), fake_jpeg)
        reports = [self.stage.pipeline.report()]
        self.publisher = Publisher(encoder, self.outbox, self.client, self.stage.clock, reports)
        self.pixels = textured((*FACE, 200), side=SIDE)

    def visit(self) -> None:
        """Play one visit."""
        for outcome in (
            self.stage.show(FACE, pixels=self.pixels, side=SIDE, after_s=EVERY_S - GONE_S),
            self.stage.show(after_s=GONE_S),
        ):
            self.publisher.outcome(outcome)
        self.pump(0.0)
        self.stage.events.clear()
        self.stage.reports.clear()

    def pump(self, timeout_s: float) -> None:
        """Do one step of the publish thread."""
        try:
            self.publisher.handle(self.notices.get(timeout=timeout_s) if timeout_s else self.notices.get_nowait())
            while True:
                self.publisher.handle(self.notices.get_nowait())
        except queue.Empty:
            self.publisher.pump()

    def settle(self, what: str) -> None:
        """Step until everything is sent."""
        until_t = time.monotonic() + DEADLINE_S
        while not (self.publisher.acknowledged and not self.outbox.status().pending):
            assert time.monotonic() < until_t, f"{what}: {self.client.status()}, {self.outbox.status()}"
            self.pump(0.005)


def costs(folder: Path) -> Dict[str, int]:
    gc.collect()
    return {
        "rss": int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096,
        "fds": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": threading.active_count(),
        "file": sum(path.stat().st_size for path in folder.glob("outbox.db*")),
    }


@pytest.fixture
def quick_hand_over() -> Iterator[None]:
    """Set the switch interval as the agent does; otherwise each message to the network thread may wait for 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@needs_mosquitto
@pytest.mark.usefixtures("quick_hand_over")
def test_a_day_leaks_no_memory_files_or_threads(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    with Broker(tmp_path) as broker:
        gate = Gate(broker.port)
        Counting.seqs = []
        with Counting(broker, "edge-agent/lobby/door/events") as listener:
            day = Day(gate.port, folder)
            day.client.start()
            day.settle("the first connection")
            largest = 0
            for number in range(VISITS):
                away = any(number in outage for outage in OUTAGES)
                gate.shut() if away else gate.open()
                day.visit()
                if not away and number % 25 == 0:
                    day.settle(f"visit {number}")
                if number % 100 == 0:
                    largest = max(largest, costs(folder)["file"])
                if number == SETTLED:
                    settled = costs(folder)
            day.settle("the last visit")
            after = costs(folder)
            eventually(lambda: len(set(listener.seqs)) == 2 * VISITS, "everything is heard")
            status = day.outbox.status()
        assert day.client.close(1.0)
        day.outbox.close()
        gate.close()
    first = list(dict.fromkeys(listener.seqs))
    assert first == list(range(1, 2 * VISITS + 1)), "each event, in order"
    assert (status.dropped, status.quarantined, day.outbox.faults) == (0, 0, [])
    assert after["rss"] - settled["rss"] < RSS_GROWTH_BYTES, (settled, after)
    assert (after["fds"], after["threads"]) == (settled["fds"], settled["threads"]), (settled, after)
    assert largest < FILE_BYTES and after["file"] <= settled["file"] + 1_000_000, (settled, after, largest)
