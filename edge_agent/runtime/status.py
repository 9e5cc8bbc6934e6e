"""How the agent stands, in one line for people."""

from typing import Callable, Dict, List, Mapping, Protocol

from edge_agent.core.types import Outcome, Presence, Sight
from edge_agent.runtime.slot import SlotBoard
from edge_agent.runtime.stages import CaptureStage


class Link(Protocol):
    """What the broker client says of itself."""

    @property
    def connected(self) -> bool:
        """True only after an accepting CONNACK."""

    @property
    def fault(self) -> str:
        """What is wrong now, in words; empty when nothing is known to be."""


class StatusLine:
    """Callable: the line as of now, from any thread.

    Args:
        captures: One stage per camera.
        board: Their sights.
        link: To the broker.
    """

    def __init__(self, captures: Mapping[str, CaptureStage], board: SlotBoard, link: Callable[[], Link]) -> None:
        self._captures, self._board, self._link = captures, board, link
        self._presence: Dict[str, Presence] = {}

    def note(self, outcome: Outcome) -> None:
        """What the infer thread has found."""
        if outcome.report is not None:
            self._presence[outcome.camera] = outcome.report.presence

    def __call__(self) -> str:
        blind: List[str] = []
        count = {Presence.YES: 0, Presence.NO: 0, Presence.UNKNOWN: 0}
        for camera, sight in self._board.sights().items():
            if sight.can_see:
                count[self._presence.get(camera, Presence.UNKNOWN)] += 1
            else:
                fault = self._captures[camera].counters.last_fault if sight is Sight.LOST else ""
                blind.append(f"{camera} ({fault or sight.value})")
        total = len(self._captures)
        parts = [f"{total} camera{'' if total == 1 else 's'}"]
        parts += [f"{count[Presence.YES]} with a face"] if count[Presence.YES] else []
        parts += [f"{count[Presence.NO]} without a face"] if count[Presence.NO] else []
        parts += [f"{count[Presence.UNKNOWN]} not known yet"] if count[Presence.UNKNOWN] else []
        parts += [f"{len(blind)} cannot see: {', '.join(blind)}"] if blind else []
        link = self._link()
        fault = f" ({link.fault})" if link.fault else ""
        return f"{', '.join(parts)}; broker {'connected' if link.connected else 'not connected' + fault}"
