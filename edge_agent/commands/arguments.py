"""Arguments, option overrides and the progress bar that several commands share."""

import argparse
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional, Sequence, TextIO, TypeVar

from edge_agent.core.detection.model_contract import CENTERFACE
from edge_agent.errors import InputError
from edge_agent.inference import EngineParams

T = TypeVar("T")
WIDTH = 30


def progress(items: Sequence[T], what: str, stream: Optional[TextIO] = None) -> Iterator[T]:
    """Yield `items` and show the progress on `stream` (stderr): a bar on a terminal, else a line at every tenth."""
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


def with_arguments(params: EngineParams, args: argparse.Namespace) -> EngineParams:
    """`params`, overridden by the arguments of the same names that were given.

    Raises:
        InputError: An argument is out of its bounds.
    """
    given = {field.name: getattr(args, field.name, None) for field in fields(EngineParams)}
    long_side = given["long_side"]
    if long_side is not None and (long_side < 64 or long_side % CENTERFACE.multiple):
        raise InputError(f"--long-side {long_side}", "expected a multiple of 32, 64 or more")
    return replace(params, **{name: value for name, value in given.items() if value is not None})


def add_command(subparsers: Any, name: str, summary: str, more: str = "") -> argparse.ArgumentParser:
    """Add a command or an action; `summary` is its line in the list, and with `more` its own description."""
    description = f"{summary[0].upper()}{summary[1:]}.{more and ' ' + more}"
    command: argparse.ArgumentParser = subparsers.add_parser(name, help=summary, description=description)
    return command


def add_env_file(command: argparse.ArgumentParser) -> None:
    """Add `--env-file`, the argument of `load_settings`."""
    command.add_argument(
        "--env-file",
        type=Path,
        metavar="FILE",
        help="file with settings, in the syntax of systemd's EnvironmentFile; default: $EDGE_AGENT_ENV_FILE, else none",
    )
