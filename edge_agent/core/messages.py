"""The MQTT messages as data: what is sent, how it is kept, and the JSON of each payload (see `schemas/`)."""

from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class Message:
    """One MQTT message to be sent.

    Attributes:
        kind: "event", "gap" or "crop" (through the outbox), "state" (retained truth), "health", "response", "image".
        content_type: MQTT 5 content type, or None.
        properties: MQTT 5 user properties.
        expiry_s: MQTT 5 message expiry, or None.
        camera: For events and crops, whose they are.
        seq: For events, (boot, camera)'s counter.
        boot: For events, the boot counter.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    kind: str = "state"
    content_type: Optional[str] = None
    properties: Tuple[Tuple[str, str], ...] = ()
    expiry_s: Optional[int] = None
    camera: Optional[str] = None
    seq: Optional[int] = None
    boot: Optional[int] = None


@dataclass(frozen=True)
class Stored:
    """A message in the outbox. `key` orders them; `queued_t` and `queued_at` tell how late it is."""

    key: int
    message: Message
    queued_t: float
    queued_at: str
    tries: int = 0


@dataclass(frozen=True)
class OutboxStatus:
    """What the outbox holds and what it has lost."""

    pending: int = 0
    in_flight: int = 0
    bytes: int = 0
    oldest_s: float = 0.0
    dropped: int = 0
    quarantined: int = 0
