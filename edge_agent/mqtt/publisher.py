"""Sends retained state and the outbox to the broker, within the broker's window. Never blocks, except in `close`."""

import logging
from collections import deque
from dataclasses import replace
from typing import Any, Callable, Deque, Dict, Iterable, List, Mapping, Optional, Sequence, Union

from edge_agent.core.ports import Clock, Outbox
from edge_agent.core.protocol.commands import CommandResult
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
from edge_agent.mqtt.client import MqttClient
from edge_agent.mqtt.client_events import Acked, Connected, Disconnected, Received, Rejected, SubscriptionRefused
from edge_agent.mqtt.encoder import EventEncoder
from edge_agent.mqtt.flow_control import FlowControl
from edge_agent.mqtt.handlers import PublishHandler
from edge_agent.mqtt.retained import Rank, RetainedState
from edge_agent.mqtt.selftest import SELFTEST, SelfTest
from edge_agent.mqtt.tls import expiry_faults

log = logging.getLogger(__name__)

WINDOW = 20
"""Maximum number of unacknowledged messages."""
ANSWERS = 64
"""Maximum number of answers that wait; the oldest are dropped."""
REPLAYED_AFTER_S = 30.0
COUNT_INTERVAL_S = 1.0
HEALTH_EXPIRY_S = 180
CLOSE_POLL_S = 0.05
PAUSE_S = 10.0
NOT_AUTHORISED = 0x87
NOT_AUTHORISED_PAUSE_S = 60.0
"""Longer than `PAUSE_S`, because somebody has to change the broker's access list."""


def last_will(topics: Topics) -> Message:
    """Return the message that the broker publishes when the connection is lost."""
    return Message(topics.availability, OFFLINE, retain=True)


class Publisher:
    """Turns outcomes into messages, keeps retained topics up to date, and sends the outbox. Publish thread only.

    Args:
        encoder: Encodes events and crops; holds the topics and the boot counter.
        outbox: Stores events and crops until the broker has acknowledged them.
        client: Connection to the broker.
        clock: Both clocks.
        reports: Initial report of every camera; only these cameras are published.
        parameters: Per camera, the parameters that decide presence; published beside it.
    """

    def __init__(
        self,
        encoder: EventEncoder,
        outbox: Outbox,
        client: MqttClient,
        clock: Clock,
        reports: Sequence[CameraReport],
        parameters: Optional[Mapping[str, Mapping[str, Any]]] = None,
    ) -> None:
        self._encoder, self._topics, self._boot = encoder, encoder.topics, encoder.boot
        self._outbox, self._client, self._clock = outbox, client, clock
        self._parameters = parameters or {}
        self._handlers: List[PublishHandler] = []
        self._state = RetainedState()
        self._selftest = SelfTest(self._topics.response(SELFTEST), self._boot)
        self._reports: Dict[str, CameraReport] = {}
        self._session: Optional[int] = None
        self._protocol = ""
        self._window = WINDOW
        self._in_flight: Dict[int, Union[Stored, str]] = {}
        self._flow = FlowControl()
        self._refused: Dict[str, str] = {}
        self._closing = False
        self._answers: Deque[Message] = deque(maxlen=ANSWERS)
        self._state.set(Message(self._topics.availability, ONLINE, retain=True), Rank.ONLINE)
        for report in reports:
            self._publish_report(report)

    def register(self, handler: PublishHandler) -> None:
        """Add a handler; its subscriptions take effect at the next connect."""
        self._handlers.append(handler)

    @property
    def connected(self) -> bool:
        """True while a session with the broker is established. For the publish thread."""
        return self._session is not None

    @property
    def faults(self) -> List[str]:
        """Why messages are not accepted, as texts for the health message."""
        refused = [f"the broker refuses {topic}: {reason}" for topic, reason in self._refused.items()]
        return refused + self._selftest.faults + expiry_faults(self._client.status().own_until, self._clock().at)

    @property
    def acknowledged(self) -> bool:
        """True when the broker has acknowledged all retained topics in this session."""
        return self._session is not None and self._state.acknowledged

    @property
    def retained(self) -> List[str]:
        """Topics on which the broker retains a message of this agent."""
        return self._state.topics

    def is_acknowledged(self, topics: Iterable[str]) -> bool:
        """Whether the broker has acknowledged these retained topics in this session."""
        return self._session is not None and self._state.is_acknowledged(topics)

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

    def outcome(self, outcome: Outcome) -> None:
        """Store the events and crops of an outcome, and update the retained topics of its camera."""
        if outcome.events:
            now = self._clock()
            self._outbox.put([m for event in outcome.events for m in self._encoder.of_event(event, now)], now)
        if self._closing:
            return
        if outcome.report is not None:
            self._publish_report(outcome.report)
        for handler in self._handlers:
            handler.outcome(outcome)

    def handle(self, item: object) -> None:
        """Process a client event, the result of a command, or events lost on their way to this thread."""
        if isinstance(item, Acked):
            self._acked(item)
        elif isinstance(item, Rejected):
            self._rejected(item)
        elif isinstance(item, SubscriptionRefused):
            log.warning("mqtt: the broker refuses the subscription to %s: %s", item.topic, item.reason)
            self._refused[item.topic] = item.reason
        elif isinstance(item, Connected):
            self._connected(item)
        elif isinstance(item, Disconnected):
            self._disconnected(item.reason)
        elif isinstance(item, LostEvents):
            self._outbox.put([self._encoder.of_lost(item)], self._clock())
        elif isinstance(item, CommandResult):
            for handler in self._handlers:
                handler.done(item)
        elif isinstance(item, Received) and not self._selftest.received(item) and not self._closing:
            now = self._clock()
            for handler in self._handlers:
                handler.received(item, now)

    def info(self, info: Mapping[str, Any]) -> None:
        """Publish the description of the agent."""
        self._set(self._topics.info, to_json(encode_info(info, self._topics.node, self._boot)), Rank.INFO)

    def health(self, health: Mapping[str, Any]) -> None:
        """Publish a health report; at most one is in flight, and a newer one replaces one that waits."""
        payload = to_json(encode_health(health, self._topics.node, self._boot, self._clock()))
        message = Message(
            self._topics.health, payload, qos=0, retain=True, kind="health", content_type="application/json",
            expiry_s=HEALTH_EXPIRY_S,
        )  # fmt: skip
        self._state.set(message, Rank.HEALTH)

    def set_parameters(self, parameters: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace and publish the parameters that decide presence, per camera."""
        self._parameters = parameters
        if not self._closing:
            for report in list(self._reports.values()):
                self._publish_report(report)

    def set_discovery(self, messages: Sequence[Message]) -> None:
        """Set retained discovery messages; they are sent after presence and before `online`."""
        for message in messages:
            self._state.set(message, Rank.DISCOVERY)

    def retain(self, message: Message) -> None:
        """Set the value of a retained topic; an empty payload clears it."""
        self._state.set(message, Rank.PRESENCE)

    def republish(self) -> None:
        """Send all retained topics again."""
        if self._session is not None:
            self._state.connected()

    def send(self, message: Message) -> None:
        """Send a message once and soon; it is dropped while there is no connection."""
        if self._session is not None:
            self._answers.append(message)

    def send_now(self, message: Message) -> None:
        """Send a message at once, or drop it when the broker's window is full."""
        if self._session is not None and len(self._in_flight) < self._window and self._encoder.fits(message):
            self._in_flight[self._client.publish(message, self._session)] = message.topic

    def discard_crops(self, camera: Optional[str] = None) -> None:
        """Discard the crops of a camera, or of all, that still wait in the outbox; gap messages announce the loss."""
        self._outbox.discard_crops(camera)

    def pump(self) -> None:
        """Run what is due, then send what can be sent: retained topics first, then the outbox."""
        if not self._closing:
            t = self._clock().t
            for handler in self._handlers:
                handler.tick(t)
        self._send_due()
        # After the retained topics, which need not wait for a disk. The outbox has flushed what it has handed out.
        self._outbox.flush()

    def close(self, moment: Moment, take: Callable[[float], Sequence[object]], deadline_s: float = 1.5) -> bool:
        """Publish that no camera can see, send the outbox as far as time allows, and publish `offline` last.

        Args:
            moment: Now.
            take: Waits up to the given seconds and returns the items of the publish queue.
            deadline_s: Time limit for all of it.

        Returns:
            True when the broker has acknowledged everything.
        """
        for handler in self._handlers:
            handler.finish()
        self._closing = True
        for report in [report for report in self._reports.values() if report.sight is not Sight.STOPPED]:
            zones = dict.fromkeys(report.zones, Presence.UNKNOWN)
            self._publish_report(CameraReport(report.camera, Presence.UNKNOWN, Sight.STOPPED, moment, zones=zones))
        until_t = self._clock().t + deadline_s
        self._settle(take, until_t, lambda: self._state.acknowledged and not self._outbox.status().pending)
        self._set(self._topics.availability, OFFLINE, Rank.ONLINE)
        return self._settle(take, until_t, lambda: self._state.acknowledged) and not self._outbox.status().pending

    def _settle(self, take: Callable[[float], Sequence[object]], until_t: float, done: Callable[[], bool]) -> bool:
        while True:
            self.pump()
            if done():
                return True
            unreachable = self._session is None and self._client.status().state != "connecting"
            if unreachable or self._clock().t >= until_t:
                return False
            for item in take(CLOSE_POLL_S):
                if isinstance(item, Outcome):
                    self.outcome(item)
                else:
                    self.handle(item)

    def _publish_report(self, report: CameraReport) -> None:
        """Set the retained topics of a camera. Face counts are rate-limited; a change of presence never is."""
        topics = self._topics.camera(report.camera)
        before = self._reports.get(report.camera)
        self._reports[report.camera] = report
        changed = before is None or (before.presence, before.sight) != (report.presence, report.sight)
        interval_s = 0.0 if changed else COUNT_INTERVAL_S
        attributes = encode_attributes(report, self._parameters.get(report.camera, {}))
        self._set(topics.availability, encode_availability(report.sight.available), Rank.AVAILABILITY)
        self._set(topics.presence, report.presence.value.encode(), Rank.PRESENCE)
        self._set(topics.attributes, to_json(attributes), Rank.PRESENCE, interval_s)
        self._set(topics.face_count, encode_count(report.faces), Rank.PRESENCE, interval_s)
        for zone, presence in report.zones.items():
            self._set(topics.zone(zone), presence.value.encode(), Rank.PRESENCE)

    def _set(self, topic: str, payload: bytes, rank: Rank, interval_s: float = 0.0) -> None:
        content_type = "application/json" if payload[:1] == b"{" else None
        self._state.set(Message(topic, payload, retain=True, content_type=content_type), rank, interval_s)

    def _connected(self, event: Connected) -> None:
        if self._session is not None:
            self._disconnected("a new connection replaced it")
        self._session, self._protocol = event.session, event.protocol
        self._window = max(1, min(WINDOW, event.receive_maximum or WINDOW))
        self._encoder.limit(event.maximum_packet_size)
        self._flow.connected()
        self._refused.clear()
        subscriptions = [one for handler in self._handlers for one in handler.subscriptions]
        subscriptions += self._selftest.connected(event.protocol, self._clock().t)
        if subscriptions:
            self._client.subscribe(subscriptions, event.session)
        self._state.connected()

    def _disconnected(self, reason: str) -> None:
        self._session = None
        self._selftest.disconnected()
        self._answers.clear()
        in_flight, self._in_flight = self._in_flight, {}
        stored = [sent for sent in in_flight.values() if isinstance(sent, Stored)]
        if self._flow.is_poison(stored):
            self._outbox.reject(stored[0].key, reason, fatal=False)
        else:
            self._outbox.release([sent.key for sent in stored])
        self._flow.disconnected(stored)

    def _acked(self, event: Acked) -> None:
        sent = self._in_flight.pop(event.token, None)
        if sent is None:
            return
        if isinstance(sent, Stored):
            self._outbox.accept(sent.key)
            self._flow.acknowledged(sent.key)
            self._selftest.message_acknowledged(len(sent.message.payload))
        elif sent == self._selftest.topic:
            self._selftest.probe_acknowledged(self._clock().t)
        else:
            self._state.accepted(sent)
        self._refused.pop(_fault_topic(sent), None)

    def _rejected(self, event: Rejected) -> None:
        sent = self._in_flight.pop(event.token, None)
        if sent is None:
            return
        topic = _fault_topic(sent)
        level = logging.DEBUG if topic in self._refused else logging.WARNING
        log.log(level, "mqtt: the broker refuses %s: %s", topic, event.reason)
        self._refused[topic] = event.reason
        retry_t = self._clock().t + (NOT_AUTHORISED_PAUSE_S if event.code == NOT_AUTHORISED else PAUSE_S)
        if not isinstance(sent, Stored):
            self._state.refused(topic, retry_t)
        elif event.fatal:
            self._outbox.reject(sent.key, event.reason, fatal=True)
        else:
            self._outbox.release([sent.key])
            in_flight = [other for other in self._in_flight.values() if isinstance(other, Stored)]
            self._flow.refused(sent, in_flight, retry_t)

    def _send_due(self) -> None:
        now = self._clock()
        if self._session is None:
            return
        for message in self._state.due(now.t):
            if len(self._in_flight) >= self._window:
                return
            self._send_state(message, now, self._session)
        while self._answers and len(self._in_flight) < self._window:
            self.send_now(self._answers.popleft())
        probe = self._selftest.due(now.t) if len(self._in_flight) < self._window else None
        if probe is not None:
            self.send_now(probe)
        if not self._flow.paused(now.t):
            self._send_outbox(now, self._session)

    def _send_state(self, message: Message, now: Moment, session: int) -> None:
        if not self._encoder.fits(message):
            level = logging.DEBUG if message.topic in self._refused else logging.ERROR
            log.log(level, "%s: %d bytes exceed the packet size limit", message.topic, len(message.payload))
            self._refused[message.topic] = "larger than the packet size limit"
            self._state.skip(message.topic)
            return
        self._state.sent(message.topic, now.t)
        if message.kind == "image" and message.expiry_s is not None and self._protocol != "5":
            # MQTT 3.1.1 has no message expiry, so images are not retained.
            message = replace(message, retain=False)
        self._in_flight[self._client.publish(message, session)] = message.topic

    def _send_outbox(self, now: Moment, session: int) -> None:
        held_back = self._flow.held_back(now.t)
        room = self._flow.room(self._window - len(self._in_flight), len(self._in_flight), held_back)
        for stored in self._outbox.batch(room, held_back) if room > 0 else ():
            self._flow.sending(stored, held_back)
            message = stored.message
            if not self._encoder.fits(message):
                self._outbox.reject(stored.key, "larger than the packet size limit", fatal=True)
                continue
            if message.kind == "event":
                late_s = max(0.0, now.t - stored.queued_t)
                stamped = stamp_delivery(message.payload, now.at, round(1000.0 * late_s), late_s > REPLAYED_AFTER_S)
                message = replace(message, payload=stamped)
            self._in_flight[self._client.publish(message, session)] = stored


def _fault_topic(sent: Union[Stored, str]) -> str:
    """Return the topic that faults name; all crops of a camera share one, and so do all answers."""
    topic = sent.message.topic if isinstance(sent, Stored) else sent
    folder = topic.rsplit("/", 1)[0]
    return folder if folder.endswith(("/crops", "/response")) else topic
