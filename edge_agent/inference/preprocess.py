"""Fills a network's input on the CPU with one resize and one multiply, in arrays that are allocated once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple

import numpy as np

from edge_agent.core.detection.geometry import Placement, Size
from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.frame import Image
from edge_agent.core.types import Array
from edge_agent.errors import EngineError, InputError

_GOLDEN = Path(__file__).parents[1] / "assets" / "golden.pgm"
_PGM = b"P5\n256 192\n255\n"


def golden_image() -> Image:
    """A test image with a face, (192, 256) uint8; its origin stands in assets/README.md.

    Raises:
        InputError: The installation is damaged.
    """
    try:
        data = _GOLDEN.read_bytes()
    except OSError as error:
        raise InputError(f"{_GOLDEN}: {error.strerror}", "install edge-agent again") from error
    if not data.startswith(_PGM) or len(data) != len(_PGM) + 192 * 256:
        raise InputError(f"{_GOLDEN}: damaged", "install edge-agent again")
    return Image(np.frombuffer(data, np.uint8, offset=len(_PGM)).reshape(192, 256))


Resize = Callable[[Array, Size], Array]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as cv2's RGB2GRAY
_PLANS = 16  # count of image sizes (cameras, regions of interest) whose arrays are kept


@dataclass(frozen=True)
class _Plan:
    """Placement of images of one size, and the input tensor for them, whose padding stays zero."""

    placement: Placement
    tensor: Array


class Preprocessor:
    """Fills the input of one model. Used by one thread.

    Args:
        contract: Describes the model's input.
        interpolation: "linear" (half-pixel centres, clamped at the edge), or "area" (mean over the covered source
            px when shrinking; slower, less aliasing of noisy images).
        opencv: False never uses OpenCV, True requires it, None uses it when installed.

    Attributes:
        resizer: "opencv" or "numpy".
    """

    def __init__(self, contract: ModelContract, interpolation: str = "linear", opencv: Optional[bool] = None) -> None:
        self._contract = contract
        self.resizer, self._resize, self._resize_smoothly = _resizers(interpolation, opencv)
        self._plans: Dict[Size, _Plan] = {}

    def __call__(self, image: Image) -> Array:
        """The image as (1, C, net_h, net_w) float32, RGB planes, scaled by the contract's gain.

        Levels are applied after resizing, in the same multiply; where `core.frame.Levels` clips, this order changes
        only the border of the clipped area.

        Returns:
            An array owned by this object, valid until the next call with an image of the same size.

        Raises:
            EngineError: The pixels' shape or type is not supported.
        """
        pixels = image.pixels
        layout_fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
        if pixels.dtype not in (np.uint8, np.uint16) or not layout_fits or pixels.size == 0:
            raise EngineError(
                f"an image of shape {pixels.shape} and {pixels.dtype}", "expected (H, W) or (H, W, 3), uint8 or uint16"
            )
        plan = self._plan((pixels.shape[1], pixels.shape[0]))
        placement = plan.placement
        size = (placement.inner_w, placement.inner_h)
        if image.smooth:
            resized = self._resize_smoothly(pixels, size)
        else:
            resized = pixels if size == pixels.shape[1::-1] else self._resize(pixels, size)
        if resized.ndim == 3 and self._contract.channels == 1:
            resized = resized @ _LUMA
        planes = plan.tensor[0, :, : placement.inner_h, : placement.inner_w]
        if resized.ndim == 3:
            for index, plane in enumerate(planes):
                self._scale(resized[:, :, index], image, plane)
        else:
            self._scale(resized, image, planes[0])
            planes[1:] = planes[0]
        return plan.tensor

    def _scale(self, values: Array, image: Image, out: Array) -> None:
        levels = image.levels
        gain = self._contract.gain
        np.multiply(values, np.float32(levels.gain * gain), out=out, dtype=np.float32)
        if levels.offset == 0.0 and levels.gain == 1.0 and image.pixels.dtype == np.uint8:
            return
        out -= np.float32(levels.offset * levels.gain * gain)
        np.clip(out, 0.0, np.float32(255.0 * gain), out=out)

    def _plan(self, source: Size) -> _Plan:
        plan = self._plans.get(source)
        if plan is None:
            placement = self._contract.place(source)
            shape = (1, self._contract.channels, placement.net_h, placement.net_w)
            plan = _Plan(placement, np.zeros(shape, np.float32))
            if len(self._plans) == _PLANS:
                del self._plans[next(iter(self._plans))]
            self._plans[source] = plan
        return plan


def _resizers(interpolation: str, opencv: Optional[bool]) -> Tuple[str, Resize, Resize]:
    """Name, function, and function of `Image.smooth`."""
    if opencv is not False:
        try:
            return ("opencv", *_opencv_resizers(interpolation))
        except ImportError:
            if opencv:
                raise
    return "numpy", resize_area if interpolation == "area" else resize_linear, resize_smoothly


def _opencv_resizers(interpolation: str) -> Tuple[Resize, Resize]:
    import cv2

    # An image takes 0.2 ms; waking a thread pool for it costs more than it saves.
    cv2.setNumThreads(1)

    def resize(pixels: Array, size: Size) -> Array:
        shrinks = size[0] <= pixels.shape[1] and size[1] <= pixels.shape[0]
        area = interpolation == "area" and shrinks
        return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR))

    def smoothly(pixels: Array, size: Size) -> Array:
        # A kernel of 3 and a sigma of 0 stand for the weights 1, 2, 1.
        smooth = cv2.GaussianBlur(pixels.astype(np.float32), (3, 3), 0, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(smooth, size, interpolation=cv2.INTER_LINEAR))

    return resize, smoothly


def resize_linear(pixels: Array, size: Size) -> Array:
    """(H, W[, 3]) float32 of `pixels` at `size` (width, height): bilinear, half-pixel centres, clamped at the edge.

    Same formula as cv2.resize INTER_LINEAR, which rounds to integers; the difference is at most 0.6 gray levels.
    """
    x0, x1, wx = _taps(pixels.shape[1], size[0])
    y0, y1, wy = _taps(pixels.shape[0], size[1])
    trailing = (1,) * (pixels.ndim - 2)
    rows = _mix(pixels[y0], pixels[y1], wy.reshape((-1, 1, *trailing)))
    return _mix(rows[:, x0], rows[:, x1], wx.reshape((1, -1, *trailing)))


def resize_smoothly(pixels: Array, size: Size) -> Array:
    """(H, W[, 3]) float32: `resize_linear` of the image smoothed with the weights 1, 2, 1 in both directions."""
    smooth = pixels.astype(np.float32)
    for axis in (0, 1):
        padded = np.concatenate([smooth.take([0], axis), smooth, smooth.take([-1], axis)], axis)
        count = smooth.shape[axis]
        lower, upper = (padded.take(np.arange(start, start + count), axis) for start in (0, 2))
        smooth = (lower + upper + 2.0 * smooth) / np.float32(4.0)
    return resize_linear(smooth, size)


def resize_area(pixels: Array, size: Size) -> Array:
    """(H, W[, 3]) float32 of `pixels` at `size` (width, height): mean over the source px that each pixel covers.

    Enlarging uses `resize_linear`, as cv2's INTER_AREA does in effect.
    """
    if size[0] > pixels.shape[1] or size[1] > pixels.shape[0]:
        return resize_linear(pixels, size)
    rows = _area(pixels, size[1])
    return np.asarray(_area(rows.swapaxes(0, 1), size[0]).swapaxes(0, 1), np.float32)


def _taps(source: int, target: int) -> Tuple[Array, Array, Array]:
    """Lower and upper source index, and the upper one's weight, per target pixel."""
    at = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0, source - 1.0)
    lower = at.astype(np.intp)
    return lower, np.minimum(lower + 1, source - 1), (at - lower).astype(np.float32)


def _mix(lower: Array, upper: Array, weight: Array) -> Array:
    mixed = lower.astype(np.float32)
    mixed += (upper - mixed) * weight
    return mixed


def _area(values: Array, target: int) -> Array:
    """Mean along axis 0 over `target` equal spans: differences of the interpolated cumulative sum."""
    source = len(values)
    sums = np.zeros((source + 1, *values.shape[1:]))
    np.cumsum(values, axis=0, out=sums[1:])
    edges = np.linspace(0.0, source, target + 1)
    lower = np.minimum(edges.astype(np.intp), source - 1)
    weight = (edges - lower).reshape((-1,) + (1,) * (values.ndim - 1))
    at_edges = sums[lower] + (sums[lower + 1] - sums[lower]) * weight
    return np.asarray(np.diff(at_edges, axis=0) * (target / source))
