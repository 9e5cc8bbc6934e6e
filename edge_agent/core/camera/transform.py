"""Geometry of one camera: rotation and flip, privacy masks, region of interest, zones.

All geometry in the settings is normalised 0..1 to the upright full frame: x to the right, y down.
"""

import math
from dataclasses import replace
from typing import Dict, Iterable, Optional, Tuple

import numpy as np

from edge_agent.core.camera.params import CameraParams, Point, Polygon, Rect
from edge_agent.core.detection.geometry import Size
from edge_agent.core.frame import DeviceView, Frame, Image, Levels
from edge_agent.core.types import Array, Box

# Distance of neighbouring pixels in a row, to move a device pointer to a region's corner. Of the YUV formats only Y is
# read, as on the CPU, so shared chroma does not matter.
_BYTES_PER_PX = {"gray8": 1, "gray16": 2, "rgb8": 3, "nv12": 1, "yuyv": 2, "uyvy": 2}
_GRID = 200  # px; resolution of the check that masks leave an area uncovered
_MIN_SIDE = 0.01


class CameraTransform:
    """Transforms one camera's frames, of any size. Used by one thread: it caches the masks for the last frame size.

    Raises:
        ValueError: As in `check_geometry`.
    """

    def __init__(self, camera: CameraParams) -> None:
        check_geometry(camera)
        self._quarter_turns = camera.rotate // 90
        self._mirror_x = camera.flip in ("horizontal", "both")
        self._mirror_y = camera.flip in ("vertical", "both")
        self._masks = camera.masks
        self._roi = camera.roi
        self._zones: Dict[str, Polygon] = dict(sorted(camera.zones.items()))
        self._mask: Optional[Array] = None

    def size(self, frame_w: int, frame_h: int) -> Size:
        """(width, height) px of the upright full frame."""
        return (frame_h, frame_w) if self._quarter_turns % 2 else (frame_w, frame_h)

    def upright(self, frame: Frame) -> Image:
        """The whole frame, rotated clockwise, then mirrored, then masked.

        Without masks the pixels are a view into the frame, valid until its release; with masks they are a copy. The
        device view is kept only when nothing was changed.
        """
        pixels = self._rotated(frame.pixels)
        if not self._masks:
            return Image(pixels, frame.levels, frame.device if pixels is frame.pixels else None)
        pixels = np.copy(pixels)
        mask = self._mask_of(pixels)
        np.copyto(pixels, black_value(frame.levels, pixels.dtype), where=mask if pixels.ndim == 2 else mask[:, :, None])
        return Image(pixels, frame.levels, mask=mask)

    def region(self, image: Image) -> Tuple[Image, Tuple[int, int]]:
        """The region of interest of an upright image, as a view, and its top left corner (x, y) in px."""
        if self._roi is None:
            return image, (0, 0)
        height, width = image.pixels.shape[:2]
        left, right = _span(self._roi[0], self._roi[2], width)
        top, bottom = _span(self._roi[1], self._roi[3], height)
        device = _shifted(image.device, left, top)
        mask = None if image.mask is None else image.mask[top:bottom, left:right]
        return Image(image.pixels[top:bottom, left:right], image.levels, device, mask), (left, top)

    def zones_of(self, box: Box) -> Tuple[str, ...]:
        """Names, sorted, of the zones that contain the box's centre."""
        centre = ((box.left + box.right) / 2.0, (box.top + box.bottom) / 2.0)
        return tuple(name for name, polygon in self._zones.items() if contains(polygon, centre))

    def _rotated(self, pixels: Array) -> Array:
        if self._quarter_turns:
            pixels = np.rot90(pixels, -self._quarter_turns)
        if self._mirror_x:
            pixels = pixels[:, ::-1]
        if self._mirror_y:
            pixels = pixels[::-1]
        return pixels

    def _mask_of(self, pixels: Array) -> Array:
        """(H, W) bool: pixels inside a mask, rasterised once per frame size."""
        height, width = pixels.shape[:2]
        if self._mask is None or self._mask.shape != (height, width):
            self._mask = rasterise(self._masks, width, height)
        return self._mask


def needs_cpu(camera: CameraParams) -> bool:
    """True when the CPU transforms every frame, so that the GPU cannot read the captured pixels in place."""
    return bool(camera.rotate or camera.flip != "none" or camera.masks)


def check_geometry(camera: CameraParams) -> None:
    """Check the region of interest, zones and masks.

    Raises:
        ValueError: One is unusable; the text names the field, the fault and what was expected.
    """
    if camera.roi is not None:
        _check_roi(camera.roi)
    for name, zone in camera.zones.items():
        _check_polygon(f"zones.{name}", zone)
    for index, mask in enumerate(camera.masks):
        _check_polygon(f"masks[{index}]", mask)
    left, top, right, bottom = camera.roi or (0.0, 0.0, 1.0, 1.0)
    visible = ~rasterise(camera.masks, _GRID, _GRID)
    if not visible[slice(*_span(top, bottom, _GRID)), slice(*_span(left, right, _GRID))].any():
        raise ValueError("masks: they cover the whole region of interest; expected a part outside all masks")


def contains(polygon: Polygon, point: Point) -> bool:
    """Even-odd rule: whether a ray from `point` to the right crosses the outline an odd number of times."""
    x, y = point
    inside = False
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1]):
        if (y0 <= y) != (y1 <= y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            inside = not inside
    return inside


def rasterise(polygons: Iterable[Polygon], width: int, height: int) -> Array:
    """(height, width) bool: pixels whose centre lies in any of the normalised polygons (even-odd rule each).

    Each edge marks, in every row that it crosses, the first pixel centre to its right; a pixel is
    inside when the number of marks up to it in the row is odd.
    """
    inside = np.zeros((height, width), bool)
    for polygon in polygons:
        marks = np.zeros((height, width + 1), np.uint8)
        points = np.asarray(polygon, np.float64) * (width, height)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0)):
            # Rows whose centre y + 0.5 lies in [lower, upper): a shared corner is counted once.
            first, last = (int(np.clip(math.ceil(y - 0.5), 0, height)) for y in sorted((y0, y1)))
            rows = np.arange(first, last)
            if rows.size:
                crossing = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                marks[rows, np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.intp)] += 1
        inside |= (np.cumsum(marks, axis=1, dtype=np.uint8)[:, :width] & 1).astype(bool)
    return inside


def black_value(levels: Levels, dtype: np.dtype) -> int:
    """The raw value that `levels` converts to gray 0, or the darkest possible one."""
    return int(np.clip(math.floor(levels.offset), 0, np.iinfo(dtype).max))


def _span(start: float, end: float, length: int) -> Tuple[int, int]:
    """Normalised [start, end] as at least one px of `length`."""
    first = min(round(start * length), length - 1)
    return first, max(first + 1, round(end * length))


def _shifted(device: Optional[DeviceView], x: int, y: int) -> Optional[DeviceView]:
    if device is None or device.pixel_format not in _BYTES_PER_PX:
        return None
    shift_bytes = y * device.pitch_bytes + x * _BYTES_PER_PX[device.pixel_format]
    return replace(device, pointer=device.pointer + shift_bytes)


def _check_roi(roi: Rect) -> None:
    left, top, right, bottom = roi
    if not (0.0 <= left < right <= 1.0 and 0.0 <= top < bottom <= 1.0):
        raise ValueError(
            f"roi: [{left}, {top}, {right}, {bottom}] is not a rectangle; "
            "expected [left, top, right, bottom] with 0 <= left < right <= 1 and 0 <= top < bottom <= 1"
        )
    if right - left < _MIN_SIDE or bottom - top < _MIN_SIDE:
        raise ValueError(
            f"roi: [{left}, {top}, {right}, {bottom}] is too small for any face; "
            f"expected each side to be at least {_MIN_SIDE} of the frame's"
        )


def _check_polygon(name: str, polygon: Polygon) -> None:
    if len(polygon) < 3:
        raise ValueError(f"{name}: {len(polygon)} points; expected at least 3 points [x, y]")
    points = np.asarray(polygon, np.float64)
    if not np.all((points >= 0.0) & (points <= 1.0)):
        raise ValueError(f"{name}: a point lies outside the frame; expected x and y within 0..1, not px")
    if np.linalg.matrix_rank(points - points[0]) < 2:
        raise ValueError(f"{name}: all points lie on one line; expected a polygon with an area")
