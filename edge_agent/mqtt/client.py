"""The broker's client: a supervised thread that connects in the background, and keeps at it."""

import hashlib
import itertools
import logging
import random
import threading
import time
import uuid
from pathlib import Path
from typing import Callable, Optional, Sequence, Set, TypeVar

from edge_agent.core.protocol.messages import Message
from edge_agent.mqtt.client_events import ClientEvent, Disconnected, LinkStatus, Subscription
from edge_agent.mqtt.heartbeat import STEP_S, Heartbeat
from edge_agent.mqtt.params import MqttParams
from edge_agent.mqtt.reconnect import Backoff, FlapDetector, ProtocolFallback, SessionResult
from edge_agent.mqtt.session import Outgoing, Session, Waker, new_outgoing, tls_files
from edge_agent.mqtt.tls import Signature, signature

log = logging.getLogger(__name__)
T = TypeVar("T")

WARNINGS = 10
FAULTY = SessionResult("a fault inside the client; the log has its traceback")


def default_client_id(node: str, machine_id: Path = Path("/etc/machine-id")) -> str:
    """The same at every start of this node on this machine, and on no other machine."""
    try:
        machine = machine_id.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        machine = f"{uuid.getnode():x}"
    return f"{node}-{hashlib.sha256(f'{machine}/{node}'.encode()).hexdigest()[:8]}"


class MqttClient:
    """Connects, reconnects, sends, and tells what happens. Delivers nothing twice by itself, and remembers nothing.

    Args:
        params: The broker.
        client_id: Unique among the broker's clients.
        will: What the broker shall say when we die.
        notify: Takes every notice, in order, on the network thread; must only put it into a queue.
        monotonic: Seconds.
        jitter: Spreads reconnecting.

    Attributes:
        name: Of the thread.
    """

    name = "mqtt"

    def __init__(
        self,
        params: MqttParams,
        client_id: str,
        will: Message,
        notify: Callable[[ClientEvent], None],
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Optional[random.Random] = None,
    ) -> None:
        self._params, self._client_id, self._will = params, client_id, will
        self._notify, self._monotonic = notify, monotonic
        self._backoff = Backoff(jitter or random.Random(), params.retry_min_s, params.retry_max_s)
        self._dialect = ProtocolFallback(params.protocol)
        self._flaps = FlapDetector()
        self._outgoing = new_outgoing()
        self._wake = Waker()
        self._tokens = itertools.count(1)
        self._session: Optional[Session] = None
        self._closing = threading.Event()
        self._heart = Heartbeat(monotonic)
        self._sessions = 0
        self._connections = 0
        self._warned: Set[str] = set()
        self._flipped = False
        self._status = LinkStatus("connecting", self._dialect.version)
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """Begin to connect; returns at once, whether there is a broker or not."""
        self._heart.within(STEP_S)
        self._thread.start()

    def status(self) -> LinkStatus:
        """How it stands. From any thread."""
        return self._status

    def overdue_s(self, t: float) -> float:
        """By how many seconds the thread has missed its own deadline at `t`, monotonic; for ever when it has died."""
        died = self._thread.ident is not None and not self._thread.is_alive() and not self._closing.is_set()
        return float("inf") if died else self._heart.overdue_s(t)

    def publish(self, message: Message, session: int) -> int:
        """Send within `session`; a message for a session that has ended is dropped, as its `Disconnected` says.

        Returns:
            A token; `Acked` or `Rejected` will name it, unless the session ends first. From any thread.
        """
        return self._ask(session, message)

    def subscribe(self, filters: Sequence[Subscription], session: int) -> None:
        """Ask for topics. From any thread."""
        self._ask(session, tuple(filters))

    def close(self, deadline_s: float) -> bool:
        """Wait for acknowledgements, then say goodbye; without them just go, so that the broker publishes the will.

        Returns:
            True when the thread has ended within `deadline_s` plus a moment. Idempotent.
        """
        if not self._thread.is_alive():
            self._wake.close()
            return True
        self._closing.set()
        session = self._session
        if session is not None:
            session.request_close(self._monotonic() + deadline_s)
        self._wake.set()
        # Name lookup and TLS handshake cannot be interrupted: then the thread, a daemon, is left behind.
        self._thread.join(deadline_s + 1.0)
        return not self._thread.is_alive()

    def _ask(self, session: int, what: "Message | Sequence[Subscription]") -> int:
        token = next(self._tokens)
        self._outgoing.append(Outgoing(session, token, what))
        self._wake.set()
        return token

    def _run(self) -> None:
        try:
            self._work()
            self._heart.end()
            self._wake.close()
        finally:
            self._set("closed", fault="" if self._closing.is_set() else "the client's thread has died")

    def _work(self) -> None:
        while not self._closing.is_set():
            self._heart.within(STEP_S)
            self._sessions += 1
            session = self._session = Session(
                self._sessions, self._params, self._dialect.version, self._client_id, self._will,
                self._outgoing, self._wake, self._tell, self._monotonic,
                self._heart,
            )  # fmt: skip
            self._set("connecting")
            if self._closing.is_set():
                break
            files = self._files()
            try:
                ending = self._survive(session.run, FAULTY)
            finally:
                # Were this thread to die, the connection must not outlive it: the broker shall say so.
                self._survive(session.dispose, None)
            self._heart.within(STEP_S)
            self._after(session, ending, files)

    def _after(self, session: Session, ending: SessionResult, files: Signature) -> None:
        """`files` is what they were when the attempt began: whoever mended one meanwhile need not wait either."""
        now = self._monotonic()
        if session.connected_t is not None:
            ending = SessionResult(
                ending.reason, connected=True, lasted_s=now - session.connected_t, closed=ending.closed
            )
            if not ending.closed and self._flaps.lost(now):
                reason = f"{ending.reason}; lost four times in a minute: has another client the id {self._client_id}?"
                ending = SessionResult(reason, connected=True, lasted_s=ending.lasted_s)
            self._survive(lambda: self._notify(Disconnected(self._sessions, ending.reason)), None)
        if ending.closed or self._closing.is_set():
            return
        spoken = self._dialect.version
        self._dialect.ended(ending)
        if self._dialect.version != spoken:
            level = logging.DEBUG if self._flipped else logging.WARNING
            self._flipped = True
            log.log(level, "mqtt: trying version %s instead of %s", self._dialect.version, spoken)
        delay_s = self._backoff.after(ending)
        # Each fault once until a connection succeeds; what is wrong may change while nobody is let in.
        first = ending.reason not in self._warned and len(self._warned) < WARNINGS
        if first:
            self._warned.add(ending.reason)
        level = logging.WARNING if first else logging.DEBUG
        log.log(level, "mqtt: %s; next attempt in %.1f s", ending.reason, delay_s, extra={"EVENT": "broker-lost"})
        self._set("waiting", fault=ending.reason, retry_s=delay_s)
        until_t = now + delay_s
        if session.connected_t is not None:
            files = self._files()
        # Who has mended a certificate or a password need not wait for the rest of five minutes.
        while not self._closing.is_set() and self._monotonic() < until_t and self._files() == files:
            self._heart.within(STEP_S)
            self._wake.wait(min(1.0, until_t - self._monotonic()))

    def _files(self) -> Signature:
        return signature((*tls_files(self._params), self._params.password_file))

    def _tell(self, notice: ClientEvent) -> None:
        session = self._session
        if session is not None and session.connected_t is not None and not self._status.connected:
            self._connections += 1
            self._warned.clear()
            self._flipped = False
            where = self._params.host, self._params.port
            log.info(
                "mqtt: connected to %s:%d, version %s",
                *where,
                self._dialect.version,
                extra={"EVENT": "broker-connected"},
            )
            self._set("connected")
        self._notify(notice)

    def _set(self, state: str, fault: str = "", retry_s: float = 0.0) -> None:
        if state == "connecting":
            fault = self._status.fault
        session, told = self._session, self._status
        self._status = LinkStatus(
            state=state,
            protocol=self._dialect.version,
            reconnects=max(0, self._connections - 1),
            fault=fault,
            last_fault=fault or self._status.last_fault,
            retry_s=round(retry_s, 1),
            own_until=(session and session.own_until) or told.own_until,
            broker_until=(session and session.broker_until) or told.broker_until,
        )

    def _survive(self, call: Callable[[], T], fallback: T) -> T:
        """The callback wrapper: paho's parser and whoever listens may raise anything, and the thread must live on."""
        try:
            return call()
        except Exception:
            log.exception("mqtt: unexpected; the connection is made anew")
            return fallback
