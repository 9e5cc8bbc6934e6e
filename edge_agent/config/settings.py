"""Loads the settings from the command line, the environment and the env file, in this order of precedence.

The parameters are declared beside their algorithms; this module combines, names and validates them. Only this module
imports pydantic. Importing it reads nothing.
"""

import hashlib
import json
import socket
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Literal, Mapping, NamedTuple, Optional, Tuple, Type

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from edge_agent.config import env_file as env_files
from edge_agent.config.variables import (
    ANY_KEY,
    PREFIX,
    Catalogue,
    Given,
    Keys,
    Variable,
    check_key,
    cross_field_fault,
    declared_variables,
    name_of,
    shown,
    validation_faults,
    value_fault,
)
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.transform import check_geometry
from edge_agent.core.camera.visibility import VisibilityParams
from edge_agent.core.detection.detector import DetectionParams
from edge_agent.core.params import param
from edge_agent.core.presence.crops import CropParams
from edge_agent.core.presence.idle import IdleParams
from edge_agent.core.presence.state_machine import PresenceParams
from edge_agent.core.presence.tracker import TrackerParams
from edge_agent.core.protocol.commands import CommandParams
from edge_agent.core.protocol.health import HealthParams
from edge_agent.core.protocol.home_assistant import HomeAssistantParams
from edge_agent.core.protocol.prometheus import MetricsParams
from edge_agent.core.protocol.topics import ID, Topics, slug
from edge_agent.core.recovery import RecoveryParams
from edge_agent.errors import ConfigError
from edge_agent.host.identity import instance_of
from edge_agent.inference import EngineParams
from edge_agent.mqtt.params import MqttParams
from edge_agent.outbox.params import OutboxParams

ENV_FILE = PREFIX + "ENV_FILE"


def default_node(env_file: Optional[Path] = None) -> str:
    """The host's name as an id for topics, followed by the instance's name for an env file of the template unit."""
    host, instance = slug(socket.gethostname()), instance_of(env_file)
    return f"{host[:31]}-{slug(instance)[:31]}" if instance else host


_UNSECTIONED: Dict[str, Any] = {
    "node": param(
        factory=default_node,
        description="Name of this agent in MQTT topics, after the base",
        pattern=f"^{ID.pattern}$",
        restart=True,
    ),
    "state_dir": param(
        None,
        "Folder for state that survives a restart (default: the service's state directory, else the user's)",
        restart=True,
    ),
    "log_level": param("info", "Lowest level that is logged; debug also logs every repetition of a fault"),
}


class Settings(BaseSettings):
    """All settings. Built by `load`; it does not read the process's environment itself."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    node: str = Field(default_factory=default_node, pattern=_UNSECTIONED["node"].metadata["pattern"])
    state_dir: Optional[str] = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    cameras: Dict[str, CameraParams] = {}
    model: EngineParams = EngineParams()
    detection: DetectionParams = DetectionParams()
    idle: IdleParams = IdleParams()
    tracker: TrackerParams = TrackerParams()
    presence: PresenceParams = PresenceParams()
    illumination: VisibilityParams = VisibilityParams()
    crops: CropParams = CropParams()
    mqtt: MqttParams = MqttParams()
    outbox: OutboxParams = OutboxParams()
    commands: CommandParams = CommandParams()
    home_assistant: HomeAssistantParams = HomeAssistantParams()
    health: HealthParams = HealthParams()
    metrics: MetricsParams = MetricsParams()
    recovery: RecoveryParams = RecoveryParams()

    def __init__(self, given: Iterable[Given] = ()) -> None:
        super().__init__(given=tuple(given))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: Type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> Tuple[PydanticBaseSettingsSource, ...]:
        """Only the values from `load`: pydantic-settings' own sources do not record where a value came from."""
        given = init_settings.init_kwargs["given"] if isinstance(init_settings, InitSettingsSource) else ()
        return (_GivenSource(settings_cls, given),)

    def __repr__(self) -> str:
        return f"Settings(node={self.node!r}, cameras={sorted(self.cameras)})"

    __str__ = __repr__


class _GivenSource(PydanticBaseSettingsSource):
    """The user's values as the nested mapping that pydantic validates."""

    def __init__(self, settings_cls: Type[BaseSettings], given: Iterable[Given]) -> None:
        super().__init__(settings_cls)
        self._given = tuple(given)

    def get_field_value(self, field: FieldInfo, field_name: str) -> Tuple[Any, str, bool]:
        """Required by the base class; `__call__` returns all values at once."""
        return self().get(field_name), field_name, False

    def __call__(self) -> Dict[str, Any]:
        tree: Dict[str, Any] = {}
        for entry in sorted(self._given, key=lambda entry: len(entry.path)):
            branch: Any = tree
            for part in entry.path[:-1]:
                branch = branch.setdefault(part, {}) if isinstance(branch, dict) else None
            if isinstance(branch, dict):
                branch[entry.path[-1]] = dict(entry.value) if isinstance(entry.value, dict) else entry.value
        return tree


def _catalogue() -> Catalogue:
    declared: List[Variable] = []
    for name, info in Settings.model_fields.items():
        declared += declared_variables(info.annotation, _UNSECTIONED.get(name, param()), (name,))
    return Catalogue(declared)


CATALOGUE = _catalogue()


class Loaded(NamedTuple):
    """Settings, and the origin of each value by path; a path that is missing has its default."""

    settings: Settings
    origins: Mapping[Keys, str]


def load_settings(
    environ: Mapping[str, str], env_file: Optional[Path] = None, overrides: Optional[Mapping[str, Any]] = None
) -> Settings:
    """`load` without the origins."""
    return load(environ, env_file, overrides).settings


def load(
    environ: Mapping[str, str], env_file: Optional[Path] = None, overrides: Optional[Mapping[str, Any]] = None
) -> Loaded:
    """Read and validate all settings.

    Args:
        environ: The process's environment.
        env_file: From the command line; when None, the file named by `EDGE_AGENT_ENV_FILE`, if any.
        overrides: From the command line: dotted path (`cameras.door.uri`) to text or value.

    Raises:
        ConfigError: All faults, one per line.
    """
    if env_file is None and environ.get(ENV_FILE):
        env_file = Path(environ[ENV_FILE])
    reader = _Reader()
    if env_file is not None:
        reader.add_instance(env_file)
        reader.add_file(env_file)
    reader.add_environment(environ)
    reader.add_overrides(overrides or {})
    given = reader.resolve()
    faults = reader.faults
    settings = None
    try:
        settings = Settings(given.values())
    except ValidationError as error:
        faults += validation_faults(error.errors(), given, CATALOGUE)
    if settings is not None:
        faults += _cross_field_faults(settings, given)
    if faults or settings is None:
        raise ConfigError([" ".join(fault.splitlines()) for fault in faults])
    return Loaded(settings, {path: entry.origin for path, entry in given.items()})


def require_cameras(settings: Settings) -> None:
    """Refuse settings without a camera.

    Raises:
        ConfigError: No camera is set.
    """
    if not settings.cameras:
        raise ConfigError(
            [
                f"{PREFIX}CAMERAS__<CAMERA>__URI: no camera is set; expected at least one, such as v4l2:/dev/video0 "
                "('edge-agent config example' prints a file for --env-file)"
            ]
        )


def values(settings: Settings) -> Dict[Keys, Tuple[Variable, Any]]:
    """Every setting in force, by path with keys filled in, in order of declaration."""
    found = {}
    for variable in CATALOGUE.variables:
        if not variable.member:
            for path, value in _expand(settings, variable.path):
                found[path] = (variable, value)
    return found


def fingerprint(settings: Settings) -> str:
    """SHA-256 (hex) over all settings that are not secret, credentials in URIs left out."""
    public = {
        name_of(path): shown(value) if isinstance(value, str) else value
        for path, (variable, value) in values(settings).items()
        if not variable.secret
    }
    return hashlib.sha256(json.dumps(public, sort_keys=True, default=str).encode()).hexdigest()


def changes(old: Settings, new: Settings) -> Tuple[List[str], List[str]]:
    """Names of the settings that differ: the live ones, and those that need a restart."""
    before, after = values(old), values(new)
    live: List[str] = []
    restart: List[str] = []
    for path in {**before, **after}:
        variable = (before.get(path) or after[path])[0]
        default = (variable, variable.default)
        if before.get(path, default)[1] != after.get(path, default)[1]:
            (restart if variable.reload == "restart" else live).append(name_of(path))
    return live, restart


class _Reader:
    """Collects the values, from the weakest source to the strongest."""

    def __init__(self) -> None:
        self.faults: List[str] = []
        self._found: List[Tuple[int, Keys, str, Any, str]] = []

    def add_instance(self, path: Path) -> None:
        """Instances on one host need different topics, so each gets a node name of its own."""
        if instance_of(path):
            origin = f"instance {instance_of(path)}"
            self._found.append((-1, ("node",), name_of(("node",)), default_node(path), origin))

    def add_file(self, path: Path) -> None:
        for entry in env_files.read(path):
            origin = f"{path}:{entry.line}"
            if entry.name.upper() == ENV_FILE:
                self.faults.append(f"{ENV_FILE}: has no effect inside an env file [{origin}]")
            elif not entry.name.upper().startswith(PREFIX):
                self.faults.append(
                    f"{entry.name}: unknown setting{CATALOGUE.suggestion(_path_of(entry.name))} [{origin}]"
                )
            else:
                self._found.append((0, _path_of(entry.name), entry.name, entry.value, origin))

    def add_environment(self, environ: Mapping[str, str]) -> None:
        names: Dict[Keys, str] = {}
        for name in sorted(environ):
            if not name.upper().startswith(PREFIX) or name.upper() == ENV_FILE:
                continue
            path = _path_of(name)
            other = names.setdefault(path, name)
            if environ[other] != environ[name]:
                self.faults.append(f"{name}: is set twice, also as {other} [environment]")
            self._found.append((1, path, name, environ[name], "environment"))

    def add_overrides(self, overrides: Mapping[str, Any]) -> None:
        for dotted, value in overrides.items():
            path = tuple(dotted.lower().split("."))
            self._found.append((2, path, name_of(path), value, "command line"))

    def resolve(self) -> Dict[Keys, Given]:
        """The values in force by path; a whole mapping replaces its members from weaker sources."""
        cameras = {path[1] for _, path, *_ in self._found if path[0] == "cameras" and CATALOGUE.find(path)}
        given: Dict[Keys, Given] = {}
        for rank, path, name, value, origin in self._found:
            name = name if name.isprintable() else ascii(name)
            try:
                variable = CATALOGUE.resolve(path, cameras)
            except ValueError as error:
                self.faults.append(f"{name}: {error} [{origin}]")
                continue
            try:
                decoded = _keyed(variable.decode(value) if isinstance(value, str) else value)
            except ValueError as error:
                self.faults.append(value_fault(name_of(path), variable, value, str(error), origin))
                continue
            for other in list(given):
                if other[: len(path)] == path and given[other].rank < rank:
                    del given[other]
            given[path] = Given(variable, path, decoded, origin, rank)
        return given


def _path_of(name: str) -> Keys:
    upper = name.upper()
    return tuple((upper[len(PREFIX) :] if upper.startswith(PREFIX) else upper).lower().split("__"))


def _keyed(value: Any) -> Any:
    """A JSON object with its keys in lower case; any other value unchanged."""
    if not isinstance(value, dict):
        return value
    try:
        for key in value:
            check_key(key.lower())
    except ValueError as error:
        raise ValueError(f"cannot be used: {error}") from None
    keyed = {key.lower(): item for key, item in value.items()}
    if len(keyed) < len(value):
        raise ValueError("has a name twice")
    return keyed


def _expand(owner: Any, path: Keys, above: Keys = ()) -> Iterator[Tuple[Keys, Any]]:
    if not path:
        yield above, owner
    elif path[0] == ANY_KEY:
        for key, item in owner.items():
            yield from _expand(item, path[1:], (*above, key))
    elif owner is not None:
        yield from _expand(getattr(owner, path[0]), path[1:], (*above, path[0]))


def _cross_field_faults(settings: Settings, given: Mapping[Keys, Given]) -> Iterator[str]:
    """Faults of settings that are valid alone but contradict each other or are no valid geometry or topic."""
    for camera_id, camera in settings.cameras.items():
        # Each shape is checked alone, so that each fault names its own variable.
        roi: Dict[str, Any] = {"roi": camera.roi}
        seen = {} if _geometry_problem(CameraParams(camera.uri, **roi)) else roi
        shapes: Dict[Keys, Dict[str, Any]] = {("roi",): roi, ("masks",): {"masks": camera.masks, **seen}}
        shapes.update({("zones", zone): {"zones": {zone: points}} for zone, points in camera.zones.items()})
        for field, shape in shapes.items():
            label, _, problem = _geometry_problem(CameraParams(camera.uri, **shape)).partition(": ")
            if problem:
                item = label[label.index("[") :] if "[" in label else ""
                yield cross_field_fault(("cameras", camera_id, *field), problem, given, item)

    mqtt = settings.mqtt
    try:
        Topics(mqtt.base, settings.node)
    except ConfigError as error:
        yield cross_field_fault(("mqtt", "base"), f"{error.faults[0]}; expected {error.hint}", given)
    if set(mqtt.host) & set("/@ "):
        problem = f"is not a host name; expected a name or address alone, the port in {PREFIX}MQTT__PORT"
        yield cross_field_fault(("mqtt", "host"), problem, given)
    if mqtt.retry_min_s > mqtt.retry_max_s:
        problem = f"{mqtt.retry_min_s} is above {PREFIX}MQTT__RETRY_MAX_S; expected at most {mqtt.retry_max_s}"
        yield cross_field_fault(("mqtt", "retry_min_s"), problem, given)
    commands = settings.commands
    if commands.min_threshold > commands.max_threshold:
        problem = f"{commands.min_threshold} is above {PREFIX}COMMANDS__MAX_THRESHOLD; expected at most that"
        yield cross_field_fault(("commands", "min_threshold"), problem, given)
    if mqtt.tls.key_file and not mqtt.tls.cert_file:
        problem = f"is set without {PREFIX}MQTT__TLS__CERT_FILE; expected both or none"
        yield cross_field_fault(("mqtt", "tls", "key_file"), problem, given)
    for name in ("ca_file", "cert_file"):
        # A user who names a certificate expects an encrypted connection.
        if getattr(mqtt.tls, name) and not mqtt.tls.enabled:
            problem = f"is set while TLS is off; expected {PREFIX}MQTT__TLS__ENABLED=true"
            yield cross_field_fault(("mqtt", "tls", name), problem, given)


def _geometry_problem(camera: CameraParams) -> str:
    try:
        check_geometry(camera)
    except ValueError as error:
        return str(error)
    return ""
