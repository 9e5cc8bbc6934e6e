"""One connection to the broker: one paho client, made new, used by one thread, thrown away.

A new client for each connection leaves paho nothing to remember: no queue that outlives the session, no resend behind
the outbox's back, no stale retained value, no message that kills its loop for ever. Every call into paho comes from
the thread that runs `Session.run`, so its callbacks cannot race with `publish`; they only note what happened.
"""

import contextlib
import logging
import select
import socket
import ssl
from collections import deque
from datetime import datetime
from typing import Any, Callable, Deque, Dict, List, Optional, Protocol, Sequence, Tuple, Union

from paho.mqtt import MQTTException
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.core.protocol.messages import Message
from edge_agent.errors import BrokerError
from edge_agent.mqtt.client_events import (
    Acked,
    ClientEvent,
    Connected,
    Received,
    Rejected,
    Subscription,
    SubscriptionRefused,
)
from edge_agent.mqtt.heartbeat import CONNECT_S, Heartbeat
from edge_agent.mqtt.heartbeat import STEP_S as BEAT_S
from edge_agent.mqtt.params import MqttParams
from edge_agent.mqtt.reconnect import SessionResult
from edge_agent.mqtt.tls import context, explain, hear_refusal, password, peer_valid_until, signature, valid_until


class HasFileno(Protocol):
    """Anything that poll can wait for."""

    def fileno(self) -> int:
        """The file descriptor."""


class Waker:
    """`set` from any thread; `wait` from one."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def set(self) -> None:
        """End the current wait, or the next."""
        # Full: enough is unread to end the next wait. Closed: nobody will wait again.
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def wait(self, timeout_s: float, sock: Optional[HasFileno] = None, write: bool = False) -> Tuple[bool, bool]:
        """Up to `timeout_s`, for `set` or for `sock`.

        Returns:
            Whether `sock` can be read (or is broken), and, with `write`, whether it can be written.
        """
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        if sock is not None:
            poll.register(sock, select.POLLIN | (select.POLLOUT if write else 0))
        events = dict(poll.poll(max(0.0, timeout_s) * 1000.0))
        if self._reader.fileno() in events:
            with contextlib.suppress(BlockingIOError):
                while self._reader.recv(4096):
                    pass
        state = events.get(sock.fileno(), 0) if sock is not None else 0
        return bool(state & ~select.POLLOUT), bool(state & select.POLLOUT)

    def close(self) -> None:
        """Idempotent."""
        self._reader.close()
        self._writer.close()


CREDENTIALS = frozenset({0x86, 0x87, 0x8A, 0x8C})
UNSUPPORTED_VERSION = 0x84
RETAIN_NOT_SUPPORTED = 0x9A
QOS_NOT_SUPPORTED = 0x9B
TAKEN_OVER = 0x8E
FATAL = frozenset({0x90, 0x95, 0x99})
"""PUBACK: topic name invalid, packet too large, payload format invalid."""
NO_RETAIN = (
    "it keeps no retained messages, and without them nobody can see presence; allow them there (mosquitto: "
    "retain_available true), or use another broker"
)
NO_QOS = (
    "it takes QoS 0 only, and events must be acknowledged; allow QoS 1 there (mosquitto: max_qos 2), or use another"
)


def connect_properties() -> Properties:
    """How much may come in."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = INBOUND_BYTES
    return properties


def publish_properties(message: Message) -> Properties:
    """What belongs to `message`."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if message.content_type is not None:
        properties.ContentType = message.content_type
    if message.expiry_s is not None:
        properties.MessageExpiryInterval = message.expiry_s
    if message.properties:
        properties.UserProperty = list(message.properties)
    return properties


def subscribe_options(wanted: Sequence[Subscription], version: str) -> List[Tuple[str, Union[int, SubscribeOptions]]]:
    """What paho's `subscribe` takes."""
    if version != "5":
        return [(one.topic, 1) for one in wanted]
    return [(one.topic, SubscribeOptions(qos=1, retainAsPublished=one.as_published)) for one in wanted]


def unfit(code: int, properties: Any) -> Optional[str]:
    """Why the agent cannot work with this broker, by its CONNACK; None when it can.

    Args:
        code: Reason code.
        properties: Of the CONNACK, or None. What a broker does not mention, it has.
    """
    if code == RETAIN_NOT_SUPPORTED or getattr(properties, "RetainAvailable", 1) == 0:
        return NO_RETAIN
    if code == QOS_NOT_SUPPORTED or getattr(properties, "MaximumQoS", 2) == 0:
        return NO_QOS
    return None


INBOUND_BYTES = 65_536


class BoundedClient(Client):
    """Keeps the beginning of a packet, however long it is: MQTT 3.1.1 has no Maximum Packet Size to say so.

    What was cut is acknowledged, and refused for its length by whoever judges it. Were the connection dropped instead,
    one retained message could keep the agent away for ever.
    """

    def heed_keepalive(self, seconds: int) -> None:
        """What the broker asks for instead of what we have said; paho 2.1 passes it over."""
        self._keepalive = seconds

    def _sock_recv(self, bufsize: int) -> bytes:
        del self._in_packet["packet"][INBOUND_BYTES:]
        return super()._sock_recv(min(bufsize, INBOUND_BYTES))


log = logging.getLogger(__name__)

STEP_S = 0.5
FILES_LOOK_S = 2.0
RENEW_S = 5.0
"""What is under way when certificates are renewed has this long to be acknowledged."""


class Outgoing:
    """What a session is asked to send: a message, or filters to subscribe to."""

    __slots__ = ("session", "token", "what")

    def __init__(self, session: int, token: int, what: Union[Message, Sequence[Subscription]]) -> None:
        self.session, self.token, self.what = session, token, what


class Session:
    """Connects, works, and says how it ended.

    Args:
        number: Of this connection.
        params: The broker.
        version: "5" or "3.1.1".
        client_id: Unique among the broker's clients.
        will: Published by the broker when the connection dies.
        outgoing: What to send; filled by other threads.
        wake: Set by them afterwards.
        tell: Takes notices, in order.
        monotonic: Seconds.
        heart: Beats while this gets on.

    Attributes:
        own_until: Until when our certificate is valid; None without one.
        broker_until: Until when the broker's is; None without TLS.
    """

    def __init__(
        self,
        number: int,
        params: MqttParams,
        version: str,
        client_id: str,
        will: Message,
        outgoing: Deque[Outgoing],
        wake: Waker,
        tell: Callable[[ClientEvent], None],
        monotonic: Callable[[], float],
        heart: Heartbeat,
    ) -> None:
        self._heart = heart
        self._number, self._params, self._version, self._will = number, params, version, will
        self._outgoing, self._wake, self._tell, self._monotonic = outgoing, wake, tell, monotonic
        self._client_id = client_id
        self._client: Optional[BoundedClient] = None
        self._close_by_t: Optional[float] = None
        self._connected_t: Optional[float] = None
        self._verdict: Optional[ReasonCode] = None
        self._unfit: Optional[str] = None
        self._parting: Optional[ReasonCode] = None
        self._noted: List[ClientEvent] = []
        self._acks: List[Tuple[int, ReasonCode]] = []
        self._tokens: Dict[int, Tuple[int, float]] = {}
        self._asked: Dict[int, Sequence[Subscription]] = {}
        self._files = self._seen_files = signature(tls_files(params))
        self._next_look_t = monotonic() + FILES_LOOK_S
        self._renew_by_t: Optional[float] = None
        self.own_until: Optional[datetime] = None
        self.broker_until: Optional[datetime] = None

    @property
    def connected_t(self) -> Optional[float]:
        """When the broker accepted, or None."""
        return self._connected_t

    def request_close(self, by_t: float) -> None:
        """From any thread: end when everything is acknowledged, at the latest at `by_t`."""
        self._close_by_t = by_t
        self._wake.set()

    def run(self) -> SessionResult:
        """Connect and work until the connection ends. Whatever paho or `tell` raises comes out; then `dispose`."""
        params = self._params
        self._heart.within(CONNECT_S + params.connect_timeout_s)
        try:
            client = self._client = self._make()
            # A clean session each time: an old subscription must not replay commands that were meant for yesterday.
            if self._version == "5":
                properties = connect_properties()
                client.connect(params.host, params.port, params.keepalive_s, clean_start=True, properties=properties)
            else:
                client.connect(params.host, params.port, params.keepalive_s)
        except BrokerError as error:
            return SessionResult(str(error))
        except (OSError, ValueError) as error:
            return SessionResult(explain(error, params.host, params.port))
        # Without this, Nagle's algorithm and the broker's delayed acknowledgement cost an event 40 ms.
        sock = client.socket()
        if sock is not None:
            with socket.fromfd(sock.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._note_certificates(sock)
        answer_by_t = self._monotonic() + params.connect_timeout_s
        while client.socket() is not None:
            self._heart.within(BEAT_S)
            self._step(client)
            if self._connected_t is None:
                if self._verdict is not None or self._monotonic() >= answer_by_t or self._close_by_t is not None:
                    break
                continue
            self._send(client)
            if self._oldest_unacked_s() > params.ack_timeout_s:
                return self._ended(f"no acknowledgement for {params.ack_timeout_s:g} s")
            if self._close_by_t is not None and self._closed(client, self._close_by_t):
                return self._ended("closed", closed=True)
            if self._renewed(client):
                return self._ended("certificates were renewed", closed=True)
        if self._unfit is not None:
            client.disconnect()
        return self._ended(None)

    def dispose(self) -> None:
        """Drop the connection (where it still stands, the broker publishes the will) and break the reference cycle."""
        client, self._client = self._client, None
        if client is None:
            return
        sock = client.socket()
        if sock is not None:
            sock.close()
        client.on_connect = client.on_disconnect = client.on_publish = client.on_message = client.on_subscribe = None

    def _make(self) -> BoundedClient:
        params = self._params
        five = self._version == "5"
        client = BoundedClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=None if five else True,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            transport=params.transport,
            reconnect_on_failure=False,
        )
        client.suppress_exceptions = True
        client.connect_timeout = params.connect_timeout_s
        client.max_inflight_messages_set(0)
        client.will_set(self._will.topic, self._will.payload, self._will.qos, self._will.retain)
        if params.username is not None:
            client.username_pw_set(params.username, password(params.password_file))
        if params.tls.enabled:
            client.tls_set_context(context(params.tls))
        if params.transport == "websockets":
            client.ws_set_options(params.websocket_path)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        return client

    def _note_certificates(self, sock: object) -> None:
        tls = self._params.tls
        if not tls.enabled:
            return
        self.own_until = None if tls.cert_file is None else valid_until(tls.cert_file)
        if isinstance(sock, ssl.SSLSocket):
            self.broker_until = peer_valid_until((sock.getpeercert() or {}).get("notAfter"))

    def _renewed(self, client: Client) -> bool:
        """True when the TLS files have changed, can be used, and what was under way is done: connect anew with them."""
        now = self._monotonic()
        if self._renew_by_t is not None:
            if not self._tokens or now >= self._renew_by_t:
                client.disconnect()
                return True
            return False
        if now < self._next_look_t:
            return False
        self._next_look_t = now + FILES_LOOK_S
        seen, self._seen_files = self._seen_files, signature(tls_files(self._params))
        # Certificate and key are replaced one after the other: wait until they have come to rest.
        if self._seen_files == self._files or self._seen_files != seen:
            return False
        self._files = self._seen_files
        try:
            context(self._params.tls)
        except BrokerError as error:
            log.warning("mqtt: renewed certificates are not used: %s", error)
            return False
        log.info("mqtt: certificates were renewed; connecting with them")
        self._renew_by_t = now + RENEW_S
        return False

    def _step(self, client: Client) -> None:
        sock = client.socket()
        if sock is None:
            return
        # TLS may hold decrypted bytes that poll cannot see.
        buffered = getattr(sock, "pending", int)() > 0
        readable, writable = self._wake.wait(0.0 if buffered else STEP_S, sock, client.want_write())
        if readable or buffered:
            client.loop_read()
        if writable:
            client.loop_write()
        client.loop_misc()
        self._report()

    def _send(self, client: Client) -> None:
        while self._outgoing and client.socket() is not None:
            item = self._outgoing.popleft()
            if item.session != self._number:
                continue
            if isinstance(item.what, Message):
                self._publish(client, item.token, item.what)
            elif item.what:
                _, mid = client.subscribe(subscribe_options(item.what, self._version))  # type: ignore[arg-type]
                if mid is not None:
                    self._asked[mid] = item.what
        self._report()

    def _publish(self, client: Client, token: int, message: Message) -> None:
        properties = publish_properties(message) if self._version == "5" else None
        try:
            info = client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        except (ValueError, MQTTException) as error:
            self._noted.append(Rejected(token, str(error), fatal=True))
            return
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            self._noted.append(Rejected(token, "paho took no more messages"))
            return
        self._tokens[info.mid] = (token, self._monotonic())

    def _closed(self, client: Client, by_t: float) -> bool:
        late = self._monotonic() >= by_t
        if not late and (self._outgoing or self._tokens or client.want_write()):
            return False
        if not self._tokens:
            client.disconnect()
        return True

    def _ended(self, reason: Optional[str], closed: bool = False) -> SessionResult:
        self._report()
        where = f"{self._params.host}:{self._params.port}"
        if self._connected_t is not None:
            if reason is None:
                reason = f"{where}: connection lost"
                if self._parting is not None:
                    reason += f" ({self._parting.getName()})"
                if self._parting is not None and self._parting.value == TAKEN_OVER:
                    reason = f"{where}: another client took over the client id {self._client_id}"
            return SessionResult(reason, connected=True, lasted_s=self._monotonic() - self._connected_t, closed=closed)
        if self._close_by_t is not None:
            return SessionResult("closed", closed=True)
        if self._verdict is None:
            self._heart.within(CONNECT_S)
            refused = hear_refusal(self._params) if self._params.tls.enabled else None
            if refused is not None:
                return SessionResult(f"{where}: {refused}", hopeless=True)
            silent = "takes connections, but does not answer as a broker"
            hint = "; does it want a client certificate?" if self._params.tls.enabled else ""
            return SessionResult(f"{where}: {silent} of MQTT {self._version} would{hint}", answered=False)
        code = self._verdict.value
        if self._unfit is not None:
            return SessionResult(f"{where}: {self._unfit}", hopeless=True)
        hint = "; check username and password_file" if code in CREDENTIALS else ""
        return SessionResult(
            f"{where}: refused: {self._verdict.getName()}{hint}",
            unsupported=code == UNSUPPORTED_VERSION,
            hopeless=code in CREDENTIALS,
        )

    def _oldest_unacked_s(self) -> float:
        oldest = next(iter(self._tokens.values()), None)
        return 0.0 if oldest is None else self._monotonic() - oldest[1]

    def _report(self) -> None:
        """Tell what the callbacks have noted; a mid is known here, which it need not be in `on_publish`."""
        noted, self._noted = self._noted, []
        for notice in noted:
            self._tell(notice)
        acks, self._acks = self._acks, []
        for mid, reason in acks:
            token, _ = self._tokens.pop(mid, (None, 0.0))
            if token is None:
                continue
            if reason.is_failure:
                self._tell(Rejected(token, reason.getName(), reason.value, reason.value in FATAL))
            else:
                self._tell(Acked(token))

    def _on_connect(self, client: Client, _: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._verdict, self._unfit = reason, unfit(reason.value, properties)
        if self._unfit is None and not reason.is_failure:
            self._connected_t = self._monotonic()
            size = getattr(properties, "MaximumPacketSize", None)
            window = getattr(properties, "ReceiveMaximum", None)
            keepalive_s = getattr(properties, "ServerKeepAlive", None)
            if keepalive_s is not None and self._client is not None:
                self._client.heed_keepalive(keepalive_s)
            self._noted.append(Connected(self._number, self._version, size, window))

    def _on_disconnect(self, client: Client, _: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._parting = reason

    def _on_publish(self, client: Client, _: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        self._acks.append((mid, reason))

    def _on_message(self, client: Client, _: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        pairs = getattr(message.properties, "UserProperty", ()) if message.properties is not None else ()
        self._noted.append(Received(topic, bytes(message.payload), message.retain, tuple(pairs)))

    def _on_subscribe(self, client: Client, _: Any, mid: int, reasons: Sequence[ReasonCode], properties: Any) -> None:
        for wanted, reason in zip(self._asked.pop(mid, ()), reasons):
            if reason.is_failure:
                self._noted.append(SubscriptionRefused(wanted.topic, reason.getName()))


def new_outgoing() -> Deque[Outgoing]:
    """A queue that several threads may share."""
    return deque()


def tls_files(params: MqttParams) -> Tuple[Optional[str], ...]:
    """What a new connection reads anew."""
    return (params.tls.ca_file, params.tls.cert_file, params.tls.key_file) if params.tls.enabled else ()
