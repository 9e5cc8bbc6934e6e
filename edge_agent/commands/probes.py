"""The single checks of `edge-agent check`. Each yields findings and leaves nothing open behind it."""

import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Iterator, Tuple

import numpy as np

from edge_agent.commands.findings import FAIL, NOTE, OK, Finding
from edge_agent.errors import EdgeAgentError, MissingPackage

if TYPE_CHECKING:
    from edge_agent.config.settings import Settings
    from edge_agent.core.camera import CameraParams

FREE_MB = 500
FIRST_FRAME_S = 8.0
PACKAGES: Tuple[Tuple[str, str, str], ...] = (
    ("numpy", "arrays", "pip install edge-agent"),
    ("paho.mqtt", "MQTT", "pip install edge-agent"),
    ("pydantic_settings", "settings", "pip install edge-agent"),
    ("onnxruntime", "inference on the CPU", "pip install 'edge-agent[cpu]'"),
    ("cv2", "picture files, fast resizing, crops", "pip install 'edge-agent[cpu]'"),
    ("av", "video files, RTSP, MJPEG over HTTP", "pip install 'edge-agent[media]'"),
    ("tensorrt", "inference on an NVIDIA GPU", "comes with JetPack; on a PC: pip install 'edge-agent[gpu]'"),
    ("pycuda", "zero-copy frames on an NVIDIA GPU", "pip install 'edge-agent[jetson]' or [gpu]"),
    ("systemd", "structured journal fields", "sudo apt-get install python3-systemd"),
)
NEEDED = ("numpy", "paho.mqtt", "pydantic_settings")


def software() -> Iterator[Finding]:
    """Python and packages."""
    yield Finding("python", OK, f"{sys.version.split()[0]} at {sys.executable}")
    for name, purpose, remedy in PACKAGES:
        if importlib.util.find_spec(name.split(".")[0]) is None:
            yield Finding(name, FAIL if name in NEEDED else NOTE, f"not installed ({purpose})", remedy)
            continue
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            yield Finding(name, FAIL, f"installed but cannot be loaded: {error}", remedy)
            continue
        yield Finding(name, OK, f"{getattr(module, '__version__', 'there')} ({purpose})")
    yield _jetson_utils()


def _jetson_utils() -> Finding:
    from edge_agent.capture.jetson_module import is_foreign, load_jetson_utils

    try:
        load_jetson_utils()
    except MissingPackage as error:
        return Finding("jetson-utils", FAIL if is_foreign() else NOTE, error.message, error.hint)
    return Finding("jetson-utils", OK, "NVIDIA's extension module is there (csi: and jetson: sources)")


def machine(settings: "Settings") -> Iterator[Finding]:
    """State folder, disk, clock, permissions."""
    from edge_agent.host.clock import SystemClock
    from edge_agent.host.paths import state_dir

    folder = state_dir(settings.state_dir, os.environ)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        yield Finding("state folder", OK, str(folder))
        free_mb = shutil.disk_usage(folder).free // 1_000_000
        enough = free_mb >= FREE_MB
        yield Finding("disk", OK if enough else FAIL, f"{free_mb} MB free", "" if enough else "free some space")
    except OSError as error:
        yield Finding(
            "state folder", FAIL, f"{folder}: {error.strerror}", "make it writable, or set EDGE_AGENT_STATE_DIR"
        )
    if SystemClock()().synced:
        yield Finding("clock", OK, "synchronised")
    else:
        yield Finding("clock", NOTE, "not synchronised; events say so", "enable systemd-timesyncd or chrony")


def engine(settings: "Settings") -> Iterator[Finding]:
    """The model is there, loads, and answers."""
    from edge_agent.core.frame import Picture
    from edge_agent.inference import open_engine
    from edge_agent.inference.models import models_dir

    opened = open_engine(settings.model, models_dir(settings.model.models_dir, os.environ))
    try:
        picture = Picture(np.full((480, 640), 128, np.uint8))
        opened.infer(picture)
        started = time.perf_counter()
        opened.infer(picture)
        took_ms = 1000 * (time.perf_counter() - started)
    finally:
        opened.close()
    info = opened.info
    yield Finding("engine", OK, f"{info.model} on {info.backend}, {info.precision}, {took_ms:.1f} ms for 640x480")


def cameras(settings: "Settings") -> Iterator[Finding]:
    """Each camera opens and delivers a frame."""
    if not settings.cameras:
        yield Finding("cameras", NOTE, "none is set", "set EDGE_AGENT_CAMERAS__<NAME>__URI, e.g. v4l2:/dev/video0")
    for name, params in settings.cameras.items():
        yield _camera(name, params)


def _camera(name: str, params: "CameraParams") -> Finding:
    from edge_agent.capture import open_source
    from edge_agent.config.derived import source_options

    try:
        source = open_source(params.uri, source_options(params))
        source.open()
    except EdgeAgentError as error:
        return Finding(f"camera {name}", FAIL, error.message, error.hint)
    try:
        deadline = time.monotonic() + FIRST_FRAME_S
        while time.monotonic() < deadline:
            frame = source.read(0.5)
            if frame is not None:
                with frame:
                    shape, dtype = frame.pixels.shape, frame.pixels.dtype
                return Finding(f"camera {name}", OK, f"{source.uri}: {shape[1]}x{shape[0]}, {dtype}")
        return Finding(f"camera {name}", FAIL, f"{source.uri}: no frame in {FIRST_FRAME_S:g} s", "is it in use?")
    except EdgeAgentError as error:
        return Finding(f"camera {name}", FAIL, error.message, error.hint)
    finally:
        source.close()


def broker(settings: "Settings") -> Iterator[Finding]:
    """The broker takes a connection with these credentials."""
    from edge_agent.core.messages import OFFLINE, Message
    from edge_agent.core.topics import Topics
    from edge_agent.mqtt.client import MqttClient

    where = f"{settings.mqtt.host}:{settings.mqtt.port}"
    # Not retained, and never sent after an orderly goodbye; but the ACL is asked for the topic that the agent needs.
    will = Message(Topics(settings.mqtt.base, settings.node).availability, OFFLINE)
    client = MqttClient(settings.mqtt, f"edge-agent-check-{os.getpid()}", will, lambda notice: None)
    client.start()
    try:
        deadline = time.monotonic() + settings.mqtt.connect_timeout_s + 1.0
        while time.monotonic() < deadline and not client.status().connected and not client.status().fault:
            time.sleep(0.02)
        status = client.status()
    finally:
        client.close(1.0)
    if status.connected:
        yield Finding("broker", OK, f"{where}: MQTT {status.protocol}")
    else:
        yield Finding(
            "broker",
            FAIL,
            status.last_fault or f"{where}: no answer",
            "the agent keeps trying; see EDGE_AGENT_MQTT__*",
        )
