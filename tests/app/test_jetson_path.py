"""The whole path on a board: V4L2 driver, zero-copy buffer, kernel, TensorRT of each generation, MQTT.

All but the agent and the broker are fakes; the kernel is its C++ twin. ONNX Runtime on the same frames is compared.
"""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import pytest

from edge_agent.app.agent import Agent
from edge_agent.app.factories import source_options
from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.source import V4l2Source
from edge_agent.config.settings import load_settings
from edge_agent.inference.cuda.preprocess import ARGUMENTS
from tests.fakes import graphs, uff_writer
from tests.fakes.board_faults import calibrated
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto
from tests.fakes.gpu import FakeBoard, calibration
from tests.fakes.kernel import FakeKernel
from tests.fakes.libcuda import FakeDriverLibrary
from tests.fakes.service_manager import ServiceManager
from tests.fakes.v4l2_camera import FakeCamera

pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")
pytestmark = needs_mosquitto

SIZE = (768, 480)
FACE = range(30, 70)
PERIOD_S = 0.008
# Gray levels, cell by cell: far enough from one another that FP16 leaves their order, and so the clustering, alone.
_Y, _X = np.mgrid[-2:3, -2:3]
FACE_CELLS = 168.0 - 9 * abs(_X) - 6 * abs(_Y) - 2 * (_X > 0) - 3.5 * (_Y > 0)
BOX_LIMIT = 0.002  # of the image: the outputs of FP16 have three digits
SCORE_LIMIT = 0.02


class Agreement(NamedTuple):
    """What one run has published."""

    events: List[Dict[str, Any]]
    detections: Dict[int, List[Dict[str, Any]]]
    info: Dict[str, Any]


class Room:
    """A room with a sensor's noise; in some frames a bright face, which stays until it was `seen`."""

    def __init__(self) -> None:
        self.seen = threading.Event()

    def __call__(self, sequence: int, width: int, height: int) -> np.ndarray:
        time.sleep(PERIOD_S)
        if sequence == FACE.stop - 1:
            self.seen.wait(10)
        rng = np.random.default_rng(sequence)
        pixels = 60 + 20 * np.sin(np.add.outer(np.arange(height) / 17, np.arange(width) / 23))
        pixels += rng.normal(0, 2, pixels.shape)
        if sequence in FACE:
            pixels[128:288, 256:416] = FACE_CELLS.repeat(32, 0).repeat(32, 1) + rng.normal(0, 2, (160, 160))
        return pixels.clip(0, 255).astype(np.uint8)


class BrightIsAFace(uff_writer.Network):
    """`graphs.gridbox` as a UFF file."""

    def weights(self, name: str, *shape: int, scale: float = 1.0, around: float = 0.0) -> str:
        values = np.zeros(shape, np.float32)
        if "cov" in name:
            values[0, 0, 0] = 20.0
        return self.const(name, values)


def uff(path: Path) -> Path:
    net = BrightIsAFace(np.zeros((1, 3, 240, 384), np.float32))
    cells = net.pool("cells", "input_1", "avg", 16, 16, same_size=False)
    net.bias("output_bbox", net.conv("output_bbox/convolution", cells, 4, 1), np.array(graphs.BOX))
    net.bias("output_cov", net.conv("output_cov/convolution", cells, 1, 1), np.array([-10.0]))
    net.sigmoid("output_cov/Sigmoid", "output_cov/BiasAdd")
    net.mark("output_cov/Sigmoid", "output_bbox/BiasAdd")
    path.write_bytes(net.encode())
    return path


def onnx(path: Path) -> Path:
    return graphs.gridbox(path)


class Running:
    """The agent in this process, with a camera of the fake kernel, for the length of a block.

    Args:
        folder: For its state.
        broker: To publish to.
        kernel: With the camera as /dev/video0.
        model: Of the network.
        backend: That runs it.
        settings: More of them.
        environ: More of the environment, such as systemd's variables.
    """

    def __init__(
        self,
        folder: Path,
        broker: Broker,
        kernel: FakeKernel,
        model: Path,
        backend: str,
        settings: Mapping[str, Any] = {},
        environ: Mapping[str, str] = {},
    ) -> None:
        values = {
            "NODE": "n",
            "CAMERAS__DOOR__URI": "v4l2:/dev/video0",
            "MODEL__MODEL": model,
            "MODEL__BACKEND": backend,
            "DETECTION__PRE_CLUSTER_THRESHOLD": 0.7,
            "DETECTION__TOP_K": 1,
            "DETECTION__ADAPT_LEVELS": "false",  # the made weights find brightness, not faces
            "TRACKER__CONTINUE_RATIO": 1,
            "PRESENCE__DELAY_OFF_S": 0.1,
            "TRACKER__MAX_LOST_S": 0.5,
            "MQTT__HOST": "127.0.0.1",
            "MQTT__PORT": broker.port,
            "MQTT__DETECTIONS": "native",
            "OUTBOX__STORE": "memory",
            "STATE_DIR": folder / "state",
            **settings,
        }
        environ = {**environ, **{f"EDGE_AGENT_{name}": str(value) for name, value in values.items()}}

        def sources(settings: Any, pool: Any) -> Mapping[str, V4l2Source]:
            options = source_options(settings.cameras["door"], pool)
            return {"door": V4l2Source(kernel.node(0), options, syscalls=kernel, root=kernel.tree.root)}

        loaded = load_settings(environ, None)
        self.agent = Agent(loaded, {**os.environ, **environ}, lambda: loaded, sources)
        self.code: Optional[int] = None
        self._told = False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.code = self.agent.run()

    def __enter__(self) -> "Running":
        self._thread.start()
        return self

    def stop(self) -> None:
        """As SIGTERM, once: the second ends the process."""
        if not self._told:
            self._told = True
            self.agent.request_stop()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()


def info_of(listener: Listener) -> Dict[str, Any]:
    info: Dict[str, Any] = json.loads(listener.last("edge-agent/n/info") or b"{}")
    return info


def watch(broker: Broker, running: Running, room: Room, mode: str) -> Agreement:
    """Return what is published until the visit has ended and the agent has stopped."""
    with Listener(broker, "edge-agent/#") as listener:
        with running:
            eventually(lambda: listener.last("edge-agent/n/door/presence") == b"ON", "a face is seen")
            room.seen.set()
            eventually(lambda: listener.last("edge-agent/n/door/presence") == b"OFF", "it has gone")
            eventually(lambda: info_of(listener)["capture_mode"] == {"door": mode}, "info names the capture mode")
            info = info_of(listener)
        assert running.code == 0
        events = [json.loads(payload) for payload in listener.payloads("edge-agent/n/door/events")]
        frames = [json.loads(payload) for payload in listener.payloads("edge-agent/n/door/detections")]
    return Agreement(events, {each["frame"]["sequence"]: each["detections"] for each in frames}, info)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Agreement:
    folder = tmp_path_factory.mktemp("onnxruntime")
    kernel = FakeKernel(folder)
    room = Room()
    kernel.plug(FakeCamera(formats={"GREY": [SIZE]}, scene=room))
    with Broker(folder) as broker:
        return watch(broker, Running(folder, broker, kernel, onnx(folder / "m.onnx"), "onnxruntime"), room, "cpu")


def alike(found: List[Dict[str, Any]], wanted: List[Dict[str, Any]]) -> bool:
    """The same faces in the same places."""
    if len(found) != len(wanted):
        return False
    for one, other in zip(*(sorted(each, key=lambda face: face["box"]["left"]) for each in (found, wanted))):
        off = max(abs(one["box"][side] - other["box"][side]) for side in ("left", "top", "right", "bottom"))
        if off > BOX_LIMIT or abs(one["score"] - other["score"]) > SCORE_LIMIT * other["score"]:
            return False
    return True


MMAP_ONLY = (abi.MEMORY_MMAP,)
BOTH = (abi.MEMORY_MMAP, abi.MEMORY_USERPTR)


@pytest.mark.parametrize(
    ("version", "mailbox", "model", "call", "precision", "io_modes", "mode"),
    [
        ("8.2", "nano", uff, "execute_async", "fp16", BOTH, "cpu"),
        ("8.2", "xavier-nx", onnx, "execute_async_v2", "int8", MMAP_ONLY, "registered"),
        ("8.6", "agx-xavier", uff, "execute_async", "fp16", BOTH, "userptr"),
        ("10.3", "orin", onnx, "execute_async_v3", "int8", BOTH, "userptr"),
        ("11.4", "thor", onnx, "execute_async_v3", "fp16", MMAP_ONLY, "registered"),
    ],
)
def test_every_generation_publishes_what_onnxruntime_publishes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: Agreement,
    version: str,
    mailbox: str,
    model: Any,
    call: str,
    precision: str,
    io_modes: Tuple[int, ...],
    mode: str,
) -> None:
    fake = FakeBoard(tmp_path, version, mailbox)
    fake.plug_in(monkeypatch)
    kernel = FakeKernel(tmp_path, fake.cuda.pages)
    room = Room()
    kernel.plug(FakeCamera(formats={"GREY": [SIZE]}, scene=room, io_modes=io_modes))
    with FakeDriverLibrary(fake.cuda) as library, Broker(tmp_path) as broker:
        kernel.locked = library.locked
        cache = calibration(tmp_path / "calibration.txt", calibrated()) if precision == "int8" else None
        settings = {} if cache is None else {"MODEL__CALIBRATION": cache}
        running = Running(tmp_path, broker, kernel, model(tmp_path / f"m.{model.__name__}"), "tensorrt", settings)
        measured = watch(broker, running, room, mode)
    assert (measured.info["engine"]["backend"], measured.info["engine"]["precision"]) == ("tensorrt", precision)
    assert set(fake.trt.calls) == {call}
    launches = [np.frombuffer(launch.arguments, ARGUMENTS)[0] for launch in fake.cuda.launches]
    launched = {int(each["source"]) for each in launches if (each["source_w"], each["source_h"]) == SIZE}
    if mode == "cpu":
        assert len(launched) == 1 and not launched & kernel.addresses, "one copy, to one place"
    else:
        assert launched <= kernel.addresses, "a full frame was copied between camera and kernel"
    assert launched
    fake.assert_clean()
    assert library.registered == {} and kernel.mapped_buffers == 0 and kernel.open_descriptors == 0

    both = sorted(set(measured.detections) & set(expected.detections) & set(FACE))
    assert len(both) >= len(FACE) // 4, "too few frames were inferred by both"
    assert all(expected.detections[sequence] for sequence in both)
    differing = [number for number in both if not alike(measured.detections[number], expected.detections[number])]
    assert not differing, (measured.detections[differing[0]], expected.detections[differing[0]])
    for run in (measured, expected):  # updates are a matter of time
        assert [event["event_type"] for event in run.events if event["event_type"] != "update"] == ["start", "end"]
    assert alike(measured.events[:1], expected.events[:1])


def test_a_camera_that_comes_back_in_another_size_gets_other_buffers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeBoard(tmp_path)
    fake.plug_in(monkeypatch)
    kernel = FakeKernel(tmp_path, fake.cuda.pages)
    camera = FakeCamera(formats={"GREY": [SIZE]}, scene=Room())
    kernel.plug(camera)
    with FakeDriverLibrary(fake.cuda), Broker(tmp_path) as broker, Listener(broker, "edge-agent/#") as listener:

        def inferred_width() -> Any:
            payload = listener.last("edge-agent/n/door/detections")
            return payload and json.loads(payload)["frame"]["width"]

        with Running(tmp_path, broker, kernel, onnx(tmp_path / "m.onnx"), "tensorrt") as running:
            for width, height in (SIZE, (1280, 800), (640, 400)):
                if width != SIZE[0]:
                    kernel.unplug(camera)
                    camera = FakeCamera(formats={"GREY": [(width, height)]}, scene=Room())
                    kernel.plug(camera)
                eventually(lambda width=width: inferred_width() == width, f"frames {width} px wide")
                assert running.agent._sources["door"].mode == "userptr"
    fake.assert_clean()
    assert kernel.open_descriptors == 0


def test_a_gpu_that_fails_while_cameras_run_is_an_ordered_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The camera's driver writes to GPU memory, which may be freed only after the camera has stopped."""
    fake = FakeBoard(tmp_path)
    fake.plug_in(monkeypatch)
    kernel = FakeKernel(tmp_path, fake.cuda.pages)
    kernel.plug(FakeCamera(formats={"GREY": [SIZE]}, scene=Room()))
    with FakeDriverLibrary(fake.cuda), Broker(tmp_path) as broker, Listener(broker, "edge-agent/#") as listener:
        running = Running(tmp_path, broker, kernel, onnx(tmp_path / "m.onnx"), "tensorrt")
        with running:
            eventually(lambda: listener.last("edge-agent/n/door/presence") in (b"ON", b"OFF"), "it infers")
            assert running.agent._sources["door"].mode == "userptr"
            fake.cuda.fail["work"] = "unspecified launch failure"
            eventually(lambda: running.code is not None, "it stops automatically")
        assert running.code == 1
        assert [worker.error for worker in running.agent._capture_workers] == [None], "written into freed memory"
        eventually(lambda: listener.last("edge-agent/n/availability") == b"offline")
    fake.cuda.assert_clean()
    assert kernel.open_descriptors == 0


def test_a_stop_while_the_engine_is_being_built_is_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The camera waits for the GPU, and must not delay the stop."""
    fake = FakeBoard(tmp_path)
    fake.plug_in(monkeypatch)
    building, built = threading.Event(), threading.Event()
    monkeypatch.setattr(fake.trt, "OnnxParser", held(fake.trt.OnnxParser, building, built))
    kernel = FakeKernel(tmp_path, fake.cuda.pages)
    kernel.plug(FakeCamera(formats={"GREY": [SIZE]}, scene=Room()))
    with Broker(tmp_path) as broker, ServiceManager(str(tmp_path / "notify")) as manager:
        running = Running(tmp_path, broker, kernel, onnx(tmp_path / "m.onnx"), "tensorrt", environ=manager.environ)
        with running:
            assert building.wait(20)
            status = "starting: building model m.onnx, which takes minutes"
            eventually(lambda: {"STATUS": status} in manager.datagrams("STATUS"), "systemd is notified")
            assert manager.datagrams("EXTEND_TIMEOUT_USEC")
            assert kernel.open_descriptors == 0, "no camera is opened before the engine is loaded"
            running.stop()
            eventually(lambda: not running.agent._capture_workers[0].alive, "the camera's thread ends")
            assert not running.agent._capture_workers[0].stuck
            built.set()
    fake.assert_clean()


def held(make: Any, entered: threading.Event, go_on: threading.Event) -> Any:
    """`make`, slowed down."""

    def wait(*arguments: Any) -> Any:
        entered.set()
        go_on.wait(20)
        return make(*arguments)

    return wait


def test_frames_that_the_cpu_must_rotate_are_copied_and_that_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fake = FakeBoard(tmp_path)
    fake.plug_in(monkeypatch)
    kernel = FakeKernel(tmp_path, fake.cuda.pages)
    kernel.plug(FakeCamera(formats={"GREY": [SIZE]}, scene=Room()))
    with Broker(tmp_path) as broker, Listener(broker, "edge-agent/#") as listener:
        turned = {"CAMERAS__DOOR__ROTATE": 180}
        with Running(tmp_path, broker, kernel, onnx(tmp_path / "m.onnx"), "tensorrt", settings=turned):
            eventually(lambda: listener.last("edge-agent/n/door/presence") in (b"ON", b"OFF"), "it infers")
            assert info_of(listener)["capture_mode"] == {"door": "cpu"}
    assert "door: the CPU applies rotate, flip and masks, so frames are copied for the GPU" in caplog.text
    fake.assert_clean()
