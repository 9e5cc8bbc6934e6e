"""JetsonSource against a strict fake of jetson-utils, with the faults of each version."""

import gc
import logging
import socket
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.capture import SourceOptions
from edge_agent.capture.jetson.address import NUM_BUFFERS
from edge_agent.capture.jetson.images import IMAGES
from edge_agent.capture.jetson.source import MOST_FAULTS, JetsonSource
from edge_agent.core.frame import Frame
from edge_agent.errors import EndOfStream, InputError, SourceError
from tests.capture.contract import FRAMES, MakeSource, SourceContract, next_frame
from tests.fakes.jetson_utils import VERSIONS, Board, FakeJetsonUtils, Input, Misuse, VideoSource
from tests.fakes.kernel import FakeKernel
from tests.fakes.v4l2_camera import FakeCamera

SIZE = [(64, 48)]
EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS)


def board_of(stream: Input, uri: str = "csi://0", **traits: Any) -> Board:
    return Board({uri: stream}, **traits)


def source_of(board: Board, uri: str = "csi://0", version: str = VERSIONS[-1], **options: Any) -> JetsonSource:
    return JetsonSource(uri, SourceOptions(**options), FakeJetsonUtils(board, version))


def opened(board: Board, uri: str = "csi://0", version: str = VERSIONS[-1], **options: Any) -> JetsonSource:
    source = source_of(board, uri, version, **options)
    source.open()
    return source


def assert_shows(frame: Frame, stream: Input, number: int) -> None:
    gray = frame.pixels if frame.pixels.ndim == 2 else frame.pixels[:, :, 1]
    expected = stream.scene(number, gray.shape[1], gray.shape[0])
    assert np.abs(gray.astype(int) - expected).max() <= 1, "torn, stale, or another frame"


class _Contract(SourceContract):
    version = VERSIONS[-1]
    color = False
    nvmm = False
    size_at = staticmethod(lambda sequence: (64, 48))

    @pytest.fixture
    def make_source(self) -> MakeSource:
        board = board_of(Input(size_at=self.size_at), nvmm=self.nvmm)
        return lambda: source_of(board, version=self.version, color=self.color)


class TestNewestContract(_Contract):
    pass


class TestColourContract(_Contract):
    color = True


class TestNvmmContract(_Contract):
    nvmm = True


class TestOldestContract(_Contract):
    version = VERSIONS[0]


class TestGrowingPictureContract(_Contract):
    """The ring is freed and created again with every larger frame, while older frames are lent."""

    size_at = staticmethod(lambda sequence: (64 + 16 * sequence, 48))


@EVERY_VERSION
@pytest.mark.parametrize("nvmm", [False, True])
@pytest.mark.parametrize("color", [False, True])
def test_every_frame_is_complete_and_separate_in_every_version(version: str, nvmm: bool, color: bool) -> None:
    stream = Input()
    with closing(opened(board_of(stream, nvmm=nvmm), version=version, color=color)) as source:
        for number in range(3 * NUM_BUFFERS):
            with next_frame(source) as frame:
                assert frame.pixels.ndim == (3 if color else 2)
                assert_shows(frame, stream, number)


def test_gpu_and_cpu_see_the_same_bytes() -> None:
    for color, name in ((False, "gray8"), (True, "rgb8")):
        with closing(opened(board_of(Input()), color=color)) as source, next_frame(source) as frame:
            device = frame.device
            assert device.pointer == frame.pixels.__array_interface__["data"][0]
            assert (device.pitch_bytes, device.pixel_format) == (frame.pixels.strides[0], name)
            assert not frame.pixels.flags.writeable


def test_frames_lent_too_long_skip_captures_and_are_counted() -> None:
    stream = Input()
    with closing(opened(board_of(stream))) as source:
        held = [next_frame(source) for _ in range(IMAGES)]
        for _ in range(3):
            assert source.read(0.01) is None
        assert source.counters()["skipped"] == 3
        for number, frame in enumerate(held):
            assert_shows(frame, stream, number)
        held[2].release()
        with next_frame(source) as frame:
            assert_shows(frame, stream, IMAGES)
        assert source.counters()["skipped"] == 3
        for frame in held:
            frame.release()


def test_a_release_wakes_a_read_that_waits_for_an_image() -> None:
    with closing(opened(board_of(Input()))) as source:
        held = [next_frame(source) for _ in range(IMAGES)]
        timer = threading.Timer(0.05, held[0].release)
        timer.start()
        started = time.monotonic()
        frame = source.read(10.0)
        assert frame is not None and time.monotonic() - started < 5.0
        timer.join()
        for each in (*held, frame):
            each.release()


def test_frames_overwritten_between_two_captures_are_counted() -> None:
    stream = Input()
    with closing(opened(board_of(stream))) as source:
        next_frame(source).release()
        stream.extra = 5
        with next_frame(source) as frame:
            assert_shows(frame, stream, 6)
        next_frame(source).release()
        assert source.counters()["overwritten"] == 5


def test_the_ring_size_and_the_settings_are_passed() -> None:
    board = board_of(Input())
    with closing(opened(board, width=1280, height=720, fps=30.0)) as source:
        assert source._source.flags == {
            "num-buffers": "8",
            "log-level": "silent",
            "input-width": "1280",
            "input-height": "720",
            "input-rate": "30",
            "input-flip": "rotate-180",
        }


@pytest.mark.parametrize(("asked", "given"), [("none", "rotate-180"), ("rotate-180", "none"), ("vertical", "vertical")])
def test_flips_of_csi_cameras_are_corrected(asked: str, given: str) -> None:
    """jetson-utils swaps none and rotate-180."""
    with closing(opened(board_of(Input()), f"csi://0?flip={asked}")) as source:
        assert source._source.flags["input-flip"] == given


# Ends and faults.


@EVERY_VERSION
def test_a_file_ends_with_end_of_stream(version: str, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.touch()
    board = board_of(Input(frames=3, format="H264"), f"file://{clip}")
    with closing(opened(board, f"jetson:{clip}", version)) as source:
        for _ in range(3):
            next_frame(source).release()
        with pytest.raises(EndOfStream, match="ended"):
            next_frame(source)
        source.open()
        next_frame(source).release()


def test_a_stream_that_ends_is_a_fault_and_can_be_opened_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"rtsp://user:secret@127.0.0.1:{server.getsockname()[1]}/live"
        board = board_of(Input(frames=2, format="H264"), uri)
        with closing(opened(board, f"jetson:{uri}")) as source:
            assert "secret" not in source.uri
            next_frame(source).release()
            next_frame(source).release()
            with pytest.raises(SourceError, match="does not stream") as caught:
                next_frame(source)
            assert not isinstance(caught.value, EndOfStream)
            assert "secret" not in str(caught.value)
            source.open()
            next_frame(source).release()


@pytest.mark.parametrize("user", ["user:secret@", "user:secret/@", "user:a:secret@"])
def test_credentials_are_never_logged(user: str, capfd, caplog) -> None:
    """jetson-utils prints the whole address of a stream that it cannot open."""
    caplog.set_level(logging.DEBUG)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(SourceError) as caught:
            source_of(Board(), f"jetson:rtsp://{user}127.0.0.1:{port}/live").open()
    with pytest.raises(SourceError) as refused:
        source_of(Board(), f"jetson:rtsp://{user}127.0.0.1:x/live").open()
    assert "failed to create" in str(caught.value)
    output = f"{caught.value} {refused.value} {caplog.text} {capfd.readouterr()}"
    assert "secret" not in output


@EVERY_VERSION
def test_an_unplugged_camera_gives_no_frames(version: str) -> None:
    """jetson-utils raises no error; `CaptureStage` closes the source after `stall_after_s`."""
    stream = Input()
    with closing(opened(board_of(stream), version=version)) as source:
        next_frame(source).release()
        stream.silent = True
        started = time.monotonic()
        for _ in range(10):
            assert source.read(0.02) is None
        assert time.monotonic() - started >= 0.2, "waited, not spun"
        assert source.counters()["capture_faults"] == 0
        stream.silent = False
        next_frame(source).release()


@EVERY_VERSION
def test_the_race_between_two_frames_is_a_miss(version: str) -> None:
    stream = Input()
    with closing(opened(board_of(stream), version=version)) as source:
        next_frame(source).release()
        stream.race = MOST_FAULTS - 1
        next_frame(source).release()
        stream.race = MOST_FAULTS - 1
        next_frame(source).release()
        assert source.counters()["capture_faults"] == 2 * (MOST_FAULTS - 1)


def test_repeatedly_failing_captures_are_a_fault() -> None:
    stream = Input(race=MOST_FAULTS)
    source = opened(board_of(stream))
    with pytest.raises(SourceError, match=f"{MOST_FAULTS} captures in a row failed"):
        source.read(1.0)
    with pytest.raises(SourceError, match="not open"):
        source.read(1.0)


def test_a_pipeline_that_does_not_start_names_the_remedy() -> None:
    source = opened(board_of(Input(broken=True)))
    with pytest.raises(SourceError, match=r"csi://0: the source does not stream.*nvargus-daemon.*v4l2:"):
        source.read(0.1)


def test_a_clock_set_forward_ends_no_wait_early() -> None:
    board = board_of(Input(silent=True), clock_step=True)
    with closing(opened(board)) as source:
        started = time.monotonic()
        assert source.read(0.1) is None
        assert time.monotonic() - started >= 0.1


@pytest.mark.parametrize("call", ["create", "cudaStreamCreate"])
def test_a_failure_to_open_is_counted_and_frees_all_resources(call: str) -> None:
    board = board_of(Input(), failures=[call])
    source = source_of(board)
    with pytest.raises(SourceError, match=f"{call}\\(\\) failed"):
        source.open()
    assert source.counters()["failed_opens"] == 1
    gc.collect()
    assert board.history.count("delete csi://0") == (call != "create")
    source.open()
    next_frame(source).release()
    source.close()


@pytest.mark.parametrize("call", ["cudaAllocMapped", "cudaConvertColor"])
def test_a_gpu_that_fails_closes_the_source_and_loses_no_image(call: str) -> None:
    board = board_of(Input())
    source = opened(board)
    for _ in range(2 * IMAGES):
        board.failures.append(call)
        if call == "cudaAllocMapped":
            source._pools.clear()
        with pytest.raises(SourceError, match=f"{call}\\(\\) failed"):
            source.read(0.1)
        source.open()
    for frame in [next_frame(source) for _ in range(IMAGES)]:
        frame.release()
    source.close()


def test_a_missing_target_is_reported_before_jetson_utils_can_leak(tmp_path: Path) -> None:
    board = Board()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for uri, expected in (
        (f"jetson:rtsp://user:secret@127.0.0.1:{port}/live", r"jetson:rtsp://127.0.0.1:\d+/live: .*[Rr]efused"),
        (f"jetson:{tmp_path}/none.mp4", "no such file"),
        ("jetson:/dev/video97", "No such file"),
    ):
        with pytest.raises(SourceError, match=expected) as caught:
            source_of(board, uri).open()
        assert "secret" not in str(caught.value)
    assert board.history == []
    assert board.leaks == []


# V4L2 through jetson-utils.


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def v4l2_source(kernel: FakeKernel, board: Board, path: str) -> JetsonSource:
    return JetsonSource(f"jetson:v4l2:{path}", None, FakeJetsonUtils(board), kernel, kernel.tree.root)


def test_a_link_is_resolved_at_every_open(kernel: FakeKernel) -> None:
    camera = FakeCamera(formats={"YUYV": SIZE})
    kernel.plug(camera)
    board = board_of(Input(format="YUYV"), "v4l2:///dev/video0")
    board.inputs["v4l2:///dev/video5"] = Input(format="YUYV")
    with closing(v4l2_source(kernel, board, str(kernel.tree.links(camera)[0]))) as source:
        source.open()
        next_frame(source).release()
        kernel.unplug(camera)
        with pytest.raises(SourceError, match="No such file"):
            source.open()
        kernel.plug(camera, number=5)
        source.open()
        next_frame(source).release()
        assert [line for line in board.history if line.startswith("create")] == [
            "create v4l2:///dev/video0",
            "create v4l2:///dev/video5",
        ]
        assert kernel.open_descriptors == 0
        assert board.leaks == []


@pytest.mark.parametrize("formats", [["GREY"], ["Y10", "GREY"], ["Y16"]])
def test_a_mono_camera_is_sent_to_v4l2_before_jetson_utils_fails(kernel: FakeKernel, formats) -> None:
    node = kernel.plug(FakeCamera(formats=dict.fromkeys(formats, SIZE)))
    board = board_of(Input(format=formats[0]), "v4l2:///dev/video0")
    with pytest.raises(SourceError, match=rf"only {', '.join(formats)}.*use v4l2:{node}"):
        v4l2_source(kernel, board, node).open()
    assert board.leaks == []


def test_a_camera_whose_mono_format_jetson_utils_selects_is_sent_to_v4l2(kernel: FakeKernel) -> None:
    node = kernel.plug(FakeCamera(formats={"GREY": SIZE, "YUYV": SIZE}))
    board = board_of(Input(format="GREY"), "v4l2:///dev/video0")
    with pytest.raises(SourceError, match=f"failed to create.*GREY.*use v4l2:{node}"):
        v4l2_source(kernel, board, node).open()


@pytest.mark.parametrize(("format", "kind"), [("YUYV", "sensor"), ("MJPG", "encoded")])
def test_the_kind_depends_on_the_codec(kernel: FakeKernel, format: str, kind: str) -> None:
    node = kernel.plug(FakeCamera(formats={format: SIZE}))
    with closing(v4l2_source(kernel, board_of(Input(format=format), "v4l2:///dev/video0"), node)) as source:
        source.open()
        assert source.kind == kind


# Lifetimes, threads, leaks.


def test_nothing_leaks_and_images_are_used_again() -> None:
    board = board_of(Input())
    source = source_of(board)
    pointers = set()
    for _ in range(3):
        source.open()
        for _ in range(FRAMES):
            with next_frame(source) as frame:
                pointers.add(frame.device.pointer)
        source.close()
    gc.collect()
    assert len(pointers) == IMAGES
    assert board.leaks == []
    assert board.history == ["create csi://0", "close csi://0", "delete csi://0"] * 3
    assert list(board.pending) == [0], "streams are destroyed"


def test_images_of_a_former_size_are_freed_by_the_capture_thread() -> None:
    stream = Input(size_at=lambda sequence: (64, 48) if sequence == 0 else (32, 24))
    board = board_of(stream)
    with closing(opened(board)) as source:
        first = next_frame(source)
        second = next_frame(source)
        assert_shows(first, stream, 0)
        releaser = threading.Thread(target=first.release)
        releaser.start()
        releaser.join()
        del first, releaser
        gc.collect()
        assert board.freed_by == []
        second.release()
        next_frame(source).release()
        gc.collect()
        assert set(board.freed_by) == {threading.get_ident()}
        assert len(board.freed_by) == IMAGES


def test_the_fake_is_strict() -> None:
    """The properties of the fake that these tests rely on most."""
    module = FakeJetsonUtils(board_of(Input()), "2022-11")
    assert not hasattr(module, "cudaStreamCreate")
    source = module.videoSource("csi://0", argv=["--num-buffers=2"])
    assert not hasattr(source, "GetFrameCount")
    with pytest.raises(TypeError):
        source.Capture(stream=0)
    with pytest.raises(Misuse, match="GIL"):
        source.Open()
    with pytest.raises(Exception, match="failed to capture"):
        source.Capture(format="gray8", timeout=10)
    held = source.Capture(timeout=10)
    module.cudaDeviceSynchronize()
    view = module.cudaToNumpy(held)
    before = view.copy()
    for _ in range(2):
        source.Capture(timeout=10)
    module.cudaDeviceSynchronize()
    assert (view != before).any(), "the ring has overwritten it"
    assert source.Capture(format="grayscale", timeout=10).format == "nv12", "a typo is taken for raw"
    with pytest.raises(Misuse, match="ignored"):
        module.videoSource("csi://0", argv=["--numBuffers=8"])
    problems = []
    thread = threading.Thread(target=lambda: problems.append(_raised(source)))
    thread.start()
    thread.join()
    assert problems == [Misuse]


def _raised(source: VideoSource) -> type:
    try:
        source.Capture(timeout=1)
    except Misuse as error:
        return type(error)
    return type(None)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("csi://", "no camera number"),
        ("csi://x", "no camera number"),
        ("csi://0?flip=left", "flip=left.*rotate-180"),
        ("csi://0?size=1x1", "unknown option size"),
        ("jetson:webrtc://@:8554/x", "not used for 'webrtc'"),
        ("jetson:image.png", "not a video that jetson-utils reads"),
        ("jetson:clip.mp4?pace=fast", "unknown option pace"),
        ("jetson:", "not a video"),
    ],
)
def test_an_invalid_uri_is_rejected(uri: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        source_of(Board(), uri)
