"""Topics and payloads as in the MQTT contract and its schemas."""

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from edge_agent.core.protocol.messages import (
    CropInfo,
    encode_attributes,
    encode_count,
    encode_event,
    encode_health,
    encode_info,
    stamp_delivery,
    timestamp,
    to_json,
)
from edge_agent.core.protocol.topics import Topics, slug
from edge_agent.core.types import Box, Presence, Sight
from edge_agent.errors import ConfigError
from tests.fakes.mqtt_agent import HEALTH, INFO, event, moment, report
from tests.fakes.schemas import VALIDATORS, validate


def test_topics_are_those_of_the_contract() -> None:
    topics = Topics("edge-agent", "lobby")
    door = topics.camera("door")
    assert topics.availability == "edge-agent/lobby/availability"
    assert (topics.info, topics.health) == ("edge-agent/lobby/info", "edge-agent/lobby/health")
    assert topics.command("ping") == "edge-agent/lobby/request/ping"
    assert topics.response("ping") == "edge-agent/lobby/response/ping"
    assert door.availability == "edge-agent/lobby/door/availability"
    assert door.presence == "edge-agent/lobby/door/presence"
    assert door.attributes == "edge-agent/lobby/door/presence/attributes"
    assert door.zone("desk") == "edge-agent/lobby/door/zones/desk/presence"
    assert door.face_count == "edge-agent/lobby/door/face_count"
    assert door.events == "edge-agent/lobby/door/events"
    assert door.crop("x") == "edge-agent/lobby/door/crops/x"
    assert door.image == "edge-agent/lobby/door/face/image"
    assert door.detections == "edge-agent/lobby/door/detections"
    assert door.switch_set("crops") == "edge-agent/lobby/door/crops/set"
    assert door.switch_state("crops") == "edge-agent/lobby/door/crops/state"


@pytest.mark.parametrize("camera", ["availability", "info", "health", "request", "response"])
def test_reserved_names_are_refused(camera: str) -> None:
    with pytest.raises(ConfigError, match="reserved"):
        Topics("edge-agent", "lobby").camera(camera)


@pytest.mark.parametrize("bad", ["", "Door", "a/b", "+", "#", "-a", "_a", "é", "a" * 64, "a b", "a\n"])
def test_bad_ids_are_refused_everywhere(bad: str) -> None:
    topics = Topics("edge-agent", "lobby")
    for use in (topics.camera, topics.camera("door").zone, lambda name: Topics("edge-agent", name)):
        with pytest.raises(ConfigError, match="is not an id"):
            use(bad)


@pytest.mark.parametrize("base", ["", "/a", "a/", "a/+/b", "#", "$SYS", "a\0"])
def test_bad_bases_are_refused(base: str) -> None:
    with pytest.raises(ConfigError, match="base"):
        Topics(base, "lobby")
    assert Topics("site/edge-agent", "lobby").root == "site/edge-agent/lobby"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Café Lobby.local", "cafe-lobby-local"), ("jetson_01", "jetson_01"), ("--x--", "x"), ("", "node"),
        ("日本", "node"), ("a" * 100, "a" * 63), ("a" * 62 + "-b", "a" * 62),
    ],
)  # fmt: skip
def test_any_name_becomes_an_id(name: str, expected: str) -> None:
    assert slug(name) == expected
    assert Topics("edge-agent", slug(name)).node == expected


def test_timestamps_are_utc_with_microseconds() -> None:
    at = datetime(2026, 11, 22, 18, 5, 12, tzinfo=timezone(timedelta(hours=1)))
    assert timestamp(at) == "2026-11-22T17:05:12.000000Z"


def test_an_event_has_every_field_of_the_contract() -> None:
    crop = CropInfo("edge-agent/lobby/door/crops/x", "ab" * 32, 8123, Box(0.3, 0.1, 0.6, 0.5))
    end = event(1042, "end", at=moment(10.0), zones=("desk",))
    stored = to_json(encode_event(end, "lobby", 41, moment(10.0379), crop))
    sent = validate(stamp_delivery(stored, moment(50.0).at, 39_962, True))
    assert sent == {
        "schema": "edge-agent.face-event/1", "event_id": "019ab3c4-0000-7000-8000-000000000001", "event_type": "end",
        "seq": 1042, "node": "lobby", "camera": "door", "boot": 41, "track_id": 17,
        "ts": "2026-11-22T17:05:22.483120Z", "published_at": "2026-11-22T17:06:02.483120Z",
        "start_ts": "2026-11-22T17:05:20.483120Z", "end_ts": "2026-11-22T17:05:22.483120Z", "duration_ms": 2000,
        "clock_synced": True, "frame": {"sequence": 1142, "width": 1280, "height": 800},
        "box": {"left": 0.4121, "top": 0.221, "right": 0.5233, "bottom": 0.4172},
        "score": 0.91, "top_score": 0.96, "score_kind": "max", "zones": ["desk"],
        "quality": {"score": 0.82, "sharpness": 213.4, "face_px": 142, "exposure": 0.47, "edge": False},
        "crop": {
            "topic": "edge-agent/lobby/door/crops/x", "sha256": "ab" * 32, "bytes": 8123,
            "box": {"left": 0.3, "top": 0.1, "right": 0.6, "bottom": 0.5}, "encoding": "jpeg",
        },
        "latency_ms": {"capture_to_infer": 10.0, "infer": 2.0, "capture_to_outbox": 37.9},
        "end_reason": "left", "delivery": {"replayed": True, "queued_ms": 39_962},
    }  # fmt: skip


@pytest.mark.parametrize("event_type", ["start", "update", "end"])
def test_every_kind_of_event_is_valid(event_type: str) -> None:
    bare = replace(event(1, event_type), quality=None, infer_started_t=0.0)
    for one in (event(1, event_type), bare):
        validate(stamp_delivery(to_json(encode_event(one, "lobby", 1, moment(3))), moment(3).at, 0, False))


def test_the_schema_refuses_a_wrong_event() -> None:
    right = encode_event(event(1), "lobby", 1, moment(1))
    stamped = json.loads(stamp_delivery(to_json(right), moment().at, 0, False))
    wrong = [
        {"event_type": "begin"}, {"seq": 0}, {"ts": "2026-11-22 17:05:12"}, {"end_reason": "left"},
        {"box": {"left": 0.1}}, {"camera": "Door"}, {"delivery": {}},
    ]  # fmt: skip
    for change in wrong:
        with pytest.raises(AssertionError):
            validate(to_json({**stamped, **change}))


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError):
        to_json({"score": float("nan")})


@pytest.mark.parametrize("sight", list(Sight))
def test_attributes_are_valid_for_every_reason(sight: Sight) -> None:
    seen = report("ON", sight, 2, best_score=0.91, event_ids=(event(1).event_id,)) if sight is Sight.OK else None
    payload = validate(to_json(encode_attributes(seen or report("None", sight, None), {"delay_off_s": 2.0})))
    assert payload["reason"] == sight.value and payload["parameters"] == {"delay_off_s": 2.0}


def test_plain_payloads() -> None:
    assert [p.value for p in Presence] == ["ON", "OFF", "None"]
    assert (encode_count(0), encode_count(12), encode_count(None)) == (b"0", b"12", b"None")


def test_info_and_health_are_valid() -> None:
    info = validate(to_json(encode_info(INFO, "lobby", 41)))
    assert info["node"] == "lobby" and set(info["schemas"]) == set(VALIDATORS)
    mqtt = {"state": "connected", "protocol": "5", "fault": ""}
    assert validate(to_json(encode_health({**HEALTH, "mqtt": mqtt}, "lobby", 41, moment())))["boot"] == 41
