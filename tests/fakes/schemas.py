"""Every message that a test sees is held against the schemas that ship in the package."""

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
    """Hold one message against the contract, by its topic."""
    last = topic.rsplit("/", 1)[-1]
    if "/crops/" in topic:
        assert payload[:2] == b"\xff\xd8", f"{topic}: not a JPEG"
    elif last in PLAIN:
        assert PLAIN[last].fullmatch(payload), f"{topic}: {payload!r}"
    else:
        assert last in ("events", "info", "health", "attributes"), f"{topic}: not in the contract"
        validate(payload)
