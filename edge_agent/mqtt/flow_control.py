"""How much of the outbox may be sent now, and which kinds of it must wait."""

from typing import Collection, Dict, Iterable, Set

from edge_agent.core.protocol.messages import Stored

CROP = "crop"


class FlowControl:
    """What refusals and lost connections have taught. Used by the publish thread only.

    A refused crop holds back crops alone: whoever may not have pictures shall have events. A refused event, or gap,
    holds back all, since events keep their order and a crop is worth nothing without its event.

    What was in flight when a connection was lost, or when one of its kind was refused, goes one at a time afterwards,
    with nothing beside it. So a message that kills connections convicts itself, and no innocent one with it; and a
    broker that refuses one message for a while gets no later one before it has taken that.

    Those in flight beside the first event that is refused, the broker may have taken already: they have overtaken it,
    at most a window full of them. After that this process sends one at a time, to whichever broker, and none can.
    """

    def __init__(self) -> None:
        self._lost: Set[int] = set()
        self._alone: Dict[int, str] = {}
        self._until_t: Dict[str, float] = {}
        self._one_at_a_time = False

    def connected(self) -> None:
        """Another connection: what was refused may be tried again."""
        self._until_t.clear()

    def paused(self, t: float) -> bool:
        """Whether nothing may be sent."""
        return any(t < until_t for kind, until_t in self._until_t.items() if kind != CROP)

    def held_back(self, t: float) -> Collection[str]:
        """Kinds that must wait."""
        return (CROP,) if t < self._until_t.get(CROP, t) else ()

    def room(self, room: int, in_flight: int, held_back: Collection[str]) -> int:
        """How many may be sent, when `room` is left and `in_flight` are under way."""
        if not self._one_at_a_time and all(kind in held_back for kind in self._alone.values()):
            return room
        return 0 if in_flight else 1

    def sending(self, stored: Stored, held_back: Collection[str]) -> None:
        """It goes now: of what goes alone, all that comes before it is gone."""
        if stored.key not in self._alone:
            self._alone = {key: kind for key, kind in self._alone.items() if kind in held_back}
            self._lost.intersection_update(self._alone)

    def taken(self, key: int) -> None:
        """The broker has it."""
        self._alone.pop(key, None)
        self._lost.discard(key)

    def refused(self, stored: Stored, in_flight: Iterable[Stored], until_t: float) -> None:
        """Not now; `in_flight` is what is still under way."""
        kind = _kind(stored)
        self._until_t[kind] = until_t
        self._one_at_a_time = self._one_at_a_time or kind != CROP
        self._alone[stored.key] = kind
        self._alone.update((other.key, kind) for other in in_flight if other.key > stored.key and _kind(other) == kind)

    def was_alone(self, waiting: Collection[Stored]) -> bool:
        """Whether what was in flight when the connection was lost is one message that has seen that before."""
        return len(waiting) == 1 and all(stored.key in self._lost for stored in waiting)

    def lost(self, waiting: Collection[Stored]) -> None:
        """A connection was lost, and these were in flight."""
        self._lost.update(stored.key for stored in waiting)
        self._alone.update((stored.key, _kind(stored)) for stored in waiting)


def _kind(stored: Stored) -> str:
    return CROP if stored.message.kind == CROP else "event"
