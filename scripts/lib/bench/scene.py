"""The scene of the benchmark's camera: an empty room, and visits of a face at eight places."""

import random
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np

import edge_agent

WIDTH, HEIGHT = 640, 480
COLUMNS, ROWS = 4, 2
SLOTS = COLUMNS * ROWS
VARIANTS = 12
"""Images of one scene with different noise: a live camera never repeats an image exactly."""
PORTRAIT = Path(edge_agent.__file__).parent / "assets" / "astronaut.jpg"
FACE = (206, 60, 96, 116)  # left, top, width, height in the portrait, px
PATCH = (54, 64)  # of 640 x 480: two by two cells of a 24 x 15 grid


class Visit(NamedTuple):
    """A face from `start_s` to `end_s` after the beginning, at one place."""

    start_s: float
    end_s: float
    slot: int


def visits(count: int, seed: int, visible_s: float = 0.7, absent_s: Tuple[float, float] = (0.9, 1.3)) -> List[Visit]:
    """Return a schedule that uses a place once in eight visits and is not aligned with the frame rate."""
    rng = random.Random(seed)
    found, t = [], 1.5
    for number in range(count):
        found.append(Visit(t, t + visible_s, (number + seed) % SLOTS))
        t += visible_s + rng.uniform(*absent_s)
    return found


def slot_of(x: float, y: float) -> int:
    """Return the place that contains a box's centre, 0..1 of the image."""
    return min(COLUMNS - 1, int(x * COLUMNS)) + COLUMNS * min(ROWS - 1, int(y * ROWS))


def scene_jpegs(quality: int = 85) -> Dict[Optional[int], List[bytes]]:
    """Return JPEGs by place (None: empty room): a dim noisy room with a real face beside a white patch.

    The benchmark's own network detects the patch; Haar and CenterFace detect the face.
    """
    rng = np.random.default_rng(7)
    room = np.linspace(40, 90, WIDTH, dtype=np.float32)[None, :] * np.ones((HEIGHT, 1), np.float32)
    for x, y, side in ((60, 30, 40), (300, 210, 30), (500, 40, 60), (200, 420, 50)):
        cv2.rectangle(room, (x, y), (x + side, y + side // 2), 70.0, 2)
    left, top, width, height = FACE
    portrait = cv2.imread(str(PORTRAIT), cv2.IMREAD_GRAYSCALE)
    face = cv2.resize(portrait[top : top + height, left : left + width], (100, 120)).astype(np.float32) * 0.7
    found: Dict[Optional[int], List[bytes]] = {}
    for slot in (None, *range(SLOTS)):
        scene = room.copy()
        if slot is not None:
            x, y = slot % COLUMNS * WIDTH // COLUMNS, slot // COLUMNS * HEIGHT // ROWS
            scene[y + 70 : y + 190, x + 58 : x + 158] = face
            scene[y + 96 - y % 32 : y + 96 - y % 32 + PATCH[1], x : x + PATCH[0]] = 255.0
        noisy = [np.clip(scene + rng.normal(0, 2, scene.shape), 0, 255).astype(np.uint8) for _ in range(VARIANTS)]
        found[slot] = [cv2.imencode(".jpg", one, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes() for one in noisy]
    return found
