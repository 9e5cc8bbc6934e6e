"""Both clocks, and whether the one that people see can be believed."""

import ctypes
import time
from datetime import datetime, timezone

from edge_agent.core.types import Moment

_STA_UNSYNC = 0x0040
_RECHECK_S = 10.0


class _Timex(ctypes.Structure):
    """`struct timex` (linux/timex.h), as far as it is read; the padding covers the rest."""

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
    """Callable: now, as a `Moment`. Asks the kernel at most every ten seconds whether its clock is disciplined."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._synced = False
        self._checked_t = -_RECHECK_S

    def __call__(self) -> Moment:
        t = time.monotonic()
        if t - self._checked_t >= _RECHECK_S:
            self._checked_t = t
            self._synced = self._ask_kernel()
        return Moment(t, datetime.now(timezone.utc), self._synced)

    def _ask_kernel(self) -> bool:
        timex = _Timex()
        state: int = self._libc.adjtimex(ctypes.byref(timex))
        return state >= 0 and not timex.status & _STA_UNSYNC
