"""Records config/mqtt/README.md: every topic of the contract with messages of a real agent on a real broker.

    scripts/record-topics

Not deterministic, so it is no part of scripts/generate; tests/config/test_examples.py fails when it has to run again.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Tuple

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from scripts.lib.generated import ROOT
from scripts.lib.topics import IMAGE, TOPICS, B, C, Topic, topic_of
from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Heard, Listener, eventually

PAGE = ROOT / "config" / "mqtt" / "README.md"
NODE = "edge-agent/lobby"
DOOR = f"{NODE}/door"
SETTINGS = {
    "NODE": "lobby",
    "CAMERAS__DOOR__URI": "test://one?fps=30",
    "CAMERAS__DOOR__LABEL": "Front door",
    "CAMERAS__DOOR__ZONES": json.dumps({"desk": [[0, 0], [1, 0], [1, 1], [0, 1]]}),
    "PRESENCE__DELAY_ON_S": 0.2,
    "PRESENCE__DELAY_OFF_S": 0.5,
    "HEALTH__INTERVAL_S": 1,
    "CROPS__IMAGE": "true",
    "MQTT__DETECTIONS": "native",
    "LOG_LEVEL": "warning",
}
COMMANDS: Tuple[Tuple[str, Dict[str, Any]], ...] = (
    ("ping", {"transaction": "check-1"}),
    ("set_threshold", {"transaction": "check-2", "value": 0.35}),
    ("snapshot", {"transaction": "check-3", "camera": "door", "expires_at": "2040-01-01T00:00:00Z"}),
    ("set_threshold", {"transaction": "check-4", "value": 7}),
)


class Example(NamedTuple):
    """One recorded message."""

    topic: str
    payload: bytes
    properties: Any


def record(folder: Path) -> List[Example]:
    """Return the received messages, oldest first."""
    with Broker(folder) as broker, Listener(broker) as listener:
        with AgentProcess({**SETTINGS, "MQTT__PORT": broker.port}) as agent:
            eventually(lambda: _events(listener, "end"), "a visit that has ended", 30.0)
            client = Client(CallbackAPIVersion.VERSION2)
            client.connect("127.0.0.1", broker.port)
            client.loop_start()
            for name, command in COMMANDS:
                answers = f"{NODE}/response/{name}"
                before = len(listener.payloads(answers))
                client.publish(f"{NODE}/request/{name}", json.dumps(command), qos=1)
                eventually(lambda: len(listener.payloads(answers)) > before, name)  # noqa: B023
            client.publish(f"{DOOR}/crops/set", "OFF", qos=1)
            eventually(lambda: listener.last(f"{DOOR}/crops/state") == b"OFF")
            client.publish(f"{DOOR}/crops/set", "ON", qos=1)
            eventually(lambda: listener.last(f"{DOOR}/crops/state") == b"ON")
            client.publish("homeassistant/status", "online", qos=1)
            eventually(lambda: listener.last("homeassistant/status"))
            client.disconnect()
            client.loop_stop()
            before = len(listener.payloads(f"{NODE}/health"))
            eventually(lambda: len(listener.payloads(f"{NODE}/health")) > before + 1)
            agent.stop()
        # No room for crops: each is dropped, and announced as a gap.
        lossy = {**SETTINGS, "OUTBOX__MAX_CROP_BYTES": 0, "MQTT__DETECTIONS": "off", "CROPS__IMAGE": "false"}
        with AgentProcess({**lossy, "MQTT__PORT": broker.port}, version="3.1.1"):
            eventually(lambda: _gaps(listener), "a gap", 30.0)
            eventually(lambda: listener.last(f"{NODE}/response/selftest"), "the echo")
        return [Example(heard.topic, heard.payload, heard.properties) for heard in listener.heard]


def choose(heard: Iterable[Example]) -> Dict[str, List[Example]]:
    """Choose one message of each kind per topic, by the topic's key."""
    found: Dict[str, Dict[str, Example]] = defaultdict(dict)
    for example in heard:
        topic = topic_of(example.topic)
        if topic is not None and not (topic.content_type != "text/plain" and not example.payload):
            value = _value(example.payload)
            kind = _KINDS.get(topic.key, _same)(example, value)
            if kind is not None:
                found[topic.key][kind] = example
    return {key: list(examples.values()) for key, examples in found.items()}


def page(examples: Dict[str, List[Example]]) -> str:
    """Return the text of README.md."""
    parts = [_INTRODUCTION, *map(_line, TOPICS), ""]
    for topic in TOPICS:
        parts += [f"## `{_short(topic)}`", "", topic.about]
        if topic.schemas:
            links = ", ".join(f"[{name}.json](../../edge_agent/schemas/{name}.json)" for name in topic.schemas)
            parts += ["", f"Schema: {links}."]
        if topic.opt_in:
            parts += ["", f"Only with `{topic.opt_in}`."]
        for example in examples[topic.key]:
            parts += ["", f"`{example.topic}`", *_shown(example)]
        parts.append("")
    return "\n".join(parts)


_INTRODUCTION = f"""\
# Topics

<!-- Recorded by scripts/record-topics from a real agent and a real broker; do not edit. -->

`B` is `{B}`, base and node being `EDGE_AGENT_MQTT__BASE` (default `edge-agent`) and `EDGE_AGENT_NODE`; `C` is
`B/{{camera}}`. What is retained is true at every connect of the agent, in the order: information, presence, discovery,
`online`, health. The rest follows; what goes through the outbox is kept on disk until the broker has acknowledged it.
[`asyncapi.yaml`](asyncapi.yaml) is its machine-readable form. Time stamps are UTC; boxes are 0..1 of the upright frame.

| topic | payload | QoS | retained | through the outbox |
|---|---|---|---|---|"""


def _line(topic: Topic) -> str:
    payload = "JPEG" if topic.content_type == IMAGE else "JSON" if topic.content_type == "application/json" else ""
    payload = payload or (" / ".join(f"`{word}`" for word in topic.words) or "a whole number or `None`")
    by = "" if topic.sent else " (to the agent)"
    yes = {True: "yes", False: "no"}
    return f"| `{_short(topic)}` | {payload}{by} | {topic.qos} | {yes[topic.retained]} | {yes[topic.outbox]} |"


def _short(topic: Topic) -> str:
    return topic.address.replace(C, "C").replace(B, "B")


def _shown(example: Example) -> List[str]:
    made: List[str] = []
    payload = example.payload
    if payload[:2] == b"\xff\xd8":
        made = ["```text", f"{len(payload)} bytes: {payload[:8].hex(' ')} ...", "```"]
    elif payload[:1] == b"{":
        made = ["```json", json.dumps(json.loads(payload), indent=1, ensure_ascii=False), "```"]
    else:
        made = ["```text", payload.decode("utf-8"), "```"]
    pairs = getattr(example.properties, "UserProperty", ())
    if pairs:
        made += ["", "MQTT 5 user properties: " + ", ".join(f"`{key}` = `{value}`" for key, value in pairs)]
    return made


def _value(payload: bytes) -> Dict[str, Any]:
    try:
        value = json.loads(payload)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _same(example: Example, value: Dict[str, Any]) -> str:
    """Return the last example only."""
    return ""


def _word(example: Example, value: Dict[str, Any]) -> str:
    return example.payload.decode()


def _only_online(example: Example, value: Dict[str, Any]) -> "str | None":
    connected = value.get("mqtt", {}).get("state") == "connected" and value.get("state") == "ok"
    return "" if connected and value["mqtt"]["protocol"] == "5" else None


def _only_faces(example: Example, value: Dict[str, Any]) -> "str | None":
    return "" if value.get("faces") or value.get("detections") or value.get("event_id") else None


def _selftest_or_answer(example: Example, value: Dict[str, Any]) -> str:
    return f"{value['name']} {value['status']}"


_KINDS: Dict[str, Callable[[Example, Dict[str, Any]], Any]] = {
    "availability": _word,
    "presence": _word,
    "health": _only_online,
    "presenceAttributes": _only_faces,
    "detections": _only_faces,
    "crops": lambda example, value: None if "check-" in example.topic else "",
    "events": lambda example, value: value.get("event_type", "gap"),
    "request": lambda example, value: example.topic,
    "response": _selftest_or_answer,
    "discovery": lambda example, value: str("via_device" in value["device"]),
}


def _events(listener: Listener, kind: str) -> List[Heard]:
    return [
        h for h in list(listener.heard) if h.topic == f"{DOOR}/events" and _value(h.payload).get("event_type") == kind
    ]


def _gaps(listener: Listener) -> List[bytes]:
    return [payload for payload in listener.payloads(f"{DOOR}/events") if "from_seq" in _value(payload)]


def main() -> int:
    """The command line."""
    argparse.ArgumentParser(prog="scripts/record-topics", description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        examples = choose(record(Path(folder)))
    missing = [topic.key for topic in TOPICS if topic.key not in examples]
    if missing:
        print(f"no message was published on: {', '.join(missing)}", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(examples), "utf-8")
    print(f"{PAGE.relative_to(ROOT)}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
