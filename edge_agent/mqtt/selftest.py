"""Proves on MQTT 3.1.1 that what is published arrives: there a broker acknowledges even what it throws away.

A probe goes to an own topic that we subscribe to; its echo, or the lack of one after the acknowledgement, is the
verdict. It shows that the broker lets this client publish below its own root at all. It cannot show that it lets it
publish on every topic there, nor how large a message may be: a probe that is too large may end the connection, and
that would do harm where there was none. MQTT 5 refuses in words and needs no probe.
"""

import logging
from typing import Any, Dict, List, Optional

from edge_agent.core.messages import RESPONSE_SCHEMA, Message, to_json
from edge_agent.mqtt.notices import Received

log = logging.getLogger(__name__)

INTERVAL_S = 60.0
ECHO_S = 5.0
"""After the acknowledgement; a broker sends both at about the same time."""


class SelfTest:
    """Driven by the publisher, on its thread and its clock.

    Args:
        topic: Of the probe and its echo.
        boot: The boot counter, so that a late echo of an earlier process is none of ours.

    Attributes:
        verified: The newest verdict; None on MQTT 5, and before there is one.
    """

    def __init__(self, topic: str, boot: int) -> None:
        self.topic = topic
        self.verified: Optional[bool] = None
        self._boot, self._count = boot, 0
        self._due_t: Optional[float] = None
        self._awaited: Optional[bytes] = None
        self._acked_t: Optional[float] = None

    @property
    def faults(self) -> List[str]:
        """For health."""
        if self.verified is not False:
            return []
        return [f"the broker swallows what we publish: {self.topic} does not come back; check its access list"]

    def connected(self, protocol: str, t: float) -> List[str]:
        """A new session; returns what to subscribe to."""
        self.disconnected()
        if protocol == "5":
            self.verified = None
            return []
        self._due_t = t
        return [self.topic]

    def disconnected(self) -> None:
        """The session is over, and so is the test under way."""
        self._due_t = self._awaited = self._acked_t = None

    def due(self, t: float) -> Optional[Message]:
        """The probe to send now, or None."""
        if self._acked_t is not None and t - self._acked_t > ECHO_S:
            self._conclude(False)
        if self._due_t is None or self._awaited is not None or t < self._due_t:
            return None
        self._count += 1
        self._due_t = t + INTERVAL_S
        answer: Dict[str, Any] = {
            "schema": RESPONSE_SCHEMA, "name": "selftest", "transaction": f"selftest-{self._boot}-{self._count}",
            "status": "ok", "error": None, "reason": None, "result": {},
        }  # fmt: skip
        self._awaited = to_json(answer)
        return Message(self.topic, self._awaited, kind="response", content_type="application/json")

    def acknowledged(self, t: float) -> None:
        """The broker says that it has taken the probe."""
        if self._awaited is not None:
            self._acked_t = t

    def received(self, received: Received) -> bool:
        """Whether it was for us; the right one passes the test."""
        if received.topic != self.topic:
            return False
        if received.payload == self._awaited and not received.retain:
            self._conclude(True)
        return True

    def _conclude(self, verified: bool) -> None:
        self._awaited = self._acked_t = None
        if not verified and self.verified is not False:
            log.warning("mqtt: the broker acknowledges what we publish, but %s does not come back", self.topic)
        elif verified and self.verified is False:
            log.info("mqtt: what we publish comes back again")
        self.verified = verified
