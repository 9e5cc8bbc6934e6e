"""Damaged frames: when decoded frames stop being evidence, and from when on the camera counts as unable to see."""

from collections import deque
from typing import Deque, Optional, Tuple

RECOVERY_S = 12.0
"""A predicted stream without keyframes (intra refresh) is clean again this long after the last flagged frame."""

DAMAGED_AFTER_S = 1.5
CLEAN_S = 1.0
"""A camera that could not see for damage sees again after this long without a damaged frame."""

_WINDOW_S = 10.0
_MIN_DAMAGED = 5
_MIN_SHARE = 0.1


class PredictionDamage:
    """Follows damage through a predicted codec: each frame repeats what the frames before it have lost.

    Args:
        intra: Whether the codec codes every frame independently (MJPEG), so that damage ends with its frame.
    """

    def __init__(self, intra: bool) -> None:
        self._intra = intra
        self._flagged_t: Optional[float] = None

    def observe(self, flagged: bool, keyframe: bool, t: float) -> bool:
        """Return whether this frame is damaged.

        Args:
            flagged: Whether the decoder concealed or rejected something of this frame.
            keyframe: Whether the frame is coded without reference to others.
            t: Monotonic seconds.
        """
        if flagged:
            self._flagged_t = t
        elif self._flagged_t is not None and (self._intra or keyframe or t - self._flagged_t >= RECOVERY_S):
            self._flagged_t = None
        return self._flagged_t is not None


class DamageMonitor:
    """Judges the damage of one camera's frames. Used by its capture thread.

    A damaged frame is no evidence: until the next clean one the camera is in doubt. Damage that lasts makes it blind,
    and frequent damage is trouble that health reports. A short burst is neither.
    """

    def __init__(self) -> None:
        self._since_t: Optional[float] = None
        self._clean_t: Optional[float] = None
        self._recent: Deque[Tuple[float, bool]] = deque()
        self._recent_damaged = 0
        self.blind = False

    def observe(self, damaged: bool, t: float) -> None:
        """Record one frame; `blind` is up to date afterwards."""
        self._recent.append((t, damaged))
        self._recent_damaged += damaged
        while self._recent[0][0] < t - _WINDOW_S:
            self._recent_damaged -= self._recent.popleft()[1]
        if damaged:
            self._since_t = t if self._since_t is None else self._since_t
            self._clean_t = None
            self.blind = self.blind or t - self._since_t >= DAMAGED_AFTER_S
            return
        self._clean_t = t if self._clean_t is None else self._clean_t
        if not self.blind or t - self._clean_t >= CLEAN_S:
            self.blind, self._since_t = False, None

    @property
    def share(self) -> float:
        """Part of the frames of the last ten seconds that are damaged; 0 for a short burst."""
        few = self._recent_damaged < max(_MIN_DAMAGED, _MIN_SHARE * len(self._recent))
        return 0.0 if few else self._recent_damaged / len(self._recent)
