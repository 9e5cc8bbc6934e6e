"""Watches a face over RTSP connections that lose packets, through the real agent, a broker and a subscriber.

A face is in view all the time. So presence may be ON, or None while too much is damaged, but never OFF, and no visit
may end. Needs mosquitto and gst-rtsp-server. Exit code 1 when a connection breaks this.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import cv2

from edge_agent.capture.synthetic.source import ASTRONAUT
from tests.fakes import rtsp_server
from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener
from tests.fakes.rtsp_server import LossyProxy, RtspServer
from tests.fakes.waiting import eventually
from tests.fakes.weights import centerface_models_dir

FPS = 10


class Line(NamedTuple):
    """One connection."""

    loss: float
    gop_s: int

    @property
    def camera(self) -> str:
        return f"loss{self.loss * 100:.0f}-key{self.gop_s}"


def observe(broker: Broker, lines: List[Line], seconds: float, folder: Path) -> List[Dict[str, Any]]:
    """One row per connection: what the subscriber received in so many seconds."""
    image = folder / "face.png"
    cv2.imwrite(str(image), cv2.resize(cv2.imread(str(ASTRONAUT)), (640, 480)))
    settings: Dict[str, Any] = {"MQTT__PORT": broker.port, "LOG_LEVEL": "warning"}
    settings["MODEL__MODELS_DIR"] = str(centerface_models_dir())
    proxies = {}
    with ExitStack() as stack:
        for line in lines:
            server = stack.enter_context(RtspServer(image, FPS, line.gop_s * FPS))
            proxies[line] = LossyProxy(server.port)
            stack.callback(proxies[line].close)
            settings[f"CAMERAS__{line.camera.upper()}__URI"] = f"rtsp://127.0.0.1:{proxies[line].port}/live"
        listener = stack.enter_context(Listener(broker, "edge-agent/n/#"))
        stack.enter_context(AgentProcess(settings, scripted=False))
        for line in lines:
            topic = f"edge-agent/n/{line.camera}/presence"
            eventually(lambda topic=topic: listener.last(topic) == b"ON", f"{line.camera}: presence ON", 120)
        for line, proxy in proxies.items():
            proxy.loss = line.loss
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            time.sleep(1.0)
            left = seconds - (time.monotonic() - started)
            if sys.stderr.isatty():
                print(f"\r{left:5.0f} s left", end="", file=sys.stderr, flush=True)
        # Before the agent stops, which ends all visits.
        health = json.loads(listener.last("edge-agent/n/health"))
        messages = list(listener.heard)
    return [row_of(line, proxies[line].dropped, messages, health["cameras"][line.camera]) for line in lines]


def row_of(line: Line, dropped: int, messages: List[Any], health: Dict[str, Any]) -> Dict[str, Any]:
    """Counts of one connection's messages."""
    presence = [m.payload for m in messages if m.topic == f"edge-agent/n/{line.camera}/presence"]
    events = [json.loads(m.payload) for m in messages if m.topic == f"edge-agent/n/{line.camera}/events"]
    first = presence.index(b"ON")
    counters = health["counters"]
    return {
        "loss": line.loss,
        "gop_s": line.gop_s,
        "packets_dropped": dropped,
        "frames": counters["frames"],
        "damaged": counters["dropped_damaged"],
        "off": presence[first:].count(b"OFF"),
        "none": presence[first:].count(b"None"),
        "ends": [event["end_reason"] for event in events if event["event_type"] == "end"],
    }


def main() -> int:
    """Run all connections at once and print a table."""
    parser = argparse.ArgumentParser(prog="scripts/stream-loss", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default 600)")
    parser.add_argument("--loss", type=float, nargs="+", default=[0.01, 0.05, 0.2], help="parts of the packets")
    parser.add_argument("--gop-s", type=int, nargs="+", default=[1, 4, 10], help="seconds between keyframes")
    args = parser.parse_args()
    why = rtsp_server.missing()
    if why:
        print(f"scripts/stream-loss: {why}", file=sys.stderr)
        return 77
    lines = [Line(loss, gop_s) for gop_s in args.gop_s for loss in args.loss]
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder)) as broker:
        rows = observe(broker, lines, args.seconds, Path(folder))
    print("| packets lost | s between keyframes | packets dropped | frames | damaged | OFF | None | end |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        ends = ", ".join(row["ends"]) or "0"
        figures = (f"{row['loss']:.0%}", row["gop_s"], row["packets_dropped"], row["frames"], row["damaged"])
        print("| " + " | ".join(map(str, (*figures, row["off"], row["none"], ends))) + " |")
    wrong = [row for row in rows if row["off"] or row["ends"]]
    print(f"{len(rows)} connections, {args.seconds:.0f} s: {len(wrong)} of them published OFF or ended a visit")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
