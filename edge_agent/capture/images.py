"""Image files, decoded by OpenCV: one image, repeated, or the images of a folder in order of name."""

import logging
import time
from itertools import cycle
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

import cv2
import numpy as np

from edge_agent.capture import IMAGE_SUFFIXES, SourceOptions
from edge_agent.capture.address import split_file
from edge_agent.capture.image_header import image_size
from edge_agent.capture.pixels import SampleDepth
from edge_agent.core.frame import FULL_RANGE, Frame, Levels
from edge_agent.core.types import Array, Counters
from edge_agent.errors import EndOfStream, SourceError
from edge_agent.files import read_regular

log = logging.getLogger(__name__)

DEFAULT_FPS = 5.0
MAX_BYTES = 128 << 20
MAX_PIXELS = 1 << 25
"""A little more than 7680x4320; checked before decoding, because a small file can hold an image of gigabytes."""
_EXPECTED = f"expected one of {', '.join(sorted(IMAGE_SUFFIXES))}"


def load_image(path: Path, color: bool = False, depth: Optional[SampleDepth] = None) -> Tuple[Array, Levels]:
    """Decode an image file.

    Args:
        path: The file.
        color: Return RGB instead of gray.
        depth: What earlier images of 16 bits have shown of their depth; raw values of 10 to 14 bits are recognised.

    Returns:
        (H, W) uint8 or uint16, or (H, W, 3 RGB) uint8, read-only, rotated by the EXIF tag, and the levels that
        convert it to 8 bits.

    Raises:
        SourceError: The file cannot be read, is not an image, or is larger than `MAX_BYTES` or `MAX_PIXELS`.
    """
    try:
        content = read_regular(path, MAX_BYTES)
        if not content:
            raise SourceError(f"{path}: the file is empty", _EXPECTED)
        size = image_size(content)
        if size is None:
            raise SourceError(f"{path}: not an image of a known format", _EXPECTED)
        if size[0] * size[1] > MAX_PIXELS:
            raise SourceError(f"{path}: {size[0]}x{size[1]} px are too many", f"expected at most {MAX_PIXELS} px")
        data = np.frombuffer(content, np.uint8)
        flags = (cv2.IMREAD_COLOR if color else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_ANYDEPTH
        decoded = cv2.imdecode(data, flags)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}", _EXPECTED) from error
    except cv2.error as error:
        raise SourceError(f"{path}: OpenCV cannot decode it", _EXPECTED) from error
    if decoded is None or decoded.dtype not in (np.uint8, np.uint16):
        raise SourceError(f"{path}: damaged, truncated, or not an image of 8 or 16 bits", _EXPECTED)
    levels = FULL_RANGE
    if decoded.dtype == np.uint16:
        levels = (depth or SampleDepth(16)).observe(decoded)
    if color:
        decoded, levels = cv2.cvtColor(levels.to_gray8(decoded), cv2.COLOR_BGR2RGB), FULL_RANGE
    pixels = np.asarray(decoded)
    pixels.flags.writeable = False
    return pixels, levels


class ImageSource:
    """An image, repeated without end, or a folder's images in order of name.

    Args:
        uri: Bare path or `file:` URI. `?fps=` images per second (5); `?pace=fast` returns an image at every read;
            `?loop=1` restarts a folder at its end.
        options: Only `color` and `fps` are used; the URI's `fps` takes precedence.
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
        self._depth = SampleDepth(16)
        self._images: Optional[Iterator[Tuple[Array, Levels]]] = None
        self._due_t = 0.0
        self._sequence = 0
        self._unreadable = 0

    def open(self) -> None:
        """List the folder, or decode the single image.

        Raises:
            SourceError: The file or folder does not exist, the folder has no image, or the image cannot be decoded.
        """
        self.close()
        if self._path.is_dir():
            names = self._list_folder()
            self._images = self._decode_folder(names)
        else:
            self._images = cycle([load_image(self._path, self._color, self._depth)])
        self._due_t = time.monotonic()

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The next image when it is due; None when it is not due within `timeout_s`.

        Raises:
            EndOfStream: After a folder's last image.
            SourceError: The source is not open, or no image of the folder can be decoded.
        """
        if self._images is None:
            raise SourceError(f"{self.uri}: not open")
        if not self._fast:
            wait_s = self._due_t - time.monotonic()
            if wait_s > 0:
                time.sleep(min(wait_s, timeout_s))
            if time.monotonic() < self._due_t:
                return None
            self._due_t = max(self._due_t + self._period_s, time.monotonic())
        image = next(self._images, None)
        if image is None:
            raise EndOfStream(f"{self.uri}: all images were read")
        self._sequence += 1
        return Frame(image[0], self._sequence - 1, time.monotonic(), image[1])

    def close(self) -> None:
        """Release the images; frames that were returned keep their pixels."""
        self._images = None

    def counters(self) -> Counters:
        """`unreadable`: failed attempts to decode a file of the folder."""
        return {"unreadable": self._unreadable}

    def _list_folder(self) -> List[Path]:
        try:
            found = sorted(path for path in self._path.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        except OSError as error:
            raise SourceError(f"{self.uri}: {error.strerror}", "expected a folder that can be listed") from error
        if not found:
            raise SourceError(f"{self.uri}: no image in this folder", _EXPECTED)
        return found

    def _decode_folder(self, paths: List[Path]) -> Iterator[Tuple[Array, Levels]]:
        """Every image once, or repeatedly when looping; files that cannot be decoded are skipped and counted."""
        warned = False
        while True:
            decoded = 0
            for path in paths:
                try:
                    image = load_image(path, self._color, self._depth)
                except SourceError as error:
                    self._unreadable += 1
                    log.log(logging.DEBUG if warned else logging.WARNING, "skipped %s", error)
                    warned = True
                    continue
                decoded += 1
                yield image
            if not decoded:
                raise SourceError(f"{self.uri}: none of the {len(paths)} images can be decoded", _EXPECTED)
            if not self._loop:
                return
