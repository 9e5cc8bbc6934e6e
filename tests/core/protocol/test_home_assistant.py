"""Discovery messages: content, unique ids, and removal of entities that no longer exist."""

import itertools
import json
import re

import pytest

from edge_agent.core.protocol.commands import CommandParams
from edge_agent.core.protocol.home_assistant import (
    AgentDescription,
    CameraDescription,
    HomeAssistantParams,
    decode_published,
    device_id,
    devices,
    messages,
    removals,
)
from edge_agent.core.protocol.topics import Topics
from tests.fakes.schemas import validate_discovery

TOPICS = Topics("edge-agent", "lobby")
DOOR = CameraDescription("door", "Front door", ("desk", "till"))
HALL = CameraDescription("hall")
EVERYTHING = AgentDescription(
    "1.2", "Orin", (DOOR, HALL), CommandParams(restart=True), crops=True, image=True, temperature=True
)
NODE = {"threshold", "restart", "temperature", "outbox", "started", "version"}
CAMERA = {
    "presence", "faces", "face_event", "face_appeared", "face_left", "last_face", "detection", "crops", "fps",
    "latency", "problem",
}  # fmt: skip
BOTH = ["edge-agent/lobby/availability", "edge-agent/lobby/door/availability"]


def published(site=EVERYTHING, before=None, **params):
    """(payloads by topic, what is remembered)."""
    made, record = messages(devices(TOPICS, site), HomeAssistantParams(**params), site.version, before or {})
    assert all(message.retain and message.qos == 1 for message in made)
    for message in made:
        validate_discovery(message.topic, message.payload)
    return {message.topic: json.loads(message.payload) for message in made}, record


def components(site=EVERYTHING):
    return {device.id: device.components for device in devices(TOPICS, site)}


def test_every_entity_of_the_contract():
    found = components()
    assert set(found["edge-agent_lobby"]) == NODE
    assert set(found["edge-agent_lobby_door"]) == CAMERA | {"zone_desk", "zone_till"}
    assert set(found["edge-agent_lobby_hall"]) == CAMERA


def test_one_message_per_device_with_the_agent_first():
    found, record = published()
    assert list(found) == [
        "homeassistant/device/edge-agent_lobby/config",
        "homeassistant/device/edge-agent_lobby_door/config",
        "homeassistant/device/edge-agent_lobby_hall/config",
    ]
    door = found["homeassistant/device/edge-agent_lobby_door/config"]
    assert door["device"]["via_device"] == "edge-agent_lobby" and door["device"]["name"] == "Front door"
    assert record["homeassistant/device/edge-agent_lobby_hall/config"]["presence"] == "binary_sensor"
    assert all(len(json.dumps(payload)) < 20_000 for payload in found.values())


def test_one_message_per_entity_for_older_versions():
    found, record = published(style="components", prefix="ha")
    assert len(found) == len(NODE) + 2 * len(CAMERA) + 2
    presence = found["ha/binary_sensor/edge-agent_lobby_door/presence/config"]
    assert presence["state_topic"] == "edge-agent/lobby/door/presence" and presence["device"]["via_device"]
    assert set(record) == set(found) and not any(record.values())


def test_only_entities_that_need_sight_depend_on_the_camera_availability():
    found = components()["edge-agent_lobby_door"]
    for key in ("presence", "zone_desk", "faces", "face_event", "last_face"):
        assert [entry["topic"] for entry in found[key]["availability"]] == BOTH, key
    for key in ("problem", "detection", "crops", "fps", "latency"):
        assert [entry["topic"] for entry in found[key]["availability"]] == BOTH[:1], key


def test_replayed_events_and_gaps_fire_no_trigger():
    found = components()["edge-agent_lobby_door"]
    for key in ("face_event", "face_appeared", "face_left"):
        template = found[key]["value_template"]
        assert (
            "if value_json.schema == 'edge-agent.face-event/1' and not value_json.delivery.replayed else ''" in template
        )


def test_unique_ids_are_unique_and_stable():
    ids = [c["unique_id"] for each in components().values() for c in each.values() if "unique_id" in c]
    assert len(ids) == len(set(ids))
    assert "edge-agent_lobby_door_presence" in ids and "edge-agent_lobby_threshold" in ids


def test_ids_of_different_agents_and_cameras_never_collide():
    names = ["a", "a_", "a_b", "a__b", "b", "b_c", "c", "a-b", "b_a"]
    found = {}
    for base, node, camera in itertools.product(["e", "e_a", "e-a", "e/a"], names, ["", *names]):
        key = device_id(Topics(base, node), camera)
        assert re.fullmatch(r"[a-zA-Z0-9_-]+", key), key
        assert found.setdefault(key, (base, node, camera)) == (base, node, camera)


def test_disabled_features_have_no_entity():
    mute = components(AgentDescription("1", "pc", (HALL,), CommandParams(enabled=False), crops=False))
    assert set(mute["edge-agent_lobby"]) == {"outbox", "started", "version"}
    assert not {"detection", "crops", "last_face"} & set(mute["edge-agent_lobby_hall"])
    careful = components(AgentDescription("1", "pc", (HALL,)))
    assert "restart" not in careful["edge-agent_lobby"] and "last_face" not in careful["edge-agent_lobby_hall"]


def test_disabled_discovery_publishes_nothing():
    assert published(enabled=False) == ({}, {})


def test_a_missing_component_is_removed():
    _, before = published()
    site = AgentDescription(
        "1.2", "Orin", (CameraDescription("door", zones=("till",)), HALL), CommandParams(), crops=False, image=True
    )
    found, record = published(site, before)
    door = found["homeassistant/device/edge-agent_lobby_door/config"]["components"]
    assert door["zone_desk"] == {"platform": "binary_sensor"} and door["crops"] == {"platform": "switch"}
    assert "state_topic" in door["zone_till"]
    node = found["homeassistant/device/edge-agent_lobby/config"]["components"]
    assert node["restart"] == {"platform": "button"}
    assert "zone_desk" not in record["homeassistant/device/edge-agent_lobby_door/config"]


def test_a_removed_camera_is_cleared():
    _, before = published()
    _, record = published(AgentDescription("1.2", "Orin", (DOOR,)), before)
    gone = removals(before, record)
    assert [(m.topic, m.payload, m.retain) for m in gone] == [
        ("homeassistant/device/edge-agent_lobby_hall/config", b"", True)
    ]
    assert removals(before, before) == []


def test_a_change_of_style_clears_the_old_messages():
    _, before = published()
    _, record = published(style="components")
    assert {message.topic for message in removals(before, record)} == set(before)


def test_the_record_round_trips_through_json_and_other_values_are_refused():
    _, record = published()
    assert decode_published(json.loads(json.dumps(record))) == record
    for damaged in ([], {"a": 1}, None, "x"):
        with pytest.raises(ValueError):
            decode_published(damaged)
