"""The system's monotonic and wall clocks, and whether the wall clock is synchronised."""

import ctypes
import time
from datetime import datetime, timezone

from edge_agent.core.types import Moment

_STA_UNSYNC = 0x0040
_RECHECK_S = 10.0


class _Timex(ctypes.Structure):
    """The first fields of `struct timex` (linux/timex.h); the padding covers the rest."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("padding", ctypes.c_char * 256),
    ]


class SystemClock:
    """Callable that returns the current `Moment`; checks the synchronisation at most every ten seconds."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._synced = False
        self._checked_t = -_RECHECK_S

    def __call__(self) -> Moment:
        t = time.monotonic()
        if t - self._checked_t >= _RECHECK_S:
            self._checked_t = t
            self._synced = self._is_synchronised()
        return Moment(t, datetime.now(timezone.utc), self._synced)

    def _is_synchronised(self) -> bool:
        timex = _Timex()
        state: int = self._libc.adjtimex(ctypes.byref(timex))
        return state >= 0 and not timex.status & _STA_UNSYNC
