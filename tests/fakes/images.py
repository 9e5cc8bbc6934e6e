"""Small numbered images and video files; each image holds its number in binary."""

from pathlib import Path
from typing import Sequence, Tuple

import av
import numpy as np

WIDTH, HEIGHT = 70, 48  # 70 is not a multiple of a decoder's row alignment


def numbered_image(index: int, size: Tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """(H, W, 3 RGB) uint8: upper half bright and dark, lower half eight fields that hold `index` in binary."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 255
    for bit in range(8):
        if index >> bit & 1:
            pixels[height // 2 :, bit * width // 8 : (bit + 1) * width // 8] = 255
    return pixels


def image_number(gray: np.ndarray) -> int:
    """The number that `numbered_image` has written into an 8-bit gray image."""
    height, width = gray.shape
    row = gray[height * 3 // 4]
    return sum(1 << bit for bit in range(8) if row[(2 * bit + 1) * width // 16] > 127)


def write_clip(path: Path, frames: int, codec: str = "mjpeg", pix_fmt: str = "yuvj420p", fps: int = 25) -> Path:
    """Write a video file of numbered images."""
    return write_video(path, [numbered_image(index) for index in range(frames)], fps, codec, pix_fmt)


def write_video(
    path: Path, images: Sequence[np.ndarray], fps: int, codec: str = "mjpeg", pix_fmt: str = "yuvj420p"
) -> Path:
    """Write a video file of (H, W) gray or (H, W, 3 RGB) uint8 images."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for image in images:
            layout = "gray" if image.ndim == 2 else "rgb24"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format=layout)))
        container.mux(stream.encode())
    return path
