"""Home Assistant's MQTT discovery messages: one device for the agent and one per camera, with their entities.

Keys and values are Home Assistant's. Every component has its own availability, so the same components serve both
styles. Home Assistant ignores unknown keys silently, so a test compares the keys with a list.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, Mapping, Sequence, Tuple

from edge_agent.core.params import param
from edge_agent.core.protocol.commands import CommandParams
from edge_agent.core.protocol.messages import EVENT_SCHEMA, Message, to_json
from edge_agent.core.protocol.topics import ID, CameraTopics, Topics, slug

EXPIRE_AFTER_S = 180
"""Home Assistant shows a diagnostic figure that is older than this as unknown."""

Component = Dict[str, Any]
Published = Dict[str, Dict[str, str]]
"""Retained discovery messages: for each topic the platform of its components by key, or an empty mapping."""

_LIVE_EVENT = f"value_json.schema == '{EVENT_SCHEMA}' and not value_json.delivery.replayed"
_PROBLEM = (
    "{{ 'OFF' if value_json.reason in ('ok', 'disabled') "
    "else 'None' if value_json.reason in ('starting', 'stopped') else 'ON' }}"
)


@dataclass(frozen=True)
class HomeAssistantParams:
    """Home Assistant's MQTT discovery."""

    enabled: bool = param(True, "Publish discovery messages; off: published ones are removed", restart=True)
    prefix: str = param(
        "homeassistant", "First level(s) of discovery topics, as set in Home Assistant", max_length=200, restart=True,
        pattern=r"^[^+#$/\x00][^+#\x00]*$",
    )  # fmt: skip
    status_topic: str = param(
        "homeassistant/status", "Topic on which Home Assistant announces its start", max_length=200, restart=True,
        pattern=r"^[^+#\x00]+$",
    )  # fmt: skip
    style: Literal["device", "components"] = param(
        "device", "One message per device (Home Assistant from 2024.11 on), or one per entity for older versions",
        restart=True,
    )  # fmt: skip


@dataclass(frozen=True)
class CameraDescription:
    camera: str
    label: str = ""
    zones: Tuple[str, ...] = ()


@dataclass(frozen=True)
class AgentDescription:
    """Properties of the agent for discovery.

    Attributes:
        version: Version of the agent.
        board: Model of the device.
        cameras: Cameras, in order.
        commands: Which commands are accepted, and their bounds.
        crops: Whether the settings allow crops, which then have a switch.
        image: Whether the newest crop is published as an image.
        temperature: Whether health messages have the processor's temperature.
    """

    version: str
    board: str
    cameras: Tuple[CameraDescription, ...]
    commands: CommandParams = CommandParams()
    crops: bool = True
    image: bool = False
    temperature: bool = False


@dataclass(frozen=True)
class Device:
    """One device and its entities, by permanent keys."""

    id: str
    about: Mapping[str, Any]
    components: Mapping[str, Component] = field(default_factory=dict)


def decode_published(value: Any) -> Published:
    """Parse the stored record of published messages.

    Raises:
        ValueError: The value has another form.
    """
    if not isinstance(value, dict) or not all(isinstance(components, dict) for components in value.values()):
        raise ValueError("not an object of objects")
    return {topic: {str(k): str(v) for k, v in components.items()} for topic, components in value.items() if topic}


def devices(topics: Topics, site: AgentDescription) -> List[Device]:
    """The devices of the agent and of its cameras, which refer to the agent's."""
    return [_node(topics, site), *(_camera(topics, site, entry) for entry in site.cameras)]


def messages(
    found: Sequence[Device], params: HomeAssistantParams, version: str, before: Mapping[str, Mapping[str, str]]
) -> Tuple[List[Message], Published]:
    """The retained discovery messages, and the record of them.

    Args:
        found: Result of `devices`.
        params: Style and prefix.
        version: Version of the agent.
        before: Record of the last start: components that no longer exist are removed.
    """
    if not params.enabled:
        return [], {}
    about: Dict[str, Any] = {"origin": {"name": "edge-agent", "sw_version": version}}
    made: List[Message] = []
    published: Published = {}
    for device in found:
        about["device"] = dict(device.about)
        if params.style == "components":
            for key, component in device.components.items():
                topic = f"{params.prefix}/{component['platform']}/{device.id}/{key}/config"
                made.append(_retained(topic, {**about, **component}))
                published[topic] = {}
            continue
        topic = f"{params.prefix}/device/{device.id}/config"
        published[topic] = {key: component["platform"] for key, component in device.components.items()}
        gone = {
            key: {"platform": platform}
            for key, platform in before.get(topic, {}).items()
            if key not in device.components
        }
        made.append(_retained(topic, {**about, "components": {**gone, **device.components}}))
    return made, published


def removals(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> List[Message]:
    """Empty retained messages, which remove the topics of `before` that are not in `now`."""
    return [Message(topic, b"", retain=True) for topic in before if topic not in now]


def device_id(topics: Topics, camera: str = "") -> str:
    """A unique device id: parts are joined by `_`, a `_` inside a part is doubled, and no part begins with one."""
    base = topics.root[: -len(topics.node) - 1]
    if not ID.fullmatch(base):
        base = f"{slug(base)}-{hashlib.sha256(base.encode()).hexdigest()[:6]}"
    parts = (base, topics.node, camera) if camera else (base, topics.node)
    return "_".join(part.replace("_", "__") for part in parts)


def _retained(topic: str, payload: Mapping[str, Any]) -> Message:
    return Message(topic, to_json(payload), retain=True, content_type="application/json")


def _availability(*topics: str) -> Component:
    return {"availability": [{"topic": topic} for topic in topics], "availability_mode": "all"}


class _Components:
    """Collects one device's components, each with a unique id."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self.found: Dict[str, Component] = {}

    def add(self, key: str, platform: str, name: str, availability: Component, **more: Any) -> None:
        self.found[key] = {
            "platform": platform, "unique_id": f"{self._owner}_{key}", "name": name, **availability, **more,
        }  # fmt: skip

    def trigger(self, key: str, topic: str, event_type: str, verb: str) -> None:
        self.found[key] = {
            "platform": "device_automation", "automation_type": "trigger", "type": verb, "subtype": "face",
            "topic": topic, "payload": event_type,
            "value_template": f"{{{{ value_json.event_type if {_LIVE_EVENT} else '' }}}}",
        }  # fmt: skip


def _node(topics: Topics, site: AgentDescription) -> Device:
    owner = device_id(topics)
    alive = _availability(topics.availability)
    diagnostic = {"entity_category": "diagnostic"}
    health = {**diagnostic, "state_topic": topics.health, "expire_after": EXPIRE_AFTER_S, "state_class": "measurement"}
    made = _Components(owner)
    if site.commands.enabled:
        made.add(
            "threshold", "number", "Threshold", alive, entity_category="config", icon="mdi:tune",
            command_topic=topics.command("set_threshold"), command_template='{"value": {{ value }}}',
            state_topic=topics.info, value_template="{{ value_json.threshold }}",
            min=site.commands.min_threshold, max=site.commands.max_threshold, step=0.01, mode="slider",
        )  # fmt: skip
    if site.commands.enabled and site.commands.restart:
        made.add(
            "restart", "button", "Restart", alive, entity_category="config", device_class="restart",
            command_topic=topics.command("restart"),
            command_template='{"transaction": "ha-{{ now().timestamp() }}"}',
        )  # fmt: skip
    if site.temperature:
        made.add(
            "temperature", "sensor", "SoC temperature", alive, **health, device_class="temperature",
            unit_of_measurement="°C", value_template="{{ value_json.temperature_c }}",
        )  # fmt: skip
    made.add(
        "outbox", "sensor", "Outbox pending", alive, **health, icon="mdi:tray-full",
        value_template="{{ value_json.outbox.pending }}",
    )  # fmt: skip
    made.add(
        "started", "sensor", "Started", alive, **diagnostic, device_class="timestamp", state_topic=topics.info,
        value_template="{{ value_json.started_at }}",
    )  # fmt: skip
    made.add(
        "version", "sensor", "Version", alive, **diagnostic, icon="mdi:package", state_topic=topics.info,
        value_template="{{ value_json.version }}",
    )  # fmt: skip
    about = {
        "identifiers": [owner], "name": topics.node, "manufacturer": "edge-agent", "model": site.board,
        "sw_version": site.version,
    }  # fmt: skip
    return Device(owner, about, made.found)


def _camera(topics: Topics, site: AgentDescription, entry: CameraDescription) -> Device:
    camera = topics.camera(entry.camera)
    owner = device_id(topics, entry.camera)
    alive = _availability(topics.availability)
    sees = _availability(topics.availability, camera.availability)
    made = _Components(owner)
    made.add(
        "presence", "binary_sensor", "Presence", sees, device_class="occupancy", state_topic=camera.presence,
        json_attributes_topic=camera.attributes,
    )  # fmt: skip
    for zone in entry.zones:
        name = f"{zone.replace('_', ' ').replace('-', ' ').capitalize()} presence"
        made.add(f"zone_{zone}", "binary_sensor", name, sees, device_class="occupancy", state_topic=camera.zone(zone))
    made.add(
        "faces", "sensor", "Faces", sees, state_topic=camera.face_count, state_class="measurement",
        icon="mdi:account-multiple",
    )  # fmt: skip
    made.add(
        "face_event", "event", "Face", sees, state_topic=camera.events, event_types=["start", "update", "end"],
        value_template=f"{{{{ value if {_LIVE_EVENT} else '' }}}}", icon="mdi:face-recognition",
    )  # fmt: skip
    made.trigger("face_appeared", camera.events, "start", "appeared")
    made.trigger("face_left", camera.events, "end", "left")
    if site.image:
        made.add(
            "last_face", "image", "Last face", sees, image_topic=camera.image, content_type="image/jpeg",
            json_attributes_topic=camera.image_attributes,
        )  # fmt: skip
    if site.commands.enabled:
        made.add("detection", "switch", "Detection", alive, **_switch(camera, "detection", "mdi:eye"))
    if site.commands.enabled and site.crops:
        made.add("crops", "switch", "Crops", alive, **_switch(camera, "crops", "mdi:image-outline"))
    own = f"value_json.cameras['{entry.camera}']"
    health = {
        "entity_category": "diagnostic", "state_topic": topics.health, "expire_after": EXPIRE_AFTER_S,
        "state_class": "measurement", "suggested_display_precision": 1,
    }  # fmt: skip
    made.add(
        "fps", "sensor", "Frame rate", alive, **health, unit_of_measurement="fps", icon="mdi:speedometer",
        value_template=f"{{{{ {own}.fps_inferred }}}}",
    )  # fmt: skip
    made.add(
        "latency", "sensor", "Latency", alive, **health, unit_of_measurement="ms", device_class="duration",
        value_template=f"{{{{ {own}.latency_ms.p95 }}}}",
    )  # fmt: skip
    made.add(
        "problem", "binary_sensor", "Camera problem", alive, entity_category="diagnostic", device_class="problem",
        state_topic=camera.attributes, value_template=_PROBLEM, json_attributes_topic=camera.attributes,
        json_attributes_template="{{ {'reason': value_json.reason} | tojson }}",
    )  # fmt: skip
    about = {
        "identifiers": [owner], "name": entry.label or f"{topics.node} {entry.camera}", "manufacturer": "edge-agent",
        "model": "Camera", "via_device": device_id(topics),
    }  # fmt: skip
    return Device(owner, about, made.found)


def _switch(camera: CameraTopics, name: str, icon: str) -> Component:
    return {
        "entity_category": "config", "command_topic": camera.switch_set(name), "state_topic": camera.switch_state(name),
        "qos": 1, "icon": icon,
    }  # fmt: skip
