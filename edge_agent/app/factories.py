"""What the parts are given, out of the settings."""

from typing import Any, Dict, Optional

from edge_agent.capture import SourceOptions, open_source
from edge_agent.config.settings import Settings
from edge_agent.config.variables import name_of
from edge_agent.core.camera.auto_exposure import ExposureParams
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.transform import needs_cpu
from edge_agent.core.ports import BufferPool, Source
from edge_agent.core.protocol.commands import CommandRules
from edge_agent.core.protocol.home_assistant import AgentDescription, CameraDescription
from edge_agent.errors import ConfigError, InputError, ModelError
from edge_agent.models.registry import card_of


def source_options(params: CameraParams, pool: Optional[BufferPool] = None) -> SourceOptions:
    """What a source is asked for.

    Args:
        params: Of the camera.
        pool: Where the network reads pictures in place; of no use to a camera whose pictures the CPU must turn or mask.
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


def sources_of(settings: Settings, pool: Optional[BufferPool] = None) -> Dict[str, Source]:
    """Every camera's source, not yet opened.

    Args:
        settings: Checked.
        pool: See `source_options`.

    Raises:
        ConfigError: A URI names nothing that can be opened; one fault per camera.
        MissingPackage: A kind of source needs a package that is not installed.
    """
    sources: Dict[str, Source] = {}
    faults = []
    for name, params in settings.cameras.items():
        try:
            sources[name] = open_source(params.uri, source_options(params, pool))
        except InputError as error:
            faults.append(f"{name_of(('cameras', name, 'uri'))}: {error}")
    if faults:
        raise ConfigError(faults)
    return sources


def require_known_model(settings: Settings) -> None:
    """Refuse the name of a model that nobody knows; whether a file is there is found out when it is opened.

    Raises:
        ConfigError: Naming the variable.
    """
    name = settings.model.model
    if settings.model.backend == "scripted" or "/" in name or "." in name:
        return
    try:
        card_of(name)
    except ModelError as error:
        raise ConfigError([f"{name_of(('model', 'model'))}: {error}"]) from None


def decided_by(settings: Settings, threshold: Optional[float]) -> Dict[str, Dict[str, Any]]:
    """The parameters behind each camera's presence, published beside it; `threshold` is the one in force."""
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


def rules_of(settings: Settings) -> CommandRules:
    """What commands may do."""
    crops = settings.crops
    return CommandRules(
        tuple(settings.cameras), settings.commands, crops.enabled, crops.enabled and crops.privacy == "off"
    )


def site_of(settings: Settings, version: str, board: str, temperature: bool) -> AgentDescription:
    """What discovery has to know."""
    return AgentDescription(
        version,
        board,
        tuple(CameraDescription(name, params.label, tuple(params.zones)) for name, params in settings.cameras.items()),
        settings.commands,
        crops=settings.crops.enabled,
        image=settings.crops.enabled and settings.crops.image,
        temperature=temperature,
    )
