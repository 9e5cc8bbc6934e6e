"""The hand-over from capture to infer: the newest frame replaces older ones; no change of sight is lost."""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Callable, Deque, Dict, Iterable, List, Mapping, Optional, Tuple

from edge_agent.core.frame import Frame
from edge_agent.core.types import Counters, Moment, Sight

MAX_PENDING_SIGHTS = 16
"""Changes of sight kept per camera until they are taken; the oldest are discarded."""


@dataclass(frozen=True)
class Delivery:
    """News of one camera: its changes of sight, in order, then at most one frame, now owned by the taker.

    `doubted_s` are the seconds since the last delivery in which damage hid the scene.
    """

    camera: str
    sights: Tuple[Tuple[Sight, Moment], ...]
    frame: Optional[Frame]
    doubted_s: float = 0.0


class _Slot:
    def __init__(self) -> None:
        self.frame: Optional[Frame] = None
        self.sights: Deque[Tuple[Sight, Moment]] = deque(maxlen=MAX_PENDING_SIGHTS)
        self.sight = Sight.STARTING
        self.doubt = False
        self.doubted_s = 0.0
        self.served = 0
        self.taken = 0
        self.dropped = 0
        self.idle = 0
        self.wanted = False


class FrameMailbox:
    """One slot per camera under one condition; the least recently served camera goes first.

    Args:
        cameras: Their ids.
        wait: Waits on the condition for up to so many seconds; a replay does not wait.
    """

    def __init__(
        self,
        cameras: Iterable[str],
        wait: Callable[[threading.Condition, float], object] = threading.Condition.wait,
    ) -> None:
        self._wait = wait
        self._slots: Dict[str, _Slot] = {camera: _Slot() for camera in cameras}
        self._condition = threading.Condition()
        self._turn = 0
        self._closed = False

    def put(self, camera: str, frame: Frame) -> None:
        """Hand a frame over. One that was not taken, or comes after `close`, is released and counted as dropped."""
        slot = self._slots[camera]
        with self._condition:
            displaced: Optional[Frame] = frame
            if not self._closed:
                displaced, slot.frame = slot.frame, frame
            if displaced is not None:
                slot.dropped += 1
            self._condition.notify()
        if displaced is not None:
            displaced.release()

    def set_sight(self, camera: str, sight: Sight, moment: Moment) -> bool:
        """Set whether the camera can see. Returns False when nothing changed.

        A waiting frame from before a loss is dropped: it would otherwise be taken as later than the loss.
        """
        slot = self._slots[camera]
        displaced: Optional[Frame] = None
        with self._condition:
            if slot.sight is sight:
                return False
            slot.sight = sight
            slot.sights.append((sight, moment))
            if not sight.can_see and slot.frame is not None:
                displaced, slot.frame = slot.frame, None
                slot.dropped += 1
            self._condition.notify()
        if displaced is not None:
            displaced.release()
        return True

    def want_frame(self, camera: str) -> None:
        """Ask for one frame even if the camera cannot see: a snapshot shows why."""
        self._slots[camera].wanted = True

    def frame_wanted(self, camera: str) -> bool:
        """Return whether `want_frame` was called since the last time."""
        slot = self._slots[camera]
        wanted, slot.wanted = slot.wanted, False
        return wanted

    def set_doubt(self, camera: str, doubt: bool) -> None:
        """Set whether the camera may have gone blind, which takes a while to prove."""
        self._slots[camera].doubt = doubt

    def add_doubt(self, camera: str, seconds: float) -> None:
        """Add to the time in which damage hid the scene; delivered with the next frame."""
        slot = self._slots[camera]
        with self._condition:
            slot.doubted_s += seconds

    def in_doubt(self, camera: str) -> bool:
        """Return whether the camera may have gone blind, or has a change of sight that is not taken yet."""
        slot = self._slots[camera]
        with self._condition:
            return slot.doubt or bool(slot.sights)

    def take(self, timeout_s: float) -> Optional[Delivery]:
        """Return the news of the camera that waited longest, or None after `timeout_s`."""
        with self._condition:
            camera = self._next()
            if camera is None:
                self._wait(self._condition, timeout_s)
                camera = self._next()
            if camera is None:
                return None
            slot = self._slots[camera]
            self._turn += 1
            slot.served = self._turn
            frame, slot.frame = slot.frame, None
            doubted_s = 0.0
            if frame is not None:
                slot.taken += 1
                doubted_s, slot.doubted_s = slot.doubted_s, 0.0
            sights = tuple(slot.sights)
            slot.sights.clear()
        return Delivery(camera, sights, frame, doubted_s)

    def count_idle(self, camera: str) -> None:
        """Count the frame taken last as not inferred: nobody is there and it shows no change."""
        slot = self._slots[camera]
        with self._condition:
            slot.idle += 1

    def close(self) -> None:
        """Release the waiting frames, and every later one."""
        with self._condition:
            self._closed = True
            left: List[Frame] = [slot.frame for slot in self._slots.values() if slot.frame is not None]
            for slot in self._slots.values():
                if slot.frame is not None:
                    slot.dropped += 1
                    slot.frame = None
        for frame in left:
            frame.release()

    def sights(self) -> Mapping[str, Sight]:
        """Return each camera's newest sight."""
        with self._condition:
            return {camera: slot.sight for camera, slot in self._slots.items()}

    def counters(self, camera: str) -> Counters:
        """Return the counts `inferred`, `idle` (taken, not inferred) and `dropped_busy` (replaced by a newer one)."""
        slot = self._slots[camera]
        with self._condition:
            return {"inferred": slot.taken - slot.idle, "idle": slot.idle, "dropped_busy": slot.dropped}

    def _next(self) -> Optional[str]:
        waiting = [(slot.served, camera) for camera, slot in self._slots.items() if slot.frame or slot.sights]
        return min(waiting)[1] if waiting else None
