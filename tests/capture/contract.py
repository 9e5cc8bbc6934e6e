"""Contract tests of every source. Subclass `SourceContract` once per implementation and override `make_source`.

    class TestV4l2Contract(SourceContract):
        @pytest.fixture
        def make_source(self, tmp_path):
            def make() -> Source: ...
            return make

`make()` returns a fresh source, not opened, that can deliver at least `FRAMES` frames after each open, soon after
one another. The suite closes every source that it created.
"""

import threading
import time
from contextlib import closing
from typing import Callable, List

import numpy as np
import pytest

from edge_agent.core.frame import Frame
from edge_agent.core.ports import Source
from edge_agent.errors import SourceError

MakeSource = Callable[[], Source]

FRAMES = 12
HELD = 2  # a driver with four buffers lends two and keeps two
NEXT_FRAME_WITHIN_S = 10.0


def next_frame(source: Source, within_s: float = NEXT_FRAME_WITHIN_S) -> Frame:
    """The next frame of a source that is alive; fails the test when none comes."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        frame = source.read(0.25)
        if frame is not None:
            return frame
    raise AssertionError(f"{source.uri}: no frame within {within_s} s")


class SourceContract:
    """The contract's tests; a subclass provides `make_source`."""

    @pytest.fixture
    def make_source(self) -> MakeSource:
        raise NotImplementedError("override make_source")

    @pytest.fixture
    def source(self, make_source: MakeSource):
        with closing(make_source()) as source:
            source.open()
            yield source

    def test_pixels_are_gray_or_rgb(self, source: Source) -> None:
        with next_frame(source) as frame:
            pixels = frame.pixels
            if pixels.ndim == 3:
                assert pixels.shape[2] == 3
                assert pixels.dtype == np.uint8
            else:
                assert pixels.ndim == 2
                assert pixels.dtype in (np.uint8, np.uint16)
            assert min(pixels.shape[:2]) > 0
            gray = frame.levels.to_gray8(pixels)
            assert gray.dtype == np.uint8
            assert gray.shape == pixels.shape

    def test_a_held_frame_never_changes_while_later_ones_are_read(self, source: Source) -> None:
        held = [next_frame(source) for _ in range(HELD)]
        copies = [frame.pixels.copy() for frame in held]
        for _ in range(FRAMES - HELD):
            next_frame(source).release()
        for frame, copy in zip(held, copies):
            np.testing.assert_array_equal(frame.pixels, copy)
            frame.release()

    def test_sequence_strictly_increases_and_time_is_plausible(self, source: Source) -> None:
        started = time.monotonic()
        sequences: List[int] = []
        times: List[float] = []
        for _ in range(FRAMES):
            with next_frame(source) as frame:
                assert frame.t <= time.monotonic(), "a frame from the future"
                sequences.append(frame.sequence)
                times.append(frame.t)
        assert all(isinstance(number, int) for number in sequences)
        assert all(a < b for a, b in zip(sequences, sequences[1:])), sequences
        assert all(a <= b for a, b in zip(times, times[1:])), times
        assert times[-1] >= started, "the last frame is older than the test"

    @pytest.mark.parametrize("timeout_s", [0.0, 0.05])
    def test_read_returns_within_its_timeout(self, source: Source, timeout_s: float) -> None:
        for _ in range(FRAMES // 2):
            before = time.monotonic()
            frame = source.read(timeout_s)
            assert time.monotonic() - before < timeout_s + 2.0, "generous: the machine may be busy, not hung"
            if frame is not None:
                frame.release()

    def test_close_is_idempotent_also_before_open(self, make_source: MakeSource) -> None:
        source = make_source()
        source.close()
        source.open()
        next_frame(source).release()
        source.close()
        source.close()

    def test_frames_held_over_close_stay_readable(self, source: Source) -> None:
        frame = next_frame(source)
        copy = frame.pixels.copy()
        source.close()
        np.testing.assert_array_equal(frame.pixels, copy)
        frame.release()
        frame.release()

    def test_reopen_delivers_frames_and_keeps_old_ones_unchanged(self, source: Source) -> None:
        old = next_frame(source)
        copy = old.pixels.copy()
        source.close()
        source.open()
        for _ in range(FRAMES // 2):
            next_frame(source).release()
        np.testing.assert_array_equal(old.pixels, copy)
        old.release()
        for _ in range(FRAMES // 2):
            next_frame(source).release()

    def test_a_frame_may_be_released_by_another_thread(self, source: Source) -> None:
        for _ in range(FRAMES):
            frame = next_frame(source)
            thread = threading.Thread(target=frame.release)
            thread.start()
            thread.join()
            assert frame.released

    def test_read_before_open_and_after_close_is_a_clear_error(self, make_source: MakeSource) -> None:
        source = make_source()
        with pytest.raises(SourceError, match="not open"):
            source.read(0.01)
        source.open()
        source.close()
        with pytest.raises(SourceError, match="not open"):
            source.read(0.01)

    def test_counters_are_whole_numbers_that_never_fall(self, make_source: MakeSource) -> None:
        with closing(make_source()) as source:
            before = dict(source.counters())
            source.open()
            for _ in range(FRAMES // 2):
                next_frame(source).release()
            after = dict(source.counters())
            assert set(before) == set(after), "the names are known from the start"
            assert all(type(value) is int and value >= 0 for value in after.values()), after
            assert all(after[name] >= before[name] for name in before)

    def test_kind_and_mode_are_known_values(self, make_source: MakeSource) -> None:
        with closing(make_source()) as source:
            assert source.uri
            assert source.kind in ("sensor", "encoded", "still")
            assert source.mode in ("cpu", "userptr", "registered", "copied", "converted")
