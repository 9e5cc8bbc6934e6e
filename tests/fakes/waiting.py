"""Waiting for a condition, where a test would otherwise sleep."""

import time
from typing import Any, Callable

DEADLINE_S = 30.0
POLL_S = 0.005


def eventually(true: Callable[[], Any], what: str = "", deadline_s: float = DEADLINE_S) -> None:
    """Poll until `true()`; fails after the deadline."""
    until = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < until, f"did not happen within {deadline_s} s: {what}"
        time.sleep(POLL_S)
