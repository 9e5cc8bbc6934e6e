"""Maps the timestamps of a live stream to the local clock, so that a backlog before the decoder shows as lag."""

from typing import Optional

_JUMP_S = 10.0  # a larger step between timestamps is a new time base, not a pause
_STEP_BACK_S = 1.0
_CREEP = 0.0005  # the clocks of camera and host differ by less; lag grows faster than that


class StreamClock:
    """Estimates when frames were exposed. Used by one thread.

    A packet cannot arrive before it was sent. So the least difference between arrival and timestamp belongs to packets
    without a backlog, and what exceeds it is lag. The constant delay of camera and network cannot be known; it is not
    included.
    """

    def __init__(self) -> None:
        self._offset_s: Optional[float] = None
        self._media_s = 0.0
        self._arrived_t = 0.0

    def lag_s(self, media_s: Optional[float], arrived_t: float) -> float:
        """Seconds by which a packet is late.

        Args:
            media_s: Its timestamp in seconds; None when it has none.
            arrived_t: Monotonic seconds when it was read.
        """
        if media_s is None:
            return 0.0
        offset = arrived_t - media_s
        step = media_s - self._media_s
        if self._offset_s is None or not -_STEP_BACK_S <= step <= _JUMP_S:
            self._offset_s = offset
        else:
            self._offset_s = min(offset, self._offset_s + _CREEP * max(0.0, arrived_t - self._arrived_t))
        self._media_s, self._arrived_t = media_s, arrived_t
        return offset - self._offset_s
