"""jetson-utils' extension module and a board with cameras, strict by its source code (dusty-nv/jetson-utils).

`FakeJetsonUtils(board, version)` stands for the module. What a version lacks raises AttributeError or TypeError. Calls
that the real one accepts but that cause harm later raise `Misuse`, which no product code catches.

- Memory is real: `ptr` is an address, `cudaToNumpy` a view. The rings are overwritten while in use; a freed
  ring is filled with `FREED`, where the real one is unmapped.
- The GPU is asynchronous: work waits on its stream until that stream, or the device, is synchronised.
- Every fault is a bare `Exception`.
"""

import itertools
import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

FREED = 0xDD
CHANNELS = {"rgb8": 3, "gray8": 1}
MONO = ("GREY", "Y10", "Y12", "Y16")
VERSIONS = ("2021-12", "2022-11", "2023-03", "2023-05", "2024-06")
_SINCE = {
    "GetOptions": "2022-11",
    "GetFrameCount": "2023-03",
    "options": "2023-05",
    "stream": "2024-06",
    "cudaMallocMapped": "2024-06",
    "cudaStreamCreate": "2024-06",
    "cudaStreamDestroy": "2024-06",
    "cudaStreamSynchronize": "2024-06",
}
_MODULE = ["videoSource", "cudaImage", "cudaAllocMapped", "cudaConvertColor", "cudaDeviceSynchronize", "cudaToNumpy"]
_SOURCE = ["Open", "Close", "Capture", "GetWidth", "GetHeight", "GetFrameRate", "IsStreaming", "Usage"]
_FLAGS = frozenset(
    [
        "num-buffers",
        "input-width",
        "input-height",
        "input-rate",
        "input-flip",
        "input-loop",
        "input-latency",
        "input-codec",
        "log-level",
    ]
)


class Misuse(AssertionError):
    """A call that the real module accepts but that causes harm later."""


def gradient(sequence: int, width: int, height: int) -> np.ndarray:
    """(H, W) uint8: every frame differs from its neighbours in every pixel."""
    y, x = np.mgrid[0:height, 0:width]
    return (x + 2 * y + 23 * sequence).astype(np.uint8)


@dataclass
class Input:
    """A source of frames: a camera, stream or file.

    Attributes:
        scene: Gray frame by number and size; a colour camera sees the same in all channels.
        format: Native: NV12, YUYV, MJPG, H264, or a mono one.
        size_at: Its size may change with the frame.
        frames: How many there are, for files.
        fps: Paces frames in real time; None gives one whenever asked.
        extra: Number of further frames that arrive before the next capture, once.
        silent: Unplugged, or nvargus-daemon has died: no frame and no error.
        race: Number of next captures that wake up for a frame that was already read.
        broken: The pipeline cannot be started.
    """

    scene: Callable[[int, int, int], np.ndarray] = gradient
    format: str = "NV12"
    size_at: Callable[[int], Tuple[int, int]] = lambda sequence: (64, 48)
    frames: Optional[int] = None
    fps: Optional[float] = None
    extra: int = 0
    silent: bool = False
    race: int = 0
    broken: bool = False


@dataclass
class Board:
    """The machine: what is connected, by URI as jetson-utils takes it, and what was done to it.

    Attributes:
        nvmm: Built with NVMM: frames are copied on the default stream before they are converted.
        clock_step: The wall clock is set forward during the next wait.
        leaks: Of failed creations and interface dictionaries.
        freed_by: Threads in which mapped images were freed.
    """

    inputs: Dict[str, Input] = field(default_factory=dict)
    nvmm: bool = False
    clock_step: bool = False
    failures: List[str] = field(default_factory=list)
    leaks: List[str] = field(default_factory=list)
    history: List[str] = field(default_factory=list)
    freed_by: List[int] = field(default_factory=list)
    pending: Dict[int, List[Callable[[], None]]] = field(default_factory=lambda: {0: []})
    nonblocking: List[int] = field(default_factory=list)

    def maybe_fail(self, call: str) -> None:
        if call in self.failures:
            self.failures.remove(call)
            raise Exception(f"jetson.utils -- {call}() failed")

    def launch(self, stream: int, work: Callable[[], None]) -> None:
        if stream not in self.pending:
            raise Misuse(f"stream {stream} does not exist")
        self.pending[stream].append(work)

    def synchronise(self, stream: int) -> None:
        if stream not in self.pending:
            raise Misuse(f"stream {stream} does not exist")
        if stream and stream not in self.nonblocking:
            self.synchronise(0)
        work, self.pending[stream] = self.pending[stream], []
        for each in work:
            each()


class CudaImage:
    """`cudaImage`."""

    __slots__ = ("__weakref__", "_board", "format", "freeOnDelete", "height", "mapped", "memory", "timestamp", "width")

    def __init__(
        self, board: Board, memory: np.ndarray, size: Tuple[int, int], name: str, owns: bool, timestamp: int = 0
    ) -> None:
        self._board, self.memory, self.format = board, memory, name
        self.width, self.height = size
        self.freeOnDelete, self.mapped, self.timestamp = owns, True, timestamp
        if owns:
            weakref.finalize(self, lambda: board.freed_by.append(threading.get_ident()))

    @property
    def ptr(self) -> int:
        return int(self.memory.ctypes.data)

    @property
    def channels(self) -> int:
        return CHANNELS.get(self.format, 1)

    @property
    def shape(self) -> Tuple[int, int, int]:
        return self.height, self.width, self.channels

    def _interface(self) -> Dict[str, Any]:
        self._board.leaks.append("interface dictionary")
        return {"shape": self.shape, "typestr": "<u1", "data": (self.ptr, False), "version": 3}

    __array_interface__ = property(_interface)
    __cuda_array_interface__ = property(_interface)


class _Ring:
    """RingBuffer: created again when it is too small, also while in use."""

    def __init__(self, count: int) -> None:
        self._count, self._buffers, self._at = count, [], 0

    def next(self, nbytes: int) -> np.ndarray:
        if not self._buffers or self._buffers[0].size < nbytes:
            self.free()
            self._buffers = [np.zeros(nbytes, np.uint8) for _ in range(self._count)]
        self._at = (self._at + 1) % self._count
        return self._buffers[self._at]

    def free(self) -> None:
        for buffer in self._buffers:
            buffer.fill(FREED)


class VideoSource:
    """`videoSource`, used by one thread."""

    def __init__(self, module: "FakeJetsonUtils", uri: str, argv: Sequence[str]) -> None:
        self._module, self._board, self._uri = module, module._board, uri
        self._thread = threading.get_ident()
        flags = {}
        for flag in argv:
            name, _, value = flag.partition("=")
            if not (isinstance(flag, str) and name[:2] == "--" and name[2:] in _FLAGS):
                raise Misuse(f"{flag!r} is silently ignored")
            flags[name[2:]] = value
        self.flags = flags
        self._board.history.append(f"create {uri}")
        self._board.maybe_fail("create")
        if uri.startswith("v4l2:") and not uri[len("v4l2://") :].startswith("/dev/video"):
            self._fail()
        found = self._board.inputs.get(uri)
        if found is None or found.format in MONO:
            self._fail()
        self._input = found
        count = int(flags.get("num-buffers", 4))
        self._yuv, self._rgb = _Ring(count), _Ring(count)
        self._streaming = self._eos = False
        self._sequence = -1
        self._began_t = time.monotonic()
        weakref.finalize(self, _dealloc, self._board, self._yuv, self._rgb, uri)

    def _fail(self) -> None:
        self._board.leaks.append("failed creation")
        if self.flags.get("log-level") != "silent":
            print(f"[gstreamer] gstDecoder -- failed to create decoder for {self._uri}")
        raise Exception("jetson.utils -- failed to create videoSource device")

    def __getattribute__(self, name: str) -> Any:
        get = super().__getattribute__
        if not name.startswith("_") and name != "flags":
            if name not in _SOURCE and not get("_module")._has(name):
                raise AttributeError(f"'jetson.utils.videoSource' object has no attribute '{name}'")
            if get("_thread") != threading.get_ident():
                raise Misuse(f"{name} is called by another thread than the one that made the source")
        return get(name)

    def Open(self) -> None:
        raise Misuse("where Open fails, it returns without the GIL, and the interpreter dies")

    def Close(self) -> None:
        self._board.history.append(f"close {self._uri}")
        self._streaming = False

    def IsStreaming(self) -> bool:
        return self._streaming

    def GetWidth(self) -> int:
        return self._input.size_at(max(0, self._sequence))[0]

    def GetHeight(self) -> int:
        return self._input.size_at(max(0, self._sequence))[1]

    def GetFrameRate(self) -> int:
        return int(self._input.fps or 30)

    def GetFrameCount(self) -> int:
        return self._sequence + 1

    def GetOptions(self) -> Dict[str, Any]:
        raw = self._input.format in ("NV12", "YUYV")
        return {"codec": "raw" if raw else self._input.format.replace("MJPG", "MJPEG"), "zeroCopy": True}

    def Capture(self, *args: Any, **kwargs: Any) -> Optional[CudaImage]:
        names = ["format", "timeout"] + (["stream"] if self._module._has("stream") else [])
        if len(args) > len(names) or not set(kwargs) <= set(names):
            raise TypeError(f"Capture() takes {names}")
        given = {"format": "rgb8", "timeout": 1000, "stream": 0, **dict(zip(names, args)), **kwargs}
        if not isinstance(given["timeout"], int):
            raise TypeError("an integer is required")
        if given["timeout"] < 0:
            raise Misuse("waits for ever")
        if not self._streaming:
            if self._input.broken or self._eos:
                raise Exception("jetson.utils -- videoSource failed to capture image")
            self._streaming = True
        if self._input.race:
            self._input.race -= 1
            raise Exception("jetson.utils -- videoSource failed to capture image")
        if not self._wait(given["timeout"] / 1000):
            if not self._module._has("GetFrameCount"):  # as old: no status of its own for a timeout
                raise Exception("jetson.utils -- videoSource failed to capture image")
            return None
        return self._convert(given["format"], given["stream"])

    def _wait(self, timeout_s: float) -> bool:
        """New frames arrive in the YUV ring; False when there is none in time."""
        source = self._input
        if self._board.clock_step:
            self._board.clock_step = False
            return False
        if source.frames is not None and self._sequence + 1 >= source.frames:
            self._streaming, self._eos = False, True
            return False
        wait_s = timeout_s
        if not source.silent:
            next_t = 0.0 if source.fps is None else self._began_t + (self._sequence + 1) / source.fps
            wait_s = max(0.0, next_t - time.monotonic())
        time.sleep(min(wait_s, timeout_s))
        if source.silent or wait_s > timeout_s:
            return False
        for _ in range(1 + source.extra):
            self._arrive()
        source.extra = 0
        return True

    def _arrive(self) -> None:
        self._sequence += 1
        size = self._input.size_at(self._sequence)
        encoded = np.ascontiguousarray(self._input.scene(self._sequence, *size), np.uint8)
        self._now = self._yuv.next(encoded.size)
        self._now[: encoded.size] = encoded.ravel()

    def _convert(self, name: str, stream: int) -> CudaImage:
        size = self._input.size_at(self._sequence)
        raw, pixels = self._now, size[0] * size[1]
        stamp = int((self._sequence + 1) * 1e9 / 30)  # the pipeline's running time
        if name not in CHANNELS:  # whatever it is, it is taken for "raw"
            return CudaImage(self._board, raw, size, self._input.format.lower(), False, stamp)
        target = self._rgb.next(pixels * CHANNELS[name])
        if name != "rgb8":
            raise Exception("jetson.utils -- videoSource failed to capture image")  # no gray from YUV
        if self._board.nvmm:
            linear = np.zeros(pixels, np.uint8)
            source, raw = raw, linear
            self._board.launch(0, lambda: np.copyto(linear, source[:pixels]))
        self._board.launch(
            stream, lambda: np.copyto(target[: 3 * pixels].reshape(-1, 3), raw[:pixels, None].repeat(3, 1))
        )
        return CudaImage(self._board, target, size, name, False, stamp)


def _dealloc(board: Board, yuv: _Ring, rgb: _Ring, uri: str) -> None:
    yuv.free()
    rgb.free()
    board.history.append(f"delete {uri}")


class FakeJetsonUtils:
    """The module `jetson_utils_python`; of one version.

    Args:
        board: What it runs on.
        version: One of `VERSIONS`: what the upstream repository was in that month.
    """

    def __init__(self, board: Board, version: str = VERSIONS[-1]) -> None:
        if version not in VERSIONS:
            raise ValueError(version)
        self._board, self._version = board, version
        self._streams = itertools.count(0x5000, 8)

    def _has(self, name: str) -> bool:
        return name in _SINCE and _SINCE[name] <= self._version

    def __getattribute__(self, name: str) -> Any:
        get = super().__getattribute__
        if not name.startswith("_") and name not in _MODULE and not get("_has")(name):
            raise AttributeError(f"module 'jetson_utils_python' has no attribute '{name}'")
        return get(name)

    def videoSource(self, uri: str = "", argv: Sequence[str] = (), positionArg: int = -1, **new: Any) -> VideoSource:
        if new and not (set(new) == {"options"} and self._has("options")):
            raise TypeError(f"videoSource() got unexpected keywords {sorted(new)}")
        if not isinstance(argv, list):
            raise Misuse("anything but a list is silently ignored")
        return VideoSource(self, uri, argv)

    def cudaAllocMapped(self, size: int = 0, width: int = 0, height: int = 0, format: str = "") -> CudaImage:
        self._board.maybe_fail("cudaAllocMapped")
        if format not in CHANNELS or width <= 0 or height <= 0:
            raise Exception("jetson.utils -- cudaAllocMapped() invalid format string")
        memory = np.zeros(width * height * CHANNELS[format], np.uint8)
        return CudaImage(self._board, memory, (width, height), format, True)

    cudaMallocMapped = cudaAllocMapped

    def cudaConvertColor(self, input: CudaImage, output: CudaImage, **new: Any) -> None:
        if new and not (set(new) == {"stream"} and self._has("stream")):
            raise TypeError("cudaConvertColor() takes input, output")
        self._board.maybe_fail("cudaConvertColor")
        if (input.width, input.height) != (output.width, output.height):
            raise Exception("jetson.utils -- cudaConvertColor() input and output image resolutions are different")
        if input.format != "rgb8" or output.format not in CHANNELS:
            raise Exception("jetson.utils -- cudaConvertColor() failed")
        pixels = input.width * input.height
        source, target = input.memory[: 3 * pixels], output.memory
        if output.format == "rgb8":
            self._board.launch(new.get("stream", 0), lambda: np.copyto(target, source))
        else:
            self._board.launch(new.get("stream", 0), lambda: np.copyto(target, _gray(source)))

    def cudaToNumpy(self, array: CudaImage) -> np.ndarray:
        return array.memory[: array.width * array.height * array.channels].reshape(array.shape)

    def cudaDeviceSynchronize(self) -> None:
        for stream in list(self._board.pending):
            self._board.synchronise(stream)

    def cudaStreamCreate(self, nonblocking: bool = False, priority: int = 0) -> int:
        self._board.maybe_fail("cudaStreamCreate")
        stream = next(self._streams)
        self._board.pending[stream] = []
        if nonblocking:
            self._board.nonblocking.append(stream)
        return stream

    def cudaStreamDestroy(self, stream: int) -> None:
        self._board.synchronise(stream)
        del self._board.pending[stream]

    def cudaStreamSynchronize(self, stream: int) -> None:
        self._board.synchronise(stream)


def _gray(rgb: np.ndarray) -> np.ndarray:
    """(N,) uint8: luma of (N * 3) interleaved bytes, as cudaGrayscale.cu has it: weights short of 1, truncated."""
    return (rgb.reshape(-1, 3).astype(np.float32) @ np.float32((0.2989, 0.5870, 0.1140))).astype(np.uint8)
