"""The single checks of `edge-agent check`. Each yields findings and leaves nothing open behind it."""

import importlib
import importlib.util
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Sequence, Tuple

import numpy as np

from edge_agent.errors import EdgeAgentError, MissingPackage
from edge_agent.inference.trt.find import JETPACK_4

OK, NOTE, FAIL = "ok", "note", "fail"


@dataclass(frozen=True)
class CheckResult:
    """One line of `edge-agent check`.

    Attributes:
        name: Of the thing.
        state: "ok"; "note" for what is not there but not needed either; "fail" for what the settings need.
        found: What is there, or what is wrong.
        remedy: What to do, when it is not "ok".
    """

    name: str
    state: str
    found: str
    remedy: str = ""


if TYPE_CHECKING:
    from edge_agent.config.settings import Settings
    from edge_agent.core.camera.params import CameraParams
    from edge_agent.core.types import Detections

FIRST_FRAME_S = 8.0
GOLDEN_FACE = (86.0, 24.0, 141.0, 96.0)
"""Where assets/golden.pgm shows one: left, top, right, bottom, px."""
GOLDEN_OVERLAP, GOLDEN_MOST = 0.35, 3
PACKAGES: Tuple[Tuple[str, str, str], ...] = (
    ("numpy", "arrays", "pip install numpy"),
    ("paho.mqtt", "MQTT", "pip install paho-mqtt"),
    ("pydantic_settings", "settings", "pip install pydantic-settings"),
    ("onnxruntime", "inference on the CPU", "pip install onnxruntime"),
    ("onnx", "TensorRT engines, converting, calibrating", "pip install 'edge-agent[convert]'"),
    ("cv2", "picture files, fast resizing, crops", "pip install opencv-python-headless"),
    ("av", "video files, RTSP, MJPEG over HTTP", "pip install av"),
    ("tensorrt", "inference on an NVIDIA GPU", "comes with JetPack; on a PC: pip install tensorrt"),
    ("pycuda", "zero-copy frames on an NVIDIA GPU", "pip install pycuda; it compiles with CUDA"),
    ("systemd", "structured journal fields", "sudo apt-get install python3-systemd"),
)
NEEDED = ("numpy", "paho.mqtt", "pydantic_settings")
IN_A_WORKER = ("tensorrt", "pycuda")
"""What the agent's own Python lacks on JetPack 4, whose TensorRT is another interpreter's."""


def software(jetpack_4: Path = JETPACK_4) -> Iterator[CheckResult]:
    """Python and packages."""
    yield CheckResult("python", OK, f"{sys.version.split()[0]} at {sys.executable}")
    for name, purpose, remedy in PACKAGES:
        spec = importlib.util.find_spec(name.split(".")[0])
        # Any folder of that name, such as this repository's `systemd`, is a package without an origin.
        if spec is None or spec.origin is None:
            if name in IN_A_WORKER and jetpack_4.exists():
                yield CheckResult(name, OK, f"not here: on JetPack 4 a worker of {jetpack_4} runs TensorRT; see gpu")
                continue
            yield CheckResult(name, FAIL if name in NEEDED else NOTE, f"not installed ({purpose})", remedy)
            continue
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            yield CheckResult(name, FAIL, f"installed but cannot be loaded: {error}", remedy)
            continue
        yield CheckResult(name, OK, f"{getattr(module, '__version__', 'there')} ({purpose})")
    yield _jetson_utils()


def _jetson_utils() -> CheckResult:
    from edge_agent.capture.jetson.module import is_foreign, load_jetson_utils

    try:
        load_jetson_utils()
    except MissingPackage as error:
        return CheckResult("jetson-utils", FAIL if is_foreign() else NOTE, error.message, error.hint)
    return CheckResult("jetson-utils", OK, "NVIDIA's extension module is there (csi: and jetson: sources)")


def engine(settings: "Settings") -> Iterator[CheckResult]:
    """The model is there, loads, answers, and finds the face in a picture of one."""
    from edge_agent.core.detection.detector import FaceDetector
    from edge_agent.core.frame import Image
    from edge_agent.inference import open_engine
    from edge_agent.inference.preprocess import golden_image
    from edge_agent.models.registry import models_dir

    directory = models_dir(settings.model.models_dir, os.environ)
    opened = open_engine(settings.model, directory, lambda line: print(f"      {line}", file=sys.stderr, flush=True))
    try:
        picture = Image(np.full((480, 640), 128, np.uint8))
        opened.infer(picture)
        started = time.perf_counter()
        opened.infer(picture)
        took_ms = 1000 * (time.perf_counter() - started)
        found = FaceDetector(opened, settings.detection).detect(golden_image())
    finally:
        opened.close()
    info = opened.info
    yield CheckResult("engine", OK, f"{info.model} on {info.backend}, {info.precision}, {took_ms:.1f} ms for 640x480")
    if info.backend == "onnxruntime" and info.precision == "fp32" and settings.model.precision == "auto":
        words = "not in use: it must first show, on pictures of your own, the same faces in less time on this CPU"
        yield CheckResult("int8", NOTE, words, "edge-agent model calibrate --camera NAME --env-file FILE")
    if info.backend == "scripted":
        yield CheckResult(
            "golden answer", NOTE, "the scripted engine computes no network", "set EDGE_AGENT_MODEL__MODEL"
        )
    else:
        yield golden(found, own_file="/" in settings.model.model or "." in settings.model.model)


def golden(found: "Detections", own_file: bool) -> CheckResult:
    """Whether the known face is among what was found in the golden picture."""
    best = max((_overlap(box) for box in found.xyxy.tolist()), default=0.0)
    if best >= GOLDEN_OVERLAP and len(found.xyxy) <= GOLDEN_MOST:
        score = float(found.confidence.max())
        return CheckResult("golden answer", OK, f"finds the face in the golden picture, score {score:.2f}")
    remedy = (
        "unset EDGE_AGENT_DETECTION__PRE_CLUSTER_THRESHOLD if it was changed; fetch the model again; update drivers"
    )
    words = f"takes {len(found.xyxy)} places of the golden picture for faces, and not just the one that is there"
    # What a model of the user's own was made for, nobody knows here.
    return CheckResult("golden answer", NOTE if own_file else FAIL, words, remedy)


def _overlap(box: Sequence[float]) -> float:
    """Intersection over union with the golden picture's face; left, top, right, bottom, px."""
    wide = max(0.0, min(box[2], GOLDEN_FACE[2]) - max(box[0], GOLDEN_FACE[0]))
    tall = max(0.0, min(box[3], GOLDEN_FACE[3]) - max(box[1], GOLDEN_FACE[1]))
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, GOLDEN_FACE))
    return wide * tall / (areas - wide * tall) if areas > 0 else 0.0


def cameras(settings: "Settings", service_pid: str = "") -> Iterator[CheckResult]:
    """Each camera opens and delivers a frame, or the service's process has it, which is no fault."""
    if not settings.cameras:
        yield CheckResult("cameras", NOTE, "none is set", "set EDGE_AGENT_CAMERAS__<NAME>__URI, e.g. v4l2:/dev/video0")
    for name, params in settings.cameras.items():
        finding = _camera(name, params)
        if service_pid and f"(pid {service_pid})" in finding.remedy:
            remedy = "systemctl status says what it sees; stop the service to have the camera tried"
            finding = CheckResult(finding.name, NOTE, f"{finding.found}: the running service has it", remedy)
        yield finding


def _camera(name: str, params: "CameraParams") -> CheckResult:
    from edge_agent.app.factories import source_options
    from edge_agent.capture import open_source

    try:
        source = open_source(params.uri, source_options(params))
        source.open()
    except EdgeAgentError as error:
        return CheckResult(f"camera {name}", FAIL, error.message, error.hint)
    try:
        deadline = time.monotonic() + FIRST_FRAME_S
        while time.monotonic() < deadline:
            frame = source.read(0.5)
            if frame is not None:
                with frame:
                    shape, dtype = frame.pixels.shape, frame.pixels.dtype
                return CheckResult(f"camera {name}", OK, f"{source.uri}: {shape[1]}x{shape[0]}, {dtype}")
        return CheckResult(f"camera {name}", FAIL, f"{source.uri}: no frame in {FIRST_FRAME_S:g} s", "is it in use?")
    except EdgeAgentError as error:
        return CheckResult(f"camera {name}", FAIL, error.message, error.hint)
    finally:
        source.close()


def broker(settings: "Settings") -> Iterator[CheckResult]:
    """The broker takes a connection with these credentials."""
    from edge_agent.core.protocol.messages import OFFLINE, Message
    from edge_agent.core.protocol.topics import Topics
    from edge_agent.mqtt.client import MqttClient
    from edge_agent.mqtt.tls import with_credential

    where = f"{settings.mqtt.host}:{settings.mqtt.port}"
    # Not retained, and never sent after an orderly goodbye; but the ACL is asked for the topic that the agent needs.
    will = Message(Topics(settings.mqtt.base, settings.node).availability, OFFLINE)
    login = with_credential(settings.mqtt, os.environ)
    client = MqttClient(login, f"edge-agent-check-{os.getpid()}", will, lambda notice: None)
    client.start()
    try:
        deadline = time.monotonic() + settings.mqtt.connect_timeout_s + 1.0
        while time.monotonic() < deadline and not client.status().connected and not client.status().fault:
            time.sleep(0.02)
        status = client.status()
    finally:
        client.close(1.0)
    if status.connected:
        yield CheckResult("broker", OK, f"{where}: MQTT {status.protocol}")
    else:
        yield CheckResult(
            "broker",
            FAIL,
            status.last_fault or f"{where}: no answer",
            "EDGE_AGENT_MQTT__HOST and __PORT name the broker; to have one here: sudo apt-get install mosquitto. "
            "Until it answers the agent keeps trying, and keeps its events",
        )
