"""Compares the hot steps with the usual alternatives: same inputs, in turns, processor time.

    scripts/bench-micro

scikit-learn's DBSCAN, OpenCV's NMS, norfair's and `trackers`' trackers (pip install '.[bench]'; what is not installed
is reported and left out). Then the agent's work per frame beside the network's. Prints tables; the exit code is 1 when
the agent's share is over its limit. `--frigate` adds Frigate's work per frame, from a checkout.

The alternatives do not compute the same: NVIDIA's DBSCAN also averages its groups, and those trackers keep covariances
or make second passes, which faces of one camera do not need. The table shows costs, not quality.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from itertools import cycle
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import cv2
import numpy as np

from edge_agent.core.detection import gridbox
from edge_agent.core.detection.clustering import dbscan, nms
from edge_agent.core.detection.detector import Decoder, DetectionParams
from edge_agent.core.detection.model_contract import FACEDETECTIR
from edge_agent.core.frame import Image
from edge_agent.core.presence.state_machine import PresenceMachine, PresenceParams
from edge_agent.core.presence.tracker import Tracker, TrackerParams
from edge_agent.core.types import Detections, Sight
from edge_agent.inference.ort import OrtEngine
from scripts.lib.bench.frigate import frigate_frame
from scripts.lib.bench.network import files
from scripts.lib.bench.report import Line, markdown, verdicts
from scripts.lib.bench.scene import scene_jpegs

FACES = (1, 5, 20)
IOU, EPS, MIN_BOXES = 0.5, 0.7, 3
SOURCE = (640, 480)
LIMITS = {1: 0.08, 20: 0.15}
FRIGATE_LIMITS = {1: 1 / 5, 20: 1 / 20}

Call = Callable[[], Any]
Maker = Callable[[int], Call]


def grid(faces: int, seed: int) -> Dict[str, Any]:
    """FaceDetectIR outputs with `faces` faces of 4 x 3 lit cells each, slightly noisy."""
    rng = np.random.default_rng(seed)
    cov, bbox = np.zeros((1, 15, 24), np.float32), np.zeros((4, 15, 24), np.float32)
    for face in range(faces):
        row, column = face // 5 * 4, face % 5 * 5
        left, top = column * 16 + rng.uniform(0, 4), row * 16 + rng.uniform(0, 4)
        for y in range(row, row + 3):
            for x in range(column, column + 4):
                center_x, center_y = x * 16 + 0.5, y * 16 + 0.5
                edges = np.array([center_x - left, center_y - top, left + 56 - center_x, top + 44 - center_y])
                cov[0, y, x] = rng.uniform(0.5, 1.0)
                bbox[:, y, x] = (edges + rng.normal(0, 1.0, 4)) / 35
    return {"cov": cov, "bbox": bbox}


def candidates(faces: int) -> Tuple[Any, Any]:
    """Return boxes and scores before clustering."""
    return gridbox.decode(grid(faces, faces), FACEDETECTIR, 0.4)


def sightings(faces: int) -> List[Detections]:
    """Return a few frames of faces that move slightly."""
    decoder = Decoder(FACEDETECTIR, DetectionParams(nms_iou_threshold=IOU))
    return [decoder.decode(grid(faces, seed), SOURCE) for seed in range(16)]


def own_nms(faces: int) -> Call:
    boxes, scores = candidates(faces)
    return lambda: nms(boxes, scores, IOU, 100)


def opencv_nms(faces: int) -> Call:
    boxes, scores = candidates(faces)
    corner = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    return lambda: cv2.dnn.NMSBoxes(corner.tolist(), scores.tolist(), 0.4, IOU)


def own_dbscan(faces: int) -> Call:
    boxes, scores = candidates(faces)
    return lambda: dbscan(boxes, scores, EPS, MIN_BOXES)


def sklearn_dbscan(faces: int) -> Call:
    from sklearn.cluster import DBSCAN

    boxes, _ = candidates(faces)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])

    def run() -> Any:
        sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        inner = np.prod(np.maximum(sides, 0), axis=2)
        distance = np.maximum(0.0, 1 - inner / (areas[:, None] + areas[None, :] - inner))
        return DBSCAN(eps=EPS, min_samples=MIN_BOXES, metric="precomputed").fit_predict(distance)

    return run


def own_tracker(faces: int) -> Call:
    frames, tracker = cycle(sightings(faces)), Tracker(TrackerParams())
    clock = iter(range(1 << 60))
    return lambda: tracker.update(next(frames), next(clock) / 30.0)


def norfair_tracker(faces: int) -> Call:
    import norfair

    tracker = norfair.Tracker("iou", 0.7)
    frames = cycle(
        [[norfair.Detection(box.reshape(2, 2).astype(float)) for box in seen.xyxy] for seen in sightings(faces)]
    )
    return lambda: tracker.update(next(frames))


def _roboflow(name: str) -> Maker:
    def make(faces: int) -> Call:
        import supervision
        import trackers

        tracker = getattr(trackers, name)()
        frames = cycle([supervision.Detections(seen.xyxy, confidence=seen.confidence) for seen in sightings(faces)])
        return lambda: tracker.update(next(frames))

    return make


STEPS: Dict[str, Dict[str, Maker]] = {
    "NMS": {"agent": own_nms, "cv2.dnn.NMSBoxes": opencv_nms},
    "DBSCAN": {"agent": own_dbscan, "scikit-learn": sklearn_dbscan},
    "tracking": {
        "agent": own_tracker, "norfair": norfair_tracker, "trackers SORT": _roboflow("SORTTracker"),
        "trackers ByteTrack": _roboflow("ByteTrackTracker"),
    },
}  # fmt: skip


def whole(engine: OrtEngine, faces: int) -> Tuple[Call, Call]:
    """Return the agent's work on a frame without the network, and the network; both on this thread."""
    params = DetectionParams(nms_iou_threshold=IOU)
    decoder, tracker, presence = (
        Decoder(FACEDETECTIR, params, TrackerParams()),
        Tracker(TrackerParams()),
        PresenceMachine(PresenceParams()),
    )
    presence.set_sight(Sight.OK)
    frames, clock = cycle([grid(faces, seed) for seed in range(16)]), iter(range(1 << 60))
    jpeg = np.frombuffer(scene_jpegs()[0][0], np.uint8)
    image = Image(cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE))
    tensor = engine.prepare(image)

    def besides() -> None:
        t = next(clock) / 30.0
        engine.prepare(image)
        tracks = tracker.update(decoder.decode(next(frames), SOURCE), t)
        presence.observe(any(track.confirmed and track.visible for track in tracks), t)

    return besides, lambda: engine.run(tensor)


def _frigate(checkout: Path, faces: int) -> Call:
    grays = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), 0) for jpeg in scene_jpegs()[0]]
    return frigate_frame(checkout, grays, [seen.xyxy.astype(float) for seen in sightings(faces)])


def measure(calls: Dict[Any, Call], rounds: int, repeats: int) -> Dict[Any, float]:
    """Median microseconds of processor time per call, all threads of this process; calls take turns."""
    times: Dict[Any, List[float]] = {key: [] for key in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for key, call in calls.items():
            began_s = time.process_time()
            for _ in range(repeats):
                call()
            times[key].append(1e6 * (time.process_time() - began_s) / repeats)
    return {key: statistics.median(values) for key, values in times.items()}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench-micro", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--frigate", type=Path, metavar="CHECKOUT", help="also measure Frigate's work per frame")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of third-party packages
    calls: Dict[Any, Call] = {}
    for step, makers in STEPS.items():
        for name, make in makers.items():
            try:
                calls.update({(step, name, faces): make(faces) for faces in FACES})
            except ImportError as error:
                print(f"{name} left out: {error}; pip install '.[bench]' would add it", file=sys.stderr)
    steps = measure(calls, args.rounds, args.repeats)
    rows = [("step", "by", *(f"{faces} face(s), us" for faces in FACES), "of the agent's")]
    for step, makers in STEPS.items():
        for name in makers:
            if (step, name, 1) in steps:
                shares = "  ".join(f"{steps[step, name, n] / steps[step, 'agent', n]:.1f}x" for n in FACES)
                rows.append((step, name, *(f"{steps[step, name, faces]:.0f}" for faces in FACES), shares))
    with tempfile.TemporaryDirectory() as folder:
        gray = [cv2.imdecode(np.frombuffer(jpegs[0], np.uint8), 0) for jpegs in scene_jpegs().values()]
        engine = OrtEngine(files(Path(folder), gray).int8, FACEDETECTIR)
        pairs = {faces: whole(engine, faces) for faces in FACES}
        parts: Dict[Any, Call] = {(n, part): pairs[n][part] for n in FACES for part in (0, 1)}
        if args.frigate:
            parts.update({(n, "frigate"): _frigate(args.frigate, n) for n in FACES})
        timed = measure(parts, args.rounds, args.repeats)
        engine.close()
    judged = [
        Line(f"2 pre- and postprocessing / inference int8, {faces} face(s)", timed[faces, 0] / timed[faces, 1],
             limit, f"{timed[faces, 0]:.0f} of {timed[faces, 1]:.0f} us; one thread; no capture, no MQTT")
        for faces, limit in LIMITS.items()
    ]  # fmt: skip
    for faces, limit in FRIGATE_LIMITS.items() if args.frigate else ():
        ours, theirs = timed[faces, 0], timed[faces, "frigate"]
        note = f"{ours:.0f} of {theirs:.0f} us; its queues, decode and detector left out"
        judged.append(Line(f"2 the same / Frigate's per frame, {faces} face(s)", ours / theirs, limit, note))
    print("\n".join([*markdown(rows), "", *verdicts(judged)]))
    if args.json:
        result = {"steps_us": {" / ".join(map(str, key)): round(us, 1) for key, us in steps.items()},
                "promises": [{**line._asdict(), "verdict": line.verdict} for line in judged]}  # fmt: skip
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(any(line.verdict == "MISSED" for line in judged))


if __name__ == "__main__":
    sys.exit(main())
