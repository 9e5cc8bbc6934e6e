"""JPEGs out of an HTTP body: multipart as cameras send it, with and without what the standard demands.

A part ends where its JPEG ends, at the next boundary, or after Content-Length, whatever comes first. So boundaries,
their dashes and headers of parts may be missing, lengths may be wrong, and a JPEG that was cut does not take the next
one with it. Nothing is allocated by what a header claims.
"""

import re
from typing import Callable, Iterator, Optional

from edge_agent.errors import SourceError

MAX_HEAD = 64 * 1024
MAX_PART = 32 * 1024 * 1024
_LONGEST_MARGIN = 16  # of dashes, blanks and line ends around a boundary
_CHUNK = 64 * 1024
_HINT = "expected a camera that sends JPEGs"
_SOI, _EOI, _SOS = b"\xff\xd8", b"\xff\xd9", 0xDA
_HEADER = re.compile(rb"[!-9;-~]+[ \t]*:")


class JpegEnd:
    """Finds where the JPEG at the start of a growing buffer ends."""

    def __init__(self) -> None:
        self._at = len(_SOI)
        self._in_scan = False

    def find(self, data: bytearray) -> int:
        """The first position after the JPEG; 0 while its end is not in `data`, which begins as in the last call."""
        while not self._in_scan:  # segments with a length, of which APP1 may hold a JPEG of its own
            start = data[self._at : self._at + 4]
            if start[:2] == _EOI:
                return self._at + len(_EOI)
            if start[:2] == _SOI:
                return self._at  # the next JPEG: this one was cut
            if len(start) < 4:
                return 0
            if start[:2] == b"\xff\xff":
                self._at += 1
            elif start[0] != 0xFF:
                self._in_scan = True  # it is damaged
            else:
                self._at += 2 + max(2, int.from_bytes(start[2:4], "big"))
                self._in_scan = start[1] == _SOS
        # Neither coded data nor tables hold these bytes. Searching for them is much faster than for any marker.
        end = data.find(_EOI, self._at)
        following = data.find(_SOI + b"\xff", self._at, len(data) if end < 0 else end)
        if following >= 0:
            return following
        if end >= 0:
            return end + len(_EOI)
        self._at = max(self._at, len(data) - len(_SOI))
        return 0


class Parts:
    """Iterates over the images of a body; an image that was cut is returned as far as it goes.

    Args:
        read: Returns at most so many bytes as soon as there are any; empty at the end.
        boundary: As in the answer's Content-Type; empty for a body of JPEGs alone.

    Raises:
        SourceError: Headers or an image exceed `MAX_HEAD` or `MAX_PART`.
    """

    def __init__(self, read: Callable[[int], bytes], boundary: str = "") -> None:
        self._read = read
        self._token = boundary.encode("latin-1", "replace").strip(b"-")
        self._delimiter: Optional[re.Pattern[bytes]] = None
        if self._token:
            self._delimiter = re.compile(rb"\r?\n-*" + re.escape(self._token) + rb"-*[ \t]*(?:\r?\n|\Z)")
        self._data = bytearray()
        self._length: Optional[int] = None
        self._exact = False  # the last length was right; then the next JPEG need not be searched for its end
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        while self._skip_head():
            part = self._take_part()
            if part.strip():
                yield part

    def _receive(self) -> bool:
        data = b"" if self._ended else self._read(_CHUNK)
        self._ended = not data
        self._data += data
        return bool(data)

    def _skip_head(self) -> bool:
        """Drop boundary and headers before an image, and what else is there; False at the end."""
        self._length = None
        headers = False
        dropped = 0
        while True:
            if self._data[:2] == _SOI:
                return True
            line_end = self._data.find(b"\n")
            if line_end < 0 or len(self._data) < 2:
                if dropped + len(self._data) > MAX_HEAD:
                    raise SourceError(f"no image within {MAX_HEAD // 1024} KiB", _HINT)
                if not self._receive():
                    return False
                continue
            line = bytes(self._data[:line_end]).strip()
            start = line.find(_SOI + b"\xff")
            if start >= 0 and not _HEADER.match(line):  # an image after something else, in a line of its own
                del self._data[: self._data.find(_SOI + b"\xff")]
                return True
            del self._data[: line_end + 1]
            dropped += line_end + 1
            if dropped > MAX_HEAD:
                raise SourceError(f"no image within {MAX_HEAD // 1024} KiB", _HINT)
            if not line and headers:
                return True
            if self._token and line.strip(b"-") == self._token:
                headers, self._length = False, None
            elif _HEADER.match(line):
                headers = True
                name, _, value = line.partition(b":")
                if name.strip().lower() == b"content-length" and value.strip().isdigit():
                    self._length = int(value)

    def _cut_off(self, end: int) -> bytes:
        part = bytes(self._data[:end])
        del self._data[:end]
        return part

    def _find_boundary(self, start: int) -> Optional[int]:
        """Where the line end before the next boundary begins, in the data from `start` on; None without one."""
        while self._delimiter is not None:
            at = self._data.find(self._token, start)  # much faster than a search for the expression
            if at < 0:
                return None
            match = self._delimiter.search(
                self._data, max(0, at - _LONGEST_MARGIN), at + len(self._token) + _LONGEST_MARGIN
            )
            # At the very end of the data a boundary may be the beginning of something longer.
            if match is not None and (self._ended or match[0].endswith(b"\n")):
                return match.start()
            start = at + 1
        return None

    def _take_part(self) -> bytes:
        end_of_jpeg: Optional[JpegEnd] = None
        searched = 0
        while self._exact and self._length is not None and self._length <= MAX_PART:
            if len(self._data) >= self._length:
                self._exact = self._data[self._length - 2 : self._length] == _EOI
                if self._exact:
                    return self._cut_off(self._length)
            elif not self._receive():
                break
        while True:
            if end_of_jpeg is None and self._data[:4] == b"\r\n" + _SOI:
                del self._data[:2]
            if end_of_jpeg is None and self._data[:2] == _SOI:
                end_of_jpeg = JpegEnd()
            ends = [end_of_jpeg.find(self._data)] if end_of_jpeg else []
            boundary = self._find_boundary(searched)
            if boundary == 0:
                return b""
            ends.append(boundary or 0)
            searched = max(0, len(self._data) - len(self._token) - _LONGEST_MARGIN)
            if self._length is not None and len(self._data) >= self._length:
                ends.append(self._length)
            ends = [end for end in ends if end]
            if ends or self._ended:
                end = min(ends) if ends else len(self._data)
                self._exact = end == self._length and self._data[end - 2 : end] == _EOI
                return self._cut_off(end)
            if len(self._data) > MAX_PART:
                raise SourceError(f"an image exceeds {MAX_PART // 2**20} MiB", _HINT)
            self._receive()
