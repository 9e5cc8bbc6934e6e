"""Checks of software, engine, cameras and broker for `edge-agent check`; each closes what it opens."""

import importlib
import importlib.util
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, Optional, Sequence, Tuple

import numpy as np

from edge_agent.errors import EdgeAgentError, EndOfStream, MissingPackage
from edge_agent.inference.trt.find import JETPACK_4

OK, NOTE, FAIL = "ok", "note", "fail"


@dataclass(frozen=True)
class CheckResult:
    """One line of `edge-agent check`.

    Attributes:
        name: What was checked.
        state: "ok"; "note" for a defect that the settings do not need mended; "fail" for one that they do.
        found: The state found.
        remedy: What to do when the state is not "ok".
    """

    name: str
    state: str
    found: str
    remedy: str = ""


if TYPE_CHECKING:
    from edge_agent.config.settings import Settings
    from edge_agent.core.camera.params import CameraParams
    from edge_agent.core.camera.visibility import VisibilityParams
    from edge_agent.core.frame import Frame, Levels
    from edge_agent.core.ports import Source
    from edge_agent.core.types import Array, Detections

    FaceInView = Callable[[Array, Levels], str]

FIRST_FRAME_S = 8.0
JUDGED_S = 1.0
"""Beyond the time that proves darkness or a cover."""
SMALL_FACE = 0.1
"""Share of the height below which faces are often missed."""
GOLDEN_FACE = (86.0, 24.0, 141.0, 96.0)
"""The face in assets/golden.pgm: left, top, right, bottom, px."""
GOLDEN_OVERLAP, GOLDEN_MOST = 0.35, 3
PACKAGES: Tuple[Tuple[str, str, str], ...] = (
    ("numpy", "arrays", "pip install numpy"),
    ("paho.mqtt", "MQTT", "pip install paho-mqtt"),
    ("pydantic_settings", "settings", "pip install pydantic-settings"),
    ("onnxruntime", "inference on the CPU", "pip install onnxruntime"),
    ("onnx", "TensorRT engines, converting, calibrating", "pip install 'edge-agent[convert]'"),
    ("cv2", "image files, fast resizing, crops", "pip install opencv-python-headless"),
    ("av", "video files, RTSP, MJPEG over HTTP", "pip install av"),
    ("tensorrt", "inference on an NVIDIA GPU", "comes with JetPack; on a PC: pip install tensorrt"),
    ("pycuda", "zero-copy frames on an NVIDIA GPU", "pip install pycuda; it compiles with CUDA"),
    ("systemd", "structured journal fields", "sudo apt-get install python3-systemd"),
)
NEEDED = ("numpy", "paho.mqtt", "pydantic_settings")
IN_A_WORKER = ("tensorrt", "pycuda")
"""Packages that run in a worker process on JetPack 4, whose TensorRT belongs to another Python."""


def software(jetpack_4: Path = JETPACK_4) -> Iterator[CheckResult]:
    """Python's version, and which packages are installed."""
    yield CheckResult("python", OK, f"{sys.version.split()[0]} at {sys.executable}")
    for name, purpose, remedy in PACKAGES:
        spec = importlib.util.find_spec(name.split(".")[0])
        # A folder of that name, such as this repository's `systemd`, is a namespace package without an origin.
        if spec is None or spec.origin is None:
            if name in IN_A_WORKER and jetpack_4.exists():
                yield CheckResult(name, OK, f"not needed: on JetPack 4, a worker of {jetpack_4} runs TensorRT; see gpu")
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
    return CheckResult("jetson-utils", OK, "NVIDIA's extension module is installed (csi: and jetson: sources)")


def engine(settings: "Settings") -> Iterator[CheckResult]:
    """Whether the model loads, runs, and finds the face in the golden image."""
    from edge_agent.app.factories import engine_of
    from edge_agent.core.detection.detector import FaceDetector
    from edge_agent.core.frame import Image
    from edge_agent.inference.preprocess import golden_image

    opened = engine_of(settings.model, os.environ, lambda line: print(f"      {line}", file=sys.stderr, flush=True))
    try:
        image = Image(np.full((480, 640), 128, np.uint8))
        opened.infer(image)
        started = time.perf_counter()
        opened.infer(image)
        took_ms = 1000 * (time.perf_counter() - started)
        found = FaceDetector(opened, settings.detection).detect(golden_image())
    finally:
        opened.close()
    info = opened.info
    yield CheckResult("engine", OK, f"{info.model} on {info.backend}, {info.precision}, {took_ms:.1f} ms for 640x480")
    if info.backend == "onnxruntime" and info.precision == "fp32" and settings.model.precision == "auto":
        text = "not in use: calibrate it on your own images; it is used when it finds the same faces faster on this CPU"
        yield CheckResult("int8", NOTE, text, "edge-agent model calibrate --camera NAME --env-file FILE")
    if info.backend == "scripted":
        yield CheckResult(
            "golden answer", NOTE, "the scripted engine computes no network", "set EDGE_AGENT_MODEL__MODEL"
        )
    else:
        yield golden(found, own_file="/" in settings.model.model or "." in settings.model.model)


def golden(found: "Detections", own_file: bool) -> CheckResult:
    """Whether the known face is among the detections in the golden image."""
    best = max((_overlap(box) for box in found.xyxy.tolist()), default=0.0)
    if best >= GOLDEN_OVERLAP and len(found.xyxy) <= GOLDEN_MOST:
        score = float(found.confidence.max())
        return CheckResult("golden answer", OK, f"finds the face in the golden image, score {score:.2f}")
    remedy = (
        "unset EDGE_AGENT_DETECTION__PRE_CLUSTER_THRESHOLD if it was changed; fetch the model again; update drivers"
    )
    text = f"detects {len(found.xyxy)} faces in the golden image, expected only the one that it shows"
    # Only a note for a user's own model: it may be trained for other images.
    return CheckResult("golden answer", NOTE if own_file else FAIL, text, remedy)


def _overlap(box: Sequence[float]) -> float:
    """Intersection over union with the golden image's face; left, top, right, bottom, px."""
    wide = max(0.0, min(box[2], GOLDEN_FACE[2]) - max(box[0], GOLDEN_FACE[0]))
    tall = max(0.0, min(box[3], GOLDEN_FACE[3]) - max(box[1], GOLDEN_FACE[1]))
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, GOLDEN_FACE))
    return wide * tall / (areas - wide * tall) if areas > 0 else 0.0


def cameras(settings: "Settings", service_pid: str = "") -> Iterator[CheckResult]:
    """Whether each camera opens and delivers a frame; one in use by the service's own process is only a note."""
    if not settings.cameras:
        yield CheckResult("cameras", NOTE, "none is set", "set EDGE_AGENT_CAMERAS__<NAME>__URI, e.g. v4l2:/dev/video0")
    for name, params in settings.cameras.items():
        result = _camera(name, params, settings.illumination, partial(_face_in_view, settings, params))
        if service_pid and f"(pid {service_pid})" in result.remedy:
            remedy = "systemctl status shows what it sees; stop the service to test the camera"
            result = CheckResult(result.name, NOTE, f"{result.found}: the running service uses it", remedy)
        yield result


def _face_in_view(settings: "Settings", params: "CameraParams", pixels: "Array", levels: "Levels") -> str:
    """The tallest face of a frame as a share of the height that the detector sees; empty without an engine."""
    from edge_agent.app.factories import engine_of
    from edge_agent.core.camera.transform import CameraTransform
    from edge_agent.core.detection.detector import FaceDetector
    from edge_agent.core.frame import Frame
    from edge_agent.core.types import WEAK

    transform = CameraTransform(params)
    region = transform.region(transform.upright(Frame(pixels, 0, 0.0, levels)))[0]
    try:
        engine = engine_of(settings.model, os.environ, lambda line: None)
    except EdgeAgentError:  # the check of the engine has reported it
        return ""
    try:
        found = FaceDetector(engine, settings.detection).detect(region)
    finally:
        engine.close()
    heights = found.xyxy[:, 3] - found.xyxy[:, 1]
    if found.evidence is not None:
        heights = heights[found.evidence != WEAK]
    if not len(heights):
        return ", no face in view"
    share = float(heights.max()) / region.pixels.shape[0]
    small = f": under {SMALL_FACE:.0%} faces are often missed" if share < SMALL_FACE else ""
    return f", face in view {share:.0%} of the height{small}"


def _camera(
    name: str, params: "CameraParams", visibility: "VisibilityParams", face_in_view: "FaceInView"
) -> CheckResult:
    from edge_agent.app.factories import source_of

    try:
        source = source_of(params)
        source.open()
    except EdgeAgentError as error:
        return CheckResult(f"camera {name}", FAIL, error.message, error.hint)
    try:
        deadline = time.monotonic() + FIRST_FRAME_S
        while time.monotonic() < deadline:
            frame = source.read(0.5)
            if frame is not None and not frame.damaged:
                return _seen(name, source, frame, params, visibility, face_in_view)
        return CheckResult(f"camera {name}", FAIL, f"{source.uri}: no frame in {FIRST_FRAME_S:g} s", "is it in use?")
    except EdgeAgentError as error:
        return CheckResult(f"camera {name}", FAIL, error.message, error.hint)
    finally:
        source.close()


def _seen(
    name: str,
    source: "Source",
    first: "Frame",
    params: "CameraParams",
    visibility: "VisibilityParams",
    face_in_view: "FaceInView",
) -> CheckResult:
    """What the judge of visibility says to the frames of the next seconds, with their figures."""
    from edge_agent.core.camera.signal_noise import noise_and_contrast
    from edge_agent.core.camera.visibility import VisibilityMonitor
    from edge_agent.core.presence.crops import laplacian_variance
    from edge_agent.core.types import Sight

    monitor = VisibilityMonitor(visibility, source.kind, params.dark_means)
    shape, dtype, started = first.pixels.shape, first.pixels.dtype, time.monotonic()
    frame: Optional[Frame] = first
    frames = damaged = 0
    figures, sight, faint = "", Sight.STARTING, False
    last: Optional[Tuple[Array, Levels]] = None
    seconds = 0.0
    while seconds < visibility.dark_after_s + JUDGED_S:
        if frame is not None:
            with frame:
                frames += 1
                damaged += frame.damaged
                if not frame.damaged:
                    verdict = monitor.observe(frame.pixels, frame.levels, frame.t)
                    sight, faint = verdict.sight, verdict.faint
                    plane = frame.pixels if frame.pixels.ndim == 2 else frame.pixels[:, :, 1]
                    if verdict.keep:
                        last = frame.pixels.copy(), frame.levels
                    if verdict.keep or not figures:
                        gray = frame.levels.to_gray8(plane)
                        noise, _ = noise_and_contrast(plane, frame.levels)
                        figures = f"mean level {gray.mean():.0f}, noise {noise:.1f}, sharpness "
                        figures += f"{laplacian_variance(gray):.0f}"
        try:
            frame = source.read(0.25)
        except EndOfStream:
            break
        seconds = time.monotonic() - started
    rate = f", {frames / seconds:.1f} frames per second" if seconds > 1.0 else ""
    strobe = ", strobed emitter" if monitor.strobed else ""
    found = f"{source.uri}: {shape[1]}x{shape[0]}, {dtype}{rate}, {figures}{strobe}"
    if 2 * damaged > frames:
        return CheckResult(
            f"camera {name}", FAIL, f"{found}; {damaged} of {frames} frames are damaged", "see its network"
        )
    if not sight.can_see and seconds > 1.0:
        remedy = "presence is unknown meanwhile: look for a cap or an obstacle, light, the emitter and the exposure"
        return CheckResult(f"camera {name}", FAIL, f"{found}; it cannot see: {sight.value}", remedy)
    if faint:
        remedy = "more light, longer exposure or an emitter; faces may be missed, so presence does not turn OFF"
        return CheckResult(f"camera {name}", NOTE, f"{found}; too noisy to find every face", remedy)
    return CheckResult(f"camera {name}", OK, found + (face_in_view(*last) if last is not None else ""))


def broker(settings: "Settings") -> Iterator[CheckResult]:
    """Whether the broker accepts a connection with the agent's credentials."""
    from edge_agent.app.factories import probe_client_of

    where = f"{settings.mqtt.host}:{settings.mqtt.port}"
    client = probe_client_of(settings, os.environ)
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
