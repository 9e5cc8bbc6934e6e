"""V4l2Source with memory that the GPU reads in place, compared by address from driver to kernel launch."""

import errno
import logging
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Dict, Iterator, List, Optional, Tuple

import numpy as np
import pytest

from edge_agent.capture import SourceOptions
from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.source import BUFFERS, V4l2Source
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.transform import CameraTransform
from edge_agent.core.detection.model_contract import FACEDETECTIR
from edge_agent.core.frame import Frame, Image
from edge_agent.errors import SourceError
from edge_agent.inference.cuda.compiler import KernelCache
from edge_agent.inference.cuda.context import CudaContext
from edge_agent.inference.cuda.pool import CudaBufferPool
from edge_agent.inference.cuda.preprocess import ARGUMENTS, CudaPreprocessor
from tests.capture.contract import MakeSource, SourceContract, next_frame
from tests.fakes.kernel import FakeKernel, Misuse
from tests.fakes.kernel_twin import TwinCompiler, spans
from tests.fakes.libcuda import FakeDriverLibrary
from tests.fakes.pycuda import FakeCuda
from tests.fakes.v4l2_camera import FakeCamera

SIZE = [(64, 48)]
MMAP_ONLY = (abi.MEMORY_MMAP,)
ALL = ["userptr", "registered", "copied"]
CAMERAS: Dict[str, Any] = {"userptr": {}, "registered": {"io_modes": MMAP_ONLY}, "copied": {"io_modes": MMAP_ONLY}}


class Rig:
    """A fake GPU, its driver library, and a kernel whose camera drivers can pin its memory."""

    def __init__(self, folder: Path, **gpu: Any) -> None:
        self.cuda = FakeCuda(spans=spans, **gpu)
        self.context = CudaContext(self.cuda)
        self.pool = CudaBufferPool(self.context)
        self.library = FakeDriverLibrary(self.cuda)
        self.kernel = FakeKernel(folder, self.cuda.pages)
        self.kernel.locked = self.library.locked
        self._cache = KernelCache(folder / "cache", TwinCompiler)

    def source(self, **options: Any) -> V4l2Source:
        options = {"pool": self.pool, **options}
        root = self.kernel.tree.root
        return V4l2Source(self.kernel.node(0), SourceOptions(**options), syscalls=self.kernel, root=root)

    def refuse(self, mode: str) -> None:
        """Leave `mode` as the best one, for a driver that has only MMAP."""
        if mode == "copied":
            self.library.refuses = self.kernel.maps

    def preprocessor(self) -> CudaPreprocessor:
        return CudaPreprocessor(self.context, self._cache, FACEDETECTIR)

    def run(self, preprocess: CudaPreprocessor, image: Image) -> Tuple[np.ndarray, Any]:
        """The network's input, and the arguments that the launch received."""
        tensor = preprocess(image)
        self.context.wait()
        values = self.cuda.at(tensor.pointer, 4 * int(np.prod(tensor.shape))).view(np.float32).reshape(tensor.shape)
        return values.copy(), np.frombuffer(self.cuda.launches[-1].arguments, ARGUMENTS)[0]


@pytest.fixture
def gpu() -> dict:
    return {}


@pytest.fixture
def rig(tmp_path: Path, gpu: dict) -> Iterator[Rig]:
    rig = Rig(tmp_path, **gpu)
    with rig.library:
        yield rig
        rig.context.close()
        rig.cuda.assert_clean()
        assert rig.library.registered == {}


class _Contract(SourceContract):
    mode = ""
    camera: ClassVar[Dict[str, Any]] = {}

    @pytest.fixture
    def make_source(self, rig: Rig) -> MakeSource:
        rig.refuse(self.mode)
        rig.kernel.plug(FakeCamera(**{**CAMERAS[self.mode], **self.camera}))
        return rig.source

    def test_the_mode_is_reported(self, make_source: MakeSource) -> None:
        with closing(make_source()) as source:
            assert source.mode == "cpu"
            source.open()
            assert source.mode == self.mode


class TestUserptrContract(_Contract):
    mode = "userptr"


class TestUserptrPitchedContract(_Contract):
    mode = "userptr"
    camera: ClassVar[Dict[str, Any]] = {"formats": {"Y10": SIZE}, "pitch_align": 256, "most_buffers": 4}


class TestRegisteredContract(_Contract):
    mode = "registered"


class TestCopiedContract(_Contract):
    mode = "copied"


@pytest.mark.parametrize("mode", ["userptr", "registered"])
@pytest.mark.parametrize("name", ["GREY", "Y10", "Y16", "NV12", "YUYV", "UYVY"])
@pytest.mark.parametrize("roi", [None, (0.25, 0.25, 0.75, 1.0)])
def test_the_pointer_of_the_camera_s_driver_is_the_pointer_of_the_launch(
    rig: Rig, mode: str, name: str, roi: Optional[Tuple[float, ...]]
) -> None:
    """No full-frame copy between camera and kernel: the kernel is launched on the driver's buffer."""
    camera = FakeCamera(formats={name: SIZE}, pitch_align=128, **CAMERAS[mode])
    rig.kernel.plug(camera)
    view, preprocess = CameraTransform(CameraParams("v4l2:x", roi=roi)), rig.preprocessor()
    bytes_per_px = {"GREY": 1, "NV12": 1}.get(name, 2)
    offset = 0 if roi is None else 12 * camera_pitch(name) + 16 * bytes_per_px
    offset += 1 if name == "UYVY" else 0  # the first Y
    launched = set()
    with closing(rig.source()) as source:
        source.open()
        assert source.mode == mode
        for _ in range(2 * BUFFERS):
            with next_frame(source) as frame:
                image, _ = view.region(view.upright(frame))
                values, arguments = rig.run(preprocess, image)
                twin, _ = rig.run(preprocess, Image(image.pixels, image.levels))
                np.testing.assert_array_equal(values, twin)
                assert int(arguments["pitch"]) == camera_pitch(name)
                launched.add(int(arguments["source"]) - offset)
        assert preprocess.copied == 2 * BUFFERS, "only the host's images, for comparison, were copied"
        assert rig.cuda.copied_bytes == 0
        assert launched == rig.kernel.addresses and len(launched) == BUFFERS
    preprocess.close()


def camera_pitch(name: str) -> int:
    return 128  # 64 px of one or two bytes, at least 128


def test_copied_mode_copies_once_and_the_cpu_reads_the_drivers_buffer(rig: Rig) -> None:
    rig.refuse("copied")
    rig.kernel.plug(FakeCamera(io_modes=MMAP_ONLY))
    preprocess = rig.preprocessor()
    with closing(rig.source()) as source:
        source.open()
        with next_frame(source) as frame:
            assert frame.pixels.ctypes.data in rig.kernel.addresses
            assert frame.device is not None and frame.device.pointer not in rig.kernel.addresses
            values, _ = rig.run(preprocess, Image(frame.pixels, frame.levels, frame.device))
            np.testing.assert_array_equal(values, rig.run(preprocess, Image(frame.pixels))[0])
    assert preprocess.copied == 1
    preprocess.close()


@pytest.mark.parametrize(
    ("gpu", "modes"),
    [
        ({"capability": (5, 3)}, ()),
        ({"capability": (6, 2)}, ()),
        ({"capability": (7, 2)}, ("userptr", "registered", "copied")),
        ({"capability": (8, 7)}, ("userptr", "registered", "copied")),
        ({"capability": (11, 0)}, ("userptr", "registered", "copied")),
        ({"capability": (7, 5), "integrated": False}, ("userptr", "copied")),
    ],
    ids=["nano", "tx2", "xavier", "orin", "thor", "t4"],
)
def test_the_modes_tried_depend_on_the_board(rig: Rig, modes: Tuple[str, ...]) -> None:
    assert rig.pool.modes() == modes


@pytest.mark.parametrize(
    ("driver", "gpu_fails", "expected", "rejected"),
    [
        ({}, {}, "userptr", []),
        ({"REQBUFS": errno.EINVAL}, {}, "registered", ["userptr"]),
        ({"QBUF": errno.EFAULT}, {}, "registered", ["userptr"]),
        ({"STREAMON": errno.EIO}, {}, "registered", ["userptr"]),
        ({"REQBUFS": errno.EINVAL}, {"a driver's pages": "operation not supported"}, "copied", ALL[:2]),
        ({"REQBUFS": errno.EINVAL}, {"cuMemHostGetDevicePointer": "out of memory"}, "cpu", ALL),
        ({}, {"cuMemHostRegister": "out of memory"}, "cpu", ALL),
    ],
)
def test_a_rejected_mode_is_logged_once_and_the_next_one_is_kept(
    rig: Rig, caplog: pytest.LogCaptureFixture, driver: dict, gpu_fails: dict, expected: str, rejected: List[str]
) -> None:
    camera = FakeCamera()
    rig.kernel.plug(camera)
    for call, number in driver.items():
        camera.fail_next(call, number)
    rig.cuda.fail.update(gpu_fails)
    if "a driver's pages" in gpu_fails:
        rig.refuse("copied")
    with closing(rig.source()) as source:
        for _ in range(3):
            source.open()
            assert source.mode == expected
            with next_frame(source) as frame:
                np.testing.assert_array_equal(frame.pixels, camera.scene_image(frame.sequence))
                assert (frame.device is None) == (expected == "cpu")
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.split("mode ")[1].split()[0] for line in lines] == rejected
    assert all("rejected: " in line and "\n" not in line for line in lines)
    rig.cuda.fail.clear()


def test_a_failing_camera_logs_no_rejected_mode(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    camera = FakeCamera()
    rig.kernel.plug(camera)
    with closing(rig.source()) as source:
        camera.fail_next("STREAMON", errno.EIO, times=4)
        with pytest.raises(SourceError, match="STREAMON: Input/output error"):
            source.open()
        assert "rejected" not in caplog.text
        camera.fail_next("STREAMON", errno.ENOSPC)
        with pytest.raises(SourceError, match="USB bandwidth"):
            source.open()
        source.open()
        assert source.mode == "userptr"
        next_frame(source).release()


def test_a_busy_gpu_is_queried_again_at_the_next_open(rig: Rig) -> None:
    """One slow answer must not move the frames to the CPU until the next restart."""

    class Busy(CudaBufferPool):
        def allocate(self, count: int, nbytes: int) -> Any:
            if answers.pop(0):
                return super().allocate(count, nbytes)
            raise SourceError("the GPU's thread has not answered")

    answers = [False, True]
    rig.kernel.plug(FakeCamera())
    with closing(rig.source(pool=Busy(rig.context))) as source:
        with pytest.raises(SourceError, match="has not answered"):
            source.open()
        assert rig.kernel.open_descriptors == 0 and rig.kernel.mapped_buffers == 0
        source.open()
        assert source.mode == "userptr"
        next_frame(source).release()


def test_a_stream_without_frames_is_tried_in_each_mode_in_turn(rig: Rig) -> None:
    """A driver may accept USERPTR and never fill its buffers."""
    camera = FakeCamera(stalled=True)
    rig.kernel.plug(camera)
    modes = []
    with closing(rig.source()) as source:
        for _ in range(5):
            source.open()
            assert source.read(0.01) is None
            modes.append(source.mode)
            source.close()
        assert modes == ["userptr", "registered", "copied", "cpu", "userptr"]
        camera.stalled = False
        for _ in range(2):
            source.open()
            next_frame(source).release()
            assert source.mode == "registered"
            source.close()


@pytest.mark.parametrize(("name", "color"), [("MJPG", False), ("YUYV", True)])
def test_frames_that_the_cpu_decodes_stay_in_its_memory(rig: Rig, name: str, color: bool) -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    rig.kernel.plug(FakeCamera(formats={name: SIZE}))
    with closing(rig.source(color=color)) as source:
        source.open()
        with next_frame(source) as frame:
            assert frame.device is None
        assert source.mode == "cpu" and not rig.cuda.memory


@pytest.mark.parametrize("mode", list(CAMERAS))
def test_nothing_is_left_after_many_reopens_in_changing_sizes_with_frames_held(rig: Rig, mode: str) -> None:
    rig.refuse(mode)
    camera = FakeCamera(formats={"GREY": [(64, 48), (640, 480), (320, 240)]}, **CAMERAS[mode])
    rig.kernel.plug(camera)
    sources = [rig.source(width=width, height=height) for width, height in camera.formats["GREY"]]
    held: List[Frame] = []
    most = 0
    for turn in range(30):
        source = sources[turn % 3]
        source.open()
        frame = next_frame(source)
        np.testing.assert_array_equal(frame.pixels, camera.scene_image(frame.sequence))
        held.append(frame)
        source.close()
        if len(held) == 3:
            held.pop(0).release()
        most = max(most, rig.cuda.allocated_bytes)
    assert rig.cuda.allocated_bytes > 0, "what is held still has its memory"
    for frame in held:
        frame.release()
    assert rig.cuda.allocated_bytes == 0 and rig.kernel.mapped_buffers == 0 and rig.kernel.open_descriptors == 0
    assert most < 4 * BUFFERS * (640 * 480 + 8192)


def test_a_frame_of_an_old_stream_does_not_disturb_the_new_one(rig: Rig) -> None:
    rig.kernel.plug(FakeCamera())
    with closing(rig.source()) as source:
        source.open()
        stale = next_frame(source)
        source.open()
        now = next_frame(source)
        stale.release()
        before = len(rig.kernel.history)
        next_frame(source).release()
        assert rig.kernel.history[before:] == ["DQBUF 1"], "buffer 0 of the new stream is still lent, not queued"
        now.release()


def test_the_driver_releases_the_memory_before_it_is_freed(rig: Rig) -> None:
    rig.kernel.plug(FakeCamera(most_buffers=4))
    source = rig.source()
    source.open()
    frame = next_frame(source)
    before = len(rig.kernel.history)
    source.close()
    assert rig.kernel.history[before:] == ["STREAMOFF", "REQBUFS USERPTR 0", "close"]
    assert rig.cuda.allocated_bytes > 0
    frame.release()
    assert rig.cuda.allocated_bytes == 0


def test_a_view_kept_after_release_is_no_crash(rig: Rig) -> None:
    rig.kernel.plug(FakeCamera())
    source = rig.source()
    source.open()
    frame = next_frame(source)
    kept = frame.pixels
    frame.release()
    source.close()
    assert rig.cuda.allocated_bytes == 0 and kept.sum() > 0


def test_the_fakes_detect_misuse(rig: Rig) -> None:
    camera = FakeCamera()
    rig.kernel.plug(camera)
    source = rig.source()
    source.open()
    for resource in list(rig.context._resources):
        resource.free()
    with pytest.raises(Misuse, match="freed while it was queued"):
        source.read(0.1)
    source.close()
    camera.io_modes = MMAP_ONLY
    source.open()
    buffers = source._open.stream._buffers
    buffers.arrays.clear()
    del buffers._registered[-1].array
    with pytest.raises(Misuse, match="munmap 5 while the GPU still sees it"):
        buffers._mappings[-1].close()
    source.close()
    assert rig.cuda.misuses == ["memory was unmapped while the GPU still mapped it"]
    rig.cuda.misuses.clear()


def test_the_gpu_s_thread_may_close_the_gpu_first(rig: Rig) -> None:
    """At shutdown, when a camera does not stop in time."""
    rig.kernel.plug(FakeCamera(io_modes=MMAP_ONLY))
    source = rig.source()
    source.open()
    rig.context.close()
    assert rig.library.registered == {}
    source.close()
    assert rig.kernel.mapped_buffers == 0
