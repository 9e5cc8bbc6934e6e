"""Measures the work after the network per frame (decode, cluster, track, presence) with 0 to 20 faces.

Each face covers 12 cells of a FaceDetectIR grid. CPU time is measured in interleaved rounds, so that other processes
slow every row alike. Exit code 1 when the whole exceeds its budget.
"""

import argparse
import statistics
import sys
import time
from itertools import cycle
from typing import Any, Callable, Dict, List, Tuple

import numpy as np

from edge_agent.core.detection import clustering, gridbox
from edge_agent.core.detection.detector import Decoder, DetectionParams
from edge_agent.core.detection.model_contract import FACEDETECTIR
from edge_agent.core.presence.state_machine import PresenceMachine, PresenceParams
from edge_agent.core.presence.tracker import Tracker, TrackerParams
from edge_agent.core.types import Sight

BUDGET_US = {1: 50.0, 5: 150.0, 20: 500.0}
WHOLE = "decode, cluster, track, presence"
SOURCE = (640, 480)
CALLS = 50


def grid(faces: int, rng: np.random.Generator) -> Dict[str, Any]:
    """FaceDetectIR outputs with `faces` faces of 4x3 cells, side by side, with some noise."""
    cov = np.zeros((1, 15, 24), np.float32)
    bbox = np.zeros((4, 15, 24), np.float32)
    for face in range(faces):
        row, column = face // 5 * 4, face % 5 * 5
        left, top = column * 16 + rng.uniform(0, 4), row * 16 + rng.uniform(0, 4)
        right, bottom = left + 56, top + 44
        for y in range(row, row + 3):
            for x in range(column, column + 4):
                center_x, center_y = x * 16 + 0.5, y * 16 + 0.5
                edges = np.array([center_x - left, center_y - top, right - center_x, bottom - center_y])
                cov[0, y, x] = rng.uniform(0.5, 1.0)
                bbox[:, y, x] = (edges + rng.normal(0, 1.0, 4)) / 35
    return {"cov": cov, "bbox": bbox}


def stages(faces: int, params: DetectionParams) -> Dict[str, Callable[[], Any]]:
    """The timed calls, by name."""
    rng = np.random.default_rng(faces)
    grids = [grid(faces, rng) for _ in range(16)]
    decoder = Decoder(FACEDETECTIR, params, TrackerParams())
    found = {len(decoder.decode(outputs, SOURCE)) for outputs in grids}
    if found != {faces}:
        raise SystemExit(f"expected {faces} faces in every grid, found {sorted(found)}")
    tracker, presence = Tracker(TrackerParams()), PresenceMachine(PresenceParams())
    presence.set_sight(Sight.OK)
    frames = cycle(grids)
    now = 0.0

    def whole() -> None:
        nonlocal now
        now += 1 / 30
        tracks = tracker.update(decoder.decode(next(frames), SOURCE), now)
        presence.observe(any(track.confirmed and track.visible for track in tracks), now)

    boxes, scores = gridbox.decode(grids[0], FACEDETECTIR, decoder.threshold)
    return {
        f"decode ({len(boxes)} cells)": lambda: gridbox.decode(grids[0], FACEDETECTIR, decoder.threshold),
        f"cluster ({params.cluster_mode})": lambda: clustering.cluster(boxes, scores, params),
        WHOLE: whole,
    }


def main() -> int:
    """Measure and print the table; returns 1 when a budget is exceeded."""
    parser = argparse.ArgumentParser(prog="scripts/bench-post", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help=f"rounds of {CALLS} calls each (60)")
    parser.add_argument("--mode", choices=["nms", "dbscan", "hybrid"], default="nms", help="cluster mode (nms)")
    arguments = parser.parse_args()

    params = DetectionParams(cluster_mode=arguments.mode, nms_iou_threshold=0.5)
    rows = {(faces, name): call for faces in (0, *BUDGET_US) for name, call in stages(faces, params).items()}
    times: Dict[Tuple[int, str], List[float]] = {key: [] for key in rows}
    for _ in range(arguments.rounds):
        for key, call in rows.items():
            start = time.thread_time()
            for _ in range(CALLS):
                call()
            times[key].append((time.thread_time() - start) / CALLS * 1e6)

    print(f"faces  {'stage':<34}median us  budget us")
    over = False
    for (faces, name), samples in times.items():
        median = statistics.median(samples)
        budget = BUDGET_US.get(faces) if name == WHOLE else None
        over |= budget is not None and median > budget
        print(f"{faces:>5}  {name:<34}{median:>9.1f}  {budget or '':>9}")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
