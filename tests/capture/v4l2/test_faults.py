"""V4l2Source on failing cameras: faults are counted or reported, resources are freed, and a reopen works."""

import errno
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edge_agent.capture import SourceOptions
from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.source import V4l2Source
from edge_agent.errors import SourceError
from tests.capture.contract import next_frame
from tests.fakes.kernel import FakeKernel
from tests.fakes.v4l2_camera import FakeCamera


@pytest.fixture
def camera() -> FakeCamera:
    return FakeCamera()


@pytest.fixture
def kernel(tmp_path: Path, camera: FakeCamera) -> FakeKernel:
    kernel = FakeKernel(tmp_path)
    kernel.plug(camera)
    return kernel


@pytest.fixture
def source(kernel: FakeKernel):
    with closing(V4l2Source(kernel.node(0), syscalls=kernel, root=kernel.tree.root)) as source:
        yield source


def assert_nothing_is_held(kernel: FakeKernel) -> None:
    assert kernel.open_descriptors == 0
    assert kernel.mapped_buffers == 0


def assert_works(source: V4l2Source) -> None:
    source.open()
    for _ in range(12):
        next_frame(source).release()


def test_frames_flagged_as_corrupt_are_dropped_counted_and_their_buffers_queued_again(source, camera, kernel) -> None:
    source.open()
    camera.error_flags = 20
    with next_frame(source) as frame:
        assert frame.sequence == 20
    assert source.counters() == {"error_buffers": 20, "short_buffers": 0, "sequence_gaps": 0, "copied": 0}


def test_half_filled_frames_are_dropped_and_counted(source, camera) -> None:
    source.open()
    camera.short_frames = 20
    with next_frame(source) as frame:
        assert frame.sequence == 20
        np.testing.assert_array_equal(frame.pixels, camera.scene_image(20))
    assert source.counters() == {"error_buffers": 0, "short_buffers": 20, "sequence_gaps": 0, "copied": 0}


def test_jpegs_that_cannot_be_decoded_count_as_errors(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")
    camera, kernel = FakeCamera(formats={"MJPG": [(64, 48)]}), FakeKernel(tmp_path)
    kernel.plug(camera)
    with closing(V4l2Source(kernel.node(0), syscalls=kernel, root=tmp_path)) as source:
        source.open()
        camera.payload = b"\xff\xd8 torn"
        with source.read(5.0) as frame:
            assert frame.damaged, "the camera goes on delivering: no silence, and no evidence"
        assert source.counters()["error_buffers"] > 0
        camera.payload = None
        deadline = time.monotonic() + 10
        damaged = True
        while damaged and time.monotonic() < deadline:
            with next_frame(source) as frame:
                damaged = frame.damaged
        assert not damaged


def test_faulty_frames_do_not_extend_a_read_beyond_its_timeout(source, camera) -> None:
    source.open()
    camera.error_flags = 10**9
    started = time.monotonic()
    assert source.read(0.05) is None
    assert time.monotonic() - started < 2.0
    assert source.counters()["error_buffers"] > 0


def test_a_stalled_camera_is_no_frame_and_no_error_and_can_come_back(source, camera) -> None:
    source.open()
    camera.stalled = True
    assert source.read(0.02) is None
    assert source.read(0.0) is None
    camera.stalled = False
    next_frame(source).release()


@pytest.mark.parametrize("call", ["QUERYCAP", "G_FMT", "S_FMT", "REQBUFS", "QUERYBUF", "mmap", "QBUF", "STREAMON"])
def test_a_call_that_fails_once_while_opening_frees_all_resources(source, camera, kernel, call: str) -> None:
    camera.fail_next(call)
    with pytest.raises(SourceError, match="Invalid argument") as fault:
        source.open()
    if call != "mmap":
        assert call in str(fault.value), "the message names the call"
    assert_nothing_is_held(kernel)
    assert kernel.history[-1] == "close"
    with pytest.raises(SourceError, match="not open"):
        source.read(0.0)
    assert_works(source)


@pytest.mark.parametrize("call", ["QBUF", "DQBUF"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.ENODEV])
def test_a_call_that_fails_while_streaming_closes_the_source(source, camera, kernel, call, number) -> None:
    source.open()
    next_frame(source).release()
    camera.fail_next(call, number)
    with pytest.raises(SourceError, match=call):
        next_frame(source)
    assert kernel.account().endswith(
        "STREAMOFF, munmap 5, munmap 4, munmap 3, munmap 2, munmap 1, munmap 0, REQBUFS 0, close"
    )
    assert_nothing_is_held(kernel)
    assert_works(source)


def test_a_fatal_streaming_error_needs_and_gets_a_new_stream(source, camera, kernel) -> None:
    source.open()
    held = next_frame(source)
    copy = held.pixels.copy()
    camera.fatal = True
    with pytest.raises(SourceError, match="Input/output error"):
        source.read(0.1)
    assert kernel.open_descriptors == 0
    assert_works(source)
    np.testing.assert_array_equal(held.pixels, copy)
    held.release()
    source.close()
    assert_nothing_is_held(kernel)


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EINVAL])
def test_an_unplugged_camera_is_reported_and_all_resources_freed(source, camera, kernel, number: int) -> None:
    source.open()
    next_frame(source).release()
    camera.gone_errno = number
    kernel.unplug(camera)
    with pytest.raises(SourceError) as fault:
        source.read(0.1)
    assert fault.value.hint
    assert_nothing_is_held(kernel)
    with pytest.raises(SourceError, match="No such file"):
        source.open()
    kernel.plug(camera)
    assert_works(source)


def test_an_error_event_without_an_errno_ends_the_stream(source, camera, kernel) -> None:
    source.open()
    camera.streaming = False  # as after a reset inside the driver: poll returns POLLERR
    camera.fail_next("DQBUF", errno.EAGAIN)
    with pytest.raises(SourceError, match="Input/output error"):
        source.read(0.1)
    assert_nothing_is_held(kernel)


@pytest.mark.parametrize("call", ["QUERYCAP", "S_FMT", "REQBUFS", "QBUF", "STREAMON", "DQBUF", "STREAMOFF"])
def test_a_signal_in_the_middle_of_a_call_changes_nothing(source, camera, kernel, call: str) -> None:
    camera.fail_next(call, errno.EINTR, times=3)
    assert_works(source)
    source.close()
    assert camera.failures[call] == []
    assert_nothing_is_held(kernel)


def test_an_eagain_after_poll_is_just_no_frame_yet(source, camera) -> None:
    source.open()
    camera.fail_next("DQBUF", errno.EAGAIN, times=5)
    next_frame(source).release()


@pytest.mark.parametrize(
    ("call", "number", "hint"),
    [
        ("STREAMON", errno.ENOSPC, "USB bandwidth"),
        ("open", errno.EACCES, "group `video`"),
        ("open", errno.EPERM, "group `video`"),
        ("REQBUFS", errno.ENOMEM, "smaller width and height"),
        ("QUERYCAP", errno.ENOTTY, "not a V4L2 video node"),
        ("S_FMT", errno.EBUSY, "fuser"),
    ],
)
def test_hints_name_the_remedy(source, camera, kernel, call: str, number: int, hint: str) -> None:
    camera.fail_next(call, number)
    with pytest.raises(SourceError) as fault:
        source.open()
    assert hint in fault.value.hint
    assert kernel.node(0) in fault.value.message
    assert_nothing_is_held(kernel)


def test_a_camera_that_another_source_streams_from_is_busy(source, kernel) -> None:
    source.open()
    with closing(V4l2Source(kernel.node(0), syscalls=kernel, root=kernel.tree.root)) as second:
        with pytest.raises(SourceError, match="Device or resource busy"):
            second.open()
        assert kernel.open_descriptors == 1
        next_frame(source).release()
        source.close()
        assert_works(second)


def test_a_driver_that_grants_no_buffers_is_an_error(tmp_path: Path) -> None:
    kernel = FakeKernel(tmp_path)
    kernel.plug(FakeCamera(most_buffers=0))
    with pytest.raises(SourceError, match="REQBUFS: Cannot allocate memory"):
        V4l2Source(kernel.node(0), syscalls=kernel, root=tmp_path).open()
    assert_nothing_is_held(kernel)


@pytest.mark.parametrize(
    ("caps", "message"),
    [
        (abi.CAP_META_CAPTURE | abi.CAP_STREAMING, "is not a capture node"),
        (abi.CAP_VIDEO_CAPTURE_MPLANE | abi.CAP_STREAMING, "multi-planar"),
        (abi.CAP_VIDEO_CAPTURE, "cannot stream"),
    ],
)
def test_only_nodes_that_stream_frames_are_opened(tmp_path: Path, caps: int, message: str) -> None:
    kernel = FakeKernel(tmp_path)
    kernel.plug(FakeCamera(device_caps=caps))
    with pytest.raises(SourceError, match=message):
        V4l2Source(kernel.node(0), SourceOptions(), syscalls=kernel, root=tmp_path).open()
    assert_nothing_is_held(kernel)
