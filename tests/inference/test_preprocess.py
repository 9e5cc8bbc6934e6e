"""Preprocessing on the CPU, compared with OpenCV in float."""

from dataclasses import replace
from typing import Tuple

import numpy as np
import pytest

from edge_agent.core.detection.model_contract import CENTERFACE, FACEDETECTIR
from edge_agent.core.frame import LIMITED_RANGE, Image, Levels
from edge_agent.errors import EngineError
from edge_agent.inference.preprocess import Preprocessor, resize_area, resize_linear

cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")

RNG = np.random.default_rng(7)
SIZES = [(1280, 800), (640, 480), (641, 479), (384, 240), (320, 200), (100, 300), (31, 17), (1, 1)]


def noise(width: int, height: int, *channels: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, *channels), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_numpy_bilinear_is_opencvs(size: Tuple[int, int], channels: Tuple[int, ...]) -> None:
    pixels = noise(*size, *channels)
    expected = cv2.resize(pixels.astype(np.float32), (384, 240), interpolation=cv2.INTER_LINEAR)
    assert np.abs(resize_linear(pixels, (384, 240)) - expected).max() < 0.05


@pytest.mark.parametrize("size", [(1280, 800), (640, 480), (641, 479), (385, 241), (768, 480)])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_numpy_area_is_opencvs(size: Tuple[int, int], channels: Tuple[int, ...]) -> None:
    pixels = noise(*size, *channels)
    expected = cv2.resize(pixels.astype(np.float32), (384, 240), interpolation=cv2.INTER_AREA)
    assert np.abs(resize_area(pixels, (384, 240)) - expected).max() < 0.05


@pytest.mark.parametrize("interpolation", ["linear", "area"])
@pytest.mark.parametrize("size", SIZES)
def test_both_resizers_agree_within_one_gray_level(interpolation: str, size: Tuple[int, int]) -> None:
    image = Image(noise(*size))
    contract = replace(FACEDETECTIR, gain=1.0)
    with_opencv = Preprocessor(contract, interpolation, opencv=True)
    without = Preprocessor(contract, interpolation, opencv=False)
    assert (with_opencv.resizer, without.resizer) == ("opencv", "numpy")
    assert np.abs(with_opencv(image) - without(image)).max() <= 1.0


@pytest.mark.parametrize("opencv", [True, False])
@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("size", SIZES)
def test_a_smooth_image_is_averaged_and_not_rounded(
    size: Tuple[int, int], channels: Tuple[int, ...], opencv: bool
) -> None:
    pixels = noise(*size, *channels) // 64
    smooth = cv2.GaussianBlur(pixels.astype(np.float32), (3, 3), 0, borderType=cv2.BORDER_REPLICATE)
    expected = cv2.resize(smooth, (384, 240), interpolation=cv2.INTER_LINEAR) * 40
    image = Image(pixels, Levels(0.0, 40.0), smooth=True)
    tensor = Preprocessor(replace(FACEDETECTIR, gain=1.0), opencv=opencv)(image)[0]
    assert np.abs((tensor.transpose(1, 2, 0) if channels else tensor[0]) - expected).max() < 0.05


def test_area_averages_what_linear_skips() -> None:
    stripes = np.zeros((960, 1536), np.uint8)
    stripes[:, ::4] = 200
    areas = Preprocessor(replace(FACEDETECTIR, gain=1.0), "area")(Image(stripes))
    assert np.abs(areas - 50.0).max() <= 1.0
    linear = Preprocessor(replace(FACEDETECTIR, gain=1.0))(Image(stripes))
    assert np.abs(linear - 50.0).max() > 10


@pytest.mark.parametrize("opencv", [True, False])
def test_gray_fills_all_planes_and_is_scaled(opencv: bool) -> None:
    tensor = Preprocessor(FACEDETECTIR, opencv=opencv)(Image(np.full((480, 640), 51, np.uint8)))
    assert tensor.shape == (1, 3, 240, 384)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor, 0.2, atol=1e-6)


@pytest.mark.parametrize("opencv", [True, False])
def test_colour_keeps_the_order_of_its_planes(opencv: bool) -> None:
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[...] = (10, 20, 30)
    tensor = Preprocessor(replace(FACEDETECTIR, gain=1.0), opencv=opencv)(Image(pixels))
    assert [plane.min() for plane in tensor[0]] == [plane.max() for plane in tensor[0]] == [10, 20, 30]


def test_colour_becomes_luma_for_a_model_of_one_channel() -> None:
    pixels = noise(640, 480, 3)
    tensor = Preprocessor(replace(FACEDETECTIR, gain=1.0, channels=1))(Image(pixels))
    expected = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (384, 240), interpolation=cv2.INTER_LINEAR)
    assert tensor.shape == (1, 1, 240, 384)
    assert np.abs(tensor[0, 0] - expected).max() <= 2.0


@pytest.mark.parametrize("opencv", [True, False])
@pytest.mark.parametrize(
    ("levels", "dtype", "top"),
    [
        (Levels(), np.uint8, 255),
        (LIMITED_RANGE, np.uint8, 255),
        (Levels(0, 1 / 4), np.uint16, 1023),
        (Levels(64, 1 / 16), np.uint16, 65535),
    ],
)
def test_levels_are_those_of_the_frame(levels: Levels, dtype: type, top: int, opencv: bool) -> None:
    ramp = np.linspace(0, top, 384).astype(dtype)
    pixels = np.repeat(ramp[None], 240, axis=0)
    tensor = Preprocessor(FACEDETECTIR, opencv=opencv)(Image(pixels, levels))
    assert np.abs(tensor[0, 1] * 255 - levels.to_gray8(pixels)).max() <= 1.0
    assert tensor.min() >= 0.0
    assert tensor.max() <= 1.0 + 1e-6


def test_ten_bits_are_resized_before_the_conversion_to_eight() -> None:
    pixels = RNG.integers(0, 1024, (480, 640), dtype=np.uint16)
    tensor = Preprocessor(FACEDETECTIR)(Image(pixels, Levels(0, 1 / 4)))
    expected = cv2.resize(pixels.astype(np.float32) / 4, (384, 240), interpolation=cv2.INTER_LINEAR)
    assert np.abs(tensor[0, 0] * 255 - expected).max() < 0.3


def test_padding_stays_zero() -> None:
    prepare = Preprocessor(CENTERFACE)
    sizes = [(640, 480), (1280, 800), (640, 400), (400, 640), (641, 401)]
    for width, height in sizes + sizes[::-1]:
        tensor = prepare(Image(np.full((height, width), 255, np.uint8)))
        where = CENTERFACE.place((width, height))
        assert tensor.shape == (1, 3, where.net_h, where.net_w)
        assert tensor[0, :, : where.inner_h, : where.inner_w].min() == 255
        assert tensor.sum() == 255.0 * 3 * where.inner_h * where.inner_w


def test_the_input_is_allocated_once_per_size() -> None:
    prepare = Preprocessor(FACEDETECTIR)
    first = prepare(Image(noise(640, 480)))
    assert prepare(Image(noise(640, 480))) is first
    assert prepare(Image(noise(320, 240))) is not first


def test_the_count_of_kept_sizes_is_bounded() -> None:
    prepare = Preprocessor(CENTERFACE)
    for width in range(400, 440):
        prepare(Image(noise(width, 300)))
    first = prepare(Image(noise(439, 300)))
    assert prepare(Image(noise(439, 300))) is first
    assert len(prepare._plans) <= 16


@pytest.mark.parametrize("opencv", [True, False])
def test_views_of_a_drivers_buffer_are_accepted_and_not_written(opencv: bool) -> None:
    buffer = noise(704, 520)
    buffer.flags.writeable = False
    prepare = Preprocessor(FACEDETECTIR, opencv=opencv)
    for view in (buffer[:480, :640], buffer[10:490:2, 5:645:2], buffer[::-1, ::-1], buffer.T):
        expected = prepare(Image(np.ascontiguousarray(view))).copy()
        np.testing.assert_array_equal(prepare(Image(view)), expected)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_unsupported_pixels_are_rejected(pixels: np.ndarray) -> None:
    with pytest.raises(EngineError, match="an image of shape"):
        Preprocessor(FACEDETECTIR)(Image(pixels))
