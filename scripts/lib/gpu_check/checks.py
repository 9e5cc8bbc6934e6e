"""The single checks of `scripts/gpu-check`: each gives rows, on whatever driver it is handed."""

import mmap
import os
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple

import numpy as np

from edge_agent.core.detection.model_contract import FACEDETECTIR
from edge_agent.core.frame import DeviceView, Image, Levels
from edge_agent.errors import EdgeAgentError
from edge_agent.inference.cuda.compiler import KernelCache
from edge_agent.inference.cuda.context import CudaContext
from edge_agent.inference.cuda.pool import CudaBufferPool
from edge_agent.inference.cuda.preprocess import CudaPreprocessor, DeviceTensor
from scripts.lib.gpu_check.reference import resized

OK, FAIL, NOTE = "ok", "FAIL", "note"
PLAIN = replace(FACEDETECTIR, gain=1.0)
SIZES = [(1280, 800), (1280, 720), (640, 480), (640, 400), (641, 479), (1279, 799)]
LIMITS = {"linear": 0.02, "area": 0.005}  # gray levels; against float64
HALF_LIMIT = 255 * 2.0**-11 + 0.02
FLOOR_LIMIT = 1.5
LEAK_LIMIT_BYTES = 8 << 20  # what drivers and allocators take at their leisure
STARTS = 50
OPENINGS = 12
CAMERA_BUFFERS = 4

Row = Tuple[str, str, str]


@dataclass(frozen=True)
class Bench:
    """Input of the checks.

    Attributes:
        driver: `pycuda.driver`.
        kernels: Source of compiled kernels.
        frames: Number of frames in the search for leaks.
        noise: Random numbers for images.
        copy_bytes: Bytes copied to measure the memory's speed: far more than the GPU's cache.
        launches: How many are timed together.
    """

    driver: Any
    kernels: KernelCache
    frames: int
    noise: np.random.Generator
    copy_bytes: int = 256 << 20
    launches: int = 200

    @contextmanager
    def gpu(self) -> Iterator[CudaContext]:
        """Open the GPU for the length of a block."""
        context = CudaContext(self.driver)
        try:
            yield context
        finally:
            context.close()

    def gray(self, size: Tuple[int, int], dtype: Any = np.uint8) -> np.ndarray:
        """Return an image of noise."""
        return self.noise.integers(0, int(np.iinfo(dtype).max) + 1, size[::-1], dtype)


def kernel(bench: Bench) -> Iterator[Row]:
    """Compare the kernel's pixels with the reference, by size, sample type, filter and precision."""
    for filter, limit in LIMITS.items():
        worst = 0.0
        with bench.gpu() as context:
            preprocess = CudaPreprocessor(context, bench.kernels, PLAIN, filter)
            for size in SIZES:
                pixels = bench.gray(size)
                planes = fetch(context, preprocess(Image(pixels)))[0]
                worst = max(worst, float(np.abs(planes - resized(pixels, PLAIN.net, filter == "area")).max()))
        yield _row(f"kernel, {filter}", worst <= limit, f"off float64 by {worst:.2g} gray levels, {limit} allowed")
    with bench.gpu() as context:
        deep = bench.gray((1280, 800), np.uint16) >> 4
        levels = Levels(64.0, 255.0 / 3000.0)
        planes = fetch(context, CudaPreprocessor(context, bench.kernels, PLAIN)(Image(deep, levels)))[0]
        off = float(np.abs(planes - np.clip((resized(deep, PLAIN.net, False) - 64.0) * levels.gain, 0, 255)).max())
        yield _row("kernel, 12 bits of 16", off <= LIMITS["linear"], f"off float64 by {off:.2g} gray levels")
        color = bench.noise.integers(0, 256, (480, 640, 3), np.uint8)
        planes = fetch(context, CudaPreprocessor(context, bench.kernels, PLAIN)(Image(color)))[0]
        off = max(
            float(np.abs(planes[channel] - resized(color[:, :, channel], PLAIN.net, False)).max())
            for channel in range(3)
        )
        yield _row("kernel, RGB", off <= LIMITS["linear"], f"off float64 by {off:.2g} gray levels")
        pixels = bench.gray((1280, 800))
        planes = fetch(context, CudaPreprocessor(context, bench.kernels, PLAIN, half=True)(Image(pixels)))[0]
        off = float(np.abs(planes - resized(pixels, PLAIN.net, False)).max())
        yield _row("kernel, half", off <= HALF_LIMIT, f"off float64 by {off:.2g} gray levels")


def buffers(bench: Bench) -> Iterator[Row]:
    """Each memory layout of an image gives the same pixels, padded rows included."""
    pixels = bench.gray((641, 479))
    with bench.gpu() as context:
        preprocess = CudaPreprocessor(context, bench.kernels, PLAIN)
        wanted = fetch(context, preprocess(Image(pixels)))
        pitch = 704
        rows = bench.gray((pitch, 479))
        rows[:, :641] = pixels
        pinned = context.pinned(rows.nbytes)
        pinned.array[:] = rows.reshape(-1)
        remote = context.device_buffer(rows.nbytes)
        context.upload(remote.pointer, pinned.array)
        context.wait()
        for name, pointer in (("page-locked memory, read in place", pinned.pointer), ("device memory", remote.pointer)):
            copied = preprocess.copied
            found = fetch(context, preprocess(Image(pixels, device=DeviceView(pointer, pitch, "gray8"))))
            same = np.array_equal(found, wanted) and preprocess.copied == copied
            yield _row(f"buffer: {name}", same, "no copy, same pixels" if same else "other pixels, or a copy")
        strided = np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]
        same = np.array_equal(fetch(context, preprocess(Image(strided))), wanted)
        yield _row("buffer: ordinary memory, strided", same, "one copy, same pixels" if same else "other pixels")


def camera_memory(bench: Bench) -> Iterator[Row]:
    """Each way in which images of a V4L2 camera reach the GPU; this program writes them in place of the driver."""
    images = [bench.gray((640, 480)) for _ in range(CAMERA_BUFFERS)]
    with bench.gpu() as context:
        preprocess = CudaPreprocessor(context, bench.kernels, PLAIN)
        wanted = [fetch(context, preprocess(Image(pixels))) for pixels in images]
        pool = CudaBufferPool(context)
        for mode in ("userptr", "registered", "copied"):
            name = f"camera memory: {mode}"
            if mode not in pool.modes():
                yield name, NOTE, "not on this GPU: cameras use another way"
                continue
            before: List[int] = []
            same = True
            try:
                for opening in range(OPENINGS):
                    if opening == 2:  # what is taken once is no leak
                        before = _held(bench, context)
                    same &= _camera_opening(context, preprocess, pool, mode, images, wanted)
            except EdgeAgentError as error:
                yield name, FAIL, str(error)
                continue
            grown = [after - at for after, at in zip(_held(bench, context), before)]
            found = "read in place, same pixels" if same else "other pixels, or a copy"
            yield _row(name, same and _is_little(grown), f"{found}; {OPENINGS - 2} openings: {_grown(grown)}")


def _camera_opening(
    context: CudaContext,
    preprocess: CudaPreprocessor,
    pool: CudaBufferPool,
    mode: str,
    images: List[np.ndarray],
    wanted: List[np.ndarray],
) -> bool:
    """Return whether the GPU reads from each buffer what was written to it, without a copy."""
    nbytes = images[0].nbytes
    buffers, freed = _camera_buffers(pool, mode, nbytes)
    for buffer, pixels in zip(buffers, images):
        buffer.array[:nbytes] = pixels.reshape(-1)
    copied = preprocess.copied
    views = [DeviceView(buffer.pointer, pixels.shape[1], "gray8") for buffer, pixels in zip(buffers, images)]
    found = [fetch(context, preprocess(Image(pixels, device=view))) for pixels, view in zip(images, views)]
    pool.free(buffers, freed)
    return preprocess.copied == copied and all(np.array_equal(*both) for both in zip(found, wanted))


def _camera_buffers(pool: CudaBufferPool, mode: str, nbytes: int) -> Tuple[List[Any], Callable[[], None]]:
    """Return buffers of this mode, and a callback for when they are free."""
    if mode != "registered":
        return list(pool.allocate(CAMERA_BUFFERS, nbytes)), lambda: None
    # Whole pages mapped from the kernel, as V4L2 buffers are.
    maps = [mmap.mmap(-1, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE) for _ in range(CAMERA_BUFFERS)]

    def unmap() -> None:
        for each in maps:
            each.close()

    return list(pool.register([np.frombuffer(each, np.uint8) for each in maps])), unmap


def threads(bench: Bench) -> Iterator[Row]:
    """Use contexts of several threads at once, each with its stream, and one from the wrong thread."""
    pixels = bench.gray((640, 480))
    wanted = resized(pixels, PLAIN.net, False)
    worst: List[float] = []
    faults: List[str] = []

    def work() -> None:
        try:
            with bench.gpu() as context:
                preprocess = CudaPreprocessor(context, bench.kernels, PLAIN)
                off = [float(np.abs(fetch(context, preprocess(Image(pixels)))[0] - wanted).max()) for _ in range(20)]
            worst.append(max(off))
        except EdgeAgentError as error:
            faults.append(str(error))

    for _ in range(2):  # a thread that ends with a context on its stack would abort the process here
        started = [threading.Thread(target=work) for _ in range(4)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
    good = not faults and len(worst) == 8 and max(worst) <= LIMITS["linear"]
    yield _row("threads: 8, 4 at a time", good, "; ".join(faults) or f"off float64 by {max(worst, default=9):.2g}")
    with bench.gpu() as context:
        refused: List[bool] = []

        def trespass() -> None:
            try:
                context.wait()
            except RuntimeError:
                refused.append(True)

        stranger = threading.Thread(target=trespass)
        stranger.start()
        stranger.join()
        context.wait()
        yield _row("threads: another's context", refused == [True], "refused" if refused else "not refused")


def leaks(bench: Bench, progress: Callable[[str], None]) -> Iterator[Row]:
    """Measure memory of GPU and process, and open files, over many frames and over many starts."""
    images = [Image(bench.gray((1280, 800))) for _ in range(4)]

    def frames(count: int) -> float:
        with bench.gpu() as context:
            preprocess = CudaPreprocessor(context, bench.kernels, FACEDETECTIR)
            for number in range(min(count, 200)):
                preprocess(images[number % 4])
            context.wait()
            before, started = _held(bench, context), time.monotonic()
            for number in range(count):
                preprocess(images[number % 4])
                context.wait()
                if number and number % 20000 == 0:
                    progress(f"{number} of {count} frames")
            grown[:] = [after - at for after, at in zip(_held(bench, context), before)]
            return time.monotonic() - started

    grown: List[int] = []
    took_s = frames(bench.frames)
    name = f"leaks: {bench.frames} frames"
    yield _row(name, _is_little(grown), f"{_grown(grown)}; {1e6 * took_s / bench.frames:.0f} us each with its copy")
    with bench.gpu() as context:
        for _ in range(5):
            _start(bench, images[0])
        before = _held(bench, context)
        for _ in range(STARTS):
            _start(bench, images[0])
        grown[:] = [after - at for after, at in zip(_held(bench, context), before)]
    yield _row(f"leaks: {STARTS} starts", _is_little(grown), _grown(grown))


def throughput(bench: Bench) -> Iterator[Row]:
    """Compare the kernel's time at 1280x800 with the time of its bytes, for one image and for 64 in one launch."""
    with bench.gpu() as context:
        bytes_per_s = _bandwidth(bench, context)
        yield "memory", NOTE, f"{bytes_per_s / 1e9:.0f} GB/s, by copying"
        launch_us = _per_launch_us(bench, context, (32, 32), (32, 32), bench.launches)
        for name, factor in (("one image", 1), ("64 images' worth in one launch", 8)):
            size, net = (1280 * factor, 800 * factor), (384 * factor, 240 * factor)
            floor_us = 1e6 * (size[0] * size[1] + 3 * 4 * net[0] * net[1]) / bytes_per_s
            took_us = _per_launch_us(bench, context, size, net, max(bench.launches // factor**2, 1))
            ratio = took_us / floor_us
            near = ratio <= FLOOR_LIMIT or took_us <= FLOOR_LIMIT * launch_us
            against = f"{ratio:.2f} times the {floor_us:.1f} us of its bytes"
            figure = f"{took_us:.1f} us, {against}; an empty launch: {launch_us:.1f} us"
            yield f"throughput: {name}", OK if near else NOTE, figure


def fetch(context: CudaContext, tensor: DeviceTensor) -> np.ndarray:
    """Wait for the tensor and return its values as float64."""
    nbytes = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
    pinned = context.pinned(nbytes)
    context.download(pinned.array, tensor.pointer)
    context.wait()
    values = pinned.array.view(tensor.dtype).reshape(tensor.shape).astype(np.float64)
    pinned.free()
    return np.asarray(values)


def _start(bench: Bench, image: Image) -> None:
    with bench.gpu() as context:
        CudaPreprocessor(context, bench.kernels, FACEDETECTIR)(image)
        context.wait()


def _held(bench: Bench, context: CudaContext) -> List[int]:
    """Return bytes on the GPU, bytes of this process, and open files."""
    with context.current("asking for free memory"):
        free, total = bench.driver.mem_get_info()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return [total - free, pages * os.sysconf("SC_PAGE_SIZE"), sum(1 for _ in Path("/proc/self/fd").iterdir())]


def _is_little(grown: List[int]) -> bool:
    return grown[0] <= LEAK_LIMIT_BYTES and grown[1] <= LEAK_LIMIT_BYTES and grown[2] <= 0


def _grown(grown: List[int]) -> str:
    return f"GPU {grown[0] / 1e6:+.1f} MB, process {grown[1] / 1e6:+.1f} MB, files {grown[2]:+d}"


def _bandwidth(bench: Bench, context: CudaContext) -> float:
    """Return the bytes read and written per second by a copy on the GPU."""
    nbytes, rounds = bench.copy_bytes, 20
    source, target = context.device_buffer(nbytes), context.device_buffer(nbytes)
    best = 0.0
    with context.current("copying on the GPU"):
        stream = bench.driver.Stream()
        for _ in range(4):  # the first warms up
            started = time.perf_counter()
            for _ in range(rounds):
                bench.driver.memcpy_dtod_async(target.pointer, source.pointer, nbytes, stream)
            stream.synchronize()
            best = max(best, 2 * nbytes * rounds / (time.perf_counter() - started))
        del stream
    source.free()
    target.free()
    return best


def _per_launch_us(
    bench: Bench, context: CudaContext, size: Tuple[int, int], net: Tuple[int, int], repeats: int
) -> float:
    """Return the time of one launch, in a row of launches on images in GPU memory; the best of three."""
    preprocess = CudaPreprocessor(context, bench.kernels, replace(FACEDETECTIR, net=net))
    source = context.device_buffer(size[0] * size[1])
    image = Image(np.empty(size[::-1], np.uint8), device=DeviceView(source.pointer, size[0], "gray8"))
    best = float("inf")
    for _ in range(4):  # the first warms up
        started = time.perf_counter()
        for _ in range(repeats):
            preprocess(image)
        context.wait()
        best = min(best, 1e6 * (time.perf_counter() - started) / repeats)
    preprocess.close()
    source.free()
    return best


def _row(name: str, good: bool, figure: str) -> Row:
    return name, OK if good else FAIL, figure
