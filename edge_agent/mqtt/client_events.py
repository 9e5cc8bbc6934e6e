"""What the publish thread and the client's network thread tell each other, as plain data."""

from dataclasses import dataclass
from datetime import datetime
from typing import Optional, Tuple, Union


@dataclass(frozen=True)
class Subscription:
    """What to ask the broker for, QoS 1.

    Attributes:
        topic: A filter.
        as_published: On MQTT 5 a message keeps the retain flag that its sender gave it; otherwise only what the broker
            has remembered arrives with it.
    """

    topic: str
    as_published: bool = False


@dataclass(frozen=True)
class Connected:
    """The broker has accepted a new, clean session.

    Attributes:
        session: Number of the connection; what is published or subscribed names it.
        protocol: "5" or "3.1.1".
        maximum_packet_size: That the broker takes, bytes; None when it did not say.
        receive_maximum: Messages that it takes unacknowledged; None when it did not say.
    """

    session: int
    protocol: str
    maximum_packet_size: Optional[int] = None
    receive_maximum: Optional[int] = None


@dataclass(frozen=True)
class Disconnected:
    """The session is over; what it had not acknowledged may or may not have arrived."""

    session: int
    reason: str


@dataclass(frozen=True)
class Acked:
    """The broker has taken responsibility for a message (QoS 0: it was handed to the system)."""

    token: int


@dataclass(frozen=True)
class Rejected:
    """The broker has refused a message, or it cannot be sent at all.

    Attributes:
        reason: In words, as MQTT 5 names them.
        code: MQTT 5 reason code; 0 when the client itself refused.
        fatal: It would be refused for ever.
    """

    token: int
    reason: str
    code: int = 0
    fatal: bool = False


@dataclass(frozen=True)
class Received:
    """A message for one of our subscriptions."""

    topic: str
    payload: bytes
    retain: bool
    properties: Tuple[Tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SubscriptionRefused:
    """Nothing will arrive by this filter."""

    topic: str
    reason: str


ClientEvent = Union[Connected, Disconnected, Acked, Rejected, Received, SubscriptionRefused]


@dataclass(frozen=True)
class LinkStatus:
    """The client as health shows it.

    Attributes:
        state: "connecting", "connected", "waiting" (to try again) or "closed".
        protocol: "5" or "3.1.1".
        reconnects: Connections after the first.
        fault: What is wrong now, in words; empty while connected.
        last_fault: The newest of these, kept after recovery.
        retry_s: While waiting, how long in all.
        own_until: Until when our certificate is valid; None without one.
        broker_until: Until when the broker's was at the newest connection; None without TLS.
    """

    state: str
    protocol: str
    reconnects: int = 0
    fault: str = ""
    last_fault: str = ""
    retry_s: float = 0.0
    own_until: Optional[datetime] = None
    broker_until: Optional[datetime] = None

    @property
    def connected(self) -> bool:
        """True only after a CONNACK that says success."""
        return self.state == "connected"
