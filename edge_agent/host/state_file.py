"""Small JSON files in the state directory, written whole or not at all."""

import json
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


def write_whole(path: Path, text: str, durable: bool) -> None:
    """Replace a file's text, or leave it as it was, and nothing beside it.

    Args:
        path: Of the file; its folder is made when missing.
        text: All of it.
        durable: Whether to wait until it survives a loss of power.

    Raises:
        OSError: It could not be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        # Else each start on a full disk would leave one more.
        with suppress(OSError):
            partial.unlink()
        raise


class StateFile:
    """One file. What cannot be read is as good as empty, and what cannot be written is lost at the next start: both
    are said in the log, and the agent goes on.

    Args:
        path: Of the file; its folder is made when it is not there.
        failing: True when its folder is known to be of no use, and that has been told.
    """

    def __init__(self, path: Path, failing: bool = False) -> None:
        self._path = path
        self._failing = failing

    def load(self, decode: Callable[[Any], T], empty: T) -> T:
        """What was saved, decoded; `empty` when there is nothing, or nothing that `decode` takes (ValueError)."""
        try:
            return decode(json.loads(self._path.read_text("utf-8")))
        except FileNotFoundError:
            return empty
        except OSError as error:
            level = logging.DEBUG if self._failing else logging.WARNING
            log.log(level, "%s: %s; going on without", self._path, error.strerror)
        except (ValueError, RecursionError) as error:
            log.warning("%s: damaged (%s); going on without", self._path, error)
        return empty

    def save(self, value: Any) -> bool:
        """Replace what was saved; it survives a loss of power. False when it could not be written."""
        try:
            write_whole(self._path, json.dumps(value), durable=True)
        except OSError as error:
            log.log(
                logging.DEBUG if self._failing else logging.WARNING,
                "%s: cannot be written: %s; what was changed will be forgotten at the next start",
                self._path,
                error.strerror,
            )
            self._failing = True
            return False
        if self._failing:
            log.info("%s: can be written again", self._path)
        self._failing = False
        return True
