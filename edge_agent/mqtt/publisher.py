"""What is said to the broker, and when. Used by the publish thread only; never blocks, except in `close`."""

import logging
from collections import deque
from dataclasses import replace
from typing import Any, Callable, Deque, Dict, Iterable, List, Mapping, Optional, Protocol, Sequence, Union

from edge_agent.core.ports import Clock, Outbox
from edge_agent.core.protocol.health import LinkHealth
from edge_agent.core.protocol.messages import (
    OFFLINE,
    ONLINE,
    Message,
    Stored,
    encode_attributes,
    encode_availability,
    encode_count,
    encode_health,
    encode_info,
    stamp_delivery,
    to_json,
)
from edge_agent.core.protocol.topics import Topics
from edge_agent.core.types import CameraReport, LostEvents, Moment, Outcome, Presence, Sight
from edge_agent.mqtt.client_events import (
    Acked,
    Connected,
    Disconnected,
    LinkStatus,
    Received,
    Rejected,
    Subscription,
    SubscriptionRefused,
)
from edge_agent.mqtt.encoder import EventEncoder
from edge_agent.mqtt.flow_control import FlowControl
from edge_agent.mqtt.retained import Rank, RetainedState
from edge_agent.mqtt.selftest import SELFTEST, SelfTest
from edge_agent.mqtt.tls import expiry_faults

log = logging.getLogger(__name__)

WINDOW = 20
"""Unacknowledged messages at a time."""
ANSWERS = 64
"""That wait to be sent; the oldest go."""
REPLAYED_AFTER_S = 30.0
COUNT_INTERVAL_S = 1.0
HEALTH_EXPIRY_S = 180
CLOSE_POLL_S = 0.05
PAUSE_S = 10.0
NOT_AUTHORISED = 0x87
NOT_AUTHORISED_PAUSE_S = 60.0
"""Somebody has to mend it at the broker, so wait and try again."""


class Client(Protocol):
    """What the publisher needs of `mqtt.client.MqttClient`."""

    def publish(self, message: Message, session: int) -> int:
        """Send; returns a token that a notice will name."""

    def subscribe(self, filters: Sequence[Subscription], session: int) -> None:
        """Ask for topics."""

    def status(self) -> LinkStatus:
        """How it stands."""


def last_will(topics: Topics) -> Message:
    """What the broker says when the agent dies."""
    return Message(topics.availability, OFFLINE, retain=True)


def ignore(received: Received) -> None:
    """Nobody listens."""


class Publisher:
    """Turns outcomes into messages, keeps the retained truth true, and drains the outbox.

    Args:
        topics: Where to.
        outbox: Keeps events and crops until the broker has acknowledged them.
        client: The broker's.
        clock: Both clocks.
        letters: Encodes events and crops.
        reports: Every camera's truth at the start; a camera that is not among them is not published.
        boot: The boot counter.
        parameters: Per camera, what presence is decided by; published beside it.
        subscriptions: Topics to ask for at every connect.
        received: Takes what arrives on them.
    """

    def __init__(
        self,
        topics: Topics,
        outbox: Outbox,
        client: Client,
        clock: Clock,
        letters: EventEncoder,
        reports: Sequence[CameraReport],
        boot: int,
        parameters: Optional[Mapping[str, Mapping[str, Any]]] = None,
        subscriptions: Sequence[Subscription] = (),
        received: Callable[[Received], None] = ignore,
    ) -> None:
        self._topics, self._outbox, self._client, self._clock = topics, outbox, client, clock
        self._letters, self._boot, self._parameters = letters, boot, parameters or {}
        self._subscriptions, self._received = tuple(subscriptions), received
        self._truth = RetainedState()
        self._selftest = SelfTest(topics.response(SELFTEST), boot)
        self._reports: Dict[str, CameraReport] = {}
        self._session: Optional[int] = None
        self._protocol = ""
        self._window = WINDOW
        self._in_flight: Dict[int, Union[Stored, str]] = {}
        self._pace = FlowControl()
        self._refused: Dict[str, str] = {}
        self._closing = False
        self._answers: Deque[Message] = deque(maxlen=ANSWERS)
        self._truth.set(Message(topics.availability, ONLINE, retain=True), Rank.ONLINE)
        for report in reports:
            self._report(report)

    @property
    def faults(self) -> List[str]:
        """What keeps messages from being taken, in words, for health."""
        refused = [f"the broker refuses {topic}: {reason}" for topic, reason in self._refused.items()]
        return refused + self._selftest.faults + expiry_faults(self._client.status().own_until, self._clock().at)

    @property
    def told(self) -> bool:
        """True when the broker has acknowledged the whole retained truth in this session."""
        return self._session is not None and self._truth.told

    def outcome(self, outcome: Outcome) -> None:
        """Keep its events and crops, and note what is true now."""
        if outcome.events:
            now = self._clock()
            self._outbox.put([m for event in outcome.events for m in self._letters.of_event(event, now)], now)
        if outcome.report is not None and not self._closing:
            self._report(outcome.report)

    def discard_crops(self, camera: Optional[str] = None) -> None:
        """Crops are off, a camera's or all: those that wait are given up too, and that is told."""
        self._outbox.discard_crops(camera)

    def info(self, info: Mapping[str, Any]) -> None:
        """What the agent is, from now on."""
        self._state(self._topics.info, to_json(encode_info(info, self._topics.node, self._boot)), Rank.INFO)

    def discovery(self, messages: Sequence[Message]) -> None:
        """What other systems shall find of us: retained messages of theirs, told after presence and before `online`."""
        for message in messages:
            self._truth.set(message, Rank.DISCOVERY)

    @property
    def connected(self) -> bool:
        """True while a session with the broker is established. For the publish thread."""
        return self._session is not None

    def link(self) -> LinkHealth:
        """Return the connection's figures for the health report. From any thread."""
        status = self._client.status()
        return LinkHealth(
            connected=status.connected,
            reconnects=status.reconnects,
            last_fault=status.last_fault,
            state=status.state,
            protocol=status.protocol,
            fault=status.fault,
            publish_verified=self._selftest.verified,
            certificate_until=status.own_until,
            broker_certificate_until=status.broker_until,
        )

    def health(self, health: Mapping[str, Any]) -> None:
        """Publish a health report; at most one is in flight, and a newer one replaces one that waits."""
        payload = to_json(encode_health(health, self._topics.node, self._boot, self._clock()))
        message = Message(
            self._topics.health, payload, qos=0, retain=True, kind="health", content_type="application/json",
            expiry_s=HEALTH_EXPIRY_S,
        )  # fmt: skip
        self._truth.set(message, Rank.HEALTH)

    def retain(self, message: Message) -> None:
        """A retained topic of another kind: a switch's state, an image, or an empty one that clears what was there."""
        self._truth.set(message, Rank.PRESENCE)

    def say(self, message: Message) -> None:
        """Send once, soon: an answer, worth nothing later. Dropped while the broker is away."""
        if self._session is not None:
            self._answers.append(message)

    def stream(self, message: Message) -> None:
        """Send now or never: one of many, of which the newest counts."""
        if self._session is not None and len(self._in_flight) < self._window and self._letters.fits(message):
            self._in_flight[self._client.publish(message, self._session)] = message.topic

    def decided_by(self, parameters: Mapping[str, Mapping[str, Any]]) -> None:
        """What presence is decided by from now on, per camera; told at once."""
        self._parameters = parameters
        if not self._closing:
            for report in list(self._reports.values()):
                self._report(report)

    def is_told(self, topics: Iterable[str]) -> bool:
        """True when the broker has acknowledged these retained topics in this session."""
        return self._session is not None and self._truth.is_told(topics)

    @property
    def retained(self) -> List[str]:
        """The topics that the broker retains of ours."""
        return self._truth.topics

    def republish(self) -> None:
        """Tell the whole retained truth again, e.g. when Home Assistant has restarted."""
        if self._session is not None:
            self._truth.connected()

    def notice(self, notice: object) -> None:
        """Something that the client noticed; or events that went on their way here, which is told in their place."""
        if isinstance(notice, Acked):
            sent = self._in_flight.pop(notice.token, None)
            if isinstance(sent, Stored):
                self._outbox.accept(sent.key)
                self._pace.taken(sent.key)
                self._selftest.taken(len(sent.message.payload))
            elif sent == self._selftest.topic:
                self._selftest.acknowledged(self._clock().t)
            elif sent is not None:
                self._truth.accepted(sent)
            if sent is not None:
                self._refused.pop(_subject(sent), None)
        elif isinstance(notice, Rejected):
            self._rejected(notice)
        elif isinstance(notice, SubscriptionRefused):
            log.warning("mqtt: the broker does not let us listen to %s: %s", notice.topic, notice.reason)
            self._refused[notice.topic] = notice.reason
        elif isinstance(notice, Connected):
            self._connected(notice)
        elif isinstance(notice, Disconnected):
            self._disconnected(notice.reason)
        elif isinstance(notice, LostEvents):
            self._outbox.put([self._letters.of_lost(notice)], self._clock())
        elif isinstance(notice, Received) and not self._selftest.received(notice):
            self._received(notice)

    def pump(self) -> None:
        """Send what can be sent: retained truth first, then the outbox, within the broker's window."""
        self._send()
        # After the truth, which need not wait for a disk; what the outbox sends, it has made safe before.
        self._outbox.flush()

    def _send(self) -> None:
        now = self._clock()
        if self._session is None:
            return
        for message in self._truth.due(now.t):
            if len(self._in_flight) >= self._window:
                return
            if not self._letters.fits(message):
                level = logging.DEBUG if message.topic in self._refused else logging.ERROR
                log.log(level, "%s: %d bytes are more than the broker takes", message.topic, len(message.payload))
                self._refused[message.topic] = "larger than it takes"
                self._truth.skip(message.topic)
                continue
            self._truth.sent(message.topic, now.t)
            if message.kind == "image" and message.expiry_s is not None and self._protocol != "5":
                # No broker would take a face away there, were the agent to die.
                message = replace(message, retain=False)
            self._in_flight[self._client.publish(message, self._session)] = message.topic
        while self._answers and len(self._in_flight) < self._window:
            self.stream(self._answers.popleft())
        probe = self._selftest.due(now.t) if len(self._in_flight) < self._window else None
        if probe is not None:
            self.stream(probe)
        if not self._pace.paused(now.t):
            self._drain(now, self._session)

    def close(self, moment: Moment, take: Callable[[float], Sequence[object]], deadline_s: float = 1.5) -> bool:
        """Say that nothing is seen any more, let the outbox drain, and say `offline` last.

        Args:
            moment: Now.
            take: Waits up to so many seconds and returns what came for the publish thread: notices and outcomes.
            deadline_s: For all of it.

        Returns:
            True when the broker has acknowledged everything.
        """
        self._closing = True
        for report in [report for report in self._reports.values() if report.sight is not Sight.STOPPED]:
            zones = dict.fromkeys(report.zones, Presence.UNKNOWN)
            self._report(CameraReport(report.camera, Presence.UNKNOWN, Sight.STOPPED, moment, zones=zones))
        until_t = self._clock().t + deadline_s
        self._settle(take, until_t, lambda: self._truth.told and not self._outbox.status().pending)
        self._state(self._topics.availability, OFFLINE, Rank.ONLINE)
        return self._settle(take, until_t, lambda: self._truth.told) and not self._outbox.status().pending

    def _settle(self, take: Callable[[float], Sequence[object]], until_t: float, done: Callable[[], bool]) -> bool:
        while True:
            self.pump()
            if done():
                return True
            hopeless = self._session is None and self._client.status().state != "connecting"
            if hopeless or self._clock().t >= until_t:
                return False
            for item in take(CLOSE_POLL_S):
                if isinstance(item, Outcome):
                    self.outcome(item)
                else:
                    self.notice(item)

    def _report(self, report: CameraReport) -> None:
        """The camera's truth, topic by topic. Counts may jitter and are slowed; a change of the answer never is."""
        topics = self._topics.camera(report.camera)
        before = self._reports.get(report.camera)
        self._reports[report.camera] = report
        turned = before is None or (before.presence, before.sight) != (report.presence, report.sight)
        interval_s = 0.0 if turned else COUNT_INTERVAL_S
        attributes = encode_attributes(report, self._parameters.get(report.camera, {}))
        self._state(topics.availability, encode_availability(report.sight.available), Rank.AVAILABILITY)
        self._state(topics.presence, report.presence.value.encode(), Rank.PRESENCE)
        self._state(topics.attributes, to_json(attributes), Rank.PRESENCE, interval_s)
        self._state(topics.face_count, encode_count(report.faces), Rank.PRESENCE, interval_s)
        for zone, presence in report.zones.items():
            self._state(topics.zone(zone), presence.value.encode(), Rank.PRESENCE)

    def _state(self, topic: str, payload: bytes, rank: Rank, interval_s: float = 0.0) -> None:
        content_type = "application/json" if payload[:1] == b"{" else None
        self._truth.set(Message(topic, payload, retain=True, content_type=content_type), rank, interval_s)

    def _connected(self, notice: Connected) -> None:
        if self._session is not None:
            self._disconnected("the client was rebuilt")
        self._session, self._protocol = notice.session, notice.protocol
        self._window = max(1, min(WINDOW, notice.receive_maximum or WINDOW))
        self._letters.limit(notice.maximum_packet_size)
        self._pace.connected()
        self._refused.clear()
        echo = self._selftest.connected(notice.protocol, self._clock().t)
        if self._subscriptions or echo:
            self._client.subscribe([*self._subscriptions, *echo], notice.session)
        self._truth.connected()

    def _disconnected(self, reason: str) -> None:
        self._session = None
        self._selftest.disconnected()
        self._answers.clear()
        waiting, self._in_flight = self._in_flight, {}
        stored = [sent for sent in waiting.values() if isinstance(sent, Stored)]
        if self._pace.was_alone(stored):
            self._outbox.reject(stored[0].key, reason, fatal=False)
        else:
            self._outbox.release([sent.key for sent in stored])
        self._pace.lost(stored)

    def _rejected(self, notice: Rejected) -> None:
        sent = self._in_flight.pop(notice.token, None)
        if sent is None:
            return
        topic = _subject(sent)
        level = logging.DEBUG if topic in self._refused else logging.WARNING
        log.log(level, "mqtt: the broker refuses %s: %s", topic, notice.reason)
        self._refused[topic] = notice.reason
        retry_t = self._clock().t + (NOT_AUTHORISED_PAUSE_S if notice.code == NOT_AUTHORISED else PAUSE_S)
        if not isinstance(sent, Stored):
            self._truth.refused(topic, retry_t)
        elif notice.fatal:
            self._outbox.reject(sent.key, notice.reason, fatal=True)
        else:
            self._outbox.release([sent.key])
            flying = [other for other in self._in_flight.values() if isinstance(other, Stored)]
            self._pace.refused(sent, flying, retry_t)

    def _drain(self, now: Moment, session: int) -> None:
        """Send from the outbox, as much and as fast as `FlowControl` allows."""
        held_back = self._pace.held_back(now.t)
        room = self._pace.room(self._window - len(self._in_flight), len(self._in_flight), held_back)
        for stored in self._outbox.batch(room, held_back) if room > 0 else ():
            self._pace.sending(stored, held_back)
            message = stored.message
            if not self._letters.fits(message):
                self._outbox.reject(stored.key, "larger than the broker takes", fatal=True)
                continue
            if message.kind == "event":
                late_s = max(0.0, now.t - stored.queued_t)
                stamped = stamp_delivery(message.payload, now.at, round(1000.0 * late_s), late_s > REPLAYED_AFTER_S)
                message = replace(message, payload=stamped)
            self._in_flight[self._client.publish(message, session)] = stored


def _subject(sent: Union[Stored, str]) -> str:
    """The topic, for people; all crops of a camera share one, and all answers, whose names are the askers' choice."""
    topic = sent.message.topic if isinstance(sent, Stored) else sent
    folder = topic.rsplit("/", 1)[0]
    return folder if folder.endswith(("/crops", "/response")) else topic
