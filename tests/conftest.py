"""Shared fixtures. Test code that is shared lives in `tests/fakes` and is imported by that name."""

import signal

# A shell that starts this in the background has SIGINT ignored, and so would every program that a test interrupts:
# an ignored signal is inherited, a handled one is not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
