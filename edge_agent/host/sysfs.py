"""Reads what the kernel tells in small files, under an injected root; what cannot be read is None, never an error."""

import os
from pathlib import Path
from typing import Iterator, Optional

PAGE_BYTES = 4096
"""No attribute of sysfs is larger."""


class Sysfs:
    """The kernel's files.

    Args:
        root: `/`, or a folder that stands for it.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def glob(self, pattern: str) -> Iterator[Path]:
        """Paths below the root, in order; none where a folder is missing or may not be listed."""
        try:
            yield from sorted(self.root.glob(pattern))
        except OSError:
            return

    def text(self, path: Path) -> Optional[str]:
        """One attribute, without what surrounds it.

        A block that is powered off answers EAGAIN or EINVAL, a disabled sensor ENODATA. Non-blocking, so that no node
        can hold its reader.
        """
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        try:
            return os.read(file, PAGE_BYTES).decode("utf-8").strip("\0 \t\r\n") or None
        except (OSError, UnicodeDecodeError):
            return None
        finally:
            os.close(file)

    def number(self, path: Path, low: int, high: int) -> Optional[int]:
        """One whole number; None when it is none, or outside of what is physically possible."""
        text = self.text(path)
        # int() would also take "1_000" and other alphabets' digits.
        if text is None or len(text) > 20 or not text.lstrip("-").isascii() or not text.lstrip("-").isdigit():
            return None
        try:
            value = int(text)
        except ValueError:
            return None
        return value if low <= value <= high else None
