"""Decides how much of the outbox may be sent now, and which kinds of messages must wait."""

from typing import Collection, Dict, Iterable, Set

from edge_agent.core.protocol.messages import Stored

CROP = "crop"


class FlowControl:
    """Slows sending down after refusals and lost connections. Publish thread only.

    A refused crop pauses crops only. A refused event or gap pauses everything, because events keep their order and a
    crop has no value without its event.

    Messages that were in flight when a connection was lost, or when one of their kind was refused, are sent again one
    at a time, with nothing beside them. This isolates a poison message that makes the broker drop the connection, and
    sends no later message before a refused one.

    The broker may already have accepted the messages in flight beside the first refused event: they have overtaken it,
    at most a full window of them. After that first refusal this process sends one message at a time, so that it cannot
    happen again.
    """

    def __init__(self) -> None:
        self._lost: Set[int] = set()
        self._one_by_one: Dict[int, str] = {}
        self._until_t: Dict[str, float] = {}
        self._strict_order = False

    def connected(self) -> None:
        """End all pauses: a new connection may accept what was refused."""
        self._until_t.clear()

    def paused(self, t: float) -> bool:
        """Whether nothing may be sent."""
        return any(t < until_t for kind, until_t in self._until_t.items() if kind != CROP)

    def held_back(self, t: float) -> Collection[str]:
        """Return the message kinds that must wait."""
        return (CROP,) if t < self._until_t.get(CROP, t) else ()

    def room(self, room: int, in_flight: int, held_back: Collection[str]) -> int:
        """Return how many messages may be sent, given the window's free `room` and the number in flight."""
        if not self._strict_order and all(kind in held_back for kind in self._one_by_one.values()):
            return room
        return 0 if in_flight else 1

    def sending(self, stored: Stored, held_back: Collection[str]) -> None:
        """Note that a message is sent; if it is not one of the suspects, those before it are acknowledged."""
        if stored.key not in self._one_by_one:
            self._one_by_one = {key: kind for key, kind in self._one_by_one.items() if kind in held_back}
            self._lost.intersection_update(self._one_by_one)

    def acknowledged(self, key: int) -> None:
        """Clear a message of suspicion."""
        self._one_by_one.pop(key, None)
        self._lost.discard(key)

    def refused(self, stored: Stored, in_flight: Iterable[Stored], until_t: float) -> None:
        """Pause the kind of a refused message until `until_t`; `in_flight` are the messages still sent beside it."""
        kind = _kind(stored)
        self._until_t[kind] = until_t
        self._strict_order = self._strict_order or kind != CROP
        self._one_by_one[stored.key] = kind
        later = (other for other in in_flight if other.key > stored.key and _kind(other) == kind)
        self._one_by_one.update((other.key, kind) for other in later)

    def is_poison(self, in_flight: Collection[Stored]) -> bool:
        """Whether a lost connection had only one message in flight, and it was in flight at an earlier loss, too."""
        return len(in_flight) == 1 and all(stored.key in self._lost for stored in in_flight)

    def disconnected(self, in_flight: Collection[Stored]) -> None:
        """Suspect the messages that were in flight when the connection was lost."""
        self._lost.update(stored.key for stored in in_flight)
        self._one_by_one.update((stored.key, _kind(stored)) for stored in in_flight)


def _kind(stored: Stored) -> str:
    return CROP if stored.message.kind == CROP else "event"
