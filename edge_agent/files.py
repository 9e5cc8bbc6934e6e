"""Bounded reading of files that others have put there: never a pipe, a device or a socket, never without end."""

import errno
import os
import stat
from pathlib import Path
from typing import Union

MAX_TEXT_BYTES = 64 << 20
MAX_MODEL_BYTES = 2 << 30
"""A protobuf message, and so an ONNX file, is smaller."""


def require_regular(path: Union[str, Path]) -> None:
    """Check that `path` is a regular file, or a link to one. Opens nothing: opening a device may act on it.

    Raises:
        OSError: It is not, or does not exist.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: Union[str, Path], max_bytes: int) -> bytes:
    """Read a regular file of at most `max_bytes`.

    Raises:
        OSError: It cannot be read, is not a regular file, or is larger.
    """
    require_regular(path)
    # Not blocking: it may have been replaced by a pipe since.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(file, "rb") as opened:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        data = opened.read(max_bytes + 1) if facts.st_size <= max_bytes else b""
    if facts.st_size > max_bytes or len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes / (1 << 20):g} MiB", str(path))
    return data
