"""What a synthetic scene shows and when: a script of appearances and disturbances. Pure: no clock, file or random."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from edge_agent.core.types import Array
from edge_agent.errors import InputError

Point = Tuple[float, float]
Window = Tuple[float, float]

FACE_ASPECT = 0.75
"""Width of a face by its height."""


@dataclass(frozen=True)
class Placed:
    """A face at one instant: centre, normalised 0..1 to the frame, and height, as a part of the frame's height."""

    x: float
    y: float
    size: float

    def xyxy(self, width: int, height: int) -> Tuple[float, float, float, float]:
        """Left, top, right, bottom in px of a frame of `width` x `height`; may reach beyond it."""
        tall = self.size * height
        wide = tall * FACE_ASPECT
        left, top = self.x * width - wide / 2, self.y * height - tall / 2
        return left, top, left + wide, top + tall


@dataclass(frozen=True)
class Appearance:
    """One face from coming to leaving.

    Attributes:
        start_s: Scene second of its first frame.
        end_s: It is gone from this scene second on.
        path: Centres that it passes at even intervals, normalised; one point stands still.
        sizes: Heights that it passes likewise, as a part of the frame's height.
    """

    start_s: float
    end_s: float
    path: Tuple[Point, ...]
    sizes: Tuple[float, ...]

    def at(self, t_s: float) -> Optional[Placed]:
        """Where it is at scene second `t_s`, or None when it is not there."""
        if not self.start_s <= t_s < self.end_s:
            return None
        progress = (t_s - self.start_s) / (self.end_s - self.start_s)
        return Placed(
            _along([x for x, _ in self.path], progress),
            _along([y for _, y in self.path], progress),
            _along(self.sizes, progress),
        )

    def later(self, by_s: float) -> "Appearance":
        """The same, `by_s` seconds later."""
        return replace(self, start_s=self.start_s + by_s, end_s=self.end_s + by_s)


@dataclass(frozen=True)
class Disturbances:
    """What happens to the camera, in scene seconds.

    Attributes:
        strobe: Frames (lit, dark) in turn, as Windows-Hello emitters do, or None.
        dark: No light at all.
        cover: Something over the lens: no structure, but noise.
        freeze: The picture stands still, noise and all.
        lose: The device fails.
        end_s: The source ends, or None.
    """

    strobe: Optional[Tuple[int, int]] = None
    dark: Tuple[Window, ...] = ()
    cover: Tuple[Window, ...] = ()
    freeze: Tuple[Window, ...] = ()
    lose: Tuple[Window, ...] = ()
    end_s: Optional[float] = None


@dataclass(frozen=True)
class Scene:
    """The whole script.

    Attributes:
        cast: Appearances of one period.
        period_s: After this the cast comes again; None: once.
        look: "marker" (bright ellipses, which the scripted engine sees) or "picture" (a picture of a face).
        disturbances: Of the camera; in absolute scene seconds, not repeated.
    """

    cast: Tuple[Appearance, ...] = ()
    period_s: Optional[float] = None
    look: str = "marker"
    disturbances: Disturbances = Disturbances()

    def appearances(self, until_s: float) -> List[Appearance]:
        """The ledger: every appearance that starts before `until_s`, by its start. Disturbances are not applied."""
        rounds = 1 if self.period_s is None else max(1, math.ceil(until_s / self.period_s))
        every = (face.later(n * (self.period_s or 0.0)) for n in range(rounds) for face in self.cast)
        return sorted((face for face in every if face.start_s < until_s), key=lambda face: face.start_s)

    def faces(self, t_s: float) -> List[Placed]:
        """Who is there at scene second `t_s`."""
        local_s = t_s if self.period_s is None else math.fmod(t_s, self.period_s)
        placed = (face.at(local_s) for face in self.cast)
        return [face for face in placed if face is not None]

    def boxes(self, t_s: float, width: int, height: int) -> Array:
        """(N, 4) float32 true boxes: left, top, right, bottom in px, clipped to the frame; none of those outside."""
        boxes = np.array([face.xyxy(width, height) for face in self.faces(t_s)], np.float32).reshape(-1, 4)
        np.clip(boxes, 0, np.array([width, height] * 2, np.float32), out=boxes)
        return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def within(windows: Sequence[Window], t_s: float) -> Optional[Window]:
    """The window that `t_s` lies in, or None."""
    return next((window for window in windows if window[0] <= t_s < window[1]), None)


def parse_scene(text: str, where: str) -> Scene:
    """A scene from JSON.

    `{"period_s": 20, "look": "marker", "appearances": [{"start_s": 2, "end_s": 8, "from": [0.2, 0.5],
    "to": [0.8, 0.5], "size": 0.3}]}`; instead of `from` and `to` a `path` of points; `size` may be a list; `period_s`,
    `look` and `to` may be left out.

    Raises:
        InputError: Naming `where` and what cannot be understood.
    """
    try:
        script = json.loads(text)
        faces = tuple(_appearance(face) for face in script["appearances"])
        period = script.get("period_s")
        scene = Scene(faces, None if period is None else float(period), str(script.get("look", "marker")))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{where}: not a scene script: {detail}", _SCRIPT) from error
    if scene.look not in ("marker", "picture"):
        raise InputError(f"{where}: look '{scene.look}'", "expected marker or picture")
    longest_s = max((face.end_s for face in faces), default=0.0)
    if scene.period_s is not None and not 0 < longest_s <= scene.period_s:
        raise InputError(
            f"{where}: period_s {scene.period_s:g} ends before its last face", "expected the larger of both"
        )
    return scene


_SCRIPT = 'expected {"appearances": [{"start_s": 2, "end_s": 8, "from": [0.2, 0.5], "to": [0.8, 0.5], "size": 0.3}]}'


def _appearance(face: Mapping[str, Any]) -> Appearance:
    points = face["path"] if "path" in face else [face["from"], face.get("to", face["from"])]
    path = tuple((float(x), float(y)) for x, y in points)
    size = face["size"]
    sizes = tuple(float(value) for value in (size if isinstance(size, list) else [size]))
    start_s, end_s = float(face["start_s"]), float(face["end_s"])
    if not path or not 0 <= start_s < end_s:
        raise ValueError(f"an appearance from {start_s:g} to {end_s:g} s over {len(path)} points")
    if not sizes or not all(0 < value <= 4 for value in sizes):
        raise ValueError(f"size {size}: a part of the frame's height, above 0")
    return Appearance(start_s, end_s, path, sizes)


def _along(values: Sequence[float], progress: float) -> float:
    """Linear interpolation through evenly spaced values; `progress` 0..1."""
    at = progress * (len(values) - 1)
    first = min(int(at), max(0, len(values) - 2))
    following = min(first + 1, len(values) - 1)
    return values[first] + (values[following] - values[first]) * (at - first)


def _crowd() -> Tuple[Appearance, ...]:
    """Eight faces in two rows, coming one by one and leaving in the same order."""
    places = [(0.13 + 0.25 * column, 0.27 + 0.46 * row) for row in range(2) for column in range(4)]
    return tuple(
        Appearance(1.0 + n, 10.0 + n, ((x - 0.02, y), (x + 0.02, y)), (0.22,)) for n, (x, y) in enumerate(places)
    )


SCENES: Dict[str, Scene] = {
    # Comes in from the left, stops in the middle, leaves to the right; later nearer, from the right.
    "demo": Scene(
        (
            Appearance(2.0, 10.0, ((-0.3, 0.5), (0.35, 0.5), (0.5, 0.48), (0.65, 0.5), (1.3, 0.5)), (0.26, 0.3, 0.26)),
            Appearance(14.0, 22.0, ((1.4, 0.5), (0.6, 0.52), (0.45, 0.5), (0.4, 0.5), (-0.4, 0.5)), (0.34, 0.4, 0.34)),
        ),
        period_s=24.0,
        look="picture",
    ),
    "empty": Scene(),
    "one": Scene((Appearance(2.0, 7.0, ((0.3, 0.5), (0.7, 0.5)), (0.3,)),), period_s=10.0),
    "crowd": Scene(_crowd(), period_s=20.0),
    "still": Scene((Appearance(0.0, math.inf, ((0.5, 0.5),), (0.35,)),)),
}
