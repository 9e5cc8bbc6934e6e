"""The publisher, as subscribers see it through a real broker."""

import json
import re
import signal
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import pytest

from edge_agent.core.presence.crops import CropParams
from edge_agent.core.protocol.commands import Command, CommandGuard, CommandResult, CommandRules
from edge_agent.core.protocol.messages import Message
from edge_agent.core.protocol.overrides import Overrides
from edge_agent.core.protocol.topics import Topics
from edge_agent.core.types import Outcome, Sight
from edge_agent.mqtt.client_events import Acked, Connected, Disconnected, LinkStatus, Received, Rejected, Subscription
from edge_agent.mqtt.commands import CommandActions, CommandHandler
from edge_agent.mqtt.encoder import EventEncoder
from edge_agent.mqtt.publisher import WINDOW, Publisher
from edge_agent.outbox.memory import MemoryOutbox
from edge_agent.outbox.params import OutboxParams
from tests.fakes.broker import VERSIONS, Broker, Gate, Listener, eventually, needs_mosquitto
from tests.fakes.clock import FakeClock
from tests.fakes.mqtt_agent import INFO, STARTING, Agent, event, now, report
from tests.fakes.proxy import Passed, RecordingProxy

NODE = "edge-agent/lobby"
DOOR = f"{NODE}/door"
EVENTS = f"{DOOR}/events"
REQUESTS = Subscription(f"{NODE}/request/+", as_published=True)
both_versions = pytest.mark.parametrize("version", VERSIONS)


def seqs(listener: Listener, topic: str = EVENTS) -> List[int]:
    """First arrivals, in order of arrival; gaps not among them."""
    read = [json.loads(payload) for payload in listener.payloads(topic)]
    return list(dict.fromkeys(one["seq"] for one in read if "seq" in one))


def gaps(listener: Listener) -> List[Any]:
    read = [json.loads(payload) for payload in listener.payloads(EVENTS)]
    return [(one["from_seq"], one["to_seq"], one["reason"]) for one in read if "from_seq" in one]


@needs_mosquitto
@both_versions
def test_the_order_at_every_connect(tmp_path: Path, version: str) -> None:
    """According to the log of the broker."""
    wanted = [
        "SUBSCRIBE", f"{NODE}/info", f"{DOOR}/availability", f"{DOOR}/presence", f"{DOOR}/presence/attributes",
        f"{DOOR}/face_count", f"{DOOR}/zones/desk/presence", "homeassistant/device/lobby/config",
        f"{NODE}/availability", f"{NODE}/health", *([f"{NODE}/response/selftest"] if version == "3.1.1" else []),
        EVENTS, EVENTS,
    ]  # fmt: skip
    with Broker(tmp_path) as broker:
        gate = Gate(broker.port)
        agent = Agent(gate.port, protocol=version, subscriptions=[REQUESTS])
        agent.publisher.set_discovery([Message("homeassistant/device/lobby/config", b"{}", retain=True)])
        agent.report_health()
        with Listener(broker, f"{NODE}/#", version=version) as listener, agent:
            for connect in range(2):
                agent.put(event(2 * connect + 1), event(2 * connect + 2))
                agent.until(agent.settled)
                gate.shut()
                agent.until(lambda: not agent.client.status().connected)
                gate.open()
            pattern = r"Received (SUBSCRIBE|PUBLISH) from lobby(?: \(.*?, '([^']+)')?"
            seen = [topic or kind for kind, topic in re.findall(pattern, broker.log.read_text("utf-8"))]
            second = seen.index("SUBSCRIBE", 1)
            assert seen[:second] == wanted
            assert seen[second : second + len(wanted)] == wanted
            eventually(lambda: seqs(listener) == [1, 2, 3, 4])
        gate.close()


@needs_mosquitto
@both_versions
def test_retained_topics_and_their_properties(tmp_path: Path, version: str) -> None:
    with Broker(tmp_path) as broker, Listener(broker, version=version, qos=1) as listener:
        with Agent(broker.port, protocol=version) as agent:
            agent.report_health()
            agent.report(report("ON", faces=1, best_score=0.9, event_ids=(event(1).event_id,), zones={}))
            agent.put(event(1), event(2, "end", crop=True))
            agent.until(agent.settled)
            eventually(lambda: seqs(listener) == [1, 2] and listener.last(f"{NODE}/health"))
            with Listener(broker, version=version) as late:
                eventually(lambda: len(late.heard) >= 8)
                assert {heard.topic: heard.retain for heard in late.heard} == {
                    f"{NODE}/{name}": True
                    for name in (
                        "availability", "info", "health", "door/availability", "door/presence", "door/face_count",
                        "door/presence/attributes", "door/zones/desk/presence",
                    )
                }  # fmt: skip
                assert (late.last(f"{DOOR}/presence"), late.last(f"{DOOR}/face_count")) == (b"ON", b"1")
        assert {heard.topic: heard.qos for heard in listener.heard}[f"{NODE}/health"] == 0
        assert {heard.qos for heard in listener.heard if not heard.topic.endswith("health")} == {1}
        if version == "5":
            crop = next(heard for heard in listener.heard if "/crops/" in heard.topic)
            health = next(heard for heard in listener.heard if heard.topic.endswith("/health"))
            assert crop.properties.ContentType == "image/jpeg"
            assert dict(crop.properties.UserProperty)["event_id"] == event(1).event_id
            assert health.properties.MessageExpiryInterval == 180


@needs_mosquitto
@both_versions
def test_an_image_is_retained_only_where_the_broker_expires_it(tmp_path: Path, version: str) -> None:
    image = Message(f"{DOOR}/face/image", b"\xff\xd8face", 0, True, "image", "image/jpeg", expiry_s=60)

    def retained(marker: str) -> Optional[bytes]:
        """Return what a late subscriber receives: retained messages arrive before those published afterwards."""
        with Listener(broker, f"{DOOR}/#", version=version) as late:
            agent.report(report(marker, faces=int(marker == "ON"), zones={}))
            agent.until(lambda: late.last(f"{DOOR}/presence") == marker.encode())
            return late.last(image.topic)

    with Broker(tmp_path) as broker, Listener(broker, version=version) as listener:
        with Agent(broker.port, protocol=version) as agent:
            for payload, expiry_s in ((image.payload, 60), (b"", None)):
                agent.publisher.retain(replace(image, payload=payload, expiry_s=expiry_s))
                agent.until(lambda: listener.last(image.topic) == payload)  # noqa: B023
                wanted = image.payload if payload and version == "5" else None
                assert retained("ON" if payload else "OFF") == wanted


@needs_mosquitto
@both_versions
def test_retained_state_is_restored_after_the_broker_lost_it(tmp_path: Path, version: str) -> None:
    with Broker(tmp_path) as broker, Agent(broker.port, protocol=version) as agent:
        agent.report(report("ON", faces=2, zones={}))
        agent.until(agent.settled)
        broker.stop()
        agent.until(lambda: not agent.client.status().connected)
        agent.report(report("OFF", faces=0, zones={}))
        broker.start()
        agent.until(agent.settled)
        with Listener(broker, version=version) as late:
            eventually(lambda: late.last(f"{NODE}/availability") == b"online" and late.last(f"{DOOR}/face_count"))
            assert late.payloads(f"{DOOR}/presence") == [b"OFF"]
            assert late.payloads(f"{DOOR}/face_count") == [b"0"]


@needs_mosquitto
def test_an_older_state_never_follows_a_newer_one(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker:
        gate = Gate(broker.port)
        with Listener(broker) as listener, Agent(gate.port) as agent:
            agent.report(report("ON", faces=1))
            agent.until(agent.settled)
            gate.shut()
            for presence in ("OFF", "ON", "OFF", "ON", "OFF"):
                agent.report(report(presence, faces=0))
                agent.step()
            gate.open()
            agent.until(lambda: agent.client.status().reconnects == 1 and agent.settled())
            eventually(lambda: listener.last(f"{DOOR}/presence") == b"OFF")
            shown = listener.payloads(f"{DOOR}/presence")
            assert shown[0] == b"ON" and set(shown[1:]) == {b"OFF"}
        gate.close()


@needs_mosquitto
def test_nothing_stays_on_after_a_crash_and_restart(tmp_path: Path) -> None:
    """`None` comes before `online`, so that no subscriber takes an ON of the crashed agent for current."""
    with Broker(tmp_path) as broker:
        gate = Gate(broker.port)
        with Agent(gate.port) as dead:
            dead.report(report("ON", faces=1))
            dead.until(dead.settled)
            gate.shut()
        gate.close()
        with Listener(broker) as listener:
            eventually(lambda: listener.last(f"{NODE}/availability") == b"offline")
            assert listener.last(f"{DOOR}/presence") == b"ON"
            before = len(listener.heard)
            with Agent(broker.port) as agent:
                agent.until(agent.settled)
                eventually(lambda: listener.last(f"{NODE}/availability") == b"online")
            shown = [(heard.topic, heard.payload) for heard in listener.heard[before:]]
            assert shown.index((f"{DOOR}/presence", b"None")) < shown.index((f"{NODE}/availability", b"online"))
            assert (f"{DOOR}/presence", b"ON") not in shown


@needs_mosquitto
@both_versions
def test_no_event_is_lost_or_out_of_order_when_the_broker_is_killed(tmp_path: Path, version: str) -> None:
    """Kill -9 with messages in flight, three times. The gate stays shut until the subscriber is back."""
    with Broker(tmp_path) as broker:
        gate = Gate(broker.port)
        with Listener(broker, EVENTS, version=version) as listener, Agent(gate.port, protocol=version) as agent:
            seq = 0
            for _ in range(3):
                for _ in range(60):
                    seq += 1
                    agent.put(event(seq, "end" if seq % 2 == 0 else "start", visit=(seq + 1) // 2))
                agent.until(lambda: agent.outbox.status().in_flight)
                broker.kill()
                gate.shut()
                agent.until(lambda: not agent.client.status().connected)
                eventually(lambda: not listener.ready.is_set())
                broker.start()
                assert listener.ready.wait(15.0)
                gate.open()
                # Otherwise the first is in flight at three losses in a row, and quarantined as their cause.
                waiting = agent.outbox.status().pending
                agent.until(lambda waiting=waiting: agent.outbox.status().pending < waiting)
            agent.until(agent.settled)
            eventually(lambda: len(seqs(listener)) >= seq)
            assert seqs(listener) == list(range(1, seq + 1))
            assert not gaps(listener) and agent.outbox.status().quarantined == 0
            ids: Dict[int, str] = {}
            for payload in listener.payloads(EVENTS):
                read = json.loads(payload)
                assert ids.setdefault(read["seq"], read["event_id"]) == read["event_id"], "a duplicate is the same"
        gate.close()


@needs_mosquitto
def test_late_events_are_marked(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    with Agent(broker.port) as agent:
        agent.put(event(1))
        agent.skipped_s = 31.0
        agent.put(event(2))
        with broker, Listener(broker, EVENTS) as listener:
            agent.until(agent.settled)
            eventually(lambda: len(listener.heard) == 2)
            first, second = (json.loads(payload)["delivery"] for payload in listener.payloads(EVENTS))
            assert first["replayed"] and first["queued_ms"] >= 31_000
            assert not second["replayed"] and second["queued_ms"] < 31_000


@needs_mosquitto
def test_a_full_outbox_announces_what_it_lost(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    with Agent(broker.port, outbox=OutboxParams(max_bytes=65_536)) as agent:
        for seq in range(1, 201):
            agent.put(event(seq))
        lost = agent.outbox.status().dropped
        assert lost > 100
        with broker, Listener(broker, EVENTS) as listener:
            agent.until(agent.settled)
            eventually(lambda: len(listener.heard) == 201 - lost)
            assert gaps(listener) == [(1, lost, "full")] and seqs(listener) == list(range(lost + 1, 201))


@needs_mosquitto
@both_versions
def test_an_oversize_event_is_refused_before_it_is_sent(tmp_path: Path, version: str) -> None:
    """Announced by the broker (version 5), or known from the setting; also what was kept before the limit was known."""
    zones = tuple(f"zone{n}" for n in range(3000))
    with Broker(tmp_path, "max_packet_size 12000") as broker, Listener(broker) as listener:
        with Agent(
            broker.port, protocol=version, max_packet_bytes=12_000 if version == "3.1.1" else 1_000_000
        ) as agent:
            agent.put(event(1), event(2, zones=zones), event(3))
            agent.until(agent.settled)
            agent.put(event(4), event(5, zones=zones), event(6, "end", crop=True, side=400))
            agent.until(agent.settled)
            eventually(lambda: seqs(listener)[-1:] == [6])
            assert seqs(listener) == [1, 3, 4, 6]
            assert gaps(listener) == [(2, 2, "quarantined" if version == "5" else "too_large"), (5, 5, "too_large")]
            assert any("/crops/" in topic for topic in listener.topics()), "the crop was made to fit"
            assert agent.client.status().reconnects == 0


@needs_mosquitto
def test_a_poison_message_is_quarantined_and_the_others_are_sent(tmp_path: Path) -> None:
    """A limit that mosquitto does not announce: paho 2.1.0 cannot read the refusal, 2.2.0 disconnects."""
    zones = tuple(f"zone{n}" for n in range(500))
    with Broker(tmp_path, "message_size_limit 3000") as broker, Listener(broker, EVENTS) as listener:
        with Agent(broker.port) as agent:
            agent.put(event(1), event(2, zones=zones), *(event(seq) for seq in range(3, 40)))
            agent.until(agent.settled)
            eventually(lambda: seqs(listener)[-1:] == [39])
            assert agent.outbox.status().quarantined == 1, "only the poison message"
            assert gaps(listener) == [(2, 2, "quarantined")]
            assert seqs(listener) == [1, *range(3, 40)]


@needs_mosquitto
def test_not_authorised_pauses_until_the_access_list_is_repaired(tmp_path: Path) -> None:
    tmp_path.chmod(tmp_path.stat().st_mode | stat.S_IXOTH)
    acl = tmp_path / "acl"
    acl.write_text(f"topic readwrite {NODE}/info\ntopic readwrite {NODE}/+/presence\ntopic read #\n")
    with Broker(tmp_path, f"acl_file {acl}") as broker, Listener(broker) as listener, Agent(broker.port) as agent:
        agent.put(event(1), event(2), event(3))
        agent.until(lambda: any(EVENTS in fault for fault in agent.publisher.faults))
        assert "Not authorized" in "".join(agent.publisher.faults)
        eventually(lambda: listener.last(f"{DOOR}/presence") == b"None")
        for _ in range(20):
            agent.step()
        refusals = sum(isinstance(notice, Rejected) for notice in agent.notices)
        assert refusals <= 12, "it pauses between attempts"
        acl.write_text("topic readwrite #\n")
        broker.send_signal(signal.SIGHUP)
        eventually(lambda: "SIGHUP" in broker.log.read_text() or "Reloading" in broker.log.read_text())
        agent.skipped_s = 61.0
        agent.until(agent.settled)
        eventually(lambda: seqs(listener) == [1, 2, 3])
        assert agent.publisher.faults == [] and agent.outbox.status().quarantined == 0


@needs_mosquitto
def test_a_refused_crop_does_not_pause_events(tmp_path: Path) -> None:
    tmp_path.chmod(tmp_path.stat().st_mode | stat.S_IXOTH)
    acl = tmp_path / "acl"
    acl.write_text(f"topic deny {NODE}/+/crops/#\ntopic readwrite #\n")
    with Broker(tmp_path, f"acl_file {acl}") as broker, Listener(broker) as listener, Agent(broker.port) as agent:
        for seq in range(1, 101, 2):
            agent.put(event(seq, visit=seq), event(seq + 1, "end", crop=True, visit=seq))
        agent.until(lambda: agent.client.status().connected and agent.outbox.status().pending == 50)
        agent.put(event(101))
        agent.until(lambda: agent.outbox.status().pending == 50 and not agent.outbox.status().in_flight)
        eventually(lambda: seqs(listener)[-1:] == [101])
        assert seqs(listener) == list(range(1, 102)), "in order, none behind a crop"
        assert f"the broker refuses {DOOR}/crops" in "".join(agent.publisher.faults)
        assert sum(isinstance(notice, Rejected) for notice in agent.notices) <= 20, "it pauses between attempts"
        acl.write_text("topic readwrite #\n")
        broker.send_signal(signal.SIGHUP)
        eventually(lambda: "SIGHUP" in broker.log.read_text() or "Reloading" in broker.log.read_text())
        agent.skipped_s = 61.0
        agent.until(agent.settled)
        eventually(lambda: sum("/crops/" in heard.topic for heard in listener.heard) == 50)
        assert agent.outbox.status().quarantined == 0 and not gaps(listener)


@needs_mosquitto
@both_versions
def test_a_clean_stop_publishes_offline_last(tmp_path: Path, version: str) -> None:
    with Broker(tmp_path) as broker, Listener(broker, version=version) as listener:
        with Agent(broker.port, protocol=version) as agent:
            agent.report(report("ON", faces=1, zones={}))
            agent.put(event(1))
            agent.until(agent.settled)
            agent.put(event(2, "end", crop=True))
            assert agent.publisher.close(now(), agent.take)
            assert agent.client.close(2.0)
        eventually(lambda: listener.last(f"{NODE}/availability") == b"offline")
        assert listener.topics()[-1] == f"{NODE}/availability" and seqs(listener) == [1, 2]
        assert (listener.last(f"{DOOR}/presence"), listener.last(f"{DOOR}/availability")) == (b"None", b"offline")
        assert listener.last(f"{DOOR}/face_count") == b"None"
        assert json.loads(listener.last(f"{DOOR}/presence/attributes") or b"")["reason"] == "stopped"
        assert listener.payloads(f"{NODE}/availability") == [b"online", b"offline"]


def test_a_stop_without_a_broker_does_not_wait() -> None:
    with Agent(1) as agent:
        agent.until(lambda: agent.client.status().state == "waiting")
        agent.put(event(1))
        before = now().t
        assert not agent.publisher.close(now(), agent.take, 30.0)
        assert now().t - before < 15.0


@needs_mosquitto
def test_counts_are_slowed_answers_are_not_and_health_keeps_only_the_newest(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker:
        gate = Gate(broker.port)
        with Listener(broker) as listener, Agent(gate.port) as agent:
            agent.report(report("ON", faces=1))
            agent.until(agent.settled)
            for count in range(2, 60):
                agent.report(report("ON", faces=count))
                agent.step()
            agent.skipped_s = 5.0
            agent.until(agent.settled)
            eventually(lambda: listener.last(f"{DOOR}/face_count") == b"59")
            assert len(listener.payloads(f"{DOOR}/face_count")) <= 5
            agent.report(report("None", Sight.LOST, None))
            agent.until(agent.settled)
            eventually(lambda: listener.last(f"{DOOR}/face_count") == b"None")
            gate.shut()
            agent.until(lambda: not agent.client.status().connected)
            for uptime in range(50):
                agent.report_health(uptime_s=uptime)
                agent.step()
            gate.open()
            agent.until(agent.settled)
            eventually(lambda: listener.payloads(f"{NODE}/health"))
            (only,) = listener.payloads(f"{NODE}/health")
            assert json.loads(only)["uptime_s"] == 49 and json.loads(only)["mqtt"]["state"] == "connected"
        gate.close()


@needs_mosquitto
def test_commands_are_handed_on(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker, Agent(broker.port, subscriptions=[REQUESTS]) as agent:
        agent.until(agent.settled)
        with Agent(broker.port, node="other", reports=()) as other:
            other.until(other.settled)
            session = next(n.session for n in other.notices if isinstance(n, Connected))
            other.client.publish(Message(f"{NODE}/request/ping", b"{}", properties=(("from", "test"),)), session)
            agent.until(lambda: any(isinstance(notice, Received) for notice in agent.notices))
        got = next(notice for notice in agent.notices if isinstance(notice, Received))
        assert got == Received(f"{NODE}/request/ping", b"{}", False, (("from", "test"),))


class Tape:
    """A client that records messages, which the test acknowledges; for windows, which a real broker does not show."""

    def __init__(self) -> None:
        self.sent: List[Message] = []

    def publish(self, message: Message, session: int) -> int:
        self.sent.append(message)
        return len(self.sent)

    def subscribe(self, filters: Sequence[str], session: int) -> None:
        pass

    def status(self) -> LinkStatus:
        return LinkStatus("connected", "5")


def taped(clock: Optional[FakeClock] = None) -> Any:
    tape, clock = Tape(), clock or FakeClock()
    topics = Topics("edge-agent", "lobby")
    outbox = MemoryOutbox(OutboxParams(), lambda: clock.t)
    publisher = Publisher(EventEncoder(topics, 41, CropParams(), None), outbox, tape, clock, [STARTING])
    publisher.info(INFO)
    return publisher, tape, outbox, clock


@pytest.mark.parametrize(("announced", "window"), [(None, 20), (7, 7), (1, 1), (500, 20)])
def test_no_more_than_the_window_is_unacknowledged(announced: Optional[int], window: int) -> None:
    publisher, tape, outbox, _ = taped()
    publisher.outcome(Outcome("door", tuple(event(seq) for seq in range(1, 101))))
    publisher.handle(Connected(1, "5", None, announced))
    acked = 0
    while acked < 107:
        publisher.pump()
        assert 0 < len(tape.sent) - acked <= window
        acked += 1
        publisher.handle(Acked(acked))
    publisher.pump()
    assert outbox.status().pending == 0 and publisher.acknowledged and len(tape.sent) == 107


def test_after_a_lost_connection_suspects_are_sent_one_at_a_time() -> None:
    publisher, tape, outbox, _ = taped()
    publisher.outcome(Outcome("door", tuple(event(seq) for seq in range(1, 31))))

    def connect(session: int) -> List[Optional[int]]:
        """Return the seq of the events sent after all states are acknowledged."""
        publisher.handle(Connected(session, "5"))
        start = len(tape.sent)
        publisher.pump()
        states = [n for n, sent in enumerate(tape.sent[start:], start + 1) if sent.kind == "state"]
        for token in states:
            publisher.handle(Acked(token))
        publisher.pump()
        return [sent.seq for sent in tape.sent[start:] if sent.kind == "event"]

    assert connect(1) == list(range(1, 21))
    publisher.handle(Disconnected(1, "lost"))
    for session in (2, 3):
        assert connect(session) == [1], "alone, and only after the states are acknowledged"
        assert outbox.status().quarantined == 0
        publisher.handle(Disconnected(session, "lost"))
    assert outbox.status().quarantined == 1
    connect(4)
    assert tape.sent[-1].kind == "gap"
    alone = 0
    while outbox.status().pending:
        alone += outbox.status().in_flight == 1
        for token in range(len(tape.sent) + 1):
            publisher.handle(Acked(token))
        publisher.pump()
    assert [sent.seq for sent in tape.sent[-29:]] == list(range(2, 31))
    assert 19 <= alone <= 22, "past the suspects the window opens again"


@pytest.mark.parametrize("code", [0x87, 0x97])
def test_after_a_refusal_no_message_overtakes_the_refused_one(code: int) -> None:
    """The broker may have accepted messages in flight beside it; no other message is sent before or beside it."""
    publisher, tape, outbox, clock = taped()
    publisher.handle(Connected(1, "5"))
    publisher.pump()
    for token in range(1, len(tape.sent) + 1):
        publisher.handle(Acked(token))
    start = len(tape.sent)
    publisher.outcome(Outcome("door", tuple(event(seq) for seq in range(10, 14))))
    publisher.pump()
    publisher.outcome(Outcome("door", tuple(event(seq) for seq in range(14, 24))))

    def sent() -> List[Optional[int]]:
        return [message.seq for message in tape.sent[start:]]

    assert sent() == [10, 11, 12, 13]
    publisher.handle(Acked(start + 1))
    for token in (start + 2, start + 3, start + 4):
        publisher.handle(Rejected(token, code, "no", False))
        publisher.pump()
    assert sent() == [10, 11, 12, 13]
    clock.advance(61.0)
    for seq in (11, 12, 13):
        publisher.pump()
        assert sent()[-1] == seq and outbox.status().in_flight == 1, "alone"
        if seq == 11:
            publisher.handle(Rejected(len(tape.sent), code, "still no", False))
            clock.advance(61.0)
            publisher.pump()
            assert sent()[-1] == seq and outbox.status().in_flight == 1
        publisher.handle(Acked(len(tape.sent)))
    for seq in range(14, 24):
        publisher.pump()
        assert sent()[-1] == seq and outbox.status().in_flight == 1, "one at a time from then on"
        publisher.handle(Acked(len(tape.sent)))


@needs_mosquitto
def test_only_messages_in_flight_beside_the_first_refused_event_overtake_it(tmp_path: Path) -> None:
    """By less than the window; later refusals, on any connection, do not change the order."""
    refused: List[int] = []

    def busy(passed: Passed) -> Optional[str]:
        seq = json.loads(passed.payload)["seq"] if passed.topic == EVENTS else 0
        if seq not in (3, 42, 80) or seq in refused:
            return None
        refused.append(seq)
        return "busy"

    with Broker(tmp_path) as broker, Listener(broker, EVENTS) as listener:
        proxy = RecordingProxy(broker.port)
        proxy.judge = busy
        with Agent(proxy.port) as agent:
            agent.put(*(event(seq) for seq in range(1, 71)))
            for seq in (3, 42):
                agent.until(lambda seq=seq: seq in refused)
                agent.skipped_s += 11.0
            agent.until(agent.settled)
            proxy.cut()
            agent.until(lambda: not agent.client.status().connected)
            agent.put(*(event(seq) for seq in range(71, 91)))
            proxy.mend()
            proxy.judge = busy
            agent.until(lambda: 80 in refused)
            agent.skipped_s += 11.0
            agent.until(agent.settled)
            eventually(lambda: len(seqs(listener)) == 90)
        proxy.close()
    arrived = seqs(listener)
    overtakers = arrived[2 : arrived.index(3)]
    assert overtakers == list(range(4, 4 + len(overtakers))) and len(overtakers) < WINDOW
    assert arrived == [1, 2, *overtakers, 3, *range(4 + len(overtakers), 91)]


def test_refused_answers_to_any_number_of_names_are_one_fault() -> None:
    publisher, tape, _, _ = taped()
    publisher.handle(Connected(1, "5"))
    for name in range(200):
        publisher.send(Message(f"{NODE}/response/name{name}", b"{}", kind="response"))
        publisher.pump()
        for token in range(1, len(tape.sent) + 1):
            answer = tape.sent[token - 1].kind == "response"
            publisher.handle(Rejected(token, "Not authorized", 0x87) if answer else Acked(token))
    assert sum(message.kind == "response" for message in tape.sent) == 200
    assert publisher.faults == [f"the broker refuses {NODE}/response: Not authorized"]


def test_crops_switched_off_while_the_broker_is_away_are_never_sent() -> None:
    publisher, tape, outbox, clock = taped()
    crop = Message(f"{DOOR}/crops/1", b"jpeg", kind="crop", camera="door", seq=1, boot=41, gap_topic=EVENTS)
    outbox.put([crop], clock())
    nothing: Any = None
    actions = CommandActions(nothing, lambda overrides: None, nothing, {})
    guard = CommandGuard(CommandRules(("door",)))
    publisher.register(CommandHandler(Topics("edge-agent", "lobby"), guard, Overrides(), publisher, actions))
    publisher.handle(CommandResult(Command("crops", camera="door", arguments={"on": False})))
    publisher.handle(Connected(1, "5"))
    publisher.pump()
    assert [sent.kind for sent in tape.sent if sent.kind != "state"] == ["gap"]
    assert json.loads(tape.sent[-1].payload)["reason"] == "disabled"


def test_an_acknowledgement_of_an_older_session_is_ignored() -> None:
    publisher, tape, outbox, _ = taped()
    publisher.outcome(Outcome("door", (event(1),)))
    publisher.handle(Connected(1, "5"))
    publisher.pump()
    token = len(tape.sent)
    publisher.handle(Disconnected(1, "lost"))
    publisher.handle(Acked(token))
    assert outbox.status().pending == 1 and outbox.status().in_flight == 0
