"""Is a camera frozen? Bit-identical pictures, told from a quiet room."""

import zlib
from collections import deque
from typing import Deque, Optional

import numpy as np

from edge_agent.core.types import Array

# A camera whose emitter strobes can freeze on a lit and a dark picture in turn.
_DISTINCT = 2

# Silence of the source is not repetition: so many repeats have to be seen as well.
_MIN_REPEATS = 4


class Repetition:
    """How long the same one or two pictures have come again and again. Used by one thread.

    Two levels: a sparse sample of every frame (free), and only when that repeats a CRC-32 of all pixels, so that a
    dim and quiet room, where few pixels flicker, does not pass for a frozen one: a live sensor always changes some
    pixel (2^-32 is the chance to miss it once).
    """

    def __init__(self) -> None:
        self._samples: Deque[bytes] = deque(maxlen=_DISTINCT)
        self._checksums: Deque[int] = deque(maxlen=_DISTINCT)
        self._since: Optional[float] = None
        self._repeats = 0

    def observe(self, sample: Array, pixels: Array, t: float) -> float:
        """Seconds that nothing new has been seen; 0 when this frame is new.

        Args:
            sample: A sparse view of `pixels`, always at the same places.
            pixels: The raw frame; read only when the sample repeats.
            t: Monotonic seconds of the frame.
        """
        if self._is_new(sample.tobytes(), pixels):
            self._since, self._repeats = t, 0
        else:
            self._repeats += 1
        if self._since is None or self._repeats < _MIN_REPEATS:
            return 0.0
        return t - self._since

    def _is_new(self, sample: bytes, pixels: Array) -> bool:
        if sample not in self._samples:
            self._samples.append(sample)
            return True
        checksum = zlib.crc32(np.ascontiguousarray(pixels).data)
        if checksum not in self._checksums:
            self._checksums.append(checksum)
            return True
        return False
