"""Measures the latency from a face to a subscriber, the cost for the infer thread, and a fleet on one broker.

    scripts/bench-publish

A benchmark, not a test, with the durable outbox; prints distributions beside their goals; exit code 1 when one is
missed. Raw sockets simulate the fleet: it shows the capacity of one broker, with messages like the agent's.
"""

import argparse
import json
import multiprocessing
import selectors
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import deque
from datetime import datetime
from pathlib import Path
from typing import Any, Deque, Dict, List, NamedTuple, Sequence, Tuple

from edge_agent.capture.synthetic.scene import Scene, SceneFace
from edge_agent.core.presence.crops import CropParams
from edge_agent.core.protocol.topics import Topics
from edge_agent.core.types import Outcome
from edge_agent.host import jpeg
from edge_agent.host.clock import SystemClock
from edge_agent.mqtt.client import MqttClient
from edge_agent.mqtt.encoder import EventEncoder
from edge_agent.mqtt.params import MqttParams
from edge_agent.mqtt.publisher import Publisher, last_will
from edge_agent.outbox.params import OutboxParams
from edge_agent.outbox.sqlite import SqliteOutbox
from edge_agent.runtime.publish_queue import PublishQueue
from edge_agent.runtime.stages import PublishStage
from edge_agent.runtime.worker import Worker
from scripts.lib.chaos.ledger import script
from scripts.lib.soak.run import peak_rss_mb, sample
from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually
from tests.fakes.mqtt_agent import HEALTH, INFO, event, now, report
from tests.fakes.proxy import PUBACK, PUBLISH, packets

P50_MS, P99_MS, ENQUEUE_P99_US = 5.0, 20.0, 50.0
SWITCH_INTERVAL_S = 0.0005
EVENTS_A_SECOND = 4.0
PROMPT = "set_tcp_nodelay true\n"
"""Otherwise the broker delays a message by 40 ms while the subscriber has not acknowledged the one before."""
BROKER = PROMPT + "max_queued_messages 0\nmax_connections -1\n"


class Figures(NamedTuple):
    """A distribution."""

    count: int
    p50: float
    p99: float
    most: float

    def __str__(self) -> str:
        return f"{self.count} values, p50 {self.p50:.2f}, p99 {self.p99:.2f}, max {self.most:.2f}"


def figures(values: Sequence[float]) -> Figures:
    """Return the distribution of at least one value."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return Figures(len(ordered), ordered[last // 2], ordered[min(last, int(last * 0.99 + 0.5))], ordered[last])


def event_latency(seconds: float) -> Figures:
    """Return milliseconds from the end of inference to the subscriber, of every "start" of a busy scene."""
    places = [(0.14 + 0.24 * column, 0.27 + 0.46 * row) for row in range(2) for column in range(4)]
    faces = [SceneFace(0.055 + 0.1 * n, 0.255 + 0.1 * n, (at, at), (0.28,)) for n, at in enumerate(places)]
    late_ms: List[float] = []

    class Timed(Listener):
        def _note(self, client: Any, data: Any, message: Any) -> None:
            heard_at = time.time()
            body = json.loads(message.payload)
            if body.get("event_type") == "start":
                inferred_ms = body["latency_ms"]["capture_to_infer"] + body["latency_ms"]["infer"]
                exposed_at = datetime.fromisoformat(body["ts"].replace("Z", "+00:00")).timestamp()
                late_ms.append(1000.0 * (heard_at - exposed_at) - inferred_ms)
            super()._note(client, data, message)

    with tempfile.TemporaryDirectory() as name, Broker(Path(name), PROMPT) as broker:
        (Path(name) / "scene.json").write_text(script(Scene(tuple(faces), period_s=1.0)))
        settings = {
            **{
                f"CAMERAS__{camera}__URI": f"test://one?script={name}/scene.json&size=320x240&fps=50"
                for camera in ("A", "B")
            },
            "MQTT__PORT": broker.port, "TRACKER__MAX_LOST_S": 0.1, "LOG_LEVEL": "warning", "OUTBOX__STORE": "disk",
        }  # fmt: skip
        with Timed(broker, "edge-agent/n/+/events") as listener, AgentProcess(settings):
            eventually(lambda: listener.heard, "the first event")
            time.sleep(seconds)
    return figures(late_ms)


def enqueue_cost(seconds: float) -> Tuple[Figures, Figures]:
    """Return the infer thread's time to enqueue an event with its crop, in microseconds: elapsed, and processor time.

    The publish thread works meanwhile; the difference between the two is waiting for a lock or for a processor.
    """
    publish_queue, clock = PublishQueue(), SystemClock()
    costs: List[float] = []
    processor: List[float] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        with tempfile.TemporaryDirectory() as name, Broker(Path(name)) as broker:
            topics = Topics("edge-agent", "lobby")
            outbox = SqliteOutbox(OutboxParams(), Path(name), clock, "kernel", 1)
            params = MqttParams(host="127.0.0.1", port=broker.port)
            client = MqttClient(params, "bench", last_will(topics), publish_queue.put)
            encoder = EventEncoder(topics, 41, CropParams(), jpeg.encoder())
            publisher = Publisher(encoder, outbox, client, clock, [report()])
            stage = PublishStage(publish_queue, publisher, lambda: HEALTH, lambda: INFO, clock)

            def setup() -> None:
                outbox.open()
                client.start()

            def teardown() -> None:
                client.close(1.0)
                outbox.close()

            with Worker("publish", stage.step, setup, teardown, stop_within_s=5.0) as worker:
                eventually(lambda: client.status().connected, "connected")
                until_t, seq = time.monotonic() + seconds, 0
                while time.monotonic() < until_t and worker.alive:
                    seq += 1
                    outcome = Outcome("door", (event(seq, ("start", "end")[seq % 2], now(), crop=True, side=160),))
                    started_t, worked_s = time.perf_counter(), time.thread_time()
                    publish_queue.put_outcome(outcome)
                    processor.append(1e6 * (time.thread_time() - worked_s))
                    costs.append(1e6 * (time.perf_counter() - started_t))
                    time.sleep(0.005)
    finally:
        sys.setswitchinterval(before)
    return figures(costs), figures(processor)


class Fleet(NamedTuple):
    """Counts and times of a fleet's events."""

    sent: int
    acknowledged: int
    heard: int
    out_of_order: int
    seconds: float
    acknowledged_ms: Figures
    broker_cpu_s: float
    broker_peak_mb: float


def fleet(agents: int, seconds: float, processes: int = 2) -> Fleet:
    """Run so many agents on one broker, each at four events a second."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    ready, stop = context.Event(), context.Event()
    with tempfile.TemporaryDirectory() as name, Broker(Path(name), BROKER) as broker:
        hearing = context.Process(target=_hear, args=(broker.port, ready, stop, results))
        hearing.start()
        ready.wait(30)
        parts = [range(part, agents, processes) for part in range(processes)]
        sending = [context.Process(target=_send, args=(broker.port, list(part), seconds, results)) for part in parts]
        started_t = time.monotonic()
        for process in sending:
            process.start()
        sent = [results.get(timeout=seconds + 60) for _ in sending]
        took_s = time.monotonic() - started_t
        stop.set()
        heard, disorder = results.get(timeout=60)
        broker_cpu_s, broker_peak_mb = sample(broker.pid)["cpu_s"], peak_rss_mb(broker.pid)
        for process in (*sending, hearing):
            process.join(30)
    return Fleet(
        sum(t[0] for t in sent),
        sum(t[1] for t in sent),
        heard,
        disorder,
        took_s,
        figures([ms for t in sent for ms in t[2]]),
        broker_cpu_s,
        broker_peak_mb,
    )


def _send(port: int, numbers: List[int], seconds: float, results: Any) -> None:
    """Connect one process's share of the agents, publish evenly with QoS 1, and count acknowledgements."""
    selector = selectors.DefaultSelector()
    links: Dict[int, socket.socket] = {}
    for number in numbers:
        link = links[number] = socket.create_connection(("127.0.0.1", port), 30.0)
        link.sendall(_connect(f"fleet-{number}"))
        link.recv(64)
        link.setblocking(False)
        selector.register(link, selectors.EVENT_READ)
    payload = json.dumps({"schema": "edge-agent.face-event/1", "padding": "x" * 950}).encode()
    sent = 0
    waiting: Dict[socket.socket, Deque[float]] = {link: deque() for link in links.values()}
    late_ms: List[float] = []
    rounds = int(seconds * EVENTS_A_SECOND)
    began_t = time.monotonic()
    for seq in range(1, rounds + 1):
        for place, number in enumerate(numbers):
            topic = f"fleet/{number}/door/events".encode()
            body = struct.pack(">H", len(topic)) + topic + struct.pack(">HI", seq, seq) + payload
            waiting[links[number]].append(time.monotonic())
            links[number].sendall(bytes((PUBLISH << 4 | 2,)) + _length(len(body)) + body)
            sent += 1
            due_t = began_t + (seq - 1 + place / len(numbers)) / EVENTS_A_SECOND
            while time.monotonic() < due_t:
                late_ms += _acks(selector, waiting, due_t - time.monotonic())
    until_t = time.monotonic() + 15.0
    while len(late_ms) < sent and time.monotonic() < until_t:
        late_ms += _acks(selector, waiting, 0.1)
    results.put((sent, len(late_ms), late_ms))


def _acks(selector: selectors.BaseSelector, waiting: Dict[socket.socket, Deque[float]], wait_s: float) -> List[float]:
    """Return the milliseconds of each acknowledgement; those of a link arrive in the order of its events."""
    late_ms = []
    for key, _ in selector.select(max(0.0, wait_s)):
        link: Any = key.fileobj
        count = len(link.recv(65536)) // 4
        late_ms += [1000.0 * (time.monotonic() - waiting[link].popleft()) for _ in range(count)]
    return late_ms


def _hear(port: int, ready: Any, stop: Any, results: Any) -> None:
    """Subscribe with QoS 1, acknowledge all messages, and check each agent's order."""
    link = socket.create_connection(("127.0.0.1", port), 30.0)
    link.sendall(_connect("hears-all"))
    link.recv(64)
    wanted = b"fleet/#"
    link.sendall(bytes((0x82, 5 + len(wanted), 0, 1)) + struct.pack(">H", len(wanted)) + wanted + b"\x01")
    newest: Dict[bytes, int] = {}
    counts = {"heard": 0, "disorder": 0}

    def listen() -> None:
        for packet in packets(link):
            if packet[0] >> 4 != PUBLISH:
                ready.set()
                continue
            at = 2
            while packet[at - 1] & 0x80:
                at += 1
            end = at + 2 + int.from_bytes(packet[at : at + 2], "big")
            topic, packet_id = packet[at + 2 : end], packet[end : end + 2]
            seq = int.from_bytes(packet[end + 2 : end + 6], "big")
            counts["disorder"] += seq != newest.get(topic, 0) + 1
            newest[topic] = seq
            counts["heard"] += 1
            link.sendall(bytes((PUBACK << 4, 2)) + packet_id)

    threading.Thread(target=listen, daemon=True).start()
    stop.wait(600)
    heard = -1
    while heard != counts["heard"]:
        heard = counts["heard"]
        time.sleep(0.5)
    results.put((heard, counts["disorder"]))


def _connect(client_id: str) -> bytes:
    """Return a CONNECT of MQTT 3.1.1: clean session, keep-alive one minute."""
    body = b"\x00\x04MQTT\x04\x02\x00\x3c" + struct.pack(">H", len(client_id)) + client_id.encode()
    return bytes((0x10, len(body))) + body


def _length(size: int) -> bytes:
    """Encode a variable byte integer below 16,384."""
    return bytes((size,)) if size < 128 else bytes((size & 0x7F | 0x80, size >> 7))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench-publish", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of each part")
    parser.add_argument("--agents", type=int, default=500)
    args = parser.parse_args()
    latency = event_latency(args.seconds)
    cost, processor = enqueue_cost(args.seconds)
    many = fleet(args.agents, args.seconds)
    goals = {
        f"event to subscriber beyond inference, ms: {latency}; goal p50 {P50_MS:g}, p99 {P99_MS:g}":
            latency.p50 <= P50_MS and latency.p99 <= P99_MS,
        f"enqueueing an event, us: {cost}; processor time {processor.p50:.2f} and {processor.p99:.2f}; "
        f"goal p99 {ENQUEUE_P99_US:g}": cost.p99 <= ENQUEUE_P99_US,
        f"{args.agents} agents, {many.sent / many.seconds:.0f} events/s: {many.sent} sent, {many.acknowledged} "
        f"acknowledged, {many.heard} heard, {many.out_of_order} out of order; goal none lost":
            many.sent == many.acknowledged == many.heard and not many.out_of_order,
    }  # fmt: skip
    for line, met in goals.items():
        print(f"{line}: {'met' if met else 'MISSED'}")
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
