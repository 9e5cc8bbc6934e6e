"""A progress bar on stderr, for work that takes longer than a person likes to wonder."""

import sys
import time
from typing import Iterable, Iterator, Optional, Sequence, TextIO, TypeVar

T = TypeVar("T")
WIDTH = 30


def progress(items: Sequence[T], what: str, stream: Optional[TextIO] = None) -> Iterator[T]:
    """Yield `items`, drawing how far it is: a bar on a terminal, else a line at every tenth."""
    return _draw(items, len(items), what, stream or sys.stderr)


def _draw(items: Iterable[T], total: int, what: str, stream: TextIO) -> Iterator[T]:
    bar = stream.isatty()
    started, drawn, tenth = time.monotonic(), 0.0, 0
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if bar and (now - drawn > 0.1 or done == total):
            drawn = now
            filled = WIDTH * done // total
            left = (now - started) / done * (total - done)
            stream.write(f"\r{what} [{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{total}, {left:.0f} s left ")
            stream.flush()
        elif not bar and 10 * done // total > tenth:
            tenth = 10 * done // total
            stream.write(f"{what}: {done}/{total}\n")
    if bar and total:
        stream.write("\n")
