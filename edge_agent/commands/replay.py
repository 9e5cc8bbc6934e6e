"""`edge-agent replay`: recorded frames or detections through the same pipeline on the recorded clock, events out."""

import argparse
import json
import os
import random
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, Optional, TextIO

from edge_agent.commands.arguments import add_command, add_env_file
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.frame import Frame
from edge_agent.core.presence.recording import SightChange, sight_line
from edge_agent.core.presence.replay import Opened, RecordedClock, Replay
from edge_agent.core.types import Detections, FaceEvent, Outcome, Sight
from edge_agent.errors import InputError

if TYPE_CHECKING:
    from edge_agent.config.settings import Settings
    from edge_agent.core.frame import Image
    from edge_agent.core.ports import Engine

BOOT = 1
SUFFIXES = (".jsonl", ".ndjson")


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers, "replay", "put recorded frames or detections through the pipeline, and print the events"
    )
    parser.add_argument(
        "recording",
        metavar="RECORDING",
        help="detections as JSON lines (.jsonl, or - for stdin), a folder of pictures, a video file, or test://",
    )
    add_env_file(parser)
    parser.add_argument("--camera", default="replay", help="of frames: whose settings hold (default: replay)")
    parser.add_argument(
        "--timestamps", type=Path, metavar="FILE", help="of frames: one line each, seconds or RFC 3339 in UTC"
    )
    parser.add_argument("--fps", type=float, help="of frames without timestamps (default 30)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the events here (default: stdout)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write what was seen here, to be replayed")
    parser.add_argument("--seed", type=int, default=1, help="of the event ids (default 1)")


def run(args: argparse.Namespace) -> int:
    """Write events and presence as JSON lines, and a summary to stderr.

    Raises:
        InputError: The recording cannot be used; names the line.
        ConfigError: The settings cannot be used.
    """
    from edge_agent.config.settings import load_settings

    settings = load_settings(os.environ, args.env_file)
    started = time.perf_counter()
    detections = args.recording == "-" or Path(args.recording).suffix.lower() in SUFFIXES
    _check_arguments(args, detections)
    clock = RecordedClock()
    with ExitStack() as stack:
        out = _opened(args.output, stack) if args.output else sys.stdout
        record = _opened(args.record, stack) if args.record else None
        outcomes = _detections(args, settings, clock) if detections else _frames(args, settings, clock, record, stack)
        tally = _write(outcomes, settings, clock, out, record)
    tally["seconds"] = round(time.perf_counter() - started, 2)
    print("replay: {frames} frames, {events} events in {seconds} s".format(**tally), file=sys.stderr)
    return 0


def _check_arguments(args: argparse.Namespace, detections: bool) -> None:
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise InputError(f"--fps {args.fps:g}: expected a number above 0 and at most 1000")
    if args.fps is not None and args.timestamps is not None:
        raise InputError("--fps and --timestamps: expected one of them")
    for option in ("fps", "timestamps", "record"):
        if detections and getattr(args, option) is not None:
            raise InputError(f"--{option}: is for recorded frames", "detections carry their own times")


def _opened(path: Path, stack: ExitStack) -> TextIO:
    try:
        return stack.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", "choose a file that can be written") from error


class RecordedDetector:
    """Finds what the recording says."""

    def __init__(self) -> None:
        self.found = Detections.empty()

    def detect(self, picture: "Image") -> Detections:
        """Whatever the picture."""
        return self.found


def _ids(clock: RecordedClock, seed: int) -> Iterator[str]:
    """UUIDv7 of the recording's time, the same at every replay."""
    from edge_agent.host.identity import uuid7_of

    generator = random.Random(seed)
    while True:
        yield uuid7_of(max(0, int(1000 * clock().t)), generator.getrandbits(80))


def _replay(
    settings: "Settings", clock: RecordedClock, seed: int, detector: Any, upright: bool, every_frame: bool
) -> Replay:
    """Pipelines by camera. Without pixels (`upright`) there is nothing to turn, to mask or to cut crops from."""
    from edge_agent.core.presence.pipeline import FacePipeline, PipelineParams

    ids = _ids(clock, seed)

    def open_camera(name: str) -> Opened:
        params = settings.cameras.get(name, CameraParams("replay:"))
        crops = settings.crops
        if upright:
            params = replace(params, rotate=0, flip="none", roi=None, masks=())
            crops = replace(crops, enabled=False)
        idle = replace(settings.idle, fps=0.0) if every_frame else settings.idle
        shared = PipelineParams(settings.tracker, settings.presence, crops, idle)
        pipeline = FacePipeline(name, params, detector, lambda: next(ids), clock, shared)
        return Opened(pipeline, params.stall_after_s)

    return Replay(clock, open_camera)


def _detections(args: argparse.Namespace, settings: "Settings", clock: RecordedClock) -> Iterator[Outcome]:
    """Detections through the pipelines; the picture is black and of the recorded size."""
    import numpy as np

    from edge_agent.commands.recordings import read_detections

    detector = RecordedDetector()
    replay = _replay(settings, clock, args.seed, detector, upright=True, every_frame=True)
    black = np.zeros((1, 1), np.uint8)
    for entry in read_detections(args.recording):
        if isinstance(entry, SightChange):
            yield from replay.sight(entry.camera, entry.sight, entry.moment, entry.doubt)
            continue
        detector.found = entry.detections
        if black.shape != (entry.height, entry.width):
            black = np.zeros((entry.height, entry.width), np.uint8)
        frame = Frame(black, entry.sequence, entry.moment.t)
        yield from map(_without_quality, replay.frame(entry.camera, frame, entry.moment))
    yield from replay.end()


def _without_quality(outcome: Outcome) -> Outcome:
    return replace(outcome, events=tuple(replace(event, quality=None) for event in outcome.events))


def _frames(
    args: argparse.Namespace, settings: "Settings", clock: RecordedClock, record: Optional[TextIO], stack: ExitStack
) -> Iterator[Outcome]:
    """Frames through the judgement of the light, the detector and the pipeline, as in `runtime.stages`."""
    from edge_agent.commands.recordings import read_frames
    from edge_agent.core.camera.visibility import VisibilityMonitor
    from edge_agent.core.detection.detector import FaceDetector

    camera = settings.cameras.get(args.camera, CameraParams("replay:"))
    kind, frames = read_frames(args.recording, args.timestamps, args.fps, camera, stack)
    detector = FaceDetector(_engine(settings, stack), settings.detection)
    replay = _replay(settings, clock, args.seed, detector, upright=False, every_frame=record is not None)
    monitor = VisibilityMonitor(settings.illumination, kind)
    told: Optional[SightChange] = None
    for frame, moment in frames:
        with frame:
            yield from replay.alive(args.camera, moment)
            if replay.sight_of(args.camera) is Sight.LOST:
                monitor = VisibilityMonitor(settings.illumination, kind)
            verdict = monitor.observe(frame.pixels, frame.levels, moment.t)
            change = SightChange(args.camera, moment, verdict.sight, verdict.doubt)
            if record is not None and (told is None or (told.sight, told.doubt) != (change.sight, change.doubt)):
                told = change
                _line(record, sight_line(change))
            yield from replay.sight(args.camera, verdict.sight, moment, verdict.doubt)
            if verdict.keep:
                yield from replay.frame(args.camera, frame, moment)
    yield from replay.end()


def _engine(settings: "Settings", stack: ExitStack) -> "Engine":
    from edge_agent.app.factories import require_known_model
    from edge_agent.inference import open_engine
    from edge_agent.models.registry import models_dir

    require_known_model(settings)
    engine = open_engine(settings.model, models_dir(settings.model.models_dir, os.environ))
    stack.callback(engine.close)
    return engine


def _write(
    outcomes: Iterable[Outcome], settings: "Settings", clock: RecordedClock, out: TextIO, record: Optional[TextIO]
) -> Dict[str, Any]:
    """Each event and each change of presence as a line, in order; what was seen to `record`."""
    from edge_agent.app.factories import decided_by
    from edge_agent.core.protocol.messages import encode_attributes, encode_detections, timestamp

    parameters = decided_by(settings, None)
    tally = {"frames": 0, "events": 0}
    for outcome in outcomes:
        tally["frames"] += outcome.info is not None
        for event in outcome.events:
            tally["events"] += 1
            _line(out, _event(event, settings.node, clock))
        if outcome.report is not None:
            report = outcome.report
            about = encode_attributes(report, parameters.get(report.camera, {}))
            _line(out, {"ts": timestamp(clock().at), "camera": report.camera, **about})
        if record is not None and outcome.detections is not None and outcome.info is not None:
            _line(record, encode_detections("native", outcome.detections, outcome.info, settings.node))
    return tally


def _event(event: FaceEvent, node: str, clock: RecordedClock) -> Dict[str, Any]:
    """As published, but for what only the sending knows; how long things took is no part of a recording."""
    from edge_agent.core.protocol.messages import encode_event

    payload = encode_event(event, node, BOOT, clock())
    del payload["latency_ms"]
    return payload


def _line(out: TextIO, payload: Dict[str, Any]) -> None:
    out.write(json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n")
