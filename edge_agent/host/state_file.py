"""Small JSON files in the state directory, written atomically."""

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
    """Replace the text of a file atomically; a failure leaves the file unchanged and no temporary file.

    Args:
        path: The file; its folder is created when missing.
        text: The new text.
        durable: Whether to wait until it survives a loss of power.

    Raises:
        OSError: The file could not be written.
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
        # Otherwise each start on a full disk would leave one more file.
        with suppress(OSError):
            partial.unlink()
        raise


class StateFile:
    """One JSON file. An unreadable file counts as empty; failures are logged and not raised.

    Args:
        path: The file; its folder is created when missing.
        failing: Whether the folder is known to be unusable and this has been logged.
    """

    def __init__(self, path: Path, failing: bool = False) -> None:
        self._path = path
        self._failing = failing

    def load(self, decode: Callable[[Any], T], empty: T) -> T:
        """The saved value, decoded; `empty` when there is none or `decode` raises ValueError."""
        try:
            return decode(json.loads(self._path.read_text("utf-8")))
        except FileNotFoundError:
            return empty
        except OSError as error:
            level = logging.DEBUG if self._failing else logging.WARNING
            log.log(level, "%s: %s; continuing without it", self._path, error.strerror)
        except (ValueError, RecursionError) as error:
            log.warning("%s: damaged (%s); continuing without it", self._path, error)
        return empty

    def save(self, value: Any) -> bool:
        """Save a value durably; False when it could not be written."""
        try:
            write_whole(self._path, json.dumps(value), durable=True)
        except OSError as error:
            log.log(
                logging.DEBUG if self._failing else logging.WARNING,
                "%s: cannot be written: %s; changes will be lost at the next start",
                self._path,
                error.strerror,
            )
            self._failing = True
            return False
        if self._failing:
            log.info("%s: can be written again", self._path)
        self._failing = False
        return True
