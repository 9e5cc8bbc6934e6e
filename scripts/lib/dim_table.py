"""Measures the detector on labelled images that are dimmed, with the noise of a sensor: recall, precision, sight.

    scripts/dim-table --images DIR --labels FILE            levels as captured against adapted levels
    scripts/dim-table ... --read-noise 2 --electrons 10     a noisier sensor

Each image is divided by 4, 8, 16 and 32. A gray level is `--electrons` electrons: their number is drawn from a Poisson
distribution, the read noise from a normal one, both seeded, and the result is rounded to 8 bits. "dark" and "faint" are
the shares of images that the agent would not judge, or would not believe to be empty. The second table gives recall
by the ratio that this decision is taken by. `--replay` runs `REPLAY_FRAMES` frames of each image with a face, each with
noise of its own, through judge and pipeline, and counts the images by the last presence; OFF is wrong.
"""

import argparse
import os
import sys
from collections import Counter
from datetime import datetime, timedelta, timezone
from itertools import count
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from edge_agent.app.factories import engine_of
from edge_agent.commands.evaluate.dataset import read_image, read_labels
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.signal_noise import BLIND_BELOW, FAINT_BELOW, signal_to_noise
from edge_agent.core.camera.visibility import VisibilityMonitor, VisibilityParams, brightness
from edge_agent.core.detection.detector import DetectionParams, FaceDetector
from edge_agent.core.detection.evaluation import Evaluation, GroundTruth
from edge_agent.core.frame import FULL_RANGE, Frame, Image
from edge_agent.core.presence.pipeline import FacePipeline
from edge_agent.core.presence.recording import moment_at
from edge_agent.core.types import Array
from edge_agent.inference import EngineParams
from edge_agent.runtime.replay import Replay, ReplayCamera, ReplayClock

FACTORS = (1, 4, 8, 16, 32)
REPLAY_FRAMES, REPLAY_FPS = 15, 5.0
BINS = (0.0, 0.6, 0.8, BLIND_BELOW, 1.25, 1.5, 2.0, FAINT_BELOW, 3.0, 4.0, 6.0, float("inf"))


class Sensor(NamedTuple):
    """Noise of a sensor: electrons and read noise per 8-bit gray level, and a seed."""

    electrons: float = 20.0
    read_noise: float = 1.0
    seed: int = 1

    def dimmed(self, gray: Array, factor: int, index: int = 0) -> Array:
        """(H, W) uint8 of a (H, W) uint8 image in 1/`factor` of its light; as it is for a factor of 1."""
        if factor == 1:
            return gray
        draw = np.random.default_rng([self.seed, factor, index])
        light = draw.poisson(gray / factor * self.electrons) / self.electrons
        return np.clip(np.rint(light + draw.normal(0.0, self.read_noise, gray.shape)), 0, 255).astype(np.uint8)


class Row(NamedTuple):
    """Figures of one dimming."""

    factor: int
    mean: float
    captured: Evaluation
    adapted: Evaluation
    dark: float
    faint: float


def main(arguments: Optional[List[str]] = None) -> int:
    """The command line."""
    args = _arguments(arguments)
    images = [(truth, read_image(args.images / truth.name, False)) for truth in read_labels(args.labels, "auto")]
    engine = engine_of(EngineParams(model=args.model, threads=1), os.environ)
    detectors = [FaceDetector(engine, DetectionParams(adapt_levels=on)) for on in (False, True)]
    by_ratio: Dict[int, List[int]] = {}
    rows, presences = [], []
    try:
        for factor in FACTORS:
            print(f"1/{factor}", file=sys.stderr)
            sensor = Sensor(args.electrons, args.read_noise, args.seed)
            rows.append(measure(images, factor, sensor, detectors, by_ratio))
            if args.replay:
                presences.append(replayed(images, factor, sensor, detectors[1]))
    finally:
        engine.close()
    print("\n".join(table(rows)))
    print("\n".join(ratio_table(by_ratio)))
    if presences:
        print("\n".join(["", "| light | ON | None | OFF | ever OFF |", "|---|---|---|---|---|"]))
        for factor, counts in zip(FACTORS, presences):
            print(f"| 1/{factor} | {counts['ON']} | {counts['None']} | {counts['OFF']} | {counts['ever OFF']} |")
    return 0


def replayed(
    images: List[Tuple[GroundTruth, Array]], factor: int, sensor: Sensor, detector: FaceDetector
) -> "Counter[str]":
    """How many images with a face end in which presence, and how many were ever "OFF"."""
    counts: Counter[str] = Counter()
    numbers = count()

    def ids() -> str:
        return str(next(numbers))

    for index, (truth, gray) in enumerate(images):
        if not len(truth.faces):
            continue
        clock = ReplayClock()
        pipeline = FacePipeline("dim", CameraParams("replay:"), detector, ids, clock)
        judge = VisibilityMonitor(VisibilityParams(), "still").observe
        camera = ReplayCamera(pipeline, lambda judge=judge: judge, 5.0)  # type: ignore[misc]
        replay = Replay(clock, lambda _, camera=camera: camera)  # type: ignore[misc]
        seen = []
        for number in range(REPLAY_FRAMES):
            moment = moment_at(datetime.fromtimestamp(0.0, timezone.utc) + timedelta(seconds=number / REPLAY_FPS))
            pixels = sensor.dimmed(gray, factor, index * REPLAY_FRAMES + number)
            for outcome in replay.deliver("dim", Frame(pixels, number, moment.t), moment):
                seen += [outcome.report.presence.value] if outcome.report else []
        counts[pipeline.report().presence.value] += 1
        counts["ever OFF"] += "OFF" in seen
    return counts


def measure(
    images: List[Tuple[GroundTruth, Array]],
    factor: int,
    sensor: Sensor,
    detectors: List[FaceDetector],
    by_ratio: Dict[int, List[int]],
) -> Row:
    """Figures of one factor; adds found faces, faces and images to `by_ratio`, by the index of its bin."""
    tallies = [Evaluation(0.5), Evaluation(0.5)]
    means, ratios = [], []
    for index, (truth, gray) in enumerate(images):
        pixels = sensor.dimmed(gray, factor, index)
        found = 0
        for detector, tally in zip(detectors, tallies):
            found = int(tally.add(detector.detect(Image(pixels)), truth, pixels.shape[0]).hit.sum())
        ratio = signal_to_noise(pixels, FULL_RANGE, brightness(pixels).top)
        means.append(float(pixels.mean()))
        ratios.append(ratio)
        bin_ = by_ratio.setdefault(int(np.searchsorted(BINS, ratio, "right")) - 1, [0, 0, 0])
        for at, value in enumerate((found, len(truth.faces), 1)):
            bin_[at] += value
    dark, faint = (float(np.mean(np.array(ratios) < limit)) for limit in (BLIND_BELOW, FAINT_BELOW))
    return Row(factor, float(np.mean(means)), *tallies, dark, faint - dark)


def table(rows: List[Row]) -> List[str]:
    """The first table in Markdown."""
    lines = [
        "| light | mean level | as captured: precision / recall | adapted: precision / recall | dark | faint |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        tallies = (row.captured, row.adapted)
        figures = " | ".join(f"{_shown(tally.precision)} / {_shown(tally.recall)}" for tally in tallies)
        lines.append(f"| 1/{row.factor} | {row.mean:.1f} | {figures} | {row.dark:.2f} | {row.faint:.2f} |")
    return [*lines, ""]


def ratio_table(by_ratio: Dict[int, List[int]]) -> List[str]:
    """The second table in Markdown."""
    lines = ["| signal to noise | images | faces | recall, adapted |", "|---|---|---|---|"]
    for at in sorted(by_ratio):
        found, faces, images = by_ratio[at]
        lines.append(f"| {BINS[at]:g} to {BINS[at + 1]:g} | {images} | {faces} | {_shown(found / max(1, faces))} |")
    return lines


def _shown(share: Optional[float]) -> str:
    return "-" if share is None else f"{share:.3f}"


def _arguments(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/dim-table", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of well exposed images")
    parser.add_argument("--labels", type=Path, required=True, metavar="FILE", help="their labels, as for evaluate")
    parser.add_argument("--model", default="centerface")
    parser.add_argument("--electrons", type=float, default=20.0, help="electrons per gray level (20)")
    parser.add_argument("--read-noise", type=float, default=1.0, help="gray levels (1)")
    parser.add_argument("--replay", action="store_true", help="also count presence; takes minutes")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
