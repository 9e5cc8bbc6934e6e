"""The arms: commands that read a camera and publish to a broker."""

import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple

from scripts.lib.bench.network import Files
from scripts.lib.bench.scene import slot_of
from tests.fakes.agent import environment

GONE_S = 0.3
IOU = 0.4


class Place(NamedTuple):
    """Camera, broker and state folder of an arm."""

    url: str
    port: int
    topic: str
    state: Path


class ParsedMessage(NamedTuple):
    """One parsed message.

    Attributes:
        onset: A visit has begun; `slot` is its place, None where the message has none.
        counts: (processed, read) frames so far.
        infer_ms: Times of the network, from the part that is measured alone.
    """

    onset: bool = False
    slot: Optional[int] = None
    counts: Optional[Tuple[int, int]] = None
    infer_ms: Tuple[float, ...] = ()


class Arm(NamedTuple):
    """One command to measure.

    Attributes:
        launch: Returns the command and its environment.
        parse: Parses a topic and a payload.
        visits: False for an arm that is measured for `seconds`, without visits.
        nobody: Without visits, the room is empty; else a face stays.
        fps: Frame rate of its camera; None for the benchmark's own.
    """

    name: str
    launch: Callable[[Place], Tuple[List[str], Mapping[str, str]]]
    parse: Callable[[str, bytes], ParsedMessage]
    visits: bool = True
    seconds: float = 0.0
    fps: Optional[float] = None
    nobody: bool = False


def plain(topic: str, payload: bytes) -> ParsedMessage:
    """Parse the messages of any command.

    On MQTT_TOPIC `{"event": "start", "box": [left, top, right, bottom]}`, box 0..1 and optional; on MQTT_TOPIC/count
    about once a second `{"processed": n, "read": n}`, without which there is no CPU per frame.
    """
    body = json.loads(payload)
    if topic.endswith("/count"):
        return ParsedMessage(counts=(body["processed"], body["read"]), infer_ms=tuple(body.get("infer_ms", ())))
    return ParsedMessage(body.get("event") == "start", _slot(body.get("box")))


def agent_messages(topic: str, payload: bytes) -> ParsedMessage:
    """Parse the agent's events and health."""
    if topic.endswith("/events"):
        body = json.loads(payload)
        box = body.get("box")
        place = _slot([box[side] for side in ("left", "top", "right", "bottom")]) if box else None
        return ParsedMessage(body.get("event_type") == "start", place)
    if topic.endswith("/health"):
        every = [camera["counters"] for camera in json.loads(payload)["cameras"].values()]
        read = sum(counters["frames"] + counters.get("source_dropped", 0) for counters in every)
        return ParsedMessage(counts=(sum(counters["inferred"] for counters in every), read))
    return ParsedMessage()


def _slot(box: Any) -> Optional[int]:
    return slot_of((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) if box else None


def agent(
    name: str, model: str, settings: Mapping[str, Any] = {}, cameras: int = 1, python: Tuple[str, ...] = ()
) -> Arm:
    """edge-agent as installed, its outbox on disk; `settings` without their prefix."""

    def launch(place: Place) -> Tuple[List[str], Mapping[str, str]]:
        own: Dict[str, Any] = {
            "NODE": "bench", "LOG_LEVEL": "warning", "MQTT__HOST": "127.0.0.1", "MQTT__PORT": place.port,
            "MQTT__BASE": place.topic, "HEALTH__INTERVAL_S": 1, "MODEL__MODEL": model,
            "TRACKER__MAX_LOST_S": GONE_S, "DETECTION__NMS_IOU_THRESHOLD": IOU,
            **{f"CAMERAS__C{n}__URI": place.url for n in range(cameras)}, **settings,
        }  # fmt: skip
        return [sys.executable, *(python or ("-m", "edge_agent")), "run"], environment(own, place.state)

    return Arm(name, launch, agent_messages)


def module(
    name: str, what: str, *arguments: str, visits: bool = True, seconds: float = 0.0, python: str = sys.executable
) -> Arm:
    """One of the programs in scripts/lib/bench/programs."""

    def launch(place: Place) -> Tuple[List[str], Mapping[str, str]]:
        where = ["--url", place.url, "--port", str(place.port), "--topic", place.topic]
        return [python, "-m", f"scripts.lib.bench.programs.{what}", *arguments, *where], environment({})

    return Arm(name, launch, plain, visits, seconds)


def command(name: str, line: str) -> Arm:
    """Any shell command; its environment has CAM_URL, MQTT_HOST, MQTT_PORT and MQTT_TOPIC."""

    def launch(place: Place) -> Tuple[List[str], Mapping[str, str]]:
        given = {
            "CAM_URL": place.url,
            "MQTT_HOST": "127.0.0.1",
            "MQTT_PORT": str(place.port),
            "MQTT_TOPIC": place.topic,
        }
        return ["/bin/sh", "-c", line], {**environment({}), **given}

    return Arm(name, launch, plain)


OURS, OURS_FP32, OURS_2T = "agent int8", "agent fp32", "agent int8 2 threads"
SCRIPT, SCRIPT_FP32, HAAR = "script int8", "script fp32", "script haar"
CENTERFACE = "agent centerface"
DECODE_OURS, DECODE_SCRIPT, INFER = "decode, agent's", "decode, OpenCV's", "network int8 alone"
LIBRARIES, LIBRARIES_LEAN = "libraries and network alone", "the same, no OpenCV"
PARTS = (DECODE_OURS, DECODE_SCRIPT, INFER, LIBRARIES, LIBRARIES_LEAN)
IDLE, IDLE_FULL, IDLE_VISITS = "agent int8, nobody there", "the same, every frame", "agent int8, idle between faces"
_SOON_IDLE = {"IDLE__AFTER_S": 0.2, "PRESENCE__DELAY_OFF_S": GONE_S}
LEAN, EIGHT = "agent int8, no OpenCV, no crops", "agent int8, 8 cameras at 5 fps"
OVERLOAD = "agent fp32 at 90 fps"
_WITHOUT_CV2 = "import sys; sys.modules['cv2'] = None; from edge_agent.cli import main; sys.exit(main(sys.argv[1:]))"


def shipped(files: Files, part_s: float, haar_python: str = sys.executable) -> List[Arm]:
    """Return the arms that need only this checkout, in the order of the table."""
    fp32, int8 = str(files.fp32), str(files.int8)
    return [
        agent(OURS, int8),
        module(SCRIPT, "script", "--model", int8),
        agent(OURS_FP32, fp32),
        module(SCRIPT_FP32, "script", "--model", fp32),
        agent(OURS_2T, int8, {"MODEL__THREADS": 2}),
        module(HAAR, "script", "--model", "haar", python=haar_python),
        agent(CENTERFACE, "centerface"),
        agent(LEAN, int8, {"CROPS__ENABLED": "false"}, python=("-c", _WITHOUT_CV2)),
        agent(OVERLOAD, fp32)._replace(fps=90.0),
        agent(EIGHT, int8, cameras=8)._replace(fps=5.0, visits=False, seconds=part_s),
        agent(IDLE_VISITS, int8, _SOON_IDLE),
        agent(IDLE, int8)._replace(visits=False, seconds=part_s, nobody=True),
        agent(IDLE_FULL, int8, {"IDLE__FPS": 0})._replace(visits=False, seconds=part_s, nobody=True),
        module(DECODE_OURS, "parts", "decode-agent", visits=False, seconds=part_s),
        module(DECODE_SCRIPT, "parts", "decode-opencv", visits=False, seconds=part_s),
        module(INFER, "parts", "infer", "--model", int8, visits=False, seconds=part_s),
        module(LIBRARIES, "parts", "libraries", "--model", int8, visits=False, seconds=1.0),
        module(LIBRARIES_LEAN, "parts", "libraries-lean", "--model", int8, visits=False, seconds=1.0),
    ]
