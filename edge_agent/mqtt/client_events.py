"""Events that the network thread reports to the publish thread, and the state of the connection."""

from dataclasses import dataclass
from datetime import datetime
from typing import Optional, Tuple, Union


@dataclass(frozen=True)
class Subscription:
    """A subscription with QoS 1.

    Attributes:
        topic: Topic filter.
        as_published: On MQTT 5, messages keep the retain flag of their sender; otherwise the flag is set only on
            messages that the broker had retained.
    """

    topic: str
    as_published: bool = False


@dataclass(frozen=True)
class Connected:
    """The broker has accepted a new, clean session.

    Attributes:
        session: Number of the session; needed to publish and to subscribe.
        protocol: "5" or "3.1.1".
        maximum_packet_size: Limit of the broker, bytes; None when it announced none.
        receive_maximum: Limit of unacknowledged messages; None when the broker announced none.
    """

    session: int
    protocol: str
    maximum_packet_size: Optional[int] = None
    receive_maximum: Optional[int] = None


@dataclass(frozen=True)
class Disconnected:
    """The session has ended; unacknowledged messages may or may not have arrived."""

    session: int
    reason: str


@dataclass(frozen=True)
class Acked:
    """The broker has acknowledged a message (QoS 0: it was written to the socket)."""

    token: int


@dataclass(frozen=True)
class Rejected:
    """The broker has refused a message, or it cannot be sent.

    Attributes:
        reason: Text, as named by MQTT 5.
        code: MQTT 5 reason code; 0 when the client itself refused.
        fatal: The broker would refuse it every time.
    """

    token: int
    reason: str
    code: int = 0
    fatal: bool = False


@dataclass(frozen=True)
class Received:
    """A message that arrived for a subscription."""

    topic: str
    payload: bytes
    retain: bool
    properties: Tuple[Tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SubscriptionRefused:
    """The broker has refused a subscription."""

    topic: str
    reason: str


ClientEvent = Union[Connected, Disconnected, Acked, Rejected, Received, SubscriptionRefused]


@dataclass(frozen=True)
class LinkStatus:
    """State of the connection, for the health message.

    Attributes:
        state: "connecting", "connected", "waiting" (to try again) or "closed".
        protocol: "5" or "3.1.1".
        reconnects: Connections after the first.
        fault: Why there is no connection; empty while connected.
        last_fault: The newest fault, kept after recovery.
        retry_s: Length of the current wait.
        own_until: End of validity of the agent's certificate; None without one.
        broker_until: End of validity of the broker's certificate at the newest connection; None without TLS.
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
        """True after a successful CONNACK."""
        return self.state == "connected"
