"""`edge-agent replay`: golden traces, equal results from frames and their recording, bad input in one line.

To record new traces after an intended change: python -m tests.commands.test_replay; then read the diff.
"""

import contextlib
import difflib
import io
import json
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from edge_agent.cli import main
from edge_agent.core.presence.recording import SightChange, moment_at, read_line, read_timestamp, sight_line
from edge_agent.core.protocol.messages import encode_detections, to_json
from edge_agent.core.types import Detections, FrameInfo, Sight
from tests.fakes.agent import environment
from tests.fakes.images import write_video
from tests.fakes.schemas import validate

GOLDEN = Path(__file__).parent.parent / "data" / "replay"
START = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
FPS = 5
SETTINGS = {"NODE": "lobby", "CAMERAS__DOOR__URI": "test://one", "MODEL__BACKEND": "scripted"}
SCRIPTED = {**SETTINGS, "MODEL__MODEL": "scripted"}
ZONES = {"CAMERAS__DOOR__ZONES__LEFT": "[[0,0],[0.5,0],[0.5,1],[0,1]]"}


def moment(t_s):
    return moment_at(START + timedelta(seconds=t_s))


def frame(t_s, *faces, camera="door", late_s=0.0):
    """A line: faces as (centre x, centre y, side, score), px of 640 x 480."""
    boxes = np.array([(x - s / 2, y - s / 2, x + s / 2, y + s / 2) for x, y, s, _ in faces]).reshape(-1, 4)
    info = FrameInfo(camera, round(t_s * FPS), moment(t_s - late_s), 640, 480)
    return to_json(encode_detections("native", Detections(boxes, [face[3] for face in faces]), info, "lobby"))


def sight(t_s, word, doubt=False):
    return to_json(sight_line(SightChange("door", moment(t_s), Sight(word), doubt)))


def film(until_s, faces_at, without=()):
    """Lines at `FPS` with the faces of `faces_at(t)`; no lines in the spans `without`."""
    times = [index / FPS for index in range(round(until_s * FPS))]
    return [(t, frame(t, *faces_at(t))) for t in times if not any(a <= t < b for a, b in without)]


def between(a, b, *faces):
    return lambda t: faces if a <= t < b else ()


FACE = (320, 240, 120, 0.9)


def appear_and_leave():
    return film(9, lambda t: [(100 + 80 * t, 240, 100, 0.7 + 0.03 * t)] if 1 <= t < 5 and t != 3 else [])


def lost():
    return film(23, between(2, 19, FACE), without=[(4, 14)])


def dark():
    """The face is briefly undetected when the light goes out, so its visit does not end as left."""
    lines = film(15, lambda t: [FACE] if 1 <= t < 3.6 or 10 <= t < 13 else [], without=[(4, 10)])
    detections = [
        (0.0, sight(0, "ok")),
        (4.0, sight(4, "ok", doubt=True)),
        (5.4, sight(5.4, "dark")),
        (10.0, sight(10, "ok")),
    ]
    return sorted(detections + lines, key=lambda entry: (entry[0], b"sight" not in entry[1]))


def two_faces():
    def crossing(t):
        first = [(60 + 60 * t, 200, 100, 0.9)] if t < 8 else []
        return first + ([(580 - 60 * t, 330, 100, 0.8)] if 1 <= t < 9 else [])

    return film(12, crossing)


def two_cameras():
    """Published in the order of the infer thread: the yard's frames were exposed 0.15 s before the door's."""
    lines = film(8, between(1, 4, FACE))
    lines += [(t, frame(t, *between(2, 3, FACE)(t), camera="yard", late_s=0.15)) for t in np.arange(0, 8, 0.2)]
    return sorted(lines, key=lambda entry: entry[0])


SCENARIOS = {
    "appear_and_leave": (appear_and_leave, ZONES),
    "lost": (lost, {}),
    "dark": (dark, {}),
    "two_faces": (two_faces, {}),
    "two_cameras": (two_cameras, {}),
    "delays": (
        lambda: film(14, lambda t: [FACE] if t < 0.6 or 2 <= t < 6 else []),
        {"PRESENCE__DELAY_ON_S": 1, "CAMERAS__DOOR__DELAY_OFF_S": 4, "TRACKER__MAX_LOST_S": 0.3},
    ),
}


def recording(folder, lines):
    path = folder / "recording.jsonl"
    path.write_bytes(b"".join(line + b"\n" for _, line in lines))
    return path


def replay(*arguments, settings=SETTINGS):
    """The lines written; in this process, because there are many runs."""
    code, out, error = command(*arguments, settings=settings)
    assert code == 0, error
    return out.splitlines()


def command(*arguments, settings=SETTINGS):
    """Exit code, stdout, stderr."""
    before, wanted = dict(os.environ), environment(settings)
    out, error = io.StringIO(), io.StringIO()
    try:
        os.environ.clear()
        os.environ.update(wanted)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = main(["replay", *map(str, arguments)])
    finally:
        os.environ.clear()
        os.environ.update(before)
    return code, out.getvalue(), error.getvalue()


def shown(line):
    """One readable line: time, kind, and the other fields of a trace."""
    record = json.loads(line)
    at_s = (datetime.fromisoformat(record["ts"][:-1]).replace(tzinfo=timezone.utc) - START).total_seconds()
    what = record.get("event_type") or f"{record['presence']} ({record['reason']})"
    rest = {key: value for key, value in record.items() if key not in ("schema", "ts", "event_type", "parameters")}
    return f"{at_s:6.2f} s  {what}  {json.dumps(rest)}"


@pytest.mark.parametrize("name", SCENARIOS)
def test_golden_trace(name, tmp_path):
    make, more = SCENARIOS[name]
    trace = replay(recording(tmp_path, make()), settings={**SETTINGS, **more})
    golden = (GOLDEN / f"{name}.jsonl").read_text("utf-8").splitlines()
    difference = difflib.unified_diff(list(map(shown, golden)), list(map(shown, trace)), "golden", "now", lineterm="")
    assert trace == golden, "\n".join(["", *difference, "", __doc__])


def test_the_golden_traces_contain_what_their_names_promise():
    def published(name):
        records = [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_text("utf-8").splitlines()]
        return [record.get("end_reason") or record.get("event_type") or record["presence"] for record in records]

    assert published("appear_and_leave") == ["None", "OFF", "start", "ON", "update", "ON", "left", "ON", "OFF", "None"]
    assert published("lost").count("camera_lost") == 1 and published("lost").count("start") == 2
    assert published("dark").count("camera_lost") == published("dark").count("left") == 1
    assert published("two_faces").count("start") == published("two_faces").count("left") == 2
    assert published("two_cameras").count("left") == 2
    assert published("delays")[:5] == ["None", "start", "None", "left", "OFF"], "a passer-by does not turn presence ON"


def test_it_is_deterministic_but_for_the_seed_and_reads_stdin(tmp_path):
    path = recording(tmp_path, appear_and_leave())
    first, again, other = replay(path), replay(path), replay(path, "--seed", 2)
    assert first == again
    assert first != other and [json.loads(line).get("seq") for line in first] == [
        json.loads(line).get("seq") for line in other
    ]
    piped = subprocess.run(
        [sys.executable, "-m", "edge_agent", "replay", "-"],
        input=path.read_bytes(), capture_output=True, env=environment(SETTINGS), timeout=60, check=True,
    )  # fmt: skip
    assert piped.stdout.decode().splitlines() == first


def test_a_recorded_loss_is_no_fault_of_this_machine(tmp_path):
    shown = subprocess.run(
        [sys.executable, "-m", "edge_agent", "replay", str(recording(tmp_path, lost()))],
        capture_output=True, text=True, env=environment(SETTINGS), timeout=60, check=True,
    )  # fmt: skip
    assert "camera_lost" in shown.stdout
    assert len(shown.stderr.splitlines()) == 1 and shown.stderr.startswith("replay: ")


def test_events_are_those_of_the_contract(tmp_path):
    for line in replay("test://one?fps=10&end=10", "--fps", 10, "--camera", "door", settings=SCRIPTED):
        record = json.loads(line)
        if record["schema"] == "edge-agent.face-event/1":
            sent = {**record, "latency_ms": {"capture_to_infer": None, "infer": 0.0, "capture_to_outbox": 0.0}}
            sent.update(published_at=record["ts"], delivery={"replayed": True, "queued_ms": 0})
            validate(to_json(sent))


def bare(lines):
    """Without the image quality, which only pixels give."""
    return [{**record, "quality": None} if "quality" in record else record for record in map(json.loads, lines)]


@pytest.mark.parametrize("disturbance", ["", "&dark=4-9", "&cover=5-12&strobe=1:1"])
def test_frames_and_their_recording_give_the_same_result(disturbance, tmp_path):
    settings = {**SCRIPTED, "CROPS__ENABLED": "false"}
    record = tmp_path / "record.jsonl"
    scene = f"test://one?fps=10&end=24{disturbance}"
    frames = replay(scene, "--fps", 10, "--camera", "door", "--record", record, settings=settings)
    assert len(frames) > 6
    again = replay(record, settings=settings)
    assert bare(again[:-1]) == bare(frames[:-1]), "all but the time of its end, where the last frame was a dark one"
    assert all(read_line(line) for line in record.read_bytes().splitlines())


def test_a_folder_with_times_and_a_hole_in_them_is_a_camera_that_was_lost(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for index in range(40):
        image = rng.integers(60, 90, (240, 320), np.uint8)
        cv2.ellipse(image, (160, 120), (30, 40), 0, 0, 360, 235, -1)
        if index == 20:
            image[:] = 0  # a camera that begins dark has not seen anything yet
        cv2.imwrite(str(folder / f"{index:03d}.png"), image)
    times = [0.1 * index + (20.0 if index >= 20 else 0.0) for index in range(40)]
    stamps = tmp_path / "times.txt"
    stamps.write_text("\n".join(f"{t:.3f}" for t in times))
    records = [json.loads(line) for line in replay(folder, "--timestamps", stamps, settings=SCRIPTED)]
    starts = [record["ts"][14:21] for record in records if record.get("event_type") == "start"]
    assert starts == ["00:00.0", "00:22.1"]
    assert [record["reason"] for record in records if "reason" in record][2:5] == ["lost", "starting", "ok"]
    assert [r["end_reason"] for r in records if r.get("event_type") == "end"] == ["camera_lost", "camera_lost"]
    stamps.write_text("\n".join((START + timedelta(seconds=t)).strftime("%Y-%m-%dT%H:%M:%S.%fZ") for t in times))
    assert json.loads(replay(folder, "--timestamps", stamps, settings=SCRIPTED)[0])["ts"].startswith("2026-03-01T12:00")
    for lines, message in (
        (times[:-1], "times.txt: 39 times, but"),
        ([*times, 99.0], "times.txt:41: one time more than the 40 frames"),
        ([1.0, 0.5], "times.txt:2: is before the line above"),
        (["soon"], "times.txt:1: expected seconds"),
    ):
        stamps.write_text("\n".join(map(str, lines)))
        code, _, error = command(folder, "--timestamps", stamps, settings=SCRIPTED)
        assert code == 1 and message in error


def test_hours_take_seconds(tmp_path):
    lines = film(20 * 60, lambda t: [FACE] if t % 60 < 20 else [])
    code, _, error = command(recording(tmp_path, lines))
    assert code == 0
    took_s = float(error.split(" in ")[1].split()[0])
    assert took_s < 20 * 60 / 20, "at least 20 times faster than it happened, on any machine"


def broken(key, value):
    record = json.loads(frame(1.0, FACE))
    target = record
    *path, last = key.split(".")
    for part in path:
        target = target[int(part) if part.isdecimal() else part]
    target[last] = value
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[1]", "not a JSON object"),
        (b"[" * 5000, "nested deeper"),
        (b"{}", "schema: expected edge-agent.detections/1 or edge-agent.sight/1"),
        (b'{"a":' + b'"x' * 10, "not JSON"),
        (frame(0.1), "ts: is before the one above"),
        (broken("camera", "Door/1"), "camera: expected"),
        (broken("ts", "yesterday"), "ts: expected a time like"),
        (broken("ts", 5), "ts: expected a time like"),
        (broken("ts", "2026-03-01T12:00:01+01:00Z"), "ts: expected a time like"),
        (broken("ts", "9999-12-31T23:59:59.999999Z"), "ts: expected a time like"),
        (broken("frame", None), "frame: expected an object"),
        (broken("frame.width", 0), "frame.width: expected a whole number from 1"),
        (broken("frame.height", 10**6), "frame.height"),
        (broken("score_kind", "mean"), "score_kind: expected max or sum"),
        (broken("detections", 3), "detections: expected a list"),
        (broken("detections.0.score", "1"), "detections[0].score: expected a number"),
        (broken("detections.0.box.left", 1.5), "detections[0].box.left: expected a number from 0 to 1"),
        (broken("detections.0.box.left", 0.99), "detections[0].box: expected left < right"),
        (broken("detections.0.score", float("nan")), "NaN"),
        (sight(2, "ok").replace(b'"ok"', b'"blind"'), "sight: expected one of ok, starting"),
    ],
)
def test_a_bad_line_is_named(line, message, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(frame(0.5) + b"\n\n" + line + b"\n")
    code, _, error = command(path)
    assert code == 1
    assert f"{path}:3: " in error and message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jsonl"], "nothing.jsonl: No such file"),
        (["nothing.mp4"], "nothing.mp4: no such file or folder\n  expected a folder of images"),
        (["rtsp://user:secret@camera/1"], "rtsp://camera/1: is live"),
        (["v4l2:/dev/video0"], "is live"),
        (["test://one"], "never ends"),
        (["clip.mp4?loop=1"], "never ends"),
        (["a.jsonl", "--fps", "3"], "--fps: is for recorded frames"),
        (["images", "--fps", "0"], "--fps 0: expected"),
        (["images", "--fps", "5", "--timestamps", "t"], "expected one of them"),
        (["test://one?end=1", "--timestamps", "nothing.txt"], "--timestamps nothing.txt: No such file"),
        (["test://one?end=1", "--output", "/no/where"], "/no/where: No such file"),
    ],
)
def test_an_input_that_cannot_be_replayed_is_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = command(*arguments)
    assert code == 1 and message in error and "secret" not in error


if __name__ == "__main__":
    import tempfile

    for scenario, (make, more) in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as folder:
            trace = replay(recording(Path(folder), make()), settings={**SETTINGS, **more})
        (GOLDEN / f"{scenario}.jsonl").write_text("".join(f"{line}\n" for line in trace), "utf-8")


def room(face, seed):
    """A noisy room, with a bright marker where a face is."""
    walls = 60 + 20 * np.sin(np.add.outer(np.arange(240) / 17, np.arange(320) / 23))
    image = np.random.default_rng(seed).normal(walls, 3).clip(0, 255).astype(np.uint8)
    if face:
        cv2.ellipse(image, (160, 120), (40, 50), 0, 0, 360, 235, -1)
    return image


def presence_times(*arguments):
    """The first seconds of ON, and of the OFF after it."""
    lines = [json.loads(line) for line in replay(*arguments, settings=SCRIPTED)]
    shown = [(line["presence"], read_timestamp(line["ts"])) for line in lines if "presence" in line]
    on = next(at for presence, at in shown if presence == "ON")
    return on.timestamp(), next(at for presence, at in shown if presence == "OFF" and at > on).timestamp()


@pytest.mark.parametrize("fps", [7, 15, 60])
def test_a_video_is_replayed_on_its_own_times_unless_others_are_given(tmp_path, fps):
    """A face from the 3rd to the 8th second, at whatever rate."""
    images = [room(3 * fps <= index < 8 * fps, index) for index in range(12 * fps)]
    video = write_video(tmp_path / "clip.mkv", images, fps, "ffv1", "gray")
    on, off = presence_times(video)
    assert on == pytest.approx(3.0, abs=0.01) and 8.0 <= off < 11.0
    on, off = presence_times(video, "--fps", fps / 2)
    assert on == pytest.approx(6.0, abs=0.02) and 16.0 <= off < 19.0


def test_a_video_of_varying_rate_is_replayed_on_its_own_times(tmp_path):
    at_ms = [0, 100, 150, 900, 1000, 2500, *range(2600, 4000, 130), *range(4000, 9000, 210)]
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "gray"
        for ms in at_ms:
            picture = av.VideoFrame.from_ndarray(room(2500 <= ms < 4000, ms), format="gray")
            picture.pts, picture.time_base = ms, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    on, off = presence_times(tmp_path / "clip.mkv")
    assert on == 2.5 and 4.0 <= off < 7.0


def test_a_scene_is_replayed_on_its_own_times():
    lines = [json.loads(line) for line in replay("test://one?fps=10&end=4", settings=SCRIPTED)]
    assert read_timestamp(lines[-1]["ts"]).timestamp() == pytest.approx(3.9, abs=0.11)
