"""A scripted camera, with faults, for tests without hardware."""

from typing import Callable, List, Optional, Union

import numpy as np

from edge_agent.core.frame import Frame, undecodable
from edge_agent.core.types import Counters
from edge_agent.errors import EndOfStream, SourceError

FRAME, DAMAGED, NOTHING, GONE, END = "frame", "damaged", "nothing", "gone", "end"
Step = Union[str, np.ndarray]


class ScriptedCamera:
    """Plays one script per open: a list of "frame", "damaged", "nothing", "gone", "end", or pixels; after it, nothing.

    A script given as None cannot be opened. `history` records the calls.
    """

    kind = "sensor"

    def __init__(
        self, clock: Callable[[], float], scripts: List[Optional[List[Step]]], uri: str = "fake:camera"
    ) -> None:
        self.uri = uri
        self.history: List[str] = []
        self._clock, self._scripts = clock, list(scripts)
        self._script: Optional[List[Step]] = None
        self._sequence = 0
        self._rng = np.random.default_rng(0)

    def open(self) -> None:
        self.history.append("open")
        script = self._scripts.pop(0) if self._scripts else []
        if script is None:
            raise SourceError(f"{self.uri}: no such device", "plug it in")
        self._script = list(script)

    def read(self, timeout_s: float) -> Optional[Frame]:
        if self._script is None:
            raise SourceError(f"{self.uri}: read while closed")
        step = self._script.pop(0) if self._script else NOTHING
        if isinstance(step, str) and step == NOTHING:
            return None
        if isinstance(step, str) and step == GONE:
            raise SourceError(f"{self.uri}: the device is gone")
        if isinstance(step, str) and step == END:
            raise EndOfStream(f"{self.uri}: ended")
        self._sequence += 1
        if isinstance(step, str) and step == DAMAGED:
            return undecodable(self._sequence, self._clock())
        pixels = step if isinstance(step, np.ndarray) else self._live_room()
        return Frame(pixels, self._sequence, self._clock(), on_release=lambda: self.history.append("release"))

    def close(self) -> None:
        self.history.append("close")
        self._script = None

    def counters(self) -> Counters:
        return {"sequence_gaps": 0}

    def _live_room(self) -> np.ndarray:
        room = np.add.outer(np.arange(48), np.arange(64) * 2) % 97 + 40
        return (room + self._rng.normal(0, 2, room.shape)).clip(0, 255).astype(np.uint8)
