"""Frigate's work per frame without its detector, run from a checkout of github.com/blakeblackshear/frigate.

Motion detection, one region cut from YUV, and norfair with Frigate's distance and filter, one after the other as its
process does per frame. Its classes and functions are loaded from its files by name, because the package needs a
container. Left out in its favour: its queues to and from the detector's process, and its bookkeeping. Left out as well:
the detector runs that it skips on still scenes.
"""

import ast
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Sequence

import cv2
import numpy as np

MOTION, TRACK, IMAGE = "motion/improved_motion.py", "track/norfair_tracker.py", "util/image.py"
REGION_PX = 320
FPS = 5
"""Frigate's default detect rate, which sets how long its tracker keeps a lost object."""


def frigate_frame(checkout: Path, grays: Sequence[Any], seen: Sequence[Any]) -> Callable[[], None]:
    """Return a call that does the work of one frame.

    Args:
        checkout: Of Frigate, with the folder `frigate` in it.
        grays: Images used in turn, (H, W) uint8.
        seen: Boxes in each of the frames, (N, 4) px.

    Raises:
        ImportError: norfair or scipy is not installed.
        OSError: No such checkout.
        KeyError: The checkout lacks a function or class.
    """
    from norfair.filter import OptimizedKalmanFilterFactory
    from norfair.tracker import Detection, Tracker
    from scipy.ndimage import gaussian_filter

    known: Dict[str, Any] = {"cv2": cv2, "np": np, "gaussian_filter": gaussian_filter, "MotionDetector": object}
    root = checkout / "frigate"
    crop = ("get_yuv_crop", "yuv_crop_and_resize", "yuv_region_2_rgb")
    _take(root / IMAGE, ("grab_cv2_contours", *crop), known)
    _take(root / MOTION, ("ImprovedMotionDetector",), known)
    _take(root / TRACK, ("distance", "frigate_distance"), known)
    height, width = grays[0].shape
    # Defaults of config/camera/motion.py.
    config = SimpleNamespace(
        enabled=True, threshold=30, lightning_threshold=0.8, skip_motion_threshold=None, improve_contrast=True,
        contour_area=10, frame_alpha=0.01, frame_height=100, rasterized_mask=np.full((height, width), 255, np.uint8),
    )  # fmt: skip
    motion = known["ImprovedMotionDetector"]((height, width), config, FPS)
    tracker = Tracker(
        distance_function=known["frigate_distance"], distance_threshold=2.5, initialization_delay=FPS // 2,
        hit_counter_max=5 * FPS, filter_factory=OptimizedKalmanFilterFactory(R=3.4),
    )  # fmt: skip
    frames = cycle([cv2.cvtColor(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR), cv2.COLOR_BGR2YUV_I420) for gray in grays])
    faces = cycle(seen)
    region = (width // 4, height // 4, width // 4 + REGION_PX, height // 4 + REGION_PX)

    def run() -> None:
        frame = next(frames)
        motion.detect(frame)
        known["yuv_region_2_rgb"](frame, region)
        boxes = next(faces)
        tracker.update([Detection(points=box.reshape(2, 2), label="face", data={}) for box in boxes])

    return run


def _take(path: Path, names: Sequence[str], known: Dict[str, Any]) -> None:
    """Define these functions and classes of a file in `known`, without the imports of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    body = [ast.ImportFrom("__future__", [ast.alias("annotations")], 0), *(found[name] for name in names)]
    module = ast.fix_missing_locations(ast.Module(body, []))
    exec(compile(module, str(path), "exec"), known)
