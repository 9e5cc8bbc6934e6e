"""The agent's V4L2 capture on a real kernel, with cameras that fail: it recovers, reports it, and leaks nothing."""

import itertools
import mmap
import subprocess
import threading
import time
from contextlib import closing, contextmanager
from typing import Callable, Iterator, NamedTuple, Sequence

import numpy as np
import pytest

from edge_agent.capture import SourceOptions
from edge_agent.capture.v4l2.controls import set_controls
from edge_agent.capture.v4l2.kernel import Device, LinuxKernel
from edge_agent.capture.v4l2.source import V4l2Source
from edge_agent.core.ports import MappedBuffer
from edge_agent.core.types import Array
from tests.fakes.broker import eventually
from tests.system.vm.conftest import DEADLINE_S, NODE, ROWS, Row, Watched, bind, control, load_driver, watched

BACK_S = 15.0
BLIND_S = 10.0
CAMERA = {"CAMERAS__DOOR__WIDTH": 320, "CAMERAS__DOOR__HEIGHT": 180, "CAMERAS__DOOR__FPS": 10}
BARS, BLACK = 0, 5
"""Of the driver's menu of test patterns."""
AS_IT_COMES = {
    "test_pattern": BARS, "brightness": 128, "contrast": 128, "osd_text_mode": 0, "horizontal_movement": 3
}  # fmt: skip


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One agent for all tests, since it has to survive every fault."""
    load_driver()
    with watched(tmp_path_factory.mktemp("agent"), f"v4l2:{NODE}", **CAMERA) as it:
        yield it


def recovers(agent: Watched, fault: str, counted: str, strike: Callable[[], None], mend: Callable[[], None]) -> None:
    """Presence is `None`, never `OFF`, until the camera is back, then is known in time; no descriptor stays open."""
    agent.sees()
    before, held = agent.counters(), agent.descriptors()
    agent.mark()
    strike()
    blind_s = agent.blind()
    mend()
    back_s = agent.sees()
    values = agent.published()
    assert values.index(b"None") == 0, f"before the camera was known to be lost: {values}"
    assert agent.published("availability") == [b"offline", b"online"]
    eventually(lambda: agent.counters().get(counted, 0) > before.get(counted, 0), counted, DEADLINE_S)
    eventually(lambda: agent.counters()["recoveries"] > before["recoveries"], "recoveries", DEADLINE_S)
    eventually(lambda: agent.descriptors() == held, f"{held} descriptors, not {agent.descriptors()}", DEADLINE_S)
    names = dict.fromkeys((counted, "recoveries"))
    grown = ", ".join(f"{name} +{agent.counters()[name] - before.get(name, 0)}" for name in names)
    ROWS.append(Row(fault, blind_s, back_s, grown))
    assert back_s < BACK_S


def nothing() -> None:
    """Do nothing: this fault ends without a repair."""


FORMATS = [("GREY", "uint8"), ("Y10", "uint16"), ("Y16", "uint16"), ("YUYV", "uint8")]


class Mapped(NamedTuple):
    """As `core.ports.MappedBuffer`."""

    array: Array
    pointer: int


class HostPool:
    """Page-locked memory without a GPU: pages that the driver may write to, and their address."""

    def __init__(self) -> None:
        self.held = 0

    def modes(self) -> Sequence[str]:
        return ("userptr", "copied")

    def allocate(self, count: int, nbytes: int) -> Sequence[MappedBuffer]:
        arrays = [np.frombuffer(mmap.mmap(-1, nbytes), np.uint8) for _ in range(count)]
        self.held += count
        return [Mapped(array, array.ctypes.data) for array in arrays]

    def register(self, arrays: Sequence[Array]) -> Sequence[MappedBuffer]:
        raise AssertionError("not offered")

    def free(self, buffers: Sequence[MappedBuffer], then: Callable[[], None]) -> None:
        self.held -= len(buffers)
        then()


@pytest.mark.parametrize(("allocator", "mode"), [("allocators=0", "userptr"), ("allocators=1", "copied")])
def test_the_driver_fills_our_memory_or_refuses_it(allocator: str, mode: str) -> None:
    load_driver(allocator)
    pool = HostPool()
    with closing(V4l2Source(NODE, SourceOptions(width=320, height=180, fps=10, pool=pool))) as source:
        for _ in range(2):  # and once more, since what was refused is remembered
            source.open()
            assert source.mode == mode
            taken = 0
            for _ in range(30):
                frame = source.read(1.0)
                if frame is not None:
                    with frame:
                        taken += 1
                        assert frame.pixels.std() > 20, "bars of different brightness"
            assert taken >= 20
            source.close()
            assert pool.held == 0
    ROWS.append(Row(f"memory of ours, vivid {allocator}", None, None, f"capture mode {mode}"))


@pytest.mark.parametrize(("name", "dtype"), FORMATS)
def test_formats_are_streamed(driver: None, name: str, dtype: str) -> None:
    options = SourceOptions(pixel_format=name, width=320, height=180, fps=10)
    with closing(V4l2Source(NODE, options)) as source:
        source.open()
        began_t, sequences, spread = time.monotonic(), [], 0.0
        while len(sequences) < 20 and time.monotonic() < began_t + DEADLINE_S:
            frame = source.read(1.0)
            if frame is not None:
                with frame:
                    assert frame.pixels.shape == (180, 320) and frame.pixels.dtype == np.dtype(dtype)
                    gray = frame.levels.to_gray8(frame.pixels)
                    spread = float(gray.std())
                    assert 0 <= time.monotonic() - frame.t < 5
                    sequences.append(frame.sequence)
        took_s = time.monotonic() - began_t
        assert len(sequences) == 20 and sequences == sorted(set(sequences))
        assert spread > 20, "bars of different brightness"
        ROWS.append(Row(f"20 frames of {name}", None, None, f"{20 / took_s:.1f} fps; {source.counters()}"))


def test_error_flagged_buffers_are_dropped_and_counted(agent: Watched) -> None:
    agent.sees()
    agent.mark()
    control(inject_v4l2_buf_flag_error=1)
    counted = agent.grows("source_error_buffers") if not agent.counters().get("source_error_buffers") else "already"
    agent.grows("frames", 10)
    assert b"None" not in agent.published()
    ROWS.append(Row("error-flagged buffer", None, None, counted))


def test_dropped_buffers_show_as_gaps(agent: Watched) -> None:
    agent.sees()
    agent.mark()
    control(percentage_of_dropped_buffers=50)
    try:
        counted = agent.grows("source_sequence_gaps", 5)
        assert b"None" not in agent.published()
    finally:
        control(percentage_of_dropped_buffers=0)
    ROWS.append(Row("half of the buffers dropped", None, None, counted))


def test_a_total_stall(agent: Watched) -> None:
    recovers(
        agent,
        "total stall",
        "stalls",
        lambda: control(percentage_of_dropped_buffers=100),
        lambda: control(percentage_of_dropped_buffers=0),
    )


def test_a_fatal_streaming_error(agent: Watched) -> None:
    recovers(agent, "fatal streaming error", "faults", lambda: control(inject_fatal_streaming_error=1), nothing)


@pytest.mark.parametrize("ioctl", ["reqbufs", "streamon"])
def test_an_ioctl_fails_at_the_next_open(agent: Watched, ioctl: str) -> None:
    def strike() -> None:
        control(**{f"inject_vidioc_{ioctl}_error": 1})
        control(inject_fatal_streaming_error=1)

    recovers(agent, f"{ioctl} fails at reopening", "faults", strike, nothing)


def test_an_ioctl_fails_while_streaming(agent: Watched) -> None:
    recovers(agent, "qbuf fails", "faults", lambda: control(inject_vidioc_qbuf_error=1), nothing)


def test_the_driver_disconnects(agent: Watched) -> None:
    recovers(agent, "disconnect", "faults", lambda: control(disconnect=1), nothing)


def test_unbound_while_streaming_and_bound_again(agent: Watched) -> None:
    recovers(agent, "unbind, bind", "faults", lambda: bind("unbind"), lambda: bind("bind"))


def test_a_driver_without_user_pointers(agent: Watched) -> None:
    recovers(
        agent,
        "driver reloaded without USERPTR",
        "faults",
        lambda: bind("unbind"),
        lambda: load_driver("allocators=1"),
    )
    tried = subprocess.run(
        ["v4l2-ctl", "-d", NODE, "--stream-user=2", "--stream-count=1"], capture_output=True, text=True, timeout=60
    )
    assert "REQBUFS" in tried.stdout + tried.stderr or tried.returncode, "the driver really has none"


@pytest.mark.parametrize(
    ("sight", "scene"),
    [
        ("dark", {"osd_text_mode": 2, "test_pattern": BLACK}),
        ("covered", {"osd_text_mode": 2, "brightness": 200, "contrast": 0}),
        ("frozen", {"osd_text_mode": 2}),
    ],
)
def test_a_camera_that_delivers_but_cannot_see(agent: Watched, sight: str, scene: dict) -> None:
    agent.sees()
    control(**scene)
    try:
        blind_s = agent.blind()
        eventually(lambda: agent.cannot_see(sight), f"{agent.camera()}, not {sight}", DEADLINE_S)
    finally:
        control(**AS_IT_COMES)
    ROWS.append(Row(f"scene: {sight}", blind_s, agent.sees(), f"sight {sight}"))
    assert blind_s < BLIND_S


@contextmanager
def strobed() -> Iterator[Callable[[], None]]:
    """About every other frame is black, as with an emitter that strobes. The returned function ends the light."""
    dead = threading.Event()

    def strobe() -> None:
        with closing(Device(LinuxKernel(), NODE)) as device:
            for pattern in itertools.cycle((BARS, BLACK)):
                set_controls(device, NODE, {"test_pattern": pattern})
                if dead.wait(1 / CAMERA["CAMERAS__DOOR__FPS"]):
                    break
            set_controls(device, NODE, {"test_pattern": BLACK})

    thread = threading.Thread(target=strobe)

    def die() -> None:
        dead.set()
        thread.join()

    thread.start()
    try:
        yield die
    finally:
        die()


def test_an_emitter_that_dies(agent: Watched) -> None:
    agent.sees()
    agent.mark()
    control(osd_text_mode=2, horizontal_movement=5)
    try:
        with strobed() as die:
            agent.grows("dropped_dark", 30)
            assert agent.published() == [], "a strobe is no blindness"
            die()
            blind_s = agent.blind()
            eventually(lambda: agent.cannot_see("emitter"), f"{agent.camera()}", DEADLINE_S)
    finally:
        control(**AS_IT_COMES)
    ROWS.append(Row("scene: dead emitter", blind_s, agent.sees(), "sight emitter"))
    assert blind_s < BLIND_S


def test_a_clock_that_steps_is_no_fault(agent: Watched) -> None:
    agent.sees()
    before = agent.counters()
    agent.mark()
    for step in ("+1 hour", "-2 hours", "1970-01-02 00:00", "2031-01-01 00:00"):
        subprocess.run(["date", "-s", step], check=True, stdout=subprocess.DEVNULL)
        agent.grows("frames", 15)
    after = agent.counters()
    assert [after[name] - before[name] for name in ("faults", "stalls")] == [0, 0]
    assert agent.published() == []
    ROWS.append(Row("clock steps +1 h, -2 h, 1970, 2031", None, None, "faults +0, stalls +0"))
