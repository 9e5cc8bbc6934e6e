"""Scripts of synthetic scenes: faces and disturbances over time. Pure: no clock, file access or random numbers."""

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
"""Ratio of a face's width to its height."""


@dataclass(frozen=True)
class FacePosition:
    """A face at one time: its centre, normalised 0..1, and its height as a fraction of the frame's height."""

    x: float
    y: float
    size: float

    def xyxy(self, width: int, height: int) -> Tuple[float, float, float, float]:
        """Left, top, right, bottom in px of a frame of `width` x `height`; may extend beyond the frame."""
        tall = self.size * height
        wide = tall * FACE_ASPECT
        left, top = self.x * width - wide / 2, self.y * height - tall / 2
        return left, top, left + wide, top + tall


@dataclass(frozen=True)
class SceneFace:
    """One face from entering to leaving the scene.

    Attributes:
        start_s: Scene time of the first frame with the face, in seconds.
        end_s: Scene time of the first frame without the face.
        path: Normalised centres, passed at even intervals; one point for a face at rest.
        sizes: Heights, passed at even intervals, as fractions of the frame's height.
    """

    start_s: float
    end_s: float
    path: Tuple[Point, ...]
    sizes: Tuple[float, ...]

    def at(self, t_s: float) -> Optional[FacePosition]:
        """Its position at scene time `t_s`, or None when it is not in the scene."""
        if not self.start_s <= t_s < self.end_s:
            return None
        progress = (t_s - self.start_s) / (self.end_s - self.start_s)
        return FacePosition(
            _along([x for x, _ in self.path], progress),
            _along([y for _, y in self.path], progress),
            _along(self.sizes, progress),
        )

    def later(self, by_s: float) -> "SceneFace":
        """The same, `by_s` seconds later."""
        return replace(self, start_s=self.start_s + by_s, end_s=self.end_s + by_s)


@dataclass(frozen=True)
class Disturbances:
    """Disturbances of the camera, in scene time (seconds).

    Attributes:
        strobe: Numbers of lit and dark frames in alternation, as with Windows Hello emitters, or None.
        dark: Without any light.
        cover: With a covered lens: noise without structure.
        freeze: With an unchanging frame, including its noise.
        lose: With a failed device.
        end_s: End of the source, or None.
    """

    strobe: Optional[Tuple[int, int]] = None
    dark: Tuple[Window, ...] = ()
    cover: Tuple[Window, ...] = ()
    freeze: Tuple[Window, ...] = ()
    lose: Tuple[Window, ...] = ()
    end_s: Optional[float] = None


@dataclass(frozen=True)
class Scene:
    """The script of a scene.

    Attributes:
        cast: Faces of one period.
        period_s: The cast repeats after this time; None for no repetition.
        look: "marker" (bright ellipses, which the scripted engine detects) or "picture" (an image of a face).
        disturbances: Disturbances of the camera in absolute scene time, not repeated.
    """

    cast: Tuple[SceneFace, ...] = ()
    period_s: Optional[float] = None
    look: str = "marker"
    disturbances: Disturbances = Disturbances()

    def scripted_faces(self, until_s: float) -> List[SceneFace]:
        """Every face that enters before `until_s`, by its start. Disturbances are not applied."""
        rounds = 1 if self.period_s is None else max(1, math.ceil(until_s / self.period_s))
        every = (face.later(n * (self.period_s or 0.0)) for n in range(rounds) for face in self.cast)
        return sorted((face for face in every if face.start_s < until_s), key=lambda face: face.start_s)

    def faces(self, t_s: float) -> List[FacePosition]:
        """The positions of all faces at scene time `t_s`."""
        local_s = t_s if self.period_s is None else math.fmod(t_s, self.period_s)
        placed = (face.at(local_s) for face in self.cast)
        return [face for face in placed if face is not None]

    def boxes(self, t_s: float, width: int, height: int) -> Array:
        """(N, 4) float32 true boxes: left, top, right, bottom in px, clipped to the frame; without faces outside."""
        boxes = np.array([face.xyxy(width, height) for face in self.faces(t_s)], np.float32).reshape(-1, 4)
        np.clip(boxes, 0, np.array([width, height] * 2, np.float32), out=boxes)
        return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]


def within(windows: Sequence[Window], t_s: float) -> Optional[Window]:
    """The window that contains `t_s`, or None."""
    return next((window for window in windows if window[0] <= t_s < window[1]), None)


def parse_scene(text: str, where: str) -> Scene:
    """Parse a scene from JSON.

    `{"period_s": 20, "look": "marker", "appearances": [{"start_s": 2, "end_s": 8, "from": [0.2, 0.5],
    "to": [0.8, 0.5], "size": 0.3}]}`; a `path` of points may replace `from` and `to`; `size` may be a list; `period_s`,
    `look` and `to` are optional.

    Raises:
        InputError: The script is invalid; the message names `where` and the fault.
    """
    try:
        script = json.loads(text)
        faces = tuple(_parse_face(face) for face in script["appearances"])
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


def _parse_face(face: Mapping[str, Any]) -> SceneFace:
    points = face["path"] if "path" in face else [face["from"], face.get("to", face["from"])]
    path = tuple((float(x), float(y)) for x, y in points)
    size = face["size"]
    sizes = tuple(float(value) for value in (size if isinstance(size, list) else [size]))
    start_s, end_s = float(face["start_s"]), float(face["end_s"])
    if not path or not 0 <= start_s < end_s:
        raise ValueError(f"an appearance from {start_s:g} to {end_s:g} s over {len(path)} points")
    if not sizes or not all(0 < value <= 4 for value in sizes):
        raise ValueError(f"size {size}: a fraction of the frame's height, above 0")
    return SceneFace(start_s, end_s, path, sizes)


def _along(values: Sequence[float], progress: float) -> float:
    """Linear interpolation through evenly spaced values; `progress` 0..1."""
    at = progress * (len(values) - 1)
    first = min(int(at), max(0, len(values) - 2))
    following = min(first + 1, len(values) - 1)
    return values[first] + (values[following] - values[first]) * (at - first)


def _crowd() -> Tuple[SceneFace, ...]:
    """Eight faces in two rows, which enter one by one and leave in the same order."""
    places = [(0.13 + 0.25 * column, 0.27 + 0.46 * row) for row in range(2) for column in range(4)]
    return tuple(
        SceneFace(1.0 + n, 10.0 + n, ((x - 0.02, y), (x + 0.02, y)), (0.22,)) for n, (x, y) in enumerate(places)
    )


SCENES: Dict[str, Scene] = {
    # A face enters from the left, stops in the middle and leaves to the right; later a larger one from the right.
    "demo": Scene(
        (
            SceneFace(2.0, 10.0, ((-0.3, 0.5), (0.35, 0.5), (0.5, 0.48), (0.65, 0.5), (1.3, 0.5)), (0.26, 0.3, 0.26)),
            SceneFace(14.0, 22.0, ((1.4, 0.5), (0.6, 0.52), (0.45, 0.5), (0.4, 0.5), (-0.4, 0.5)), (0.34, 0.4, 0.34)),
        ),
        period_s=24.0,
        look="picture",
    ),
    "empty": Scene(),
    "one": Scene((SceneFace(2.0, 7.0, ((0.3, 0.5), (0.7, 0.5)), (0.3,)),), period_s=10.0),
    "crowd": Scene(_crowd(), period_s=20.0),
    "still": Scene((SceneFace(0.0, math.inf, ((0.5, 0.5),), (0.35,)),)),
}
