"""Rotation, masks, region of interest, zones."""

from dataclasses import replace
from typing import Any, Dict, List, Tuple

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.transform import CameraTransform, check_geometry, contains, needs_cpu, rasterise
from edge_agent.core.frame import LIMITED_RANGE, DeviceView, Frame, Levels
from edge_agent.core.types import Box

CORNER = ((0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.0, 0.5))
DEVICE = DeviceView(1000, 64, "gray8")


def camera(**settings: Any) -> CameraParams:
    return replace(CameraParams("test://"), **settings)


def numbered(height: int = 4, width: int = 6) -> np.ndarray:
    """Every pixel has another value."""
    return np.arange(height * width, dtype=np.uint8).reshape(height, width)


TURNS = {
    0: None,
    90: cv2.ROTATE_90_CLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_COUNTERCLOCKWISE,
}
FLIPS = {"none": None, "horizontal": 1, "vertical": 0, "both": -1}


@pytest.mark.parametrize("rotate", TURNS)
@pytest.mark.parametrize("flip", FLIPS)
@pytest.mark.parametrize("color", [False, True])
def test_upright_turns_clockwise_and_then_mirrors_as_opencv_does(rotate: int, flip: str, color: bool) -> None:
    pixels = numbered()
    if color:
        pixels = np.stack([pixels, pixels + 50, pixels + 100], axis=2)
    view = CameraTransform(camera(rotate=rotate, flip=flip))
    expected = pixels if TURNS[rotate] is None else cv2.rotate(pixels, TURNS[rotate])
    expected = expected if FLIPS[flip] is None else cv2.flip(expected, FLIPS[flip])

    image = view.upright(Frame(pixels, 1, 0.0))

    np.testing.assert_array_equal(image.pixels, expected)
    assert np.shares_memory(image.pixels, pixels)
    assert view.size(6, 4) == (image.pixels.shape[1], image.pixels.shape[0])


def test_the_device_view_is_kept_only_for_unchanged_pixels() -> None:
    def device(**settings: Any) -> Any:
        return CameraTransform(camera(**settings)).upright(Frame(numbered(), 1, 0.0, device=DEVICE)).device

    assert device() is DEVICE
    assert device(rotate=180) is None
    assert device(flip="vertical") is None
    assert device(masks=(CORNER,)) is None


@pytest.mark.parametrize(
    ("dtype", "levels"),
    [
        (np.uint8, Levels()),
        (np.uint8, LIMITED_RANGE),
        (np.uint16, Levels(64.0, 0.25)),
        (np.uint16, Levels(64.9, 12.0)),
        (np.uint16, Levels(-10.0, 1.0)),
    ],
)
def test_masks_blacken_a_copy(dtype: Any, levels: Levels) -> None:
    pixels = np.full((40, 60), 200, dtype)
    image = CameraTransform(camera(masks=(CORNER,))).upright(Frame(pixels, 1, 0.0, levels))
    gray = image.levels.to_gray8(image.pixels)

    assert (pixels == 200).all()
    assert (gray[:20, :30] == levels.to_gray8(np.zeros((1, 1), dtype))[0, 0]).all()
    assert (image.pixels[20:] == 200).all()
    assert (image.pixels[:, 30:] == 200).all()
    assert image.pixels.dtype == dtype


def test_masks_lie_in_the_upright_frame_and_follow_its_size() -> None:
    view = CameraTransform(camera(rotate=90, masks=(CORNER,)))
    for height, width in ((40, 60), (20, 20), (40, 60)):
        pixels = np.full((height, width, 3), 9, np.uint8)
        upright = view.upright(Frame(pixels, 1, 0.0)).pixels
        assert upright.shape == (width, height, 3)
        assert not upright[: width // 2, : height // 2].any()
        assert (upright == 9).sum() == 3 * (height * width - (height // 2) * (width // 2))


coordinate = st.integers(0, 64).map(lambda n: n / 64)


@given(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8), st.integers(8, 90), st.integers(8, 90))
def test_rasterised_polygons_agree_with_opencv_but_on_the_outline(
    polygon: List[Tuple[float, float]], width: int, height: int
) -> None:
    ours = rasterise([tuple(polygon)], width, height)

    # OpenCV puts whole numbers at pixel centres, and fills with 8 fractional bits.
    points = np.rint((np.array(polygon) * (width, height) - 0.5) * 256).astype(np.int32)
    filled = cv2.fillPoly(np.zeros((height, width), np.uint8), [points], 1, shift=8)
    outline = cv2.polylines(np.zeros((height, width), np.uint8), [points], True, 1, 3, shift=8)
    differs = ours != filled.astype(bool)
    assert not differs[outline == 0].any()


@given(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8))
def test_rasterised_pixels_are_those_whose_centre_the_zone_test_finds_inside(
    polygon: List[Tuple[float, float]],
) -> None:
    width, height = 13, 11
    ours = rasterise([tuple(polygon)], width, height)
    for y in range(height):
        for x in range(width):
            assert ours[y, x] == contains(tuple(polygon), ((x + 0.5) / width, (y + 0.5) / height))


def test_several_polygons_are_united_even_where_they_overlap() -> None:
    whole = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
    assert rasterise([whole, CORNER], 7, 5).all()


def test_the_region_is_a_view_with_its_corner() -> None:
    pixels = numbered(10, 20)
    view = CameraTransform(camera(roi=(0.25, 0.1, 0.75, 0.6)))
    image, corner = view.region(view.upright(Frame(pixels, 1, 0.0, device=DEVICE)))

    assert corner == (5, 1)
    np.testing.assert_array_equal(image.pixels, pixels[1:6, 5:15])
    assert np.shares_memory(image.pixels, pixels)
    assert image.device == DeviceView(1000 + 64 + 5, 64, "gray8")


@pytest.mark.parametrize(("name", "bytes_per_px"), [("gray16", 2), ("rgb8", 3), ("nv12", 1), ("yuyv", 2), ("uyvy", 2)])
def test_the_corner_on_the_device_is_counted_in_bytes(name: str, bytes_per_px: int) -> None:
    view = CameraTransform(camera(roi=(0.25, 0.1, 0.75, 0.6)))
    frame = Frame(numbered(10, 20), 1, 0.0, device=replace(DEVICE, pixel_format=name))
    device = view.region(view.upright(frame))[0].device
    assert device is not None and device.pointer == 1000 + 64 + 5 * bytes_per_px


def test_the_region_of_an_unknown_device_format_stays_on_the_host() -> None:
    view = CameraTransform(camera(roi=(0.25, 0.1, 0.75, 0.6)))
    frame = Frame(numbered(10, 20), 1, 0.0, device=replace(DEVICE, pixel_format="bayer"))
    assert view.region(view.upright(frame))[0].device is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"roi": (0.1, 0.1, 0.5, 0.5)}, False),
        ({"rotate": 180}, True),
        ({"flip": "horizontal"}, True),
        ({"masks": (CORNER,)}, True),
    ],
)
def test_needs_cpu_for_rotation_flip_and_masks(options: Dict[str, Any], expected: bool) -> None:
    assert needs_cpu(camera(**options)) == expected
    upright = CameraTransform(camera(**options)).upright(Frame(numbered(10, 20), 1, 0.0, device=DEVICE))
    assert (upright.device is None) == expected


@pytest.mark.parametrize("x", [0.0, 0.75])
@pytest.mark.parametrize("y", [0.0, 0.75])
def test_masks_may_leave_any_corner_uncovered(x: float, y: float) -> None:
    above = ((0.0, 0.0), (1.0, 0.0), (1.0, y), (0.0, y))
    below = ((0.0, y + 0.25), (1.0, y + 0.25), (1.0, 1.0), (0.0, 1.0))
    left = ((0.0, 0.0), (x, 0.0), (x, 1.0), (0.0, 1.0))
    right = ((x + 0.25, 0.0), (1.0, 0.0), (1.0, 1.0), (x + 0.25, 1.0))
    masks = tuple(mask for mask in (above, below, left, right) if np.ptp(mask, axis=0).all())
    seen = CameraTransform(camera(masks=masks)).upright(Frame(np.full((8, 8), 9, np.uint8), 1, 0.0)).pixels > 0
    assert seen.sum() == 4 and seen[int(8 * y), int(8 * x)]


def test_without_a_region_the_image_itself_is_returned() -> None:
    view = CameraTransform(camera())
    image = view.upright(Frame(numbered(), 1, 0.0))
    assert view.region(image) == (image, (0, 0))


@given(
    st.lists(coordinate, min_size=2, max_size=2, unique=True).map(sorted).filter(lambda x: x[1] - x[0] >= 0.01),
    st.lists(coordinate, min_size=2, max_size=2, unique=True).map(sorted).filter(lambda y: y[1] - y[0] >= 0.01),
    st.integers(1, 50),
    st.integers(1, 50),
)
def test_a_region_is_never_empty_and_never_beyond_the_frame(
    x: List[float], y: List[float], width: int, height: int
) -> None:
    view = CameraTransform(camera(roi=(x[0], y[0], x[1], y[1])))
    pixels = np.zeros((height, width), np.uint8)
    image, (left, top) = view.region(view.upright(Frame(pixels, 1, 0.0)))
    rows, columns = image.pixels.shape
    assert rows >= 1
    assert columns >= 1
    assert left + columns <= width
    assert top + rows <= height


def test_zones_contain_the_box_centre_by_the_even_odd_rule() -> None:
    star = ((0.5, 0.0), (0.8, 1.0), (0.0, 0.35), (1.0, 0.35), (0.2, 1.0))
    view = CameraTransform(camera(zones={"star": star, "corner": CORNER, "all": ((0, 0), (1, 0), (1, 1), (0, 1))}))

    assert view.zones_of(Box(0.1, 0.1, 0.3, 0.3)) == ("all", "corner")
    assert view.zones_of(Box(0.4, 0.4, 0.6, 0.6)) == ("all",), "the middle of a pentagram is outside"
    assert view.zones_of(Box(0.45, 0.1, 0.55, 0.3)) == ("all", "star")
    assert CameraTransform(camera()).zones_of(Box(0, 0, 1, 1)) == ()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"roi": (0.5, 0.0, 0.4, 1.0)}, "roi"),
        ({"roi": (0.5, 0.0, 0.5001, 1.0)}, "too small for any face"),
        ({"masks": (((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),)}, "they cover the whole region of interest"),
        (
            {"roi": (0.2, 0.2, 0.4, 0.4), "masks": (((0.1, 0.1), (0.5, 0.1), (0.5, 0.5), (0.1, 0.5)),)},
            "they cover the whole region of interest",
        ),
        ({"roi": (0.0, 0.0, 1.0, 1.5)}, "roi"),
        ({"roi": (0.0, float("nan"), 1.0, 1.0)}, "roi"),
        ({"zones": {"door": ((0.0, 0.0), (1.0, 1.0))}}, r"zones\.door: 2 points"),
        ({"zones": {"door": ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0))}}, r"zones\.door: all points lie on one line"),
        ({"masks": (CORNER, ((0.0, 0.0), (200.0, 0.0), (0.0, 100.0)))}, r"masks\[1\].*not px"),
        ({"masks": (((0.0, 0.0), (float("nan"), 0.0), (0.0, 1.0)),)}, r"masks\[0\]"),
    ],
)
def test_unusable_geometry_is_refused(settings: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_geometry(camera(**settings))
    with pytest.raises(ValueError, match=complaint):
        CameraTransform(camera(**settings))
