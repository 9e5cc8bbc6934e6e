"""Counts ids and visits against ground truth, on clips and on seeded scenes of still faces, per set of settings.

    scripts/track-table --data ../shared/data/faces --variant one-threshold:continue_ratio=1

The folder holds `clips/` (`CLIPS` has their names and numbers of faces), `images/` and `coco.json`. Labelled images
become scenes in which every face stays: the image trembles by a few px and carries shot and read noise. The network
runs once per frame, and every variant sees the same outputs.
"""

import argparse
import dataclasses
import itertools
import os
import sys
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from edge_agent.app.factories import engine_of
from edge_agent.commands.evaluate.dataset import read_image, read_labels
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.detection.detector import Decoder, DetectionParams
from edge_agent.core.frame import Frame, Image
from edge_agent.core.presence.crops import CropParams
from edge_agent.core.presence.pipeline import FacePipeline, PipelineParams
from edge_agent.core.presence.tracker import TrackerParams
from edge_agent.core.types import Detections, Moment, Sight
from edge_agent.errors import InputError
from edge_agent.inference import EngineParams

CLIPS: Dict[str, int] = {
    "again.mkv": 1, "book.mkv": 1, "sister.mkv": 1, "walk.mkv": 1,  # one signer each, always there
    "face-demographics-walking.gif": 2,  # two people walk towards the camera
    "one-by-one-person-detection.mp4": 0,  # five people, all seen from behind
    "bottle-detection.mp4": 0,  # hands and bottles
}  # fmt: skip

Scene = Tuple[str, int, float, Iterator[np.ndarray]]  # name, faces, frames per second, (H, W) uint8 frames

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


class Outputs:
    """The detector of one variant: decodes what the network returned for the current frame."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.outputs: Mapping[str, Any] = {}
        self.best = 0.0

    def detect(self, image: Image) -> Detections:
        """The faces of the current frame."""
        height, width = image.pixels.shape[:2]
        found = self._decoder.decode(self.outputs, (width, height))
        self.best = float(found.confidence.max()) if len(found) else 0.0
        return found


@dataclasses.dataclass
class Row:
    """Figures of one scene under one variant."""

    ids: int
    visits: int
    brief: int
    wrong: float
    onset_s: Optional[float]


def clip_frames(path: Path, every: int) -> Tuple[float, Iterator[np.ndarray]]:
    """Frames per second and gray frames of a video, every nth."""
    import av

    container = av.open(str(path))
    rate = float(container.streams.video[0].average_rate or 30) / every
    frames = (frame.to_ndarray(format="gray") for frame in container.decode(video=0))
    return rate, itertools.islice(frames, 0, None, every)


def still_frames(image: np.ndarray, count: int, dim: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The image, trembling by up to 3 px, `dim` times as bright, with shot and read noise."""
    for _ in range(count):
        moved = np.roll(image, rng.integers(-3, 4, 2), (0, 1)).astype(np.float64) * dim
        yield np.clip(rng.poisson(moved * 4) / 4 + rng.normal(0, 1.5, moved.shape), 0, 255).astype(np.uint8)


def scenes(data: Path, every: int, seconds: float, seed: int) -> Iterator[Scene]:
    """All scenes below `data`, each opened when it is reached."""
    for name, faces in CLIPS.items():
        if (data / "clips" / name).is_file():
            yield (name, faces, *clip_frames(data / "clips" / name, every))
    truths = read_labels(data / "coco.json", "auto") if (data / "coco.json").is_file() else []
    for truth in truths:
        if len(truth.faces) >= 3 and not len(truth.ignored):
            image = read_image(data / "images" / truth.name, False)
            for dim in (1.0, 0.125, 0.0625):
                rng = np.random.default_rng([seed, round(1000 * dim)])
                frames = still_frames(image, round(seconds * 10), dim, rng)
                yield f"{truth.name} x {dim:g}", len(truth.faces), 10.0, frames


def run(scene: Scene, infer: Any, variants: Sequence[Tuple[Decoder, TrackerParams]]) -> List[Row]:
    """Run a scene through one pipeline per variant."""
    _, faces, fps, frames = scene
    now = Moment(0.0, START)
    detectors = [Outputs(decoder) for decoder, _ in variants]
    ids = (str(number) for number in itertools.count())
    pipelines = [
        FacePipeline("a", CameraParams("test://"), detector, lambda: next(ids), lambda: now,
                     PipelineParams(tracker, crops=CropParams(enabled=False)))
        for detector, (_, tracker) in zip(detectors, variants)
    ]  # fmt: skip
    events: List[Counter] = [Counter() for _ in variants]
    seen: List[Dict[str, int]] = [{} for _ in variants]
    tracks: List[set] = [set() for _ in variants]
    wrong = [0] * len(variants)
    first_t: List[Optional[float]] = [None] * len(variants)
    onset: List[Optional[float]] = [None] * len(variants)
    for pipeline in pipelines:
        pipeline.set_sight(Sight.OK, now)
    count = 0
    for count, pixels in enumerate(frames, 1):
        now = Moment(count / fps, START + timedelta(seconds=count / fps))
        outputs = infer(Image(pixels))
        for index, (pipeline, detector) in enumerate(zip(pipelines, detectors)):
            detector.outputs = outputs
            frame = Frame(pixels, count, now.t)
            outcome = pipeline.step(frame, pipeline.frame_info(frame, now))
            report = pipeline.report()
            for event in outcome.events:
                events[index][event.event_type] += 1
                tracks[index].add(event.track_id)
            for event_id in report.event_ids:
                seen[index][event_id] = seen[index].get(event_id, 0) + 1
            wrong[index] += len(report.event_ids) != faces
            if detector.best > variants[index][0].threshold and first_t[index] is None:
                first_t[index] = now.t
            if report.event_ids and onset[index] is None:
                onset[index] = now.t - (first_t[index] or now.t)
    last_s = [max(0.0, tracker.max_lost_s) for _, tracker in variants]
    return [
        Row(len(tracks[index]), events[index]["start"],
            sum(frames_open <= fps * (last_s[index] + 0.5) for frames_open in seen[index].values()),
            wrong[index] / max(1, count), onset[index])
        for index in range(len(variants))
    ]  # fmt: skip


def variant(text: str) -> Tuple[str, TrackerParams]:
    """Parse NAME:field=value,... of `TrackerParams`."""
    name, _, assignments = text.partition(":")
    known = {field.name: field for field in dataclasses.fields(TrackerParams)}
    values: Dict[str, Any] = {}
    for assignment in filter(None, assignments.split(",")):
        key, _, value = assignment.partition("=")
        if key not in known:
            raise argparse.ArgumentTypeError(f"{key}: expected one of {', '.join(known)}")
        values[key] = type(known[key].default)(float(value))
    return name, TrackerParams(**values)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="scripts/track-table", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with clips/, images/ and coco.json")
    parser.add_argument("--variant", type=variant, action="append", metavar="NAME:FIELD=VALUE,...",
                        help="settings of the tracker to compare with the defaults; may be repeated")  # fmt: skip
    parser.add_argument("--every", type=int, default=1, help="take every nth frame of a clip (1)")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each scene of a still (6)")
    parser.add_argument("--seed", type=int, default=1, help="seed of tremble and noise (1)")
    parser.add_argument("--model", default="centerface", help="registry name or .onnx file (centerface)")
    arguments = parser.parse_args()
    variants = [("defaults", TrackerParams()), *(arguments.variant or [])]
    try:
        engine = engine_of(
            EngineParams(model=arguments.model, models_dir=os.environ.get("EDGE_AGENT_MODEL__MODELS_DIR")), os.environ
        )
    except InputError as error:
        sys.exit(str(error))
    decoders = [(Decoder(engine.contract, DetectionParams(), params), params) for _, params in variants]
    print("| scene | faces | variant | ids | visits | brief visits | frames with a wrong number | onset, s |")
    print("|---|---|---|---|---|---|---|---|")
    totals = [[0, 0, 0] for _ in variants]
    try:
        for scene in scenes(arguments.data, arguments.every, arguments.seconds, arguments.seed):
            for total, (name, _), row in zip(totals, variants, run(scene, engine.infer, decoders)):
                onset = "" if row.onset_s is None else f"{row.onset_s:.2f}"
                counts = f"{row.ids} | {row.visits} | {row.brief} | {row.wrong:.0%} | {onset}"
                print(f"| {scene[0]} | {scene[1]} | {name} | {counts} |")
                total[0] += scene[1]
                total[1] += row.visits
                total[2] += row.brief
    finally:
        engine.close()
    for (name, _), (faces, visits, brief) in zip(variants, totals):
        print(f"| all | {faces} | {name} | | {visits} | {brief} | | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
