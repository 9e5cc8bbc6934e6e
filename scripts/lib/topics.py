"""The table of all MQTT topics, and the AsyncAPI document that is made from it.

`scripts/generate` writes config/mqtt/asyncapi.yaml; `scripts/record-topics` records the examples of
config/mqtt/README.md with a real agent and a real broker.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Pattern, Tuple

import edge_agent
from edge_agent.core.protocol.commands import COMMANDS, SWITCHES
from edge_agent.core.protocol.topics import Topics
from scripts.lib.generated import ROOT

SCHEMAS = Path(edge_agent.__file__).parent / "schemas"

ASYNCAPI = ROOT / "config" / "mqtt" / "asyncapi.yaml"

B, C = "{base}/{node}", "{base}/{node}/{camera}"
PARAMETERS = {
    "base": ("First level(s), EDGE_AGENT_MQTT__BASE", "edge-agent"),
    "node": ("The agent, EDGE_AGENT_NODE", "lobby"),
    "camera": ("The camera's id", "door"),
    "zone": ("The zone's id", "desk"),
    "event_id": ("Id of the visit; of a snapshot its transaction", None),
    "switch": ("Of the camera", SWITCHES),
    "command": ("One of the closed list", COMMANDS),
    "answer": ("The command or switch; selftest; unknown where a command's name cannot be part of a topic", None),
    "prefix": ("EDGE_AGENT_HOME_ASSISTANT__PREFIX", "homeassistant"),
    "device": ("Of the agent, or of one of its cameras", None),
}
ONLINE, PRESENCE, SWITCH = ("online", "offline"), ("ON", "OFF", "None"), ("ON", "OFF")
IMAGE = "image/jpeg"


@dataclass(frozen=True)
class Topic:
    """One line of the contract's table.

    Attributes:
        key: Its name here and in asyncapi.yaml.
        address: With parameters in braces.
        about: Its meaning, for people.
        schemas: Files in edge_agent/schemas, of which its payload is one; empty for plain payloads.
        words: Values of a plain payload; empty where neither words nor schemas define it.
        content_type: Of the payload.
        qos: As published.
        retained: Kept by the broker.
        outbox: Kept while the broker is unreachable.
        sent: Published by the agent; else the agent subscribes to it.
        opt_in: The setting that turns it on.
    """

    key: str
    address: str
    about: str
    schemas: Tuple[str, ...] = ()
    words: Tuple[str, ...] = ()
    content_type: str = "text/plain"
    qos: int = 1
    retained: bool = False
    outbox: bool = False
    sent: bool = True
    opt_in: str = ""

    @property
    def pattern(self) -> Pattern[str]:
        """Matches real topics; the base is taken to be one level, and crops/set and crops/state to be a switch."""
        text = re.escape(self.address).replace(r"\{", "{").replace(r"\}", "}")
        for name, (_, known) in PARAMETERS.items():
            level = "|".join(known) if isinstance(known, tuple) else "(?!set$|state$)[^/]+"
            text = text.replace(f"{{{name}}}", f"(?:{level})")
        return re.compile(text)


def _json(key: str, address: str, about: str, *schemas: str, **more: Any) -> Topic:
    return Topic(key, address, about, schemas, content_type="application/json", **more)


TOPICS = (
    Topic(
        "availability",
        f"{B}/availability",
        "Whether the agent is connected. `offline` is its last will, and published by a clean stop.",
        words=ONLINE,
        retained=True,
    ),
    _json(
        "info",
        f"{B}/info",
        "What the agent is: version, boot counter, board, engine, cameras, schemas.",
        "info",
        retained=True,
    ),
    _json(
        "health",
        f"{B}/health",
        "How the agent is: every 30 s, and at once when its state changes. On MQTT 5 the broker forgets it after "
        "180 s.",
        "health",
        qos=0,
        retained=True,
    ),
    Topic(
        "cameraAvailability",
        f"{C}/availability",
        "`offline` while the camera cannot see: lost, dark, covered, frozen, damaged. The reason is in the attributes.",
        words=ONLINE,
        retained=True,
    ),
    Topic(
        "presence",
        f"{C}/presence",
        "The answer: `ON` a face is there, `OFF` none is, `None` the camera cannot see. Never `OFF` while the camera "
        "cannot see.",
        words=PRESENCE,
        retained=True,
    ),
    Topic(
        "zonePresence",
        f"{C}/zones/{{zone}}/presence",
        "The same, of a named part of the frame.",
        words=PRESENCE,
        retained=True,
    ),
    _json(
        "presenceAttributes",
        f"{C}/presence/attributes",
        "Reason, start, events, and the parameters of the decision.",
        "presence_attributes",
        retained=True,
    ),
    Topic(
        "faceCount",
        f"{C}/face_count",
        "Number of faces; `None` while it is unknown. At most once a second.",
        retained=True,
    ),
    _json(
        "events",
        f"{C}/events",
        "Each visit of a face: `start`, perhaps `update`, `end`. In order of `seq`, at least once: "
        "`event_id` and `seq` identify duplicates. Where the broker refuses an event for a while, the up to 19 that "
        "were under way with it may come before it: once in the life of a process. `delivery.replayed` marks what "
        "comes more than 30 s late. What had to be dropped is announced by a gap.",
        "event",
        "gap",
        outbox=True,
    ),
    Topic(
        "crops",
        f"{C}/crops/{{event_id}}",
        "The best image of one visit, just before its `end`. An image of a person: withhold the topic "
        "where it is not needed, or turn it off.",
        content_type=IMAGE,
        outbox=True,
    ),
    Topic(
        "image",
        f"{C}/face/image",
        "The newest of these, for Home Assistant; cleared by an empty payload when its time to live ends. "
        "Retained on MQTT 5 only: on 3.1.1 it would stay if the agent died.",
        content_type=IMAGE,
        qos=0,
        retained=True,
        opt_in="EDGE_AGENT_CROPS__IMAGE=true",
    ),
    _json(
        "imageAttributes",
        f"{C}/face/image/attributes",
        "The event that the image belongs to.",
        "face_image",
        retained=True,
        opt_in="EDGE_AGENT_CROPS__IMAGE=true",
    ),
    _json(
        "detections",
        f"{C}/detections",
        "The faces of every frame, without retry. Other profiles use the formats of DeepStream or Axis cameras.",
        "detections",
        qos=0,
        opt_in="EDGE_AGENT_MQTT__DETECTIONS=native",
    ),
    Topic(
        "switchSet",
        f"{C}/{{switch}}/set",
        "Turns detection or crops of one camera on or off. Not retained: what is retained is ignored.",
        words=SWITCH,
        sent=False,
    ),
    Topic(
        "switchState",
        f"{C}/{{switch}}/state",
        "State of the switch; kept over restarts.",
        words=SWITCH,
        retained=True,
    ),
    _json(
        "request",
        f"{B}/request/{{command}}",
        "A command, as a JSON object of at most 4 KiB; five a second. `transaction` is echoed and never done "
        "twice: while it is among the last 256, doing it again is refused as a `duplicate`. After `expires_at` it is "
        "not done at all, and never when it is retained. `restart` only with EDGE_AGENT_COMMANDS__RESTART=true.",
        sent=False,
    ),
    _json(
        "response",
        f"{B}/response/{{answer}}",
        "Result of a command. On MQTT 3.1.1, `selftest` once a minute: the agent receives its own message, which "
        "proves that the broker accepts its messages.",
        "response",
    ),
    _json(
        "discovery",
        "{prefix}/device/{device}/config",
        "Makes the agent and its cameras appear in Home Assistant. Style `components` uses one topic per entity "
        "instead.",
        retained=True,
    ),
    Topic(
        "homeAssistantStatus",
        "{prefix}/status",
        "Home Assistant has started: the agent publishes its retained state again.",
        words=ONLINE,
        sent=False,
    ),
)


def all_topics(node_id: str = "lobby") -> List[str]:
    """Return every topic that the code can name, without discovery."""
    node = Topics("edge-agent", node_id)
    door = node.camera("door")
    named = [value for owner in (node, door) for key, value in vars(owner).items() if key not in ("node", "root")]
    made = [
        node.command("ping"),
        node.response("ping"),
        door.zone("desk"),
        door.crop("019ab3c4"),
        "homeassistant/status",
    ]
    switches = [door.switch_set("crops"), door.switch_state("detection")]
    return [name.replace("request/+", "request/reload") for name in named] + made + switches


def topic_of(name: str) -> Optional[Topic]:
    """Return the table's entry of a real topic."""
    return next((topic for topic in TOPICS if topic.pattern.fullmatch(name)), None)


def asyncapi() -> Dict[str, Any]:
    """The document, as data."""
    channels: Dict[str, Any] = {}
    operations: Dict[str, Any] = {}
    messages: Dict[str, Any] = {}
    for topic in TOPICS:
        names = _messages(topic, messages)
        channels[topic.key] = {
            "address": topic.address,
            "description": topic.about.replace("`", "'"),
            "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
            "parameters": {
                name: {"$ref": f"#/components/parameters/{name}"} for name in re.findall(r"{(\w+)}", topic.address)
            },
        }
        operations[f"{'send' if topic.sent else 'receive'}{topic.key[0].upper()}{topic.key[1:]}"] = {
            "action": "send" if topic.sent else "receive",
            "channel": {"$ref": f"#/channels/{topic.key}"},
            "bindings": {"mqtt": {"qos": topic.qos, "retain": topic.retained, "bindingVersion": "0.2.0"}},
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "edge-agent over MQTT",
            "version": "1",
            "description": "From the agent's point of view: it sends what others may read. README.md has recorded "
            "examples. Additive changes stay in version 1.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {"host": "localhost:1883", "protocol": "mqtt", "protocolVersion": "5"},
            "encrypted": {"host": "broker.example.org:8883", "protocol": "mqtts", "protocolVersion": "5"},
        },
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages,
            "parameters": {name: _parameter(*about) for name, about in PARAMETERS.items()},
        },
    }


def _messages(topic: Topic, messages: Dict[str, Any]) -> List[str]:
    """Adds the topic's messages; returns their names."""
    for schema in topic.schemas:
        title = json.loads((SCHEMAS / f"{schema}.json").read_text("utf-8"))["title"]
        messages[schema] = {
            "title": title,
            "contentType": topic.content_type,
            "payload": {"$ref": f"../../edge_agent/schemas/{schema}.json"},
        }
    if topic.schemas:
        return list(topic.schemas)
    payload: Dict[str, Any] = {"type": "object" if topic.content_type == "application/json" else "string"}
    if topic.content_type == IMAGE:
        payload["format"] = "binary"
    elif topic.words:
        payload["enum"] = list(topic.words)
    elif topic.key == "faceCount":
        payload["pattern"] = "^([0-9]+|None)$"
    messages[topic.key] = {"contentType": topic.content_type, "payload": payload}
    return [topic.key]


def _parameter(about: str, known: Any) -> Dict[str, Any]:
    made: Dict[str, Any] = {"description": about}
    if isinstance(known, tuple):
        made["enum"] = list(known)
    elif known is not None:
        made["examples"] = [known]
    return made


def as_yaml(value: Any, indent: int = 0) -> Iterator[str]:
    """Lines of YAML: mappings and lists in block style, scalars and what is empty as JSON, which YAML includes."""
    pad = "  " * indent
    entries = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for key, item in entries:
        lead = f"{pad}-" if key is None else f"{pad}{json.dumps(key) if '$' in key else key}:"
        if isinstance(item, (dict, list)) and item:
            yield lead
            yield from as_yaml(item, indent + 1)
        else:
            yield f"{lead} {json.dumps(item, ensure_ascii=False)}"


def document() -> str:
    """The whole of asyncapi.yaml."""
    return "\n".join(["# Generated by scripts/generate; do not edit.", *as_yaml(asyncapi()), ""])


def files() -> Dict[str, str]:
    """Text of the generated file, by path."""
    return {ASYNCAPI.relative_to(ROOT).as_posix(): document()}
