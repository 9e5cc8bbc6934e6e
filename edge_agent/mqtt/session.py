"""One connection to the broker: one paho client, created for it, used by one thread, and discarded afterwards.

A new client for each connection keeps nothing from the last one: no queue that outlives the session, no resend of
paho's own, no stale retained value, no message that ends its loop. Every call into paho comes from the thread that runs
`Session.run`, so its callbacks cannot race with `publish`; they only record what happened.
"""

import logging
import socket
import ssl
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from paho.mqtt import MQTTException
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

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
from edge_agent.mqtt.heartbeat import CONNECT_S, STEP_S, Deadline
from edge_agent.mqtt.paho_client import (
    CREDENTIALS,
    FATAL,
    TAKEN_OVER,
    UNSUPPORTED_VERSION,
    BoundedClient,
    connect_properties,
    missing_feature,
    publish_properties,
    subscribe_options,
)
from edge_agent.mqtt.params import MqttParams
from edge_agent.mqtt.reconnect import SessionResult
from edge_agent.mqtt.send_queue import SendQueue
from edge_agent.mqtt.tls import (
    context,
    explain,
    password,
    peer_valid_until,
    probe_refusal,
    signature,
    tls_files,
    valid_until,
)

log = logging.getLogger(__name__)

POLL_S = 0.5
CHECK_FILES_S = 2.0
RENEW_S = 5.0
"""Time limit for acknowledgements before the connection is renewed with new certificates."""


@dataclass(frozen=True)
class Identity:
    """How a client connects.

    Attributes:
        params: Broker settings.
        client_id: Unique among the broker's clients.
        will: Published by the broker when the connection is lost.
    """

    params: MqttParams
    client_id: str
    will: Message


class Session:
    """Connects, sends and receives, and returns how the connection ended.

    Args:
        number: Number of this session.
        identity: How to connect.
        version: "5" or "3.1.1".
        queue: Messages and subscriptions to send.
        notify: Receives client events, in order.
        monotonic: Returns monotonic seconds.
        deadline: Extended while the session makes progress.

    Attributes:
        connected_t: When the broker accepted the connection; None before.
        own_until: End of validity of the agent's certificate; None without one.
        broker_until: End of validity of the broker's certificate; None without TLS.
    """

    def __init__(
        self,
        number: int,
        identity: Identity,
        version: str,
        queue: SendQueue,
        notify: Callable[[ClientEvent], None],
        monotonic: Callable[[], float],
        deadline: Deadline,
    ) -> None:
        self._number, self._identity, self._params, self._version = number, identity, identity.params, version
        self._queue, self._notify, self._monotonic, self._deadline = queue, notify, monotonic, deadline
        self._client: Optional[BoundedClient] = None
        self._close_by_t: Optional[float] = None
        self._connack: Optional[ReasonCode] = None
        self._missing: Optional[str] = None
        self._disconnect: Optional[ReasonCode] = None
        self._events: List[ClientEvent] = []
        self._acks: List[Tuple[int, ReasonCode]] = []
        self._tokens: Dict[int, Tuple[int, float]] = {}
        self._subscribing: Dict[int, Sequence[Subscription]] = {}
        self._files = self._seen_files = signature(tls_files(self._params))
        self._next_check_t = monotonic() + CHECK_FILES_S
        self._renew_by_t: Optional[float] = None
        self.connected_t: Optional[float] = None
        self.own_until: Optional[datetime] = None
        self.broker_until: Optional[datetime] = None

    def request_close(self, by_t: float) -> None:
        """End when everything is acknowledged, at the latest at `by_t`. From any thread."""
        self._close_by_t = by_t
        self._queue.wake()

    def run(self) -> SessionResult:
        """Connect and work until the connection ends. Exceptions of paho and `notify` pass through; then `dispose`."""
        params = self._params
        self._deadline.extend(CONNECT_S + params.connect_timeout_s)
        try:
            client = self._connect()
        except BrokerError as error:
            return SessionResult(str(error))
        except (OSError, ValueError) as error:
            return SessionResult(explain(error, params.host, params.port))
        answer_by_t = self._monotonic() + params.connect_timeout_s
        while client.socket() is not None:
            self._deadline.extend(STEP_S)
            self._step(client)
            if self.connected_t is None:
                if self._connack is not None or self._monotonic() >= answer_by_t or self._close_by_t is not None:
                    break
                continue
            self._send(client)
            if self._oldest_unacked_s() > params.ack_timeout_s:
                return self._result(f"no acknowledgement for {params.ack_timeout_s:g} s")
            if self._close_by_t is not None and self._closed(client, self._close_by_t):
                return self._result("closed", closed=True)
            if self._renewed(client):
                return self._result("certificates were renewed", closed=True)
        if self._missing is not None:
            client.disconnect()
        return self._result(None)

    def dispose(self) -> None:
        """Drop the connection and break the reference cycle; if it was open, the broker publishes the will."""
        client, self._client = self._client, None
        if client is None:
            return
        sock = client.socket()
        if sock is not None:
            sock.close()
        client.on_connect = client.on_disconnect = client.on_publish = client.on_message = client.on_subscribe = None

    def _connect(self) -> BoundedClient:
        params = self._params
        client = self._client = self._make_client()
        # A clean session each time: an old subscription must not deliver commands of an earlier session.
        if self._version == "5":
            properties = connect_properties()
            client.connect(params.host, params.port, params.keepalive_s, clean_start=True, properties=properties)
        else:
            client.connect(params.host, params.port, params.keepalive_s)
        sock = client.socket()
        if sock is not None:
            # Otherwise Nagle's algorithm and the broker's delayed acknowledgement delay each event by 40 ms.
            with socket.fromfd(sock.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read_certificates(sock)
        return client

    def _make_client(self) -> BoundedClient:
        params, will = self._params, self._identity.will
        five = self._version == "5"
        client = BoundedClient(
            CallbackAPIVersion.VERSION2,
            client_id=self._identity.client_id,
            clean_session=None if five else True,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            transport=params.transport,
            reconnect_on_failure=False,
        )
        client.suppress_exceptions = True
        client.connect_timeout = params.connect_timeout_s
        client.max_inflight_messages_set(0)
        client.will_set(will.topic, will.payload, will.qos, will.retain)
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

    def _read_certificates(self, sock: object) -> None:
        tls = self._params.tls
        if not tls.enabled:
            return
        self.own_until = None if tls.cert_file is None else valid_until(tls.cert_file)
        if isinstance(sock, ssl.SSLSocket):
            self.broker_until = peer_valid_until((sock.getpeercert() or {}).get("notAfter"))

    def _renewed(self, client: Client) -> bool:
        """Whether to connect again: the TLS files have changed, are valid, and no message is in flight."""
        now = self._monotonic()
        if self._renew_by_t is not None:
            if not self._tokens or now >= self._renew_by_t:
                client.disconnect()
                return True
            return False
        if now < self._next_check_t:
            return False
        self._next_check_t = now + CHECK_FILES_S
        seen, self._seen_files = self._seen_files, signature(tls_files(self._params))
        # Certificate and key are replaced one after the other: wait until neither changes any more.
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
        # TLS may hold decrypted bytes, which poll cannot see.
        buffered = getattr(sock, "pending", int)() > 0
        readable, writable = self._queue.wait(0.0 if buffered else POLL_S, sock.fileno(), client.want_write())
        if readable or buffered:
            client.loop_read()
        if writable:
            client.loop_write()
        client.loop_misc()
        self._report()

    def _send(self, client: Client) -> None:
        while self._queue and client.socket() is not None:
            item = self._queue.take()
            if item.session != self._number:
                continue
            if isinstance(item.content, Message):
                self._publish(client, item.token, item.content)
            elif item.content:
                _, mid = client.subscribe(subscribe_options(item.content, self._version))  # type: ignore[arg-type]
                if mid is not None:
                    self._subscribing[mid] = item.content
        self._report()

    def _publish(self, client: Client, token: int, message: Message) -> None:
        properties = publish_properties(message) if self._version == "5" else None
        try:
            info = client.publish(message.topic, message.payload, message.qos, message.retain, properties)
        except (ValueError, MQTTException) as error:
            self._events.append(Rejected(token, str(error), fatal=True))
            return
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            self._events.append(Rejected(token, "paho took no more messages"))
            return
        self._tokens[info.mid] = (token, self._monotonic())

    def _closed(self, client: Client, by_t: float) -> bool:
        late = self._monotonic() >= by_t
        if not late and (self._queue or self._tokens or client.want_write()):
            return False
        if not self._tokens:
            client.disconnect()
        return True

    def _result(self, reason: Optional[str], closed: bool = False) -> SessionResult:
        self._report()
        where = f"{self._params.host}:{self._params.port}"
        if self.connected_t is not None:
            if reason is None:
                reason = f"{where}: connection lost"
                if self._disconnect is not None:
                    reason += f" ({self._disconnect.getName()})"
                if self._disconnect is not None and self._disconnect.value == TAKEN_OVER:
                    reason = f"{where}: another client took over the client id {self._identity.client_id}"
            return SessionResult(reason, connected=True, lasted_s=self._monotonic() - self.connected_t, closed=closed)
        return self._failure(where)

    def _failure(self, where: str) -> SessionResult:
        if self._close_by_t is not None:
            return SessionResult("closed", closed=True)
        if self._connack is None:
            self._deadline.extend(CONNECT_S)
            refused = probe_refusal(self._params) if self._params.tls.enabled else None
            if refused is not None:
                return SessionResult(f"{where}: {refused}", needs_operator=True)
            silent = "takes connections, but does not answer as a broker"
            hint = "; does it want a client certificate?" if self._params.tls.enabled else ""
            return SessionResult(f"{where}: {silent} of MQTT {self._version} would{hint}", answered=False)
        code = self._connack.value
        if self._missing is not None:
            return SessionResult(f"{where}: {self._missing}", needs_operator=True)
        hint = "; check username and password_file" if code in CREDENTIALS else ""
        return SessionResult(
            f"{where}: refused: {self._connack.getName()}{hint}",
            unsupported=code == UNSUPPORTED_VERSION,
            needs_operator=code in CREDENTIALS,
        )

    def _oldest_unacked_s(self) -> float:
        oldest = next(iter(self._tokens.values()), None)
        return 0.0 if oldest is None else self._monotonic() - oldest[1]

    def _report(self) -> None:
        """Report the events that the callbacks recorded; only here is every mid known, unlike in `on_publish`."""
        events, self._events = self._events, []
        for event in events:
            self._notify(event)
        acks, self._acks = self._acks, []
        for mid, reason in acks:
            token, _ = self._tokens.pop(mid, (None, 0.0))
            if token is None:
                continue
            if reason.is_failure:
                self._notify(Rejected(token, reason.getName(), reason.value, reason.value in FATAL))
            else:
                self._notify(Acked(token))

    def _on_connect(self, client: Client, _: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._connack, self._missing = reason, missing_feature(reason.value, properties)
        if self._missing is None and not reason.is_failure:
            self.connected_t = self._monotonic()
            size = getattr(properties, "MaximumPacketSize", None)
            window = getattr(properties, "ReceiveMaximum", None)
            keepalive_s = getattr(properties, "ServerKeepAlive", None)
            if keepalive_s is not None and self._client is not None:
                self._client.set_keepalive(keepalive_s)
            self._events.append(Connected(self._number, self._version, size, window))

    def _on_disconnect(self, client: Client, _: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._disconnect = reason

    def _on_publish(self, client: Client, _: Any, mid: int, reason: ReasonCode, properties: Any) -> None:
        self._acks.append((mid, reason))

    def _on_message(self, client: Client, _: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        pairs = getattr(message.properties, "UserProperty", ()) if message.properties is not None else ()
        self._events.append(Received(topic, bytes(message.payload), message.retain, tuple(pairs)))

    def _on_subscribe(self, client: Client, _: Any, mid: int, reasons: Sequence[ReasonCode], properties: Any) -> None:
        for wanted, reason in zip(self._subscribing.pop(mid, ()), reasons):
            if reason.is_failure:
                self._events.append(SubscriptionRefused(wanted.topic, reason.getName()))
