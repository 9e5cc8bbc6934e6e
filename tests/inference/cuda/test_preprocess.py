"""Preprocessing on the GPU, with the kernel's C++ twin, compared with OpenCV and with the CPU's preprocessing."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple

import numpy as np
import pytest

from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.transform import CameraTransform
from edge_agent.core.detection.model_contract import CENTERFACE, FACEDETECTIR, ModelContract
from edge_agent.core.frame import FULL_RANGE, LIMITED_RANGE, DeviceView, Image, Levels
from edge_agent.errors import EngineError
from edge_agent.inference.cuda.compiler import KernelCache
from edge_agent.inference.cuda.context import CudaContext
from edge_agent.inference.cuda.preprocess import ARGUMENTS, CudaPreprocessor
from edge_agent.inference.preprocess import Preprocessor
from tests.fakes.kernel_twin import TwinCompiler, spans, twin_image
from tests.fakes.pycuda import FakeCuda

RNG = np.random.default_rng(11)
PLAIN = replace(FACEDETECTIR, gain=1.0)
BILINEAR_LIMIT, AREA_LIMIT = 0.02, 0.005  # gray levels
SIZES = [(1280, 800), (1280, 720), (640, 480), (640, 400), (641, 479), (1279, 799), (385, 241)]
SMALLER = [(384, 240), (320, 200), (100, 300), (31, 17), (1, 1)]


class Rig:
    """A fake GPU that runs the kernel's twin, and a preprocessor on it."""

    def __init__(self, folder: Path, **gpu: Any) -> None:
        self.cuda = FakeCuda(spans=spans, **gpu)
        self.context = CudaContext(self.cuda)
        self.cache = KernelCache(folder, TwinCompiler)

    def preprocessor(self, contract: ModelContract = PLAIN, *options: Any, **more: Any) -> CudaPreprocessor:
        return CudaPreprocessor(self.context, self.cache, contract, *options, **more)

    def run(self, preprocess: CudaPreprocessor, image: Image) -> np.ndarray:
        tensor = preprocess(image)
        self.context.wait()
        nbytes = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        return self.cuda.at(tensor.pointer, nbytes).view(tensor.dtype).reshape(tensor.shape).copy()

    def last(self) -> Any:
        return np.frombuffer(self.cuda.launches[-1].arguments, ARGUMENTS)[0]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    twin_image()  # skips here, before anything is allocated
    rig = Rig(tmp_path)
    yield rig
    rig.context.close()
    rig.cuda.assert_clean()


def noise(size: Tuple[int, int], *channels: int, dtype: Any = np.uint8) -> np.ndarray:
    return RNG.integers(0, int(np.iinfo(dtype).max) + 1, (size[1], size[0], *channels), dtype=dtype)


def opencv(pixels: np.ndarray, size: Tuple[int, int], interpolation: str) -> np.ndarray:
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    flag = cv2.INTER_AREA if interpolation == "area" else cv2.INTER_LINEAR
    return cv2.resize(pixels.astype(np.float32), size, interpolation=flag)


@pytest.mark.parametrize("size", SIZES + SMALLER)
def test_bilinear_is_opencvs(rig: Rig, size: Tuple[int, int]) -> None:
    pixels = noise(size)
    planes = rig.run(rig.preprocessor(), Image(pixels))[0]
    assert np.abs(planes[0] - opencv(pixels, PLAIN.net, "linear")).max() <= BILINEAR_LIMIT
    assert np.array_equal(planes[1], planes[0]) and np.array_equal(planes[2], planes[0])


@pytest.mark.parametrize("size", SIZES + SMALLER[:1])
def test_area_is_opencvs(rig: Rig, size: Tuple[int, int]) -> None:
    pixels = noise(size)
    planes = rig.run(rig.preprocessor(PLAIN, "area"), Image(pixels))[0]
    assert np.abs(planes[0] - opencv(pixels, PLAIN.net, "area")).max() <= AREA_LIMIT
    assert np.array_equal(planes[1], planes[0]) and np.array_equal(planes[2], planes[0])


@pytest.mark.parametrize("size", [*SIZES, *SMALLER])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, ()), (np.uint16, ()), (np.uint8, (3,))])
def test_a_smooth_image_is_the_cpus(rig: Rig, size: Tuple[int, int], dtype: Any, channels: Tuple[int, ...]) -> None:
    pixels = noise(size, *channels, dtype=dtype)
    levels = Levels(2.0, 8.0) if dtype is np.uint8 else Levels(300.0, 1 / 32)
    image = Image(pixels // 10, levels, smooth=True)
    expected = Preprocessor(PLAIN)(image)
    for interpolation in ("linear", "area"):
        assert np.abs(rig.run(rig.preprocessor(PLAIN, interpolation), image) - expected).max() <= 0.05


def test_area_enlarges_as_bilinear(rig: Rig) -> None:
    image = Image(noise((400, 100)))
    area, linear = (rig.run(rig.preprocessor(PLAIN, filter), image) for filter in ("area", "linear"))
    assert np.array_equal(area, linear)


@pytest.mark.parametrize(("interpolation", "limit"), [("linear", BILINEAR_LIMIT), ("area", AREA_LIMIT)])
@pytest.mark.parametrize("size", [(1280, 800), (641, 479)])
def test_rgb_planes_are_opencvs(rig: Rig, size: Tuple[int, int], interpolation: str, limit: float) -> None:
    pixels = noise(size, 3)
    expected = opencv(pixels, PLAIN.net, interpolation)
    planes = rig.run(rig.preprocessor(PLAIN, interpolation), Image(pixels))[0]
    assert np.abs(planes.transpose(1, 2, 0) - expected).max() <= limit
    luma = rig.run(rig.preprocessor(replace(PLAIN, channels=1), interpolation), Image(pixels))
    assert luma.shape == (1, 1, 240, 384)
    assert np.abs(luma[0, 0] - expected @ np.array([0.299, 0.587, 0.114])).max() <= limit


@pytest.mark.parametrize(("interpolation", "limit"), [("linear", BILINEAR_LIMIT), ("area", AREA_LIMIT)])
@pytest.mark.parametrize(
    ("bits", "levels"), [(10, Levels(0.0, 0.25)), (12, Levels(64.0, 255.0 / 3000.0)), (16, Levels(0.0, 1 / 256.0))]
)
def test_deep_gray_is_opencvs(rig: Rig, bits: int, levels: Levels, interpolation: str, limit: float) -> None:
    pixels = noise((1280, 800), dtype=np.uint16) >> (16 - bits)
    resized = opencv(pixels, PLAIN.net, interpolation)
    expected = np.clip((resized - levels.offset) * levels.gain, 0, 255)
    planes = rig.run(rig.preprocessor(PLAIN, interpolation), Image(pixels, levels))[0]
    assert np.abs(planes[0] - expected).max() <= limit


def rows_of(pixels: np.ndarray, pitch_bytes: int) -> np.ndarray:
    """The image's bytes at a row pitch, with random padding."""
    rows = noise((pitch_bytes, len(pixels)))
    row_bytes = pixels.nbytes // len(pixels)
    rows[:, :row_bytes] = pixels.reshape(len(pixels), -1).view(np.uint8)
    return rows


@pytest.mark.parametrize("pitch_extra", [0, 1, 3, 64])
@pytest.mark.parametrize(
    ("pixel_format", "channels", "dtype"),
    [("gray8", (), np.uint8), ("gray16", (), np.uint16), ("rgb8", (3,), np.uint8)],
)
@pytest.mark.parametrize("interpolation", ["linear", "area"])
def test_rows_in_gpu_memory_are_read_at_any_pitch(
    rig: Rig, pixel_format: str, channels: Tuple[int, ...], dtype: Any, pitch_extra: int, interpolation: str
) -> None:
    pixels = noise((641, 399), *channels, dtype=dtype)
    levels = Levels(0.0, 1 / 256.0) if dtype is np.uint16 else FULL_RANGE
    rows = rows_of(pixels, pixels.strides[0] + pitch_extra)
    device = DeviceView(rig.cuda.map(rows), rows.shape[1], pixel_format)
    preprocess = rig.preprocessor(PLAIN, interpolation)
    there = rig.run(preprocess, Image(pixels, levels, device))
    assert preprocess.copied == 0
    assert np.array_equal(there, rig.run(preprocess, Image(pixels, levels)))
    assert preprocess.copied == 1
    rig.cuda.unmap(rows)


def test_the_y_of_nv12_and_packed_yuv_is_read_in_place(rig: Rig) -> None:
    gray = noise((640, 400))
    expected = rig.run(rig.preprocessor(), Image(gray, LIMITED_RANGE))
    for name, step, first in (("nv12", 1, 0), ("yuyv", 2, 0), ("uyvy", 2, 1)):
        rows = noise((640 * step, 600))
        rows[:400, first::step] = gray
        pixels = rows[:400, first::step]
        device = DeviceView(rig.cuda.map(rows), rows.shape[1], name)
        found = rig.run(rig.preprocessor(), Image(pixels, LIMITED_RANGE, device))
        assert np.array_equal(found, expected), name
        rig.cuda.unmap(rows)


@pytest.mark.parametrize("size", [(1280, 720), (641, 479), (480, 640), (200, 100)])
@pytest.mark.parametrize(("interpolation", "limit"), [("linear", BILINEAR_LIMIT), ("area", AREA_LIMIT)])
def test_letterbox_pads_with_zero(rig: Rig, size: Tuple[int, int], interpolation: str, limit: float) -> None:
    pixels = noise(size)
    where = CENTERFACE.place(size)
    found = rig.run(rig.preprocessor(CENTERFACE, interpolation), Image(pixels))
    assert found.shape == (1, 3, where.net_h, where.net_w)
    shrinks = where.inner_w <= size[0] and where.inner_h <= size[1]
    expected = opencv(pixels, (where.inner_w, where.inner_h), interpolation if shrinks else "linear")
    assert np.abs(found[0, :, : where.inner_h, : where.inner_w] - expected).max() <= limit
    assert not found[0, :, where.inner_h :].any() and not found[0, :, :, where.inner_w :].any()


def test_a_smaller_image_after_a_larger_one_leaves_nothing_of_it(rig: Rig) -> None:
    preprocess = rig.preprocessor(CENTERFACE)
    rig.run(preprocess, Image(np.full((800, 1280), 255, np.uint8)))
    found = rig.run(preprocess, Image(np.zeros((480, 640), np.uint8)))
    assert not found.any()


def test_half_is_the_float_rounded(rig: Rig) -> None:
    image = Image(noise((1280, 800)), LIMITED_RANGE)
    for contract in (FACEDETECTIR, PLAIN):
        exact = rig.run(rig.preprocessor(contract), image)
        half = rig.run(rig.preprocessor(contract, half=True), image)
        assert half.dtype == np.float16
        assert np.array_equal(half, exact.astype(np.float16))


def test_halves_too_small_for_an_exponent_round_too(rig: Rig) -> None:
    contract = replace(FACEDETECTIR, gain=2.0**-30)
    image = Image(noise((384, 240)))
    exact = rig.run(rig.preprocessor(contract), image)
    half = rig.run(rig.preprocessor(contract, half=True), image)
    assert len(np.unique(half)) > 2
    assert np.array_equal(half, exact.astype(np.float16))


IMAGES = [
    Image(noise((1280, 800))),
    Image(noise((641, 479))[3:, 5:]),
    Image(np.rot90(noise((640, 400)))),
    Image(noise((640, 480), 3)[:, ::-1]),
    Image(noise((640, 480)), LIMITED_RANGE),
    Image(noise((640, 480), dtype=np.uint16) >> 6, Levels(0.0, 0.25)),
    Image(noise((100, 60))),
]


@pytest.mark.parametrize("contract", [FACEDETECTIR, CENTERFACE, replace(FACEDETECTIR, channels=1)])
@pytest.mark.parametrize("interpolation", ["linear", "area"])
@pytest.mark.parametrize("number", range(len(IMAGES)))
@pytest.mark.parametrize("integrated", [True, False])
def test_the_gpu_gives_what_the_cpu_gives(
    tmp_path: Path, contract: ModelContract, interpolation: str, number: int, integrated: bool
) -> None:
    rig = Rig(tmp_path, integrated=integrated)
    image = IMAGES[number]
    found = rig.run(rig.preprocessor(contract, interpolation), image)
    level = contract.gain
    in_float = Preprocessor(contract, interpolation, opencv=False)(image)
    assert np.abs(found - in_float).max() <= 0.05 * level
    assert (rig.cuda.copied_bytes > 0) is not integrated
    rig.context.close()
    rig.cuda.assert_clean()


@pytest.mark.parametrize("interpolation", ["linear", "area"])
def test_it_is_within_a_gray_level_of_opencv_with_rounding(rig: Rig, interpolation: str) -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    for image in IMAGES[:2]:
        found = rig.run(rig.preprocessor(PLAIN, interpolation), image)
        assert np.abs(found - Preprocessor(PLAIN, interpolation, opencv=True)(image)).max() <= 1.0


def test_the_kernel_gets_the_frames_pointer(rig: Rig) -> None:
    """A frame is not copied, nor is a region of interest, which lies inside the same buffer."""
    buffer = rig.context.pinned(1280 * 800)
    pixels = buffer.array.reshape(800, 1280)
    pixels[:] = noise((1280, 800))
    whole = Image(pixels, device=DeviceView(buffer.pointer, 1280, "gray8"))
    preprocess = rig.preprocessor()
    rig.run(preprocess, whole)
    assert rig.last()["source"] == buffer.pointer

    part, (left, top) = CameraTransform(CameraParams(roi=(0.25, 0.5, 0.75, 1.0))).region(whole)
    found = rig.run(preprocess, part)
    assert rig.last()["source"] == buffer.pointer + top * 1280 + left
    assert preprocess.copied == 0 and rig.cuda.copied_bytes == 0
    assert np.array_equal(found, rig.run(preprocess, Image(part.pixels.copy())))
    assert rig.last()["source"] != buffer.pointer
    assert preprocess.copied == 1
    del pixels, whole, part


def test_nothing_runs_before_a_wait(rig: Rig) -> None:
    tensor = rig.preprocessor()(Image(noise((640, 480))))
    assert rig.context.busy
    assert np.all(rig.cuda.at(tensor.pointer, 4096) == 0xA5)
    rig.context.wait()
    assert not rig.context.busy
    assert not np.all(rig.cuda.at(tensor.pointer, 4096) == 0xA5)


def test_the_next_image_does_not_overwrite_an_unread_one(rig: Rig) -> None:
    first, second = rig.preprocessor(), rig.preprocessor()
    tensor = first(Image(np.full((480, 640), 7, np.uint8)))
    first(Image(np.full((480, 640), 9, np.uint8)))
    assert rig.cuda.at(tensor.pointer, 4).view(np.float32) == 7.0
    second.close()
    rig.context.wait()
    assert rig.cuda.at(tensor.pointer, 4).view(np.float32) == 9.0


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), np.float32), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)],
)
def test_unsupported_pixels_are_rejected(rig: Rig, pixels: np.ndarray) -> None:
    with pytest.raises(EngineError, match="an image of shape"):
        rig.preprocessor()(Image(pixels))


@pytest.mark.parametrize(
    "device", [DeviceView(64, 639, "gray8"), DeviceView(64, 1280, "gray16"), DeviceView(64, 640, "bayer")]
)
def test_a_device_view_that_contradicts_its_pixels_is_rejected(rig: Rig, device: DeviceView) -> None:
    with pytest.raises(EngineError, match="a device view of"):
        rig.preprocessor()(Image(np.zeros((480, 640), np.uint8), device=device))


def test_a_foreign_pointer_is_an_error_and_everything_is_freed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    pixels = noise((640, 480))
    preprocess = rig.preprocessor()
    preprocess(Image(pixels, device=DeviceView(pixels.ctypes.data, 640, "gray8")))
    with pytest.raises(EngineError, match=r"illegal memory access.*restart"):
        rig.context.wait()
    with pytest.raises(EngineError, match=r"illegal memory access"):
        preprocess(Image(pixels))
    preprocess.close()
    rig.context.close()
    rig.cuda.assert_clean()


def test_growing_and_closing_wait_for_enqueued_work(rig: Rig) -> None:
    preprocess = rig.preprocessor(replace(CENTERFACE, gain=1.0))
    preprocess(Image(np.zeros((100, 640), np.uint8)))
    tensor = preprocess(Image(np.full((640, 640), 3, np.uint8)))
    rig.context.wait()
    assert rig.cuda.at(tensor.pointer, 4).view(np.float32) == 3.0
    preprocess(Image(np.zeros((640, 640), np.uint8)))
    preprocess.close()
    rig.context.wait()
    assert rig.cuda.launched == 3


def test_ten_thousand_images_leak_nothing(rig: Rig) -> None:
    contract = replace(PLAIN, net=(16, 10))
    preprocess = rig.preprocessor(contract)
    image = Image(noise((32, 20)))
    state: Callable[[], Tuple[int, ...]] = lambda: (  # noqa: E731
        *(rig.cuda.allocated_bytes, len(rig.cuda.memory), rig.cuda.objects),
        *(len(queue) for queue in rig.cuda.queues.values()),
    )
    rig.run(preprocess, image)
    before = state()
    for _ in range(10_000):
        preprocess(image)
        rig.context.wait()
    assert state() == before
    assert rig.cuda.launched == 10_001
    preprocess.close()
    preprocess.close()
    assert not rig.cuda.memory
