"""A camera is found again under another node number, and is never confused with another camera."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edge_agent.capture.v4l2.source import V4l2Source
from edge_agent.errors import SourceError
from tests.capture.contract import next_frame
from tests.fakes.kernel import FakeKernel
from tests.fakes.v4l2_camera import FakeCamera


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def flat(value: int):
    """A scene that identifies the camera."""
    return lambda sequence, width, height: np.full((height, width), value, np.uint8)


def camera_seen(source: V4l2Source) -> int:
    with next_frame(source) as frame:
        return int(frame.pixels[0, 0])


def source_at(kernel: FakeKernel, path: str) -> V4l2Source:
    return V4l2Source(path, syscalls=kernel, root=kernel.tree.root)


def lose(source: V4l2Source, kernel: FakeKernel, camera: FakeCamera) -> None:
    kernel.unplug(camera)
    with pytest.raises(SourceError):
        source.read(0.1)


@pytest.mark.parametrize("link_number", [0, 1], ids=["by-id", "by-path"])
def test_a_link_is_resolved_at_every_open(kernel: FakeKernel, link_number: int) -> None:
    camera = FakeCamera(scene=flat(10))
    kernel.plug(camera)
    with closing(source_at(kernel, str(kernel.tree.links(camera)[link_number]))) as source:
        source.open()
        assert camera_seen(source) == 10
        lose(source, kernel, camera)
        kernel.plug(camera, number=5)
        source.open()
        assert camera_seen(source) == 10
        assert "open video5" in kernel.history


@pytest.mark.parametrize("links", [True, False], ids=["with links", "udev has made no links"])
@pytest.mark.parametrize("serial", ["SN001", ""], ids=["serial", "no serial"])
def test_a_changed_number_is_found_by_the_cameras_identity(kernel: FakeKernel, links: bool, serial: str) -> None:
    camera = FakeCamera(scene=flat(10), serial=serial)
    node = kernel.plug(camera)
    with closing(source_at(kernel, node)) as source:
        source.open()
        lose(source, kernel, camera)
        kernel.plug(FakeCamera(card="Other", bus_info="usb-2", serial="X", usb_id=("1111", "2222")), number=1)
        kernel.plug(camera, number=2, links=links)
        source.open()
        assert camera_seen(source) == 10
    assert kernel.open_descriptors == 0


def test_a_camera_with_a_serial_number_is_found_at_another_port(kernel: FakeKernel) -> None:
    camera = FakeCamera(scene=flat(10))
    with closing(source_at(kernel, kernel.plug(camera))) as source:
        source.open()
        lose(source, kernel, camera)
        camera.bus_info = "usb-0000:00:14.0-9"
        kernel.plug(camera, number=2)
        source.open()
        assert camera_seen(source) == 10


def test_a_configured_link_missing_after_replugging_does_not_matter(kernel: FakeKernel) -> None:
    camera = FakeCamera(scene=flat(10))
    kernel.plug(camera)
    with closing(source_at(kernel, str(kernel.tree.links(camera)[0]))) as source:
        source.open()
        lose(source, kernel, camera)
        kernel.plug(camera, number=3, links=False)
        source.open()
        assert camera_seen(source) == 10


def test_a_frame_held_over_the_unplug_keeps_the_number_busy_and_the_camera_is_still_found(
    kernel: FakeKernel,
) -> None:
    camera = FakeCamera(scene=flat(10))
    with closing(source_at(kernel, kernel.plug(camera))) as source:
        source.open()
        held = next_frame(source)
        lose(source, kernel, camera)
        assert kernel.plug(camera) == kernel.node(1), "video0 is still held by the mapped buffers"
        source.open()
        assert camera_seen(source) == 10
        assert held.pixels.max() == 10
        held.release()


def test_with_all_frames_released_the_camera_returns_under_its_number(kernel: FakeKernel) -> None:
    camera = FakeCamera()
    with closing(source_at(kernel, kernel.plug(camera))) as source:
        source.open()
        next_frame(source).release()
        lose(source, kernel, camera)
        assert kernel.plug(camera) == kernel.node(0)
        source.open()


@pytest.mark.parametrize(
    "other",
    [
        {"card": "Other: Other", "serial": "SN001", "usb_id": ("1111", "2222")},
        {"serial": "SN002", "bus_info": "usb-0000:00:14.0-2"},
        {"interface": "02"},
    ],
    ids=["another model", "the same model with another serial", "the colour sensor of the same module"],
)
def test_another_camera_under_the_old_number_is_not_used(kernel: FakeKernel, other) -> None:
    camera, stranger = FakeCamera(scene=flat(10)), FakeCamera(scene=flat(99), **other)
    node = kernel.plug(camera)
    with closing(source_at(kernel, node)) as source:
        source.open()
        lose(source, kernel, camera)
        assert kernel.plug(stranger) == node
        with pytest.raises(SourceError, match="is now") as fault:
            source.open()
        assert "by-id" in fault.value.hint
        assert kernel.open_descriptors == 0
        if (stranger.bus_info, stranger.interface) == (camera.bus_info, camera.interface):
            kernel.unplug(stranger)  # one port holds one camera
        kernel.plug(camera)
        source.open()
        assert camera_seen(source) == 10


def test_two_equal_cameras_without_serials_are_distinguished_by_ports(kernel: FakeKernel) -> None:
    left = FakeCamera(scene=flat(10), serial="", bus_info="usb-1")
    right = FakeCamera(scene=flat(20), serial="", bus_info="usb-2")
    a = source_at(kernel, kernel.plug(left, links=False))
    b = source_at(kernel, kernel.plug(right, links=False))
    with closing(a), closing(b):
        a.open()
        b.open()
        lose(a, kernel, left)
        lose(b, kernel, right)
        kernel.plug(right, links=False)
        kernel.plug(left, links=False)
        a.open()
        b.open()
        assert (camera_seen(a), camera_seen(b)) == (10, 20)


def test_a_new_source_accepts_any_camera(kernel: FakeKernel) -> None:
    first = FakeCamera(scene=flat(10))
    node = kernel.plug(first)
    kernel.unplug(first)
    kernel.plug(FakeCamera(card="Other: Other", scene=flat(99)))
    with closing(source_at(kernel, node)) as source:
        source.open()
        assert camera_seen(source) == 99


def test_cameras_that_are_not_usb_are_identified_by_card_and_bus(kernel: FakeKernel) -> None:
    camera = FakeCamera(scene=flat(10), card="vi-output, ov9281 9-0060", bus_info="platform:vi:0", usb_id=None)
    node = kernel.plug(camera, links=False)
    with closing(source_at(kernel, node)) as source:
        source.open()
        lose(source, kernel, camera)
        kernel.plug(camera, number=4, links=False)
        source.open()
        assert camera_seen(source) == 10
