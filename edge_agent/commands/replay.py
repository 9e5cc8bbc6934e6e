"""`edge-agent replay`: run recorded frames or detections through the stages on the recorded clock."""

import argparse
import json
import logging
import os
import random
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, Optional, TextIO, Tuple, Union

import numpy as np

from edge_agent.commands.arguments import add_command, add_env_file
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.visibility import Visibility
from edge_agent.core.frame import Frame, Levels
from edge_agent.core.presence.recording import RecordedDetections, SightChange, sight_line
from edge_agent.core.types import Array, Detections, FaceEvent, Outcome, Sight
from edge_agent.errors import InputError
from edge_agent.runtime.replay import Replay, ReplayCamera, ReplayClock
from edge_agent.runtime.stages import Judge

if TYPE_CHECKING:
    from edge_agent.config.settings import Settings
    from edge_agent.core.frame import Image
    from edge_agent.core.ports import Engine

BOOT = 1
SUFFIXES = (".jsonl", ".ndjson")


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers, "replay", "run recorded frames or detections through the pipeline and print the events"
    )
    parser.add_argument(
        "recording",
        metavar="RECORDING",
        help="detections as JSON lines (.jsonl, or - for stdin), a folder of images, a video file, or test://",
    )
    add_env_file(parser)
    parser.add_argument("--camera", default="replay", help="of frames: their camera (default: replay)")
    parser.add_argument(
        "--timestamps", type=Path, metavar="FILE", help="of frames: one time per line, seconds or RFC 3339 in UTC"
    )
    parser.add_argument("--fps", type=float, help="of frames, instead of the video's own times (images: default 30)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the events here (default: stdout)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="of frames: write detections here, to be replayed")
    parser.add_argument("--seed", type=int, default=1, help="seed of the event ids (default 1)")


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
    clock = ReplayClock()
    with ExitStack() as stack:
        out = _opened(args.output, stack) if args.output else sys.stdout
        record = _opened(args.record, stack) if args.record else None
        _silence_stages(stack)
        if detections:
            outcomes = _replay_detections(args, settings, clock)
        else:
            outcomes = _replay_frames(args, settings, clock, record, stack)
        counts = _write(outcomes, settings, clock, out, record)
    counts["seconds"] = round(time.perf_counter() - started, 2)
    print("replay: {frames} frames, {events} events in {seconds} s".format(**counts), file=sys.stderr)
    return 0


def _check_arguments(args: argparse.Namespace, detections: bool) -> None:
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise InputError(f"--fps {args.fps:g}: expected a number above 0 and at most 1000")
    if args.fps is not None and args.timestamps is not None:
        raise InputError("--fps and --timestamps: expected one of them")
    for option in ("fps", "timestamps", "record"):
        if detections and getattr(args, option) is not None:
            raise InputError(f"--{option}: is for recorded frames", "detections carry their own times")


def _silence_stages(stack: ExitStack) -> None:
    """Drop the stages' log records: that a recorded camera was lost stands in the replay's output."""
    stages = logging.getLogger("edge_agent.runtime.stages")

    def drop(record: logging.LogRecord) -> bool:
        return False

    stages.addFilter(drop)
    stack.callback(stages.removeFilter, drop)


def _opened(path: Path, stack: ExitStack) -> TextIO:
    try:
        return stack.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", "choose a file that can be written") from error


class RecordedCamera:
    """The judge and the detector of a recording of detections: both return what stands in the recording."""

    def __init__(self) -> None:
        self.visibility = Visibility(True, Sight.OK)
        self.found = Detections.empty()

    def show(self, entry: Union[RecordedDetections, SightChange]) -> None:
        """Return this entry from now on."""
        if isinstance(entry, SightChange):
            self.visibility = Visibility(False, entry.sight, entry.doubt)
        else:
            self.visibility = Visibility(True, Sight.OK, self.visibility.doubt, self.visibility.doubt)
            self.found = entry.detections

    def judge(self, pixels: Array, levels: Levels, t: float) -> Visibility:
        """Return the recorded visibility."""
        return self.visibility

    def detect(self, image: "Image") -> Detections:
        """Return the recorded detections."""
        return self.found


class SightRecorder:
    """Writes a camera's changes of sight to a recording.

    Args:
        camera: Its id.
        clock: The recording's.
        record: Takes the lines.
    """

    def __init__(self, camera: str, clock: ReplayClock, record: TextIO) -> None:
        self._camera, self._clock, self._record = camera, clock, record
        self._written: Optional[Tuple[Sight, bool]] = None

    def watch(self, judge: Judge) -> Judge:
        """Return a judge that also records what `judge` returns."""

        def recording(pixels: Array, levels: Levels, t: float) -> Visibility:
            visibility = judge(pixels, levels, t)
            state = visibility.sight, visibility.doubt or visibility.faint
            if state != self._written:
                self._written = state
                _line(self._record, sight_line(SightChange(self._camera, self._clock(), *state)))
            return visibility

        return recording


def _ids(clock: ReplayClock, seed: int) -> Iterator[str]:
    """Yield UUIDv7s of the recording's time, the same at every replay."""
    from edge_agent.host.identity import uuid7_of

    generator = random.Random(seed)
    while True:
        yield uuid7_of(max(0, int(1000 * clock().t)), generator.getrandbits(80))


def _replay_detections(args: argparse.Namespace, settings: "Settings", clock: ReplayClock) -> Iterator[Outcome]:
    """Replay recorded detections; the frames are black and of the recorded size, so they have no crops or quality."""
    from edge_agent.commands.recordings import read_detections
    from edge_agent.core.presence.pipeline import FacePipeline, PipelineParams

    ids = _ids(clock, args.seed)
    cameras: Dict[str, RecordedCamera] = {}
    shared = PipelineParams(
        settings.tracker, settings.presence, replace(settings.crops, enabled=False), replace(settings.idle, fps=0.0)
    )

    def open_camera(name: str) -> ReplayCamera:
        params = settings.cameras.get(name, CameraParams("replay:"))
        upright = replace(params, rotate=0, flip="none", roi=None, masks=())
        pipeline = FacePipeline(name, upright, cameras[name], lambda: next(ids), clock, shared)
        return ReplayCamera(pipeline, lambda: cameras[name].judge, params.stall_after_s)

    replay = Replay(clock, open_camera)
    black = np.zeros((1, 1), np.uint8)
    for entry in read_detections(args.recording):
        cameras.setdefault(entry.camera, RecordedCamera()).show(entry)
        sequence = 0
        if isinstance(entry, RecordedDetections):
            sequence = entry.sequence
            if black.shape != (entry.height, entry.width):
                black = np.zeros((entry.height, entry.width), np.uint8)
        frame = Frame(black, sequence, entry.moment.t)
        outcomes = replay.deliver(entry.camera, frame, entry.moment)
        yield from outcomes if isinstance(entry, SightChange) else map(_without_quality, outcomes)
    yield from replay.end()


def _without_quality(outcome: Outcome) -> Outcome:
    return replace(outcome, events=tuple(replace(event, quality=None) for event in outcome.events))


def _replay_frames(
    args: argparse.Namespace, settings: "Settings", clock: ReplayClock, record: Optional[TextIO], stack: ExitStack
) -> Iterator[Outcome]:
    """Replay recorded frames; with `record`, every frame is inferred, and changes of sight are written to it."""
    from edge_agent.commands.recordings import read_frames
    from edge_agent.core.camera.visibility import VisibilityMonitor
    from edge_agent.core.detection.detector import FaceDetector
    from edge_agent.core.presence.pipeline import FacePipeline, PipelineParams

    name = args.camera
    params = settings.cameras.get(name, CameraParams("replay:"))
    kind, frames = read_frames(args.recording, args.timestamps, args.fps, params, stack)
    detector = FaceDetector(_engine(settings, stack), settings.detection, settings.tracker)
    ids = _ids(clock, args.seed)
    idle = settings.idle if record is None else replace(settings.idle, fps=0.0)
    shared = PipelineParams(settings.tracker, settings.presence, settings.crops, idle)
    recorder = None if record is None else SightRecorder(name, clock, record)

    def make_judge() -> Judge:
        judge = VisibilityMonitor(settings.illumination, kind, params.dark_means).observe
        return judge if recorder is None else recorder.watch(judge)

    def open_camera(name: str) -> ReplayCamera:
        pipeline = FacePipeline(name, params, detector, lambda: next(ids), clock, shared)
        return ReplayCamera(pipeline, make_judge, params.stall_after_s)

    replay = Replay(clock, open_camera)
    for frame, moment in frames:
        frame.t = moment.t
        yield from replay.deliver(name, frame, moment)
    yield from replay.end()


def _engine(settings: "Settings", stack: ExitStack) -> "Engine":
    from edge_agent.app.factories import engine_of, require_known_model

    require_known_model(settings)
    engine = engine_of(settings.model, os.environ)
    stack.callback(engine.close)
    return engine


def _write(
    outcomes: Iterable[Outcome], settings: "Settings", clock: ReplayClock, out: TextIO, record: Optional[TextIO]
) -> Dict[str, Any]:
    """Write each event and each change of presence as a line, and each frame's detections to `record`."""
    from edge_agent.app.factories import presence_parameters_of
    from edge_agent.core.protocol.messages import encode_attributes, encode_detections, timestamp

    parameters = presence_parameters_of(settings, None)
    counts = {"frames": 0, "events": 0}
    for outcome in outcomes:
        counts["frames"] += outcome.info is not None
        for event in outcome.events:
            counts["events"] += 1
            _line(out, _event(event, settings.node, clock))
        if outcome.report is not None:
            report = outcome.report
            attributes = encode_attributes(report, parameters.get(report.camera, {}))
            _line(out, {"ts": timestamp(clock().at), "camera": report.camera, **attributes})
        if record is not None and outcome.detections is not None and outcome.info is not None:
            _line(record, encode_detections("native", outcome.detections, outcome.info, settings.node))
    return counts


def _event(event: FaceEvent, node: str, clock: ReplayClock) -> Dict[str, Any]:
    """Return the event as published, without latencies, which a recording does not hold."""
    from edge_agent.core.protocol.messages import encode_event

    payload = encode_event(event, node, BOOT, clock())
    del payload["latency_ms"]
    return payload


def _line(out: TextIO, payload: Dict[str, Any]) -> None:
    out.write(json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n")
