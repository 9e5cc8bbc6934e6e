"""Small pictures and clips that tests can tell apart."""

from pathlib import Path
from typing import Sequence, Tuple

import av
import numpy as np

WIDTH, HEIGHT = 70, 48  # 70 is no multiple of a decoder's row alignment


def numbered(index: int, size: Tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """(H, W, 3 RGB) uint8: left half bright, right half dark; eight fields below spell `index` in binary."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 255
    for bit in range(8):
        if index >> bit & 1:
            pixels[height // 2 :, bit * width // 8 : (bit + 1) * width // 8] = 255
    return pixels


def number_of(gray: np.ndarray) -> int:
    """What `numbered` has written into an 8-bit gray picture."""
    height, width = gray.shape
    row = gray[height * 3 // 4]
    return sum(1 << bit for bit in range(8) if row[(2 * bit + 1) * width // 16] > 127)


def write_clip(path: Path, frames: int, codec: str = "mjpeg", pix_fmt: str = "yuvj420p", fps: int = 25) -> Path:
    """A video file of `numbered` pictures."""
    return write_video(path, [numbered(index) for index in range(frames)], fps, codec, pix_fmt)


def write_video(
    path: Path, pictures: Sequence[np.ndarray], fps: int, codec: str = "mjpeg", pix_fmt: str = "yuvj420p"
) -> Path:
    """A video file of (H, W) gray or (H, W, 3 RGB) uint8 pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for picture in pictures:
            layout = "gray" if picture.ndim == 2 else "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format=layout)))
        container.mux(stream.encode())
    return path
