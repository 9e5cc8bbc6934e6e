"""Picture files by OpenCV: one picture, shown again and again, or the pictures of a folder one after another."""

import logging
import time
from itertools import cycle
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

import cv2
import numpy as np

from edge_agent.capture import PICTURE_SUFFIXES, SourceOptions
from edge_agent.capture.address import split_file
from edge_agent.core.frame import FULL_RANGE, Frame, Levels
from edge_agent.core.types import Array, Counters
from edge_agent.errors import EndOfStream, SourceError

log = logging.getLogger(__name__)

DEFAULT_FPS = 5.0
_DEEP = Levels(0.0, 1.0 / 256.0)  # 16-bit files use their full range
_EXPECTED = f"expected one of {', '.join(sorted(PICTURE_SUFFIXES))}"


def load_picture(path: Path, color: bool = False) -> Tuple[Array, Levels]:
    """A picture file's pixels.

    Returns:
        (H, W) uint8 or uint16, or (H, W, 3 RGB) uint8, upright by its EXIF tag, and how to make 8-bit of it.

    Raises:
        SourceError: The file cannot be read or is no picture.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        if not data.size:
            raise SourceError(f"{path}: the file is empty", _EXPECTED)
        flags = cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
        decoded = cv2.imdecode(data, flags)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}", _EXPECTED) from error
    except cv2.error as error:
        raise SourceError(f"{path}: OpenCV cannot decode it", _EXPECTED) from error
    if decoded is None or decoded.dtype not in (np.uint8, np.uint16):
        raise SourceError(f"{path}: damaged, cut short, or not a picture of 8 or 16 bits", _EXPECTED)
    pixels = np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB) if color else decoded)
    pixels.flags.writeable = False
    return pixels, _DEEP if pixels.dtype == np.uint16 else FULL_RANGE


class ImageSource:
    """A picture, repeated without end, or a folder's pictures in the order of their names.

    Args:
        uri: Bare path or `file:` URI. `?fps=` pictures per second (5), `?pace=fast` as fast as asked, `?loop=1` starts
            a folder over at its end.
        options: `color` and `fps` are honoured; the URI's `fps` wins.
    """

    kind = "still"
    mode = "cpu"

    def __init__(self, uri: str, options: SourceOptions) -> None:
        path, query = split_file(uri)
        self._period_s = 1.0 / query.number("fps", options.fps or DEFAULT_FPS, 0.001, 1000.0)
        self._fast = query.choice("pace", ("real", "fast")) == "fast"
        self._loop = query.flag("loop")
        query.finish()
        self.uri = uri
        self._path = path
        self._color = options.color
        self._pictures: Optional[Iterator[Tuple[Array, Levels]]] = None
        self._due_t = 0.0
        self._sequence = 0
        self._unreadable = 0

    def open(self) -> None:
        """Find the pictures; a single one is decoded once, here.

        Raises:
            SourceError: There is no such file or folder, no picture in it, or the picture cannot be decoded.
        """
        self.close()
        if self._path.is_dir():
            names = self._list_folder()
            self._pictures = self._decode_folder(names)
        else:
            self._pictures = cycle([load_picture(self._path, self._color)])
        self._due_t = time.monotonic()

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The next picture when it is due; None when that is not within `timeout_s`.

        Raises:
            EndOfStream: After a folder's last picture.
            SourceError: Not open, or no picture of the folder can be decoded.
        """
        if self._pictures is None:
            raise SourceError(f"{self.uri}: not open")
        if not self._fast:
            wait_s = self._due_t - time.monotonic()
            if wait_s > 0:
                time.sleep(min(wait_s, timeout_s))
            if time.monotonic() < self._due_t:
                return None
            self._due_t = max(self._due_t + self._period_s, time.monotonic())
        picture = next(self._pictures, None)
        if picture is None:
            raise EndOfStream(f"{self.uri}: all pictures were shown")
        self._sequence += 1
        return Frame(picture[0], self._sequence - 1, time.monotonic(), picture[1])

    def close(self) -> None:
        """Forget the pictures; frames handed out keep theirs."""
        self._pictures = None

    def counters(self) -> Counters:
        """`unreadable`: files of the folder that are no pictures, each time they were tried."""
        return {"unreadable": self._unreadable}

    def _list_folder(self) -> List[Path]:
        try:
            found = sorted(path for path in self._path.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES)
        except OSError as error:
            raise SourceError(f"{self.uri}: {error.strerror}", "expected a folder that may be listed") from error
        if not found:
            raise SourceError(f"{self.uri}: no picture in this folder", _EXPECTED)
        return found

    def _decode_folder(self, paths: List[Path]) -> Iterator[Tuple[Array, Levels]]:
        """Every picture once, or over and over when looping; what cannot be decoded is skipped and counted."""
        warned = False
        while True:
            shown = 0
            for path in paths:
                try:
                    picture = load_picture(path, self._color)
                except SourceError as error:
                    self._unreadable += 1
                    log.log(logging.DEBUG if warned else logging.WARNING, "skipped %s", error)
                    warned = True
                    continue
                shown += 1
                yield picture
            if not shown:
                raise SourceError(f"{self.uri}: none of the {len(paths)} pictures can be decoded", _EXPECTED)
            if not self._loop:
                return
