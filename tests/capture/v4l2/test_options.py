"""Settings of a camera: format, size, rate, controls; adjustments by the driver are logged."""

import logging
import sys
from contextlib import closing
from pathlib import Path
from typing import Dict

import pytest

from edge_agent.capture import SourceOptions
from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.controls import control_name
from edge_agent.capture.v4l2.source import V4l2Source
from edge_agent.errors import MissingPackage, SourceError
from tests.capture.contract import next_frame
from tests.fakes.kernel import FakeKernel
from tests.fakes.v4l2_camera import CommandQueue, FakeCamera

VGA, HD = (640, 480), (1280, 720)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def opened(kernel: FakeKernel, camera: FakeCamera, **options) -> V4l2Source:
    """An open source on a camera; the caller closes it."""
    if not camera.plugged:
        kernel.plug(camera)
    source = V4l2Source(kernel.node(0), SourceOptions(**options), syscalls=kernel, root=kernel.tree.root)
    source.open()
    return source


@pytest.mark.parametrize(
    ("formats", "options", "chosen"),
    [
        ({"MJPG": [VGA], "YUYV": [VGA], "Y10": [VGA], "GREY": [VGA]}, {}, "GREY 640x480"),
        ({"MJPG": [VGA], "YUYV": [VGA], "Y12": [VGA], "Y10": [VGA]}, {}, "Y10 640x480"),
        ({"MJPG": [VGA], "YUYV": [VGA], "NV12": [VGA]}, {}, "NV12 640x480"),
        ({"H264": [VGA], "MJPG": [VGA], "YUYV": [VGA]}, {}, "YUYV 640x480"),
        ({"MJPG": [VGA]}, {}, "MJPG 640x480"),
        ({"MJPG": [VGA, HD], "YUYV": [VGA]}, {"width": 1280, "height": 720}, "MJPG 1280x720"),
        ({"MJPG": [VGA, HD], "YUYV": [VGA]}, {"width": 640, "height": 480}, "YUYV 640x480"),
        ({"YUYV": [VGA, HD], "GREY": [VGA]}, {"width": 1280, "height": 720}, "YUYV 1280x720"),
        ({"MJPG": [VGA], "GREY": [VGA], "YUYV": [VGA]}, {"color": True}, "YUYV 640x480"),
        ({"GREY": [VGA]}, {"color": True}, "GREY 640x480"),
        ({"GREY": [VGA], "YUYV": [VGA]}, {"pixel_format": "YUYV"}, "YUYV 640x480"),
        ({"GREY": [VGA], "Y16_BE": [VGA]}, {"pixel_format": "Y16_BE"}, "Y16_BE 640x480"),
        ({"GREY": [VGA, HD]}, {"width": 1200, "height": 700}, "GREY 1280x720"),
    ],
)
def test_the_cheapest_format_that_has_the_wanted_size_is_chosen(kernel, formats, options, chosen: str) -> None:
    with closing(opened(kernel, FakeCamera(formats=formats), **options)):
        assert f"S_FMT {chosen}" in kernel.history


def test_a_format_too_slow_at_the_wanted_size_is_not_chosen(kernel: FakeKernel) -> None:
    camera = FakeCamera(formats={"YUYV": [HD], "MJPG": [HD]}, rates={("YUYV", *HD): 10.0, ("MJPG", *HD): 30.0})
    with closing(opened(kernel, camera, width=1280, height=720, fps=30)):
        assert "S_FMT MJPG 1280x720" in kernel.history
    with closing(opened(kernel, camera, width=1280, height=720, fps=10)):
        assert "S_FMT YUYV 1280x720" in kernel.history


def test_a_size_changed_by_the_driver_is_logged_and_used(kernel, caplog) -> None:
    with closing(opened(kernel, FakeCamera(formats={"GREY": [VGA]}), width=1280, height=800)) as source:
        assert "asked for 1280x800, the driver gives 640x480" in caplog.text
        with next_frame(source) as frame:
            assert frame.pixels.shape == (480, 640)


@pytest.mark.parametrize(
    ("formats", "asked", "message", "hint"),
    [
        ({"YUYV": [VGA], "H264": [VGA]}, "GREY", "has no GREY", "YUYV, H264"),
        ({"H264": [VGA]}, "auto", "no pixel format that can be read", "H264"),
        ({}, "auto", "no pixel format that can be read", "GREY"),
    ],
)
def test_a_missing_format_is_a_clear_error(kernel, formats, asked, message: str, hint: str) -> None:
    with pytest.raises(SourceError) as fault:
        opened(kernel, FakeCamera(formats=formats), pixel_format=asked)
    assert message in fault.value.message
    assert hint in fault.value.hint
    assert kernel.open_descriptors == 0


@pytest.mark.parametrize(("name", "color"), [("MJPG", False), ("YUYV", True)])
def test_a_format_that_needs_opencv_is_an_error_without_it(kernel, monkeypatch, name, color) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # as Python itself marks a module that is not there
    with pytest.raises(MissingPackage, match=rf"{name}.*pip install opencv-python-headless"):
        opened(kernel, FakeCamera(formats={name: [VGA]}), color=color)
    assert kernel.open_descriptors == 0


def test_the_frame_rate_is_set_and_a_different_one_is_logged(kernel, caplog) -> None:
    camera = FakeCamera(fps=25)
    with closing(opened(kernel, camera, fps=12.5)):
        assert "S_PARM 2/25" in kernel.history
        assert "frames per second, the driver" not in caplog.text
    with closing(opened(kernel, camera, fps=60)):
        assert "asked for 60 frames per second, the driver gives 25" in caplog.text


def test_a_driver_without_frame_rates_still_streams(kernel, caplog) -> None:
    with closing(opened(kernel, FakeCamera(has_rate=False), fps=30)) as source:
        assert "no setting for the frame rate" in caplog.text
        next_frame(source).release()


def controls() -> list:
    automatic = CommandQueue(0x009A0901, "Auto Exposure", 3, 0, 3, type=abi.CTRL_TYPE_MENU)
    return [
        CommandQueue(0x00980001, "User Controls", 0, type=abi.CTRL_TYPE_CTRL_CLASS, flags=abi.CTRL_FLAG_READ_ONLY),
        CommandQueue(0x00980900, "Brightness", 0, -64, 64),
        CommandQueue(0x00980913, "Gain", 16, 0, 255, step=4),
        automatic,
        CommandQueue(0x009A0902, "Exposure (Absolute)", 100, 1, 5000, inactive_while=lambda _: automatic.value == 3),
        CommandQueue(0x009A200A, "Sensor: Exposure", 1000, 1, 2**40, type=abi.CTRL_TYPE_INTEGER64),
        CommandQueue(0x009A200B, "Temperature", 0, flags=abi.CTRL_FLAG_READ_ONLY),
    ]


@pytest.mark.parametrize(
    ("driver", "ours"),
    [
        ("Exposure (Absolute)", "exposure_absolute"),
        ("Exposure Time, Absolute", "exposure_time_absolute"),
        ("White Balance Temperature, Auto", "white_balance_temperature_auto"),
        ("Gain", "gain"),
        ("  LED1 Mode ", "led1_mode"),
    ],
)
def test_control_names_are_those_of_v4l2_ctl(driver: str, ours: str) -> None:
    assert control_name(driver) == ours


def test_controls_are_set_by_name_also_wide_and_negative_ones(kernel, caplog) -> None:
    camera = FakeCamera(controls=controls())
    with closing(opened(kernel, camera, controls={"brightness": -5, "gain": 40, "sensor_exposure": 2**35})):
        values = {control.name: control.value for control in camera.controls}
        assert (values["Brightness"], values["Gain"], values["Sensor: Exposure"]) == (-5, 40, 2**35)
        assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
        assert kernel.history.index("set Gain=40") < kernel.history.index("STREAMON")


def test_controls_are_set_again_after_the_camera_was_plugged_in_again(kernel: FakeKernel) -> None:
    camera = FakeCamera(controls=controls())
    with closing(opened(kernel, camera, controls={"gain": 40})) as source:
        source.close()
        kernel.unplug(camera)
        kernel.plug(camera)
        assert camera.controls[2].value == 16, "the camera has forgotten"
        source.open()
        assert camera.controls[2].value == 40


def test_a_rejected_order_of_controls_is_retried_in_reverse(kernel, caplog) -> None:
    camera = FakeCamera(controls=controls())
    with closing(opened(kernel, camera, controls={"exposure_absolute": 250, "auto_exposure": 1})):
        assert kernel.account().count("set Exposure (Absolute)=250") == 1
        assert "rejects" not in caplog.text


@pytest.mark.parametrize(("asked", "value"), [({}, 0), ({"bypass_mode": 1}, 1)])
def test_tegra_frames_arrive_through_v4l2_after_argus_used_the_sensor(
    kernel: FakeKernel, asked: Dict[str, int], value: int
) -> None:
    bypass = CommandQueue(0x009A2064, "Bypass Mode", 0, 0, 1, abi.CTRL_TYPE_INTEGER_MENU)
    camera = FakeCamera(driver="tegra-video", controls=[bypass])
    kernel.plug(camera)
    bypass.value = 1
    with closing(
        V4l2Source(kernel.node(0), SourceOptions(controls=asked), syscalls=kernel, root=kernel.tree.root)
    ) as source:
        source.open()
        assert bypass.value == value
        assert ("set Bypass Mode=0" in kernel.history) == (value == 0)


def test_an_unknown_control_is_logged_with_the_known_ones(kernel, caplog) -> None:
    with closing(opened(kernel, FakeCamera(controls=controls()), controls={"exposure": 3, "gain": 8})) as source:
        assert (
            "no control 'exposure'; the camera has: auto_exposure, brightness, exposure_absolute, gain, "
            "sensor_exposure" in caplog.text
        )
        assert "set Gain=8" in kernel.history, "the others are set all the same"
        next_frame(source).release()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("gain", 256, "control gain=256: allowed 0 to 255"),
        ("exposure_absolute", 250, "control exposure_absolute=250: the driver rejects it: Permission denied"),
        ("gain", 42, "control gain=42: the driver set 40"),
    ],
)
def test_a_rejected_value_is_logged(kernel, caplog, name: str, value: int, expected: str) -> None:
    with closing(opened(kernel, FakeCamera(controls=controls()), controls={name: value})) as source:
        assert expected in caplog.text
        next_frame(source).release()


def test_an_open_is_logged_in_one_line(kernel, caplog) -> None:
    caplog.set_level(logging.INFO)
    with closing(opened(kernel, FakeCamera(card="Hello IR"))):
        messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "'Hello IR'" in messages[0]
    assert "GREY 64x48, 30 frames per second, 6 buffers" in messages[0]
