"""Auto exposure through a driver's controls, on a fake camera whose image depends on them."""

import errno
from contextlib import closing
from pathlib import Path
from typing import List, Optional

import numpy as np
import pytest

from edge_agent.capture import SourceOptions
from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.source import V4l2Source
from edge_agent.core.camera.auto_exposure import SETTLE, WINDOW, ExposureParams
from edge_agent.errors import SourceError
from tests.capture.contract import SourceContract, next_frame
from tests.fakes.kernel import FakeKernel
from tests.fakes.v4l2_camera import CommandQueue, FakeCamera

STEP = SETTLE + WINDOW
TARGET = 100.0


def ov9281(light: float = 0.5, strobe: int = 1, **traits) -> FakeCamera:
    """A mono CSI sensor with Tegra's controls: 64-bit exposure, gain in sixteenths. Every `strobe`-th frame is lit.

    Args:
        light: Gray levels per unit of exposure, at a gain of 1.
        strobe: Frames per lit one.
        traits: Of the `FakeCamera`.
    """
    exposure = CommandQueue(10, "Exposure", 20, 1, 1000, abi.CTRL_TYPE_INTEGER64)
    gain = CommandQueue(20, "Analogue Gain", 16, 16, 248)
    noise = np.random.default_rng(1)

    def scene(sequence: int, width: int, height: int) -> np.ndarray:
        lit = light if sequence % strobe == 0 else 0.02 * light
        levels = np.full((height, width), lit * exposure.value * gain.value / 16.0 + 4.0)
        return (levels + noise.normal(0, 1.5, levels.shape)).clip(0, 255).astype(np.uint8)

    return FakeCamera(driver="tegra-video", controls=[exposure, gain], scene=scene, **traits)


@pytest.fixture
def kernel(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def opened(kernel: FakeKernel, camera: FakeCamera, params: Optional[ExposureParams] = None, **controls) -> V4l2Source:
    if not camera.plugged:
        kernel.plug(camera)
    options = SourceOptions(controls=controls, exposure=params or ExposureParams(TARGET))
    source = V4l2Source(kernel.node(0), options, syscalls=kernel, root=kernel.tree.root)
    source.open()
    return source


def means(source: V4l2Source, frames: int) -> List[float]:
    found = []
    for _ in range(frames):
        with next_frame(source) as frame:
            found.append(float(frame.levels.to_gray8(frame.pixels).mean()))
    return found


@pytest.mark.parametrize("name", ["GREY", "Y10"])
@pytest.mark.parametrize("start", [1, 1000])
@pytest.mark.parametrize("strobe", [1, 2])
def test_it_converges_from_dark_and_from_saturated(kernel, name: str, start: int, strobe: int) -> None:
    camera = ov9281(strobe=strobe, formats={name: [(64, 48)]})
    with closing(opened(kernel, camera, exposure=start)) as source:
        assert camera.controls[0].value == start
        means(source, 14 * STEP)
        assert 0.85 * TARGET <= max(means(source, 4)) <= 1.15 * TARGET
        history = len(kernel.history)
        means(source, 6 * STEP)
        assert not [line for line in kernel.history[history:] if line.startswith("set ")], "it oscillates"
        assert camera.controls[1].value == 16


def test_gain_extends_the_exposure_and_limits_hold(kernel: FakeKernel) -> None:
    camera = ov9281(light=0.1)
    with closing(opened(kernel, camera, ExposureParams(TARGET, exposure_max=100, gain_max=64))) as source:
        means(source, 20 * STEP)
        assert [control.value for control in camera.controls] == [100, 64]


def test_nothing_is_set_unless_enabled(kernel: FakeKernel) -> None:
    camera = ov9281()
    kernel.plug(camera)
    with closing(V4l2Source(kernel.node(0), syscalls=kernel, root=kernel.tree.root)) as source:
        source.open()
        means(source, 3 * STEP)
        assert "set " not in kernel.account()


def test_a_camera_without_the_control_still_works(kernel, caplog) -> None:
    camera = FakeCamera(controls=[CommandQueue(3, "Brightness", 1)])
    with closing(opened(kernel, camera)) as source:
        next_frame(source).release()
        assert "auto_exposure: none of" in caplog.text and "the camera has: brightness" in caplog.text


def test_the_cameras_own_auto_exposure_is_switched_off(kernel: FakeKernel) -> None:
    camera = ov9281()
    own = CommandQueue(5, "Auto Exposure", 3, 0, 3, abi.CTRL_TYPE_MENU)
    camera.controls.append(own)
    camera.controls[0].inactive_while = lambda _: own.value == 3
    with closing(opened(kernel, camera)):
        assert own.value == 1
        assert kernel.history.index("set Auto Exposure=1") < kernel.history.index("set Exposure=20")


def test_controls_are_set_again_after_reopening(kernel: FakeKernel) -> None:
    camera = ov9281()
    with closing(opened(kernel, camera, exposure=700)) as source:
        source.close()
        kernel.unplug(camera)
        kernel.plug(camera)
        source.open()
        assert camera.controls[0].value == 700


def test_a_camera_lost_while_setting_exposure_is_a_source_error(kernel: FakeKernel) -> None:
    camera = ov9281()
    with closing(opened(kernel, camera, exposure=1)) as source:
        means(source, STEP - 1)
        camera.fail_next("S_EXT_CTRLS", errno.ENODEV)
        with pytest.raises(SourceError):
            source.read(1.0)


class TestExposedContract(SourceContract):
    @pytest.fixture
    def make_source(self, kernel: FakeKernel):
        camera = ov9281()
        kernel.plug(camera)
        options = SourceOptions(exposure=ExposureParams())
        return lambda: V4l2Source(kernel.node(0), options, syscalls=kernel, root=kernel.tree.root)
