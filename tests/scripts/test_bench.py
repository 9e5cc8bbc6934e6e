"""Figures of the benchmark: slow, late and missing events; its camera never waits for a reader."""

import json
import socket
import sys
import threading
from pathlib import Path
from typing import Dict, List
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from scripts.lib.bench import arms, network, plot, report, scene
from scripts.lib.bench.camera import QUEUE, Reader
from scripts.lib.bench.scores import Heard, Onset, Sample, judge, work
from scripts.lib.bench.turn import ArmFailed, Turn, take_turn
from tests.fakes.broker import Broker, needs_mosquitto

ONSETS = [Onset(10.0, 10.7, 1), Onset(12.0, 12.7, 2), Onset(14.0, 14.7, 3)]

ARM = """
import os, sys, time, json, cv2, numpy as np, paho.mqtt.client as mqtt
delay_s, most = float(sys.argv[1]), int(sys.argv[2])
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.connect(os.environ["MQTT_HOST"], int(os.environ["MQTT_PORT"]))
client.loop_start()
capture, before, sent, topic = cv2.VideoCapture(os.environ["CAM_URL"]), None, 0, os.environ["MQTT_TOPIC"]
while True:
    bright = np.argwhere(cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2GRAY) > 240)
    slot = tuple(int(v) // 160 for v in bright.mean(axis=0)) if len(bright) > 500 else None
    if slot is not None and slot != before and sent < most:
        sent += 1
        time.sleep(delay_s)
        (top, left), (bottom, right) = bright.min(axis=0) / (480, 640), bright.max(axis=0) / (480, 640)
        box = [float(left), float(top), float(right), float(bottom)]
        client.publish(topic, json.dumps({"event": "start", "box": box}), qos=1)
    before = slot
"""


def test_an_event_belongs_to_the_face_it_names_however_late_it_comes() -> None:
    score = judge(ONSETS, [Heard(10.05, 1), Heard(10.06, 1), Heard(14.1, 2), Heard(14.2, 3)])
    assert [round(ms) for ms in score.latencies_ms] == [50, 2100, 200]
    assert (score.missed, score.stale) == (0, 1), "the second came when its face had gone"


def test_a_face_without_an_event_is_missed_and_an_event_without_a_face_answers_none() -> None:
    score = judge(ONSETS, [Heard(9.9, 1), Heard(10.1, 7), Heard(12.1, 2), Heard(13.9, 3)])
    assert [round(ms) for ms in score.latencies_ms] == [100]
    assert (score.missed, score.stale) == (2, 0)
    assert judge(ONSETS, [Heard(12.3, None)]).missed == 2, "an event without a box counts for the last onset"


def test_cpu_is_per_processed_frame_between_samples_of_the_same_round() -> None:
    rounds = [[Sample(1, 5.0, 100, 100), Sample(2, 5.5, 150, 300)], [Sample(9, 0.0, 0, 0), Sample(10, 0.5, 50, 50)]]
    done = work(rounds)
    assert (done.cpu_per_frame_ms, done.processed_fps, done.read) == (10.0, 50.0, 250)


def test_the_camera_never_waits_for_a_reader_and_counts_what_it_drops() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        reader = Reader(server.accept()[0])
        for _ in range(400):
            reader.offer(bytes(50_000))
        assert reader.behind
        assert 300 < reader.dropped < 400 - QUEUE + 1, reader.dropped
        reader.link.close()


def test_no_place_comes_twice_within_eight_visits_and_rounds_differ() -> None:
    plan = scene.visits(30, seed=1)
    assert all(len({visit.slot for visit in plan[at : at + 8]}) == 8 for at in range(22))
    assert scene.visits(30, seed=2) != plan
    assert len({round((visit.start_s * 30) % 1, 2) for visit in plan}) > 15, "in step with the frame rate"


@pytest.mark.slow
def test_the_network_finds_each_place_in_fp32_and_int8_alike(tmp_path: Path) -> None:
    from edge_agent.core.detection.detector import DetectionParams, FaceDetector
    from edge_agent.core.detection.model_contract import FACEDETECTIR
    from edge_agent.core.frame import Image
    from edge_agent.inference.ort import OrtEngine

    shown = {slot: cv2.imdecode(np.frombuffer(jpegs[0], np.uint8), 0) for slot, jpegs in scene.scene_jpegs().items()}
    made = network.files(tmp_path, list(shown.values()))
    assert 1.1e9 < made.macs < 1.3e9
    for path, precision in ((made.fp32, "fp32"), (made.int8, "int8")):
        engine = OrtEngine(path, FACEDETECTIR)
        assert engine.info.precision == precision
        detector = FaceDetector(engine, DetectionParams(nms_iou_threshold=arms.IOU))
        for slot, pixels in shown.items():
            boxes = detector.detect(Image(pixels)).xyxy / np.array([640, 480, 640, 480], np.float32)
            assert [arms._slot(box.tolist()) for box in boxes] == ([] if slot is None else [slot])


@pytest.mark.slow
@needs_mosquitto
def test_real_arms_slow_deaf_and_dead(tmp_path: Path) -> None:
    (tmp_path / "arm.py").write_text(ARM)
    lines = {"quick": "0 9", "slow": "1.0 9", "deaf": "0 1"}
    turns: Dict[str, Turn] = {}
    failed: List[str] = []
    with Broker(tmp_path, "set_tcp_nodelay true\n") as broker:

        def take(name: str, line: str) -> None:
            try:
                turns[name] = take_turn(arms.command(name, line), broker.port, 30.0, 1, 1)
            except ArmFailed as error:
                failed.append(str(error))

        commands = {name: f"exec {sys.executable} {tmp_path / 'arm.py'} {line}" for name, line in lines.items()}
        commands["dead"] = "echo broken >&2; exit 3"
        threads = [threading.Thread(target=take, args=item) for item in commands.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = report.results([turns[name] for name in lines])
    assert len(failed) == 1 and "dead" in failed[0] and "broken" in failed[0]
    assert found["deaf"].score.missed == 1 and not found["deaf"].score.latencies_ms
    assert found["slow"].score.missed == found["quick"].score.missed == 0
    assert found["slow"].p50_ms > 1000 and found["slow"].score.stale == 1
    assert found["quick"].p50_ms < found["slow"].p50_ms / 2
    assert found["quick"].first_event_s < found["slow"].first_event_s
    assert json.dumps(report.as_json(found, report.lines(found, 30.0)))


def test_an_unmeasured_promise_is_neither_met_nor_missed() -> None:
    assert {line.verdict for line in report.lines({}, 30.0)} == {"not measured"}
    assert [report.Line("", value, 1.0).verdict for value in (1.0, 1.1)] == ["met", "MISSED"]


def test_the_page_of_a_run_comes_from_its_json_alone() -> None:
    given = {
        "about": {
            "date": "today",
            "machine": "one",
            "command": "scripts/bench",
            "load_before": [1.0],
            "load_after": [2.0],
        },
        "failed": {"dead": "dead: ended unexpectedly"},
        **report.as_json(
            {}, [report.Line("a", 0.5, 1.0), report.Line("b", 131.2, 130.0, "why"), report.Line("c", None, 1.0)]
        ),
    }
    text = "\n".join(report.page(json.loads(json.dumps(given))))
    assert "| a | 0.500 | 1 | met |  |" in text and "| b | 131 | 130 | **MISSED** | why |" in text
    assert "Not measured: c." in text and "today, one, load average 1.0 before and 2.0 after" in text
    assert text.endswith("dead: ended unexpectedly")


def test_the_plot_shows_every_onset_and_the_course_of_an_overload() -> None:
    one = {"latencies_ms": [20.0, 30.0, 40.0, 50.0], "rounds_ms": [[20.0, 30.0], [40.0, 50.0]]}
    ends = [ElementTree.fromstring(plot.draw({name: one}, ["when"])) for name in (arms.OURS, arms.OVERLOAD)]
    tags = [[node.tag.rpartition("}")[2] for node in end.iter()] for end in ends]
    assert [seen.count("circle") for seen in tags] == [4, 4]
    assert [seen.count("polyline") for seen in tags] == [0, 2], "one line per round, for overloaded arms only"
    assert float(ends[1].attrib["height"]) > float(ends[0].attrib["height"])


@pytest.mark.parametrize("payload", [b'{"event": "start"}', b'{"event": "start", "box": [0.0, 0.0, 0.1, 0.2]}'])
def test_any_command_may_omit_the_box(payload: bytes) -> None:
    parsed = arms.plain("t", payload)
    assert parsed.onset and parsed.slot == (0 if b"box" in payload else None)
