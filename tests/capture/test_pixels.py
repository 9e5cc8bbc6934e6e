"""Decoding of raw buffers in every pixel format, without a copy where the format allows it."""

from typing import get_args

import numpy as np
import pytest

from edge_agent.capture.pixels import FORMATS, Decoder, ImageLayout, SampleDepth
from edge_agent.core.camera.params import PixelFormatName
from tests.fakes.v4l2_camera import encode

HEIGHT, WIDTH = 24, 32
PITCHES = [0, WIDTH * 2 + 64]


def gray_scene() -> np.ndarray:
    """A gradient in x and y, which JPEG preserves; every corner differs."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return (40 + 4 * x + 2 * y).astype(np.uint8)


def layout_of(name: str, pitch_bytes: int = 0, full_range: bool = True) -> ImageLayout:
    return ImageLayout.make(FORMATS[name], WIDTH, HEIGHT, pitch_bytes, full_range)


def as_memory(data: bytes) -> np.ndarray:
    memory = np.frombuffer(data, np.uint8)
    assert not memory.flags.writeable, "a driver's buffer is read-only"
    return memory


def test_settings_name_the_formats_that_can_be_read() -> None:
    assert set(get_args(PixelFormatName)) == {"auto", *FORMATS}


@pytest.mark.parametrize("pitch_bytes", PITCHES)
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "MJPG"])
def test_gray_equals_the_encoded_scene(name: str, pitch_bytes: int) -> None:
    scene = gray_scene()
    layout = layout_of(name, pitch_bytes)
    memory = as_memory(encode(scene, name, layout.pitch_bytes))
    assert memory.size >= layout.least_bytes
    decoder = Decoder(layout)
    pixels, levels = decoder.decode(memory)
    assert pixels.dtype in (np.uint8, np.uint16)
    np.testing.assert_array_equal(levels.to_gray8(pixels), scene)
    assert np.shares_memory(pixels, memory) == decoder.borrows
    assert decoder.borrows == (name != "Y16_BE"), "all others are views"


@pytest.mark.parametrize("name", ["NV12", "YUYV", "UYVY"])
def test_limited_range_y_is_expanded_to_full_gray(name: str) -> None:
    limited = np.clip(gray_scene(), 16, 235)
    layout = layout_of(name, full_range=False)
    pixels, levels = Decoder(layout).decode(as_memory(encode(limited, name, layout.pitch_bytes)))
    np.testing.assert_array_equal(pixels, limited)
    expected = (limited.astype(np.float64) - 16) * 255 / 219
    assert np.abs(levels.to_gray8(pixels) - expected).max() <= 1.0


@pytest.mark.parametrize("name", ["GREY", "Y10"])
def test_gray_formats_are_full_range_whatever_the_driver_reports(name: str) -> None:
    layout = layout_of(name, full_range=False)
    pixels, levels = Decoder(layout).decode(as_memory(encode(gray_scene(), name, layout.pitch_bytes)))
    np.testing.assert_array_equal(levels.to_gray8(pixels), gray_scene())


@pytest.mark.parametrize(
    ("name", "bits", "shift"),
    [
        ("Y10", 10, 0),
        ("Y10", 10, 6),
        ("Y12", 12, 0),
        ("Y12", 12, 4),
        ("Y16", 16, 0),
        ("Y16", 10, 0),
        ("Y16", 10, 6),
        ("Y16", 12, 0),
    ],
)
def test_justification_is_detected_from_the_samples(name: str, bits: int, shift: int) -> None:
    scene = gray_scene()
    noise = np.random.default_rng(1).integers(0, 1 << (bits - 8), scene.shape)
    samples = (((scene.astype(np.uint16) << (bits - 8)) | noise) << shift).astype("<u2")
    pixels, levels = Decoder(layout_of(name)).decode(as_memory(samples.tobytes()))
    np.testing.assert_array_equal(levels.to_gray8(pixels), scene)


@pytest.mark.parametrize("name", ["Y10", "Y12"])
def test_left_justified_samples_with_repeated_high_bits_are_detected(name: str) -> None:
    samples = (gray_scene().astype(np.uint16) * 257).astype("<u2")
    pixels, levels = Decoder(layout_of(name)).decode(as_memory(samples.tobytes()))
    np.testing.assert_array_equal(levels.to_gray8(pixels), gray_scene())


def test_a_left_justified_dark_start_is_dark_and_stays_so() -> None:
    depth = SampleDepth(10)
    black = np.zeros((HEIGHT, WIDTH), np.uint16)
    depth.observe(black)
    dim = np.full((HEIGHT, WIDTH), 3 << 6, np.uint16)
    assert depth.observe(dim).to_gray8(dim).max() == 0, "3 of 1023 is black"
    bright = np.full((HEIGHT, WIDTH), 0xFFC0, np.uint16)
    assert depth.observe(bright).to_gray8(bright).min() == 255
    assert depth.observe(dim).to_gray8(dim).max() == 0, "the detected depth is kept"


@pytest.mark.parametrize("bits", [10, 16])
def test_a_damaged_sample_does_not_change_the_depth(bits: int) -> None:
    depth = SampleDepth(bits)
    samples = np.random.default_rng(1).integers(0, 1 << 10, (480, 640)).astype(np.uint16)
    samples[16:18, 320:322] = 0xFFFF
    gray = depth.observe(samples).to_gray8(samples)
    np.testing.assert_array_equal(gray, np.minimum(samples >> 2, 255))
    samples[16:80, 320:384] = 0xFFFF
    assert depth.observe(samples).to_gray8(samples).min() < 2, "an area of the size of a face changes it"


def test_mjpg_decodes_to_gray_and_owns_its_pixels() -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    memory = as_memory(encode(gray_scene(), "MJPG", 0))
    decoder = Decoder(layout_of("MJPG"))
    pixels, levels = decoder.decode(memory)
    assert not decoder.borrows
    assert np.abs(levels.to_gray8(pixels).astype(int) - gray_scene()).max() <= 4


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("data", [b"\xff\xd8 not an image", b"\0" * 64])
def test_mjpg_that_cannot_be_decoded_gives_none(data: bytes, color: bool) -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    assert Decoder(layout_of("MJPG"), color).decode(as_memory(data)) is None


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("side", [0, 40000, 65535])
def test_mjpg_whose_header_is_damaged_gives_none(side: int, color: bool) -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    data = encode(gray_scene(), "MJPG", 0)
    size = data.index(b"\xff\xc0") + 5
    damaged = data[:size] + 2 * side.to_bytes(2, "big") + data[size + 4 :]
    assert Decoder(layout_of("MJPG"), color).decode(as_memory(damaged)) is None


def test_mjpg_that_is_padded_to_whole_blocks_is_cropped() -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    scene = gray_scene()
    padded = np.pad(scene, ((0, 8), (0, 0)), "edge")
    decoded = Decoder(layout_of("MJPG")).decode(as_memory(encode(padded, "MJPG", 0)))
    assert decoded is not None and decoded[0].shape == scene.shape
    assert np.abs(decoded[0].astype(int) - scene).mean() < 4
    far = np.pad(scene, ((0, 16), (0, 0)), "edge")
    assert Decoder(layout_of("MJPG")).decode(as_memory(encode(far, "MJPG", 0))) is None


def test_mjpg_of_another_size_than_negotiated_gives_none() -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    assert Decoder(layout_of("MJPG")).decode(as_memory(encode(gray_scene()[:, :16], "MJPG", 0))) is None


@pytest.mark.parametrize("pitch_bytes", PITCHES)
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("name", ["NV12", "YUYV", "UYVY"])
def test_color_is_rgb_in_that_order(name: str, full_range: bool, pitch_bytes: int) -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    red, green, blue = 200, 90, 40
    y, cb, cr = ycbcr(red, green, blue, full_range)
    layout = layout_of(name, pitch_bytes, full_range)
    data = encode(np.full((HEIGHT, WIDTH), y, np.uint8), name, layout.pitch_bytes, (cb, cr))
    decoder = Decoder(layout, color=True)
    pixels, levels = decoder.decode(as_memory(data))
    assert not decoder.borrows
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(levels.to_gray8(pixels).astype(int) - (red, green, blue)).max() <= 4


def test_color_of_mjpg_is_rgb_in_that_order() -> None:
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    bgr = np.full((HEIGHT, WIDTH, 3), (40, 90, 200), np.uint8)
    data = cv2.imencode(".jpg", bgr)[1].tobytes()
    pixels, _ = Decoder(layout_of("MJPG"), color=True).decode(as_memory(data))
    assert np.abs(pixels.astype(int) - (200, 90, 40)).max() <= 6


def test_color_of_a_gray_format_stays_gray_and_borrowed() -> None:
    decoder = Decoder(layout_of("GREY"), color=True)
    assert decoder.borrows
    pixels, _ = decoder.decode(as_memory(gray_scene().tobytes()))
    assert pixels.shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize("height", [24, 25])
def test_nv12_needs_its_chroma_too(height: int) -> None:
    assert ImageLayout.make(FORMATS["NV12"], 32, height, 32, True).least_bytes == 32 * (height + (height + 1) // 2)


def test_the_last_row_may_lack_its_padding() -> None:
    layout = layout_of("GREY", 64)
    data = encode(gray_scene(), "GREY", 64)[: layout.least_bytes]
    assert len(data) == 64 * (HEIGHT - 1) + WIDTH
    pixels, _ = Decoder(layout).decode(as_memory(data))
    np.testing.assert_array_equal(pixels, gray_scene())


def ycbcr(red: int, green: int, blue: int, full_range: bool):
    """ITU-R BT.601, scalar, by its definition."""
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = (blue - y) / 1.772, (red - y) / 1.402
    if full_range:
        return round(y), round(cb + 128), round(cr + 128)
    return round(y * 219 / 255 + 16), round(cb * 224 / 255 + 128), round(cr * 224 / 255 + 128)
