"""The broker client: a supervised thread that connects in the background, and reconnects."""

import hashlib
import logging
import random
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Callable, Optional, Sequence, Set, TypeVar

from edge_agent.core.protocol.messages import Message
from edge_agent.mqtt.client_events import ClientEvent, Disconnected, LinkStatus, Subscription
from edge_agent.mqtt.heartbeat import STEP_S, Deadline
from edge_agent.mqtt.params import MqttParams
from edge_agent.mqtt.reconnect import Backoff, FlapDetector, ProtocolFallback, SessionResult
from edge_agent.mqtt.send_queue import SendQueue
from edge_agent.mqtt.session import Identity, Session
from edge_agent.mqtt.tls import Signature, signature, tls_files

log = logging.getLogger(__name__)
T = TypeVar("T")

WARNINGS = 10
INTERNAL_ERROR = SessionResult("internal error of the client; its traceback is in the log")


def default_client_id(node: str, machine_id: Path = Path("/etc/machine-id")) -> str:
    """Return a client id that is stable for a node on one machine, and different on every other machine."""
    try:
        machine = machine_id.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        machine = f"{uuid.getnode():x}"
    return f"{node}-{hashlib.sha256(f'{machine}/{node}'.encode()).hexdigest()[:8]}"


class MqttClient:
    """Connects, reconnects, sends, and reports events. It resends nothing and stores nothing.

    Args:
        params: Broker settings.
        client_id: Unique among the broker's clients.
        will: Published by the broker when the connection is lost.
        notify: Receives every event, in order, on the network thread; must only put it into a queue.
        monotonic: Returns monotonic seconds.
        jitter: Spreads reconnects.

    Attributes:
        name: Name of the thread.
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
        self._params, self._identity = params, Identity(params, client_id, will)
        self._notify, self._monotonic = notify, monotonic
        self._backoff = Backoff(jitter or random.Random(), params.retry_min_s, params.retry_max_s)
        self._protocol = ProtocolFallback(params.protocol)
        self._flaps = FlapDetector()
        self._queue = SendQueue()
        self._session: Optional[Session] = None
        self._closing = threading.Event()
        self._deadline = Deadline(monotonic)
        self._sessions = 0
        self._connections = 0
        self._warned: Set[str] = set()
        self._fallback_logged = False
        self._status = LinkStatus("connecting", self._protocol.version)
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        """Start the thread and return at once, whether the broker can be reached or not."""
        self._deadline.extend(STEP_S)
        self._thread.start()

    def status(self) -> LinkStatus:
        """Return the state of the connection. From any thread."""
        return self._status

    def overdue_s(self, t: float) -> float:
        """Return by how many seconds the thread is late at `t`, monotonic; infinity when it has died."""
        died = self._thread.ident is not None and not self._thread.is_alive() and not self._closing.is_set()
        return float("inf") if died else self._deadline.overdue_s(t)

    def publish(self, message: Message, session: int) -> int:
        """Send a message in `session`; it is dropped when that session has ended. From any thread.

        Returns:
            A token, which `Acked` or `Rejected` will name unless the session ends first.
        """
        return self._queue.put(session, message)

    def subscribe(self, filters: Sequence[Subscription], session: int) -> None:
        """Subscribe to topics in `session`. From any thread."""
        self._queue.put(session, tuple(filters))

    def close(self, deadline_s: float) -> bool:
        """Wait for acknowledgements, then disconnect; else close the socket, so that the broker publishes the will.

        Returns:
            True when the thread has ended within about `deadline_s`. Idempotent.
        """
        if not self._thread.is_alive():
            self._queue.close()
            return True
        self._closing.set()
        session = self._session
        if session is not None:
            session.request_close(self._monotonic() + deadline_s)
        self._queue.wake()
        # Name lookup and TLS handshake cannot be interrupted; the daemon thread is then left running.
        self._thread.join(deadline_s + 1.0)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._work()
            self._deadline.end()
            self._queue.close()
        finally:
            self._set("closed", fault="" if self._closing.is_set() else "the client's thread has died")

    def _work(self) -> None:
        while not self._closing.is_set():
            self._deadline.extend(STEP_S)
            self._sessions += 1
            session = self._session = Session(
                self._sessions, self._identity, self._protocol.version, self._queue, self._report, self._monotonic,
                self._deadline,
            )  # fmt: skip
            self._set("connecting")
            if self._closing.is_set():
                break
            files = self._files()
            try:
                result = self._guarded(session.run, INTERNAL_ERROR)
            finally:
                # Also when this thread dies: the broker must notice, and publish the will.
                self._guarded(session.dispose, None)
            self._deadline.extend(STEP_S)
            self._after(session, result, files)

    def _after(self, session: Session, result: SessionResult, files: Signature) -> None:
        """Wait before the next attempt; ends early when a file differs from `files`, its state before this attempt."""
        now = self._monotonic()
        if session.connected_t is not None:
            result = replace(result, connected=True, lasted_s=now - session.connected_t)
            if not result.closed and self._flaps.lost(now):
                hint = f"lost four times in a minute: does another client use the id {self._identity.client_id}?"
                result = replace(result, reason=f"{result.reason}; {hint}")
            reason = result.reason
            self._guarded(lambda: self._notify(Disconnected(self._sessions, reason)), None)
        if result.closed or self._closing.is_set():
            return
        version = self._protocol.version
        self._protocol.ended(result)
        if self._protocol.version != version:
            level = logging.DEBUG if self._fallback_logged else logging.WARNING
            self._fallback_logged = True
            log.log(level, "mqtt: trying version %s instead of %s", self._protocol.version, version)
        delay_s = self._backoff.after(result)
        # Each fault is logged once until a connection succeeds; the fault may change meanwhile.
        first = result.reason not in self._warned and len(self._warned) < WARNINGS
        if first:
            self._warned.add(result.reason)
        level = logging.WARNING if first else logging.DEBUG
        log.log(level, "mqtt: %s; next attempt in %.1f s", result.reason, delay_s, extra={"EVENT": "broker-lost"})
        self._set("waiting", fault=result.reason, retry_s=delay_s)
        until_t = now + delay_s
        if session.connected_t is not None:
            files = self._files()
        # A repaired certificate or password ends the wait, which may be five minutes.
        while not self._closing.is_set() and self._monotonic() < until_t and self._files() == files:
            self._deadline.extend(STEP_S)
            self._queue.wait(min(1.0, until_t - self._monotonic()))

    def _files(self) -> Signature:
        return signature((*tls_files(self._params), self._params.password_file))

    def _report(self, event: ClientEvent) -> None:
        session = self._session
        if session is not None and session.connected_t is not None and not self._status.connected:
            self._connections += 1
            self._warned.clear()
            self._fallback_logged = False
            where = self._params.host, self._params.port
            log.info(
                "mqtt: connected to %s:%d, version %s",
                *where,
                self._protocol.version,
                extra={"EVENT": "broker-connected"},
            )
            self._set("connected")
        self._notify(event)

    def _set(self, state: str, fault: str = "", retry_s: float = 0.0) -> None:
        if state == "connecting":
            fault = self._status.fault
        session, before = self._session, self._status
        self._status = LinkStatus(
            state=state,
            protocol=self._protocol.version,
            reconnects=max(0, self._connections - 1),
            fault=fault,
            last_fault=fault or before.last_fault,
            retry_s=round(retry_s, 1),
            own_until=(session and session.own_until) or before.own_until,
            broker_until=(session and session.broker_until) or before.broker_until,
        )

    def _guarded(self, call: Callable[[], T], fallback: T) -> T:
        """Call and log any exception: paho's parser and `notify` may raise anything, and the thread must go on."""
        try:
            return call()
        except Exception:
            log.exception("mqtt: unexpected error; reconnecting")
            return fallback
