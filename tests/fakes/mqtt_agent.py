"""The MQTT half of an agent, real parts throughout, driven by the test's own thread."""

import queue
import random
import time
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from edge_agent.core.presence.crops import CropParams
from edge_agent.core.protocol.topics import Topics
from edge_agent.core.types import (
    Box,
    CameraReport,
    Crop,
    FaceEvent,
    FrameInfo,
    Moment,
    Outcome,
    Presence,
    Quality,
    Sight,
)
from edge_agent.mqtt.client import MqttClient
from edge_agent.mqtt.client_events import Received, Subscription
from edge_agent.mqtt.encoder import EventEncoder
from edge_agent.mqtt.handlers import PublishHandler
from edge_agent.mqtt.params import MqttParams
from edge_agent.mqtt.publisher import Publisher, last_will
from edge_agent.outbox.memory import MemoryOutbox
from edge_agent.outbox.params import OutboxParams
from tests.fakes.broker import DEADLINE_S

QUICK = {"retry_min_s": 0.05, "retry_max_s": 0.2}
HEALTH: Mapping[str, Any] = {"state": "ok", "reasons": [], "clock_synced": True}
INFO: Mapping[str, Any] = {"version": "0.1", "started_at": "2026-11-22T17:05:12.483120Z"}
EVENT_ID = "019ab3c4-0000-7000-8000-{:012x}"
START_AT = datetime(2026, 11, 22, 17, 5, 12, 483120, tzinfo=timezone.utc)


def moment(t: float = 0.0) -> Moment:
    return Moment(t, START_AT + timedelta(seconds=t))


def now() -> Moment:
    return Moment(time.monotonic(), datetime.now(timezone.utc))


def fake_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Bytes that begin like a JPEG; the length grows with image size and quality."""
    return b"\xff\xd8" + bytes(pixels.shape[0] * pixels.shape[1] * quality // 400)


def event(
    seq: int,
    event_type: str = "start",
    at: Optional[Moment] = None,
    crop: bool = False,
    camera: str = "door",
    visit: int = 1,
    zones: Tuple[str, ...] = (),
    side: int = 64,
) -> FaceEvent:
    at = at or moment(seq)
    info = FrameInfo(camera, 100 + seq, at, 1280, 800)
    quality = Quality(0.82, 213.4, 142, 0.47, False)
    end = event_type == "end"
    best = Crop(np.full((side, side), 90, np.uint8), Box(0.3, 0.1, 0.6, 0.5), quality, info)
    return FaceEvent(
        event_type, EVENT_ID.format(visit), seq, 17, info, Moment(at.t - 2.0, at.at - timedelta(seconds=2)),
        at if end else None, Box(0.4121, 0.221, 0.5233, 0.4172), 0.91, 0.96, "max", zones, quality,
        best if crop and end else None, "left" if end else None, at.t + 0.01, 0.002,
    )  # fmt: skip


def report(presence: str = "OFF", sight: Sight = Sight.OK, faces: Optional[int] = 0, **more: Any) -> CameraReport:
    camera = more.pop("camera", "door")
    return CameraReport(camera, Presence(presence), sight, more.pop("since", now()), faces, **more)


STARTING = report("None", Sight.STARTING, None, zones={"desk": Presence.UNKNOWN})


class Recorder(PublishHandler):
    """Subscribes, and records the messages that the publisher hands to it."""

    def __init__(self, notices: List[object], subscriptions: Sequence[Subscription]) -> None:
        self.subscriptions, self._notices = subscriptions, notices

    def received(self, message: Received, now: Moment) -> None:
        self._notices.append(message)


class Agent:
    """Client, publisher and outbox as the app wires them; `step` is what the publish thread does."""

    def __init__(
        self,
        port: int,
        node: str = "lobby",
        reports: Sequence[CameraReport] = (STARTING,),
        outbox: OutboxParams = OutboxParams(),  # noqa: B008
        on_notice: Optional[Callable[[object], None]] = None,
        client_id: Optional[str] = None,
        subscriptions: Sequence[Subscription] = (),
        **params: Any,
    ) -> None:
        self.skipped_s = 0.0
        self._health: Optional[Mapping[str, Any]] = None
        self._connected = False
        self.pending: queue.Queue[object] = queue.Queue()
        self.notices: List[object] = []
        self.topics = Topics("edge-agent", node)
        settings = MqttParams(host="127.0.0.1", port=port, **{**QUICK, **params})
        self.client = MqttClient(
            settings, client_id or node, last_will(self.topics), on_notice or self.pending.put, jitter=random.Random(1)
        )
        self.outbox = MemoryOutbox(outbox, time.monotonic)
        encoder = EventEncoder(self.topics, 41, CropParams(), fake_jpeg, settings.max_packet_bytes)
        self.publisher = Publisher(
            encoder, self.outbox, self.client, self.clock, reports, {"door": {"delay_off_s": 2.0}}
        )
        self.publisher.register(Recorder(self.notices, subscriptions))
        self.publisher.info(INFO)

    def clock(self) -> Moment:
        """The real one, plus what the test has skipped."""
        real = now()
        return Moment(real.t + self.skipped_s, real.at + timedelta(seconds=self.skipped_s))

    def report_health(self, **more: Any) -> None:
        """Publish a health report as the publish stage does, with the connection as of now."""
        self._health = more
        self.publisher.health({**HEALTH, **more, "mqtt": self.publisher.link().payload()})

    def put(self, *events: FaceEvent) -> None:
        """As the infer thread's outcome would."""
        self.publisher.outcome(Outcome("door", events))

    def report(self, report: CameraReport) -> None:
        self.publisher.outcome(Outcome(report.camera, report=report))

    def step(self) -> None:
        for item in self.take(0.01):
            self.notices.append(item)
            self.publisher.handle(item)
        if self.publisher.connected and not self._connected and self._health is not None:
            self.report_health(**self._health)
        self._connected = self.publisher.connected
        self.publisher.pump()

    def take(self, timeout_s: float) -> List[object]:
        items: List[object] = []
        try:
            items.append(self.pending.get(timeout=timeout_s))
            while True:
                items.append(self.pending.get_nowait())
        except queue.Empty:
            return items

    def until(self, true: Callable[[], Any], what: str = "", deadline_s: float = DEADLINE_S) -> None:
        """Step until `true()`."""
        end = time.monotonic() + deadline_s
        while not true():
            assert time.monotonic() < end, f"did not happen within {deadline_s} s: {what}; {self.client.status()}"
            self.step()

    def settled(self) -> bool:
        """Everything is sent and acknowledged."""
        return self.client.status().connected and self.publisher.acknowledged and not self.outbox.status().pending

    def __enter__(self) -> "Agent":
        self.client.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.client.close(1.0), "the network thread did not end"
