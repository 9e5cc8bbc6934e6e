"""V4l2Source on a working camera: streaming, lent buffers, counters, timestamps."""

import queue
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import pytest

from edge_agent.capture import SourceOptions, open_source
from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.source import BUFFERS, V4l2Source
from edge_agent.errors import SourceError
from tests.capture.contract import MakeSource, SourceContract, next_frame
from tests.fakes.kernel import FakeKernel
from tests.fakes.v4l2_camera import FakeCamera

SIZE = [(64, 48)]


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def source_of(kernel: FakeKernel, path: Optional[str] = None, **options) -> V4l2Source:
    path = path or kernel.node(0)
    return V4l2Source(path, SourceOptions(**options), syscalls=kernel, root=kernel.tree.root)


class _Contract(SourceContract):
    camera: Callable[[], FakeCamera]
    color = False

    @pytest.fixture
    def make_source(self, kernel: FakeKernel) -> MakeSource:
        kernel.plug(type(self).camera())
        return lambda: source_of(kernel, color=self.color)


class TestGreyContract(_Contract):
    camera = FakeCamera


class TestPitchedY10Contract(_Contract):
    camera = staticmethod(lambda: FakeCamera(formats={"Y10": SIZE}, pitch_align=256))


class TestYuyvContract(_Contract):
    camera = staticmethod(lambda: FakeCamera(formats={"YUYV": SIZE}))


class TestColourContract(_Contract):
    camera = staticmethod(lambda: FakeCamera(formats={"NV12": SIZE}))
    color = True


class TestMjpgContract(_Contract):
    camera = staticmethod(lambda: FakeCamera(formats={"MJPG": SIZE}))


class TestFourBuffersContract(_Contract):
    camera = staticmethod(lambda: FakeCamera(most_buffers=4))


class TestTwoBuffersContract(_Contract):
    camera = staticmethod(lambda: FakeCamera(most_buffers=2))


class TestOldKernelContract(_Contract):
    """Before Linux 5.0, a driver cannot release buffers that are still mapped."""

    camera = staticmethod(lambda: FakeCamera(orphans=False))

    def test_reopen_delivers_frames_and_keeps_old_ones_unchanged(self, make_source: MakeSource) -> None:
        with closing(make_source()) as source:
            source.open()
            old = next_frame(source)
            copy = old.pixels.copy()
            source.close()
            with pytest.raises(SourceError, match="S_FMT: Device or resource busy"):
                source.open()
            np.testing.assert_array_equal(old.pixels, copy)
            old.release()
            source.open()
            next_frame(source).release()


def test_a_session_from_open_to_close_as_the_kernel_sees_it(kernel: FakeKernel) -> None:
    kernel.plug(FakeCamera(most_buffers=4))
    source = source_of(kernel)
    source.open()
    for _ in range(2):
        next_frame(source).release()
    source.close()
    assert kernel.account() == (
        "plug video0, open video0, S_FMT GREY 64x48, "
        "REQBUFS 4, mmap 0, mmap 1, mmap 2, mmap 3, QBUF 0, QBUF 1, QBUF 2, QBUF 3, STREAMON, "
        "DQBUF 0, QBUF 0, DQBUF 1, "
        "STREAMOFF, munmap 3, munmap 2, munmap 1, munmap 0, REQBUFS 0, close"
    )


@pytest.mark.parametrize("name", ["GREY", "Y10", "Y12", "Y16", "Y16_BE", "YUYV", "UYVY", "NV12", "MJPG"])
@pytest.mark.parametrize("pitch_align", [1, 256])
def test_every_format_gives_the_sensors_scene(kernel: FakeKernel, name: str, pitch_align: int) -> None:
    camera = FakeCamera(formats={name: SIZE}, pitch_align=pitch_align, quantization=abi.QUANTIZATION_FULL_RANGE)
    camera.scene = lambda sequence, width, height: np.add.outer(np.arange(height), np.arange(width) + 60).astype("u1")
    kernel.plug(camera)
    with closing(source_of(kernel)) as source:
        source.open()
        assert source.kind == ("encoded" if name == "MJPG" else "sensor")
        with next_frame(source) as frame:
            gray = frame.levels.to_gray8(frame.pixels).astype(int)
            assert np.abs(gray - camera.scene_image(frame.sequence)).max() <= (4 if name == "MJPG" else 0)


@pytest.mark.parametrize(
    ("quantization", "colorspace", "limited"),
    [
        (abi.QUANTIZATION_DEFAULT, abi.COLORSPACE_SRGB, True),
        (abi.QUANTIZATION_DEFAULT, abi.COLORSPACE_JPEG, False),
        (abi.QUANTIZATION_FULL_RANGE, abi.COLORSPACE_SRGB, False),
        (abi.QUANTIZATION_LIM_RANGE, abi.COLORSPACE_JPEG, True),
    ],
)
def test_the_range_of_y_is_the_one_that_the_driver_reports(
    kernel: FakeKernel, quantization: int, colorspace: int, limited: bool
) -> None:
    kernel.plug(FakeCamera(formats={"YUYV": SIZE}, quantization=quantization, colorspace=colorspace))
    with closing(source_of(kernel)) as source:
        source.open()
        with next_frame(source) as frame:
            assert (frame.levels.offset == 16.0) == limited


def test_frames_held_beyond_the_lending_limit_are_copies_and_the_camera_continues(kernel: FakeKernel) -> None:
    camera = FakeCamera()
    kernel.plug(camera)
    with closing(source_of(kernel)) as source:
        source.open()
        held = [next_frame(source) for _ in range(BUFFERS + 4)]
        assert source.counters()["copied"] == 4 + 2, "all but n - 2 of n buffers"
        for frame in held:
            np.testing.assert_array_equal(frame.pixels, camera.scene_image(frame.sequence))
        for frame in held:
            frame.release()
        for _ in range(BUFFERS):
            next_frame(source).release()
        assert source.counters()["copied"] == 6, "lent again, once they have come back"
        assert source.counters()["sequence_gaps"] == 0


def test_a_release_is_queued_by_the_capture_thread_at_its_next_read(kernel: FakeKernel) -> None:
    kernel.plug(FakeCamera())
    with closing(source_of(kernel)) as source:
        source.open()
        frame = next_frame(source)
        before = list(kernel.history)
        thread = threading.Thread(target=frame.release)
        thread.start()
        thread.join()
        assert kernel.history == before, "a release from another thread calls nothing"
        next_frame(source).release()
        assert kernel.history[len(before) :] == ["QBUF 0", "DQBUF 1"]


def test_many_frames_released_by_another_thread_are_all_correct(kernel: FakeKernel) -> None:
    camera = FakeCamera()
    kernel.plug(camera)
    handed_over: queue.Queue = queue.Queue()
    wrong = []

    def consume() -> None:
        for frame in iter(handed_over.get, None):
            with frame:
                if not np.array_equal(frame.pixels, camera.scene_image(frame.sequence)):
                    wrong.append(frame.sequence)

    consumer = threading.Thread(target=consume)
    consumer.start()
    with closing(source_of(kernel)) as source:
        source.open()
        for _ in range(500):
            handed_over.put(next_frame(source))
        handed_over.put(None)
        source.close()
    consumer.join(timeout=20)
    assert not consumer.is_alive()
    assert wrong == []
    assert kernel.mapped_buffers == 0


def test_buffers_stay_mapped_until_the_last_frame_of_their_stream_is_released(kernel: FakeKernel) -> None:
    camera = FakeCamera()
    kernel.plug(camera)
    source = source_of(kernel)
    source.open()
    first, second = next_frame(source), next_frame(source)
    source.close()
    assert kernel.open_descriptors == 0
    first.release()
    assert kernel.mapped_buffers == BUFFERS
    np.testing.assert_array_equal(second.pixels, camera.scene_image(second.sequence))
    second.release()
    assert kernel.mapped_buffers == 0


def test_a_view_kept_after_release_is_no_crash_and_its_memory_goes_with_it(kernel: FakeKernel) -> None:
    kernel.plug(FakeCamera())
    source = source_of(kernel)
    source.open()
    frame = next_frame(source)
    kept = frame.pixels
    frame.release()
    source.close()
    assert kept.sum() > 0
    assert kernel.mapped_buffers == 1
    del kept
    assert kernel.mapped_buffers == 0


def test_a_stale_release_does_not_disturb_the_next_stream(kernel: FakeKernel) -> None:
    kernel.plug(FakeCamera())
    with closing(source_of(kernel)) as source:
        source.open()
        stale = next_frame(source)
        source.open()
        now = next_frame(source)
        stale.release()
        before = len(kernel.history)
        next_frame(source).release()
        assert kernel.history[before:] == ["DQBUF 1"], "buffer 0 of the new stream is still lent, not queued"
        now.release()


def test_pixels_cannot_be_written(kernel: FakeKernel) -> None:
    kernel.plug(FakeCamera())
    with closing(source_of(kernel)) as source:
        source.open()
        with next_frame(source) as frame, pytest.raises(ValueError, match="read-only"):
            frame.pixels[0, 0] = 1


def test_frames_the_driver_drops_show_in_sequence_and_are_counted(kernel: FakeKernel) -> None:
    camera = FakeCamera()
    kernel.plug(camera)
    with closing(source_of(kernel)) as source:
        source.open()
        next_frame(source).release()
        camera.dropped_frames = 3
        with next_frame(source) as frame:
            assert frame.sequence == 4
        assert source.counters()["sequence_gaps"] == 3


def test_the_sequence_continues_where_the_driver_s_32_bits_end(kernel: FakeKernel) -> None:
    camera = FakeCamera()
    kernel.plug(camera)
    with closing(source_of(kernel)) as source:
        source.open()
        camera.sequence = 0xFFFFFFFE
        sequences = []
        for dropped in (0, 0, 2, 0):
            camera.dropped_frames = dropped
            with next_frame(source) as frame:
                sequences.append(frame.sequence)
        assert sequences == [0xFFFFFFFE, 0xFFFFFFFF, 0x100000002, 0x100000003]
        assert source.counters()["sequence_gaps"] == 2


def test_a_driver_that_does_not_count_gets_sequence_numbers(kernel: FakeKernel) -> None:
    kernel.plug(FakeCamera(sequence_step=0))
    with closing(source_of(kernel)) as source:
        source.open()
        sequences = []
        for _ in range(4):
            with next_frame(source) as frame:
                sequences.append(frame.sequence)
        assert sequences == [0, 1, 2, 3]
        assert source.counters()["sequence_gaps"] == 0


@pytest.mark.parametrize(
    ("flag", "offset_s", "is_believed"),
    [
        (abi.BUF_FLAG_TIMESTAMP_MONOTONIC, -0.25, True),
        (abi.BUF_FLAG_TIMESTAMP_UNKNOWN, -0.25, False),
        (abi.BUF_FLAG_TIMESTAMP_MONOTONIC, 5.0, False),
        (abi.BUF_FLAG_TIMESTAMP_MONOTONIC, -3600.0, False),
    ],
)
def test_time_is_the_driver_s_if_plausible_else_the_arrival(
    kernel: FakeKernel, flag: int, offset_s: float, is_believed: bool
) -> None:
    stamps = []

    def clock() -> float:
        stamps.append(time.monotonic() + offset_s)
        return stamps[-1]

    kernel.plug(FakeCamera(timestamp_flag=flag, clock=clock))
    with closing(source_of(kernel)) as source:
        source.open()
        before = time.monotonic()
        with next_frame(source) as frame:
            if is_believed:
                assert frame.t == pytest.approx(stamps[-1], abs=2e-6)
            else:
                assert before <= frame.t <= time.monotonic()


def test_uris_with_two_more_slashes_open_the_same_node() -> None:
    assert V4l2Source("///dev/video7").uri == "v4l2:/dev/video7"


def test_the_real_kernel_reports_a_missing_device(tmp_path: Path) -> None:
    source = open_source(f"v4l2:{tmp_path}/video0")
    with pytest.raises(SourceError, match=r"video0: No such file or directory.*by-id"):
        source.open()
