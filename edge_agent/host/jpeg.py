"""JPEG encoding with OpenCV or simplejpeg, whichever is installed."""

from typing import Callable

from edge_agent.core.types import Array
from edge_agent.errors import MissingPackage


def encoder() -> Callable[[Array, int], bytes]:
    """A function (pixels, quality 1..100) -> JPEG bytes; pixels (H, W) uint8 gray or (H, W, 3) uint8 RGB.

    Raises:
        MissingPackage: Neither OpenCV nor simplejpeg is installed.
    """
    try:
        return _opencv()
    except ImportError:
        pass
    try:
        return _simplejpeg()
    except ImportError:
        raise MissingPackage(
            "crops need a JPEG encoder and none is installed",
            "pip install opencv-python-headless or simplejpeg, or set EDGE_AGENT_CROPS__ENABLED=false",
        ) from None


def _opencv() -> Callable[[Array, int], bytes]:
    import cv2

    def encode(pixels: Array, quality: int) -> bytes:
        bgr = pixels if pixels.ndim == 2 else pixels[:, :, ::-1]
        _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return bytes(data)

    return encode


def _simplejpeg() -> Callable[[Array, int], bytes]:
    import numpy as np
    import simplejpeg

    def encode(pixels: Array, quality: int) -> bytes:
        gray = pixels.ndim == 2
        shaped = np.ascontiguousarray(pixels[:, :, None] if gray else pixels)
        return bytes(simplejpeg.encode_jpeg(shaped, quality, "GRAY" if gray else "RGB"))

    return encode
