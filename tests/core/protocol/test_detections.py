"""The profiles of `C/detections`, compared with the formats that their consumers expect."""

import json

import numpy as np
import pytest

from edge_agent.core.presence.recording import read_line
from edge_agent.core.protocol.messages import encode_detections, to_json
from edge_agent.core.types import CLEAR, WEAK, Detections, FrameInfo
from tests.fakes.clock import FakeClock
from tests.fakes.schemas import validate

INFO = FrameInfo("door", 7, FakeClock()(), 200, 100)
FACES = Detections(np.array([[-10, 10, 50, 60], [100, 0, 220, 100]]), np.array([0.9, 1.5]), "sum")


def encoded(profile, faces=FACES):
    return json.loads(to_json(encode_detections(profile, faces, INFO, "lobby")))


def test_native():
    value = validate(to_json(encode_detections("native", FACES, INFO, "lobby")))
    assert value["detections"][0] == {"box": {"left": 0, "top": 0.1, "right": 0.25, "bottom": 0.6}, "score": 0.9}
    assert value["detections"][1]["score"] == 1.5 and value["score_kind"] == "sum"


def test_native_marks_a_detection_that_only_continues_a_track_and_a_recording_keeps_that():
    found = Detections(FACES.xyxy, FACES.confidence, "max", np.array([CLEAR, WEAK], np.uint8))
    line = to_json(encode_detections("native", found, INFO, "lobby"))
    value = validate(line)
    assert [entry.get("evidence") for entry in value["detections"]] == [None, "weak"]
    assert read_line(line).detections.evidence.tolist() == [CLEAR, WEAK]
    with pytest.raises(ValueError, match=r"detections\[1\].evidence: expected one of weak"):
        read_line(line.replace(b'"weak"', b'"none"'))


def test_deepstream_minimal():
    value = encoded("deepstream-minimal")
    assert set(value) == {"version", "id", "@timestamp", "sensorId", "objects"}
    assert value["version"] == "4.0" and value["id"] == "7" and value["@timestamp"] == "2026-01-01T00:01:40.000Z"
    first = value["objects"][0].split("|")
    assert first[:7] == ["-1", "0.00", "10.00", "50.00", "60.00", "Face", "#"]
    # Gender, age, hair, cap, glasses, facial hair, name, nothing, eye colour; then the confidence. As nvmsgconv has it.
    assert first[7:16] == ["", "0", *[""] * 7] and float(first[16]) == pytest.approx(0.9) and len(first) == 17


def test_axis():
    frame = encoded("axis")["frame"]
    assert frame["timestamp"] == "2026-01-01T00:01:40.000000Z" and frame["operations"] == []
    assert frame["observations"][1] == {
        "bounding_box": {"left": 0.5, "top": 0, "right": 1, "bottom": 1},
        "class": {"type": "Face", "score": 1.0},
        "timestamp": frame["timestamp"],
    }


@pytest.mark.parametrize("profile", ["native", "deepstream-minimal", "axis"])
def test_a_frame_without_a_face(profile):
    text = json.dumps(encoded(profile, Detections.empty()))
    assert "[]" in text
