"""The integration examples under config/ parse, and use only existing topics, commands and fields."""

import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, Set

import pytest
from jsonschema import Draft202012Validator

import edge_agent
from edge_agent.core.protocol.home_assistant import AgentDescription, CameraDescription, devices
from edge_agent.core.protocol.topics import Topics
from scripts.lib import record_topics, topics
from scripts.lib.topics import TOPICS, topic_of
from tests.fakes.schemas import validate, validate_message

CONFIG = Path(edge_agent.__file__).parents[1] / "config"
SCHEMAS = Path(edge_agent.__file__).parent / "schemas"
BLOCK = re.compile(r"`([^`\n]+)`\n```(\w+)\n(.*?)\n```", re.DOTALL)


@pytest.mark.parametrize("name", topics.all_topics())
def test_the_table_knows_every_topic(name: str) -> None:
    assert topic_of(name) is not None


def test_the_table_distinguishes_topics() -> None:
    by_key = {topic_of(name).key for name in topics.all_topics()}  # type: ignore[union-attr]
    assert by_key == {topic.key for topic in TOPICS} - {"discovery"}
    assert topic_of("edge-agent/lobby/door/crops/state").key == "switchState"  # type: ignore[union-attr]
    assert topic_of("homeassistant/device/edge-agent_lobby/config").key == "discovery"  # type: ignore[union-attr]
    assert topic_of("edge-agent/lobby/request/format_disk") is None


def test_the_page_has_every_topic_and_its_examples_are_valid() -> None:
    page = record_topics.PAGE.read_text("utf-8")
    sections = dict(re.findall(r"^## `([^`]+)`\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert list(sections) == [record_topics._short(topic) for topic in TOPICS]
    for topic in TOPICS:
        section = sections[record_topics._short(topic)]
        assert topic.about in section and record_topics._line(topic) in page
        examples = BLOCK.findall(section)
        assert examples, topic.key
        for name, _, shown in examples:
            assert topic.pattern.fullmatch(name), name
            if topic.schemas:
                value = validate(shown.encode())
                assert value["schema"].startswith("edge-agent.")
            elif topic.content_type == topics.IMAGE:
                assert re.match(r"\d+ bytes: ff d8 ff ", shown)
            elif topic.words:
                assert shown in topic.words
            else:
                validate_message(name, shown.encode())
    seen = {
        json.loads(shown)["schema"] for _, kind, shown in BLOCK.findall(page) if kind == "json" and '"schema"' in shown
    }
    assert seen >= {
        json.loads(path.read_text("utf-8"))["properties"]["schema"]["const"] for path in SCHEMAS.glob("*.json")
    }


def test_the_page_is_of_this_version_of_the_payloads() -> None:
    """Fields that were added since it was recorded are missing there: scripts/record-topics."""
    page = record_topics.PAGE.read_text("utf-8")
    for path in SCHEMAS.glob("*.json"):
        schema = json.loads(path.read_text("utf-8"))
        shown = [json.loads(text) for _, kind, text in BLOCK.findall(page) if kind == "json"]
        fields = {
            key for value in shown if value.get("schema") == schema["properties"]["schema"]["const"] for key in value
        }
        assert set(schema.get("required", ())) <= fields, path.name
    health = next(value for value in shown if value.get("schema") == "edge-agent.health/1")
    assert set(json.loads((SCHEMAS / "health.json").read_text("utf-8"))["properties"]["mqtt"]["properties"]) <= set(
        health["mqtt"]
    )


def test_asyncapi_is_fresh() -> None:
    assert topics.ASYNCAPI.read_text("utf-8") == topics.document(), "run scripts/generate"


def test_asyncapi_is_consistent() -> None:
    """References resolve, channels have operations, addresses and parameters agree, schemas are valid."""
    document = topics.asyncapi()
    assert document["asyncapi"] == "3.0.0" and set(document) <= {
        "asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components",
    }  # fmt: skip
    for reference in references(document):
        if reference.startswith("#/"):
            at: Any = document
            for part in reference[2:].split("/"):
                at = at[part]
        else:
            Draft202012Validator.check_schema(json.loads((topics.ASYNCAPI.parent / reference).read_text("utf-8")))
    used = {operation["channel"]["$ref"].rsplit("/", 1)[1] for operation in document["operations"].values()}
    assert used == set(document["channels"]) == {topic.key for topic in TOPICS}
    for channel in document["channels"].values():
        assert set(channel["parameters"]) == set(re.findall(r"{(\w+)}", channel["address"])) and channel["messages"]
    for operation in document["operations"].values():
        assert operation["action"] in ("send", "receive") and operation["bindings"]["mqtt"]["qos"] in (0, 1)


def references(value: Any) -> Iterator[str]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "$ref":
            yield item
        elif isinstance(item, (dict, list)):
            yield from references(item)


def test_asyncapi_is_yaml() -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install pyyaml")
    assert yaml.safe_load(topics.ASYNCAPI.read_text("utf-8")) == topics.asyncapi()


def test_the_node_red_flow_is_wired() -> None:
    flow = json.loads((CONFIG / "node-red" / "flow.json").read_text("utf-8"))
    nodes: Dict[str, Any] = {node["id"]: node for node in flow}
    assert len(nodes) == len(flow)
    reached: Set[str] = set()
    for node in flow:
        targets = [target for output in node.get("wires", ()) for target in output]
        assert all(target in nodes for target in targets)
        reached.update(targets)
        assert node.get("z", "ea-tab") == "ea-tab" and len(node.get("wires", ())) == node.get(
            "outputs", len(node.get("wires", ()))
        )
        if node["type"] == "mqtt in":
            assert nodes[node["broker"]]["type"] == "mqtt-broker"
            topic = topic_of(re.sub(r"\+", "x", node["topic"]))
            assert topic is not None and int(node["qos"]) == topic.qos
            assert (node["datatype"] == "json") == bool(topic.schemas)
    inputs = {node["id"] for node in flow if node["type"] == "mqtt in"}
    assert reached | inputs == {node["id"] for node in flow if "wires" in node}


def test_the_node_red_flow_skips_replayed_events() -> None:
    """Pass an event through the switches, as Node-RED does."""
    nodes = {node["id"]: node for node in json.loads((CONFIG / "node-red" / "flow.json").read_text("utf-8"))}

    def end(payload: Any, at: str = "ea-kind") -> str:
        node = nodes[at]
        if node["type"] != "switch":
            return str(node["name"])
        value: Any = payload
        for part in node["property"].split(".")[1:]:
            value = value[part]
        for rule, (target,) in zip(node["rules"], node["wires"]):
            if {"eq": value == rule.get("v"), "false": value is False, "else": True}[rule["t"]]:
                return end(payload, target)
        return "nowhere"

    event = {"schema": "edge-agent.face-event/1", "event_type": "start", "delivery": {"replayed": False}}
    assert end(event) == "a face has appeared"
    assert end({**event, "event_type": "end"}) == "it has left"
    assert end({**event, "event_type": "update"}) == "nowhere"
    assert end({**event, "delivery": {"replayed": True}}) == "late: for the archive only"
    assert end({"schema": "edge-agent.gap/1"}) == "messages were lost"
    assert [end(word, "ea-three") for word in ("ON", "OFF", "None")] == [
        "somebody is there", "nobody is there", "cannot see: change nothing",
    ]  # fmt: skip


def test_the_automations_use_entities_of_discovery() -> None:
    text = (CONFIG / "home-assistant" / "automations.yaml").read_text("utf-8")
    site = AgentDescription("1", "board", (CameraDescription("door"),), image=True)
    made = set()
    for device in devices(Topics("edge-agent", "lobby"), site):
        for component in device.components.values():
            words = f"{device.about['name']} {component.get('name', '')}"
            made.add(f"{component['platform']}.{re.sub('[^a-z0-9]+', '_', words.lower())}")
    named = set(re.findall(r"\b(?:binary_sensor|image|event|sensor|switch)\.lobby_\w+", text))
    assert len(named) == 3 and named <= made
    for name in re.findall(r"topic: (\S+)", text):
        assert topic_of(name) is not None
    assert text.count("replayed") >= 2


def test_the_automations_are_valid() -> None:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML: pip install pyyaml")
    automations = yaml.safe_load((CONFIG / "home-assistant" / "automations.yaml").read_text("utf-8"))
    assert len({automation["id"] for automation in automations}) == len(automations)
    for automation in automations:
        assert {"id", "alias", "triggers", "actions"} <= set(automation)
        assert all("trigger" in trigger for trigger in automation["triggers"])
        assert all("action" in action for action in automation["actions"])


def test_openhab_things_items_and_rules_agree() -> None:
    folder = CONFIG / "openhab"
    things, items, rules = ((folder / f"edge-agent.{kind}").read_text("utf-8") for kind in ("things", "items", "rules"))
    for text in (things, items, rules):
        code = re.sub(r'//[^\n]*|"[^"]*"', "", text)
        assert (
            all(code.count(one) == code.count(other) for one, other in ("{}", "[]", "()")) and text.count('"') % 2 == 0
        )
    channels = set()
    thing = ""
    for line in things.splitlines():
        found = re.match(r"\s*Thing topic (\w+) ", line)
        thing = found.group(1) if found else thing
        found = re.match(r"\s*Type \w+\s*: (\w+) ", line)
        if found:
            channels.add(f"mqtt:topic:edge:{thing}:{found.group(1)}")
    linked = set(re.findall(r'channel="([^"]+)"', items)) | set(re.findall(r'Channel "([^"]+)"', rules))
    assert linked == channels
    for name in re.findall(r'Topic="([^"]+)"', things):
        assert topic_of(name) is not None, name


def test_the_ready_made_access_list_covers_what_an_agent_does() -> None:
    """Each topic of the table lies below the node's own root, or in a line for Home Assistant."""
    acl = (CONFIG / "mosquitto" / "acl").read_text("utf-8")
    assert "pattern readwrite edge-agent/%u/#" in acl
    assert {topic.key for topic in TOPICS if not topic.address.startswith("{base}/{node}")} == {
        "discovery", "homeAssistantStatus",
    }  # fmt: skip
    assert "pattern write homeassistant/device/+/config" in acl and "pattern read homeassistant/status" in acl
