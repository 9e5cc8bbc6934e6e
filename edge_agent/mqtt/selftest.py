"""Proves on MQTT 3.1.1 that what is published arrives: there a broker acknowledges even what it throws away.

A probe goes to an own topic that we subscribe to; its echo, or the lack of one after the acknowledgement, is the
verdict. It is as large as the largest message that the broker has acknowledged in this session and that no echo has
proven yet, so that a size limit shows too, and no probe is larger than what did no harm. It shows that the broker lets
this client publish below its own root at all, not that it does so on every topic there. MQTT 5 refuses in words and
needs no probe.
"""

import logging
from typing import Any, Dict, List, Optional

from edge_agent.core.protocol.messages import RESPONSE_SCHEMA, Message, to_json
from edge_agent.mqtt.client_events import Received, Subscription

log = logging.getLogger(__name__)

SELFTEST = "selftest"
"""Its topic, as if it were a command's answer."""
INTERVAL_S = 60.0
ECHO_S = 5.0
"""After the acknowledgement; a broker sends both at about the same time."""
RECOGNISED_BYTES = 1024
"""An echo is known by its beginning: what arrives may be cut on its way here."""


class SelfTest:
    """Driven by the publisher, on its thread and its clock.

    Args:
        topic: Of the probe and its echo.
        boot: The boot counter, so that a late echo of an earlier process is none of ours.
    """

    def __init__(self, topic: str, boot: int) -> None:
        self.topic = topic
        self._boot, self._count = boot, 0
        self._heard: Optional[bool] = None
        self._swallowed_bytes = 0
        self._due_t: Optional[float] = None
        self._awaited: Optional[bytes] = None
        self._padded = False
        self._acked_t: Optional[float] = None
        self._largest_bytes = self._proven_bytes = 0

    @property
    def verified(self) -> Optional[bool]:
        """The newest verdict; None on MQTT 5, and before there is one."""
        return self._heard if not self._swallowed_bytes else False

    @property
    def faults(self) -> List[str]:
        """For health."""
        if self._heard is False:
            return [f"the broker swallows what we publish: {self.topic} does not come back; check its access list"]
        if self._swallowed_bytes:
            return [f"the broker swallows messages of {self._swallowed_bytes} bytes; raise its limit"]
        return []

    def connected(self, protocol: str, t: float) -> List[Subscription]:
        """A new session; returns what to subscribe to."""
        self.disconnected()
        if protocol == "5":
            self._heard, self._swallowed_bytes = None, 0
            return []
        self._due_t = t
        return [Subscription(self.topic)]

    def disconnected(self) -> None:
        """The session is over, and so is the test under way."""
        self._due_t = self._awaited = self._acked_t = None
        self._largest_bytes = self._proven_bytes = 0

    def due(self, t: float) -> Optional[Message]:
        """The probe to send now, or None."""
        if self._acked_t is not None and t - self._acked_t > ECHO_S:
            self._silent(t)
        if self._due_t is None or self._awaited is not None or t < self._due_t:
            return None
        self._due_t = t + INTERVAL_S
        self._padded = self._largest_bytes > self._proven_bytes
        self._awaited = self._probe(self._largest_bytes if self._padded else 0)
        return Message(self.topic, self._awaited, kind="response", content_type="application/json")

    def taken(self, payload_bytes: int) -> None:
        """The broker says that it has taken a message of ours."""
        self._largest_bytes = max(self._largest_bytes, payload_bytes)

    def acknowledged(self, t: float) -> None:
        """The broker says that it has taken the probe."""
        if self._awaited is not None:
            self._acked_t = t

    def received(self, received: Received) -> bool:
        """Whether it was for us; the right one passes the test."""
        if received.topic != self.topic:
            return False
        awaited = self._awaited
        if awaited is None or received.retain or received.payload[:RECOGNISED_BYTES] != awaited[:RECOGNISED_BYTES]:
            return True
        before = self.verified
        self._awaited = self._acked_t = None
        self._heard = True
        self._proven_bytes = max(self._proven_bytes, len(awaited))
        if self._proven_bytes >= self._swallowed_bytes:
            self._swallowed_bytes = 0
        if before is False and self.verified:
            log.info("mqtt: what we publish comes back again")
        return True

    def _silent(self, t: float) -> None:
        """The probe was acknowledged and did not come back: was it its size, or is it all of them?"""
        size_bytes = len(self._awaited or b"")
        self._awaited = self._acked_t = None
        if self._padded and self._heard:
            if not self._swallowed_bytes:
                log.warning("mqtt: the broker acknowledges messages of %d bytes and throws them away", size_bytes)
            self._swallowed_bytes = size_bytes
            # A small probe at once tells a limit from an access list.
            self._largest_bytes, self._due_t = 0, t
            return
        if self._heard is not False:
            log.warning("mqtt: the broker acknowledges what we publish, but %s does not come back", self.topic)
        self._heard, self._swallowed_bytes = False, 0

    def _probe(self, size_bytes: int) -> bytes:
        """A probe of at least its own size, padded to `size_bytes`."""
        self._count += 1
        answer: Dict[str, Any] = {
            "schema": RESPONSE_SCHEMA, "name": "selftest", "transaction": f"selftest-{self._boot}-{self._count}",
            "status": "ok", "error": None, "reason": None, "result": {"padding": ""},
        }  # fmt: skip
        bare = to_json(answer)
        answer["result"]["padding"] = "." * (size_bytes - len(bare))
        return to_json(answer)
