"""Checks on MQTT 3.1.1 that published messages arrive, because such a broker also acknowledges what it discards.

A probe is published on a topic that the agent subscribes to. Its echo, or the lack of one after the acknowledgement, is
the result. The probe is as large as the largest message that the broker has acknowledged in this session and that no
echo has confirmed yet, so a size limit is found too, and no probe is larger than a message that did no harm. The check
shows that the broker lets this client publish below the node's own topics at all, not on every one of them. MQTT 5
reports refusals, so it needs no probe.
"""

import logging
from typing import Any, Dict, List, Optional

from edge_agent.core.protocol.messages import RESPONSE_SCHEMA, Message, to_json
from edge_agent.mqtt.client_events import Received, Subscription

log = logging.getLogger(__name__)

SELFTEST = "selftest"
"""Last level of the probe's topic, among the answers to commands."""
INTERVAL_S = 60.0
ECHO_S = 5.0
"""Time limit for the echo after the acknowledgement; a broker sends both at about the same time."""
COMPARED_BYTES = 1024
"""An echo is recognised by its beginning, because received payloads may be cut."""


class SelfTest:
    """State of the check. Publish thread only.

    Args:
        topic: Topic of the probe and its echo.
        boot: The boot counter; distinguishes a late echo of an earlier process.
    """

    def __init__(self, topic: str, boot: int) -> None:
        self.topic = topic
        self._boot, self._count = boot, 0
        self._echoed: Optional[bool] = None
        self._discarded_bytes = 0
        self._due_t: Optional[float] = None
        self._awaited: Optional[bytes] = None
        self._padded = False
        self._acked_t: Optional[float] = None
        self._largest_bytes = self._proven_bytes = 0

    @property
    def verified(self) -> Optional[bool]:
        """The newest result; None on MQTT 5, and before the first one."""
        return self._echoed if not self._discarded_bytes else False

    @property
    def faults(self) -> List[str]:
        """Faults as texts for the health message."""
        if self._echoed is False:
            return [f"the broker discards published messages: no echo on {self.topic}; check its access list"]
        if self._discarded_bytes:
            return [f"the broker discards messages of {self._discarded_bytes} bytes; raise its limit"]
        return []

    def connected(self, protocol: str, t: float) -> List[Subscription]:
        """Start the check for a new session; returns the subscriptions that it needs."""
        self.disconnected()
        if protocol == "5":
            self._echoed, self._discarded_bytes = None, 0
            return []
        self._due_t = t
        return [Subscription(self.topic)]

    def disconnected(self) -> None:
        """Cancel the probe in flight."""
        self._due_t = self._awaited = self._acked_t = None
        self._largest_bytes = self._proven_bytes = 0

    def due(self, t: float) -> Optional[Message]:
        """Return the probe to send now, or None."""
        if self._acked_t is not None and t - self._acked_t > ECHO_S:
            self._echo_missing(t)
        if self._due_t is None or self._awaited is not None or t < self._due_t:
            return None
        self._due_t = t + INTERVAL_S
        self._padded = self._largest_bytes > self._proven_bytes
        self._awaited = self._probe(self._largest_bytes if self._padded else 0)
        return Message(self.topic, self._awaited, kind="response", content_type="application/json")

    def message_acknowledged(self, payload_bytes: int) -> None:
        """Note the size of another message that the broker has acknowledged."""
        self._largest_bytes = max(self._largest_bytes, payload_bytes)

    def probe_acknowledged(self, t: float) -> None:
        """Start the time limit for the echo."""
        if self._awaited is not None:
            self._acked_t = t

    def received(self, received: Received) -> bool:
        """Whether the message was on the probe's topic; the echo of the probe in flight passes the check."""
        if received.topic != self.topic:
            return False
        awaited = self._awaited
        if awaited is None or received.retain or received.payload[:COMPARED_BYTES] != awaited[:COMPARED_BYTES]:
            return True
        before = self.verified
        self._awaited = self._acked_t = None
        self._echoed = True
        self._proven_bytes = max(self._proven_bytes, len(awaited))
        if self._proven_bytes >= self._discarded_bytes:
            self._discarded_bytes = 0
        if before is False and self.verified:
            log.info("mqtt: published messages arrive again")
        return True

    def _echo_missing(self, t: float) -> None:
        size_bytes = len(self._awaited or b"")
        self._awaited = self._acked_t = None
        if self._padded and self._echoed:
            if not self._discarded_bytes:
                log.warning("mqtt: the broker acknowledges messages of %d bytes and discards them", size_bytes)
            self._discarded_bytes = size_bytes
            # A small probe at once distinguishes a size limit from an access list.
            self._largest_bytes, self._due_t = 0, t
            return
        if self._echoed is not False:
            log.warning("mqtt: the broker acknowledges published messages, but there is no echo on %s", self.topic)
        self._echoed, self._discarded_bytes = False, 0

    def _probe(self, size_bytes: int) -> bytes:
        """Return a probe of at least its own size, padded to `size_bytes`."""
        self._count += 1
        answer: Dict[str, Any] = {
            "schema": RESPONSE_SCHEMA, "name": "selftest", "transaction": f"selftest-{self._boot}-{self._count}",
            "status": "ok", "error": None, "reason": None, "result": {"padding": ""},
        }  # fmt: skip
        bare = to_json(answer)
        answer["result"]["padding"] = "." * (size_bytes - len(bare))
        return to_json(answer)
