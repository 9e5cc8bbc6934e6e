"""Validates every message that a test receives against the schemas in the package."""

import json
import re
from pathlib import Path
from typing import Any, Dict

from jsonschema import Draft202012Validator

import edge_agent

SCHEMAS = Path(edge_agent.__file__).parent / "schemas"
PLAIN = {
    "availability": re.compile(rb"online|offline"),
    "presence": re.compile(rb"ON|OFF|None"),
    "face_count": re.compile(rb"[0-9]+|None"),
    "state": re.compile(rb"ON|OFF"),
}


def load() -> Dict[str, Draft202012Validator]:
    """Validators by the value of the payload's own `schema` field."""
    validators = {}
    for path in SCHEMAS.glob("*.json"):
        schema = json.loads(path.read_text("utf-8"))
        Draft202012Validator.check_schema(schema)
        validators[schema["properties"]["schema"]["const"]] = Draft202012Validator(schema)
    return validators


VALIDATORS = load()


def validate(payload: bytes) -> Any:
    """The JSON of a payload, when its own schema accepts it; else AssertionError with what is wrong."""
    value = json.loads(payload)
    faults = [f"{'/'.join(map(str, e.path))}: {e.message}" for e in VALIDATORS[value["schema"]].iter_errors(value)]
    assert not faults, f"{value['schema']}: {faults}\n{value}"
    return value


def validate_message(topic: str, payload: bytes) -> None:
    """Validate one message by its topic."""
    parts = topic.split("/")
    last = parts[-1]
    # An empty payload clears a retained topic whose camera has gone.
    if not payload or last in ("status", "set") or parts[-2:-1] == ["request"]:
        return
    if last == "config":
        validate_discovery(topic, payload)
    elif topic.endswith("face/image") or (parts[-2] == "crops" and last != "state"):
        assert payload[:2] == b"\xff\xd8", f"{topic}: not a JPEG"
    elif last in PLAIN:
        assert PLAIN[last].fullmatch(payload), f"{topic}: {payload!r}"
    else:
        if last == "detections" and b'"schema"' not in payload:
            return
        known = last in ("events", "info", "health", "attributes", "detections") or parts[-2] == "response"
        assert known, f"{topic}: not in the contract"
        validate(payload)


AVAILABILITY = {"availability", "availability_mode"}
ENTITY = AVAILABILITY | {"platform", "unique_id", "name", "entity_category", "device_class", "icon", "state_topic"}
FIGURE = {"value_template", "state_class", "unit_of_measurement", "expire_after", "suggested_display_precision"}
ATTRIBUTES = {"json_attributes_topic", "json_attributes_template"}
COMPONENT_KEYS = {
    "binary_sensor": ENTITY | ATTRIBUTES | {"value_template"},
    "sensor": ENTITY | FIGURE,
    "event": ENTITY | {"event_types", "value_template"},
    "image": (ENTITY | ATTRIBUTES | {"image_topic", "content_type"}) - {"state_topic"},
    "switch": ENTITY | {"command_topic", "qos"},
    "number": ENTITY | {"command_topic", "command_template", "value_template", "min", "max", "step", "mode"},
    "button": (ENTITY | {"command_topic", "command_template"}) - {"state_topic"},
    "device_automation": {"platform", "automation_type", "type", "subtype", "topic", "payload", "value_template"},
}
"""What each platform of Home Assistant takes, as far as it is used: over there a misspelt key is dropped silently."""


def validate_discovery(topic: str, payload: bytes) -> None:
    """Validate a discovery message of either style as Home Assistant does."""
    value = json.loads(payload)
    assert value["device"]["identifiers"] and value["origin"]["name"], topic
    single = {key: item for key, item in value.items() if key not in ("device", "origin", "components")}
    for component in value["components"].values() if "components" in value else [single]:
        if set(component) == {"platform"}:
            continue
        surplus = set(component) - COMPONENT_KEYS[component["platform"]]
        assert not surplus, f"{topic}: {component['platform']} takes no {surplus}"
        if component["platform"] != "device_automation":
            assert component["unique_id"], topic
            assert component["availability_mode"] == "all", topic
            assert component["availability"], topic
