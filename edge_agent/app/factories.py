"""Constructs adapters (sources, engines, MQTT clients, outbox files) and parameter objects from the settings.

The command line's modules construct adapters only through these functions; the agent itself adds its own wiring.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Sequence

from edge_agent.capture import SourceOptions, open_source
from edge_agent.config.settings import Settings
from edge_agent.config.variables import name_of
from edge_agent.core.camera.auto_exposure import ExposureParams
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.transform import needs_cpu
from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.ports import BufferPool, Clock, Engine, Source
from edge_agent.core.presence.pipeline import PipelineParams
from edge_agent.core.protocol.commands import CommandRules
from edge_agent.core.protocol.home_assistant import AgentDescription, CameraDescription
from edge_agent.errors import ConfigError, InputError, ModelError
from edge_agent.inference import EngineParams, Report, open_engine
from edge_agent.models.registry import card_of, models_dir
from edge_agent.mqtt.params import MqttParams
from edge_agent.outbox.params import OutboxParams

if TYPE_CHECKING:
    from edge_agent.inference.trt.backend import TensorRtBackend
    from edge_agent.inference.trt.engine_loader import BuildOptions, OpenedEngine
    from edge_agent.inference.trt.network import Network
    from edge_agent.mqtt.client import MqttClient
    from edge_agent.mqtt.subscriber import Subscriber
    from edge_agent.outbox.database import FileLock
    from edge_agent.outbox.retention import RetentionPolicy
    from edge_agent.outbox.store import SqliteStore

log = logging.getLogger(__name__)


def source_options(params: CameraParams, pool: Optional[BufferPool] = None) -> SourceOptions:
    """The options of one camera's source.

    Args:
        params: The camera's settings.
        pool: Buffers that the network reads in place; not used where the CPU must rotate or mask the frames.
    """
    return SourceOptions(
        params.width,
        params.height,
        params.fps,
        params.pixel_format,
        params.color,
        params.controls,
        params.stall_after_s,
        ExposureParams(params.exposure_target, params.exposure_max, params.gain_max) if params.auto_exposure else None,
        None if needs_cpu(params) else pool,
    )


def source_of(params: CameraParams, pool: Optional[BufferPool] = None) -> Source:
    """One camera's source, not yet opened.

    Raises:
        InputError: The URI names nothing that can be opened.
        MissingPackage: The source needs a package that is not installed.
    """
    return open_source(params.uri, source_options(params, pool))


def sources_of(settings: Settings, pool: Optional[BufferPool] = None) -> Dict[str, Source]:
    """Every camera's source by name, not yet opened.

    Args:
        settings: Checked settings.
        pool: Buffers that the network reads in place.

    Raises:
        ConfigError: A URI names nothing that can be opened; one fault per camera.
        MissingPackage: A kind of source needs a package that is not installed.
    """
    sources: Dict[str, Source] = {}
    faults = []
    for name, params in settings.cameras.items():
        try:
            sources[name] = source_of(params, pool)
        except InputError as error:
            faults.append(f"{name_of(('cameras', name, 'uri'))}: {error}")
    if faults:
        raise ConfigError(faults)
    return sources


def require_known_model(settings: Settings) -> None:
    """Refuse an unknown model name. A model given as a file is checked when it is opened.

    Raises:
        ConfigError: The name is not in the registry; the fault names the variable.
    """
    name = settings.model.model
    if settings.model.backend == "scripted" or "/" in name or "." in name:
        return
    try:
        card_of(name)
    except ModelError as error:
        raise ConfigError([f"{name_of(('model', 'model'))}: {error}"]) from None


def pipeline_params_of(settings: Settings) -> PipelineParams:
    """The settings that all pipelines share; a subscriber of detections gets every frame, so idling is off for it."""
    idle = settings.idle if settings.mqtt.detections == "off" else replace(settings.idle, fps=0.0)
    return PipelineParams(settings.tracker, settings.presence, settings.crops, idle)


def presence_parameters_of(settings: Settings, threshold: Optional[float]) -> Dict[str, Dict[str, Any]]:
    """The parameters of each camera's presence, published as its attributes; `threshold` is the one in force."""
    presence = settings.presence
    return {
        name: {
            "delay_on_s": presence.delay_on_s if params.delay_on_s is None else params.delay_on_s,
            "delay_off_s": presence.delay_off_s if params.delay_off_s is None else params.delay_off_s,
            "min_face_px": params.min_face_px,
            "min_score": params.min_score,
            "threshold": threshold,
        }
        for name, params in settings.cameras.items()
    }


def command_rules_of(settings: Settings) -> CommandRules:
    """The limits that the settings put on commands."""
    crops = settings.crops
    return CommandRules(
        tuple(settings.cameras), settings.commands, crops.enabled, crops.enabled and crops.privacy == "off"
    )


def agent_description_of(settings: Settings, version: str, board: str, temperature: bool) -> AgentDescription:
    """The facts that Home Assistant's discovery messages are made from."""
    return AgentDescription(
        version,
        board,
        tuple(CameraDescription(name, params.label, tuple(params.zones)) for name, params in settings.cameras.items()),
        settings.commands,
        crops=settings.crops.enabled,
        image=settings.crops.enabled and settings.crops.image,
        temperature=temperature,
    )


def engine_of(params: EngineParams, environ: Mapping[str, str], report: Report = log.info) -> Engine:
    """An open engine; use and close it in the calling thread.

    Args:
        params: Its settings; `models_dir` unset means the default folder.
        environ: For the default folder of models.
        report: Takes lines of progress while an engine is built.

    Raises:
        ModelError: The model is missing or damaged.
        EngineError: The backend cannot run it.
        MissingPackage: The backend is not installed.
    """
    return open_engine(params, models_dir(params.models_dir, environ), report)


# Below, imports are local: each command loads only the adapters that it uses.


def onnx_engine_of(path: Path, contract: ModelContract) -> Engine:
    """An open engine of ONNX Runtime with one thread for an .onnx file."""
    from edge_agent.inference.ort import OrtEngine

    return OrtEngine(path, contract)


def tensorrt_engine_of(
    network: "Network", options: "BuildOptions", directory: Path, report: Report, python: Optional[str]
) -> "OpenedEngine":
    """A TensorRT engine from the cache in `directory`, built first where needed; the caller closes it."""
    from edge_agent.inference.trt.engine_loader import open_network

    return open_network(network, options, directory, os.environ, report, python)


def tensorrt_of(params: EngineParams, environ: Mapping[str, str], jetpack_4: Path) -> "TensorRtBackend":
    """TensorRT on this machine's GPU; the caller closes it.

    Raises:
        MissingPackage: TensorRT is not installed.
        EngineError: There is no GPU that answers.
    """
    from edge_agent.inference.trt.find import open_backend

    return open_backend(params.tensorrt_python, environ, jetpack_4)


def probe_client_of(settings: Settings, environ: Mapping[str, str]) -> "MqttClient":
    """An MQTT client, not yet started, that connects as the agent does but ignores every message."""
    from edge_agent.core.protocol.messages import OFFLINE, Message
    from edge_agent.core.protocol.topics import Topics
    from edge_agent.mqtt.client import MqttClient
    from edge_agent.mqtt.tls import with_credential

    # The will is never published after an orderly disconnect, but the broker's access list is asked for its topic.
    will = Message(Topics(settings.mqtt.base, settings.node).availability, OFFLINE)
    credentials = with_credential(settings.mqtt, environ)
    return MqttClient(credentials, f"edge-agent-check-{os.getpid()}", will, lambda event: None)


def subscriber_of(params: MqttParams, filters: Sequence[str]) -> "Subscriber":
    """A subscriber to these topic filters, not yet connected."""
    from edge_agent.mqtt.subscriber import Subscriber

    return Subscriber(params, filters)


def outbox_store(path: Path, writable: bool = False) -> "SqliteStore":
    """The messages in an outbox file; the caller closes it. Writing needs `outbox_lock`.

    Raises:
        InputError: There is no such file, or it cannot be read.
        sqlite3.Error: The file is damaged.
    """
    from edge_agent.host.clock import SystemClock
    from edge_agent.host.identity import kernel_boot
    from edge_agent.outbox.database import open_for_reading, open_for_writing
    from edge_agent.outbox.store import SqliteStore

    db = open_for_writing(path, "full", check=False) if writable else open_for_reading(path)
    return SqliteStore(db, SystemClock(), kernel_boot(), ())


def outbox_lock(folder: Path) -> "FileLock":
    """The lock, not yet taken, of the process that may write the outbox in `folder`."""
    from edge_agent.outbox.database import LOCK_NAME, FileLock

    return FileLock(folder / LOCK_NAME)


def retention_of(params: OutboxParams) -> "RetentionPolicy":
    """The rule that discards messages and announces the loss."""
    from edge_agent.outbox.retention import RetentionPolicy

    return RetentionPolicy(params)


def system_clock() -> Clock:
    """The machine's clock."""
    from edge_agent.host.clock import SystemClock

    return SystemClock()
