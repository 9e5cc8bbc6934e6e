"""The source `test://`: deterministic scenes with scripted faces and camera disturbances."""

import math
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Optional, Tuple

import numpy as np

from edge_agent.capture import SourceOptions
from edge_agent.capture.address import Query
from edge_agent.capture.synthetic.render import FaceRenderer, ImageFaceRenderer, Renderer, marker
from edge_agent.capture.synthetic.scene import SCENES, Disturbances, Scene, parse_scene, within
from edge_agent.core.frame import Frame, Levels
from edge_agent.core.types import Array, Counters
from edge_agent.errors import EndOfStream, InputError, SourceError
from edge_agent.files import MAX_TEXT_BYTES, read_regular

ASTRONAUT = Path(__file__).parents[2] / "assets" / "astronaut.jpg"
_ASTRONAUT_FACE = (0.361, 0.129, 0.523, 0.342)
_ASTRONAUT_CROP = (0.2, 0.0, 0.7, 0.6)
_WHOLE = (0.0, 0.0, 1.0, 1.0)
_LONGEST_S = 1e9


class SyntheticSource:
    """A scene rendered frame by frame. The scene time is index / fps seconds and starts with the first open.

    Args:
        uri: `test://NAME` with NAME from `scene.SCENES`, and options: `size=640x480`, `fps=30`,
            `pace=real|fast` (fast: without waiting), `picture=PATH` (an image of a face), `script=PATH` (JSON for
            `scene.parse_scene`), `noise=2` (standard deviation), `strobe=1:1` (lit:dark frames), intervals of scene
            time in seconds `dark=10-15`, `cover=`, `freeze=`, `lose=`, `end=30`, `hang=30` (`read` blocks), `seed=1`,
            `bits=8|10|12|16`, `color=1`.
        options: `width`, `height`, `fps` and `color`; the URI takes precedence.

    Raises:
        InputError: An option, the script or the image is invalid.
    """

    def __init__(self, uri: str, options: SourceOptions) -> None:
        self.uri = uri
        name, _, text = uri.partition("://")[2].partition("?")
        query = Query(uri, text)
        self._width, self._height = _size(query, options)
        self._fps = query.number("fps", options.fps or 30.0, 0.001, 10000.0)
        self._fast = query.choice("pace", ("real", "fast")) == "fast"
        self._bits = int(query.choice("bits", ("8", "10", "12", "16")))
        self._color = query.flag("color") or options.color
        noise = query.number("noise", 2.0, 0.0, 20.0)
        seed = int(query.number("seed", 1, 0, 2**31))
        picture, script = query.text("picture"), query.text("script")
        disturbances = _disturbances(query)
        self._hang_s = query.number("hang", 0.0, 0.0, _LONGEST_S) or math.inf
        query.finish()
        if self._color and self._bits != 8:
            raise query.error("bits", str(self._bits), "8 with color=1")
        scene = _scene(uri, name, script, picture)
        self.scene = replace(scene, disturbances=disturbances)
        self.kind = "sensor" if noise else "still"
        self.mode = "cpu"
        render_face, size = _render_face(self.scene, picture), (self._width, self._height)
        self._make_renderer = partial(Renderer, self.scene, size, self._fps, render_face, noise, seed)
        self._renderer: Optional[Renderer] = None
        self._opened = False
        self._started_t: Optional[float] = None
        self._index = 0  # next frame of the scene
        self._first_sequence = 0  # sequence of the scene's first frame; increases when the scene restarts
        self._skipped = 0

    def open(self) -> None:
        """Start the scene, or continue at the current scene time; after its end, restart it.

        Raises:
            SourceError: The device is lost at this scene time (`pace=real`).
        """
        self.close()
        if self._renderer is None:
            # Not in the constructor: rendering a large background takes seconds.
            self._renderer = self._make_renderer()
        end_s = self.scene.disturbances.end_s
        if end_s is not None and self._index >= end_s * self._fps:
            self._first_sequence += self._index
            self._index = 0
            self._started_t = None
        now = time.monotonic()
        if self._started_t is None:
            self._started_t = now
        if not self._fast and within(self.scene.disturbances.lose, now - self._started_t) is not None:
            raise SourceError(f"{self.uri}: no such device", "the scene's script makes it fail now")
        self._opened = True

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The frame that is due now, or the next one (`pace=fast`); None when none is due within `timeout_s`.

        Raises:
            EndOfStream: The scene has ended.
            SourceError: The source is not open, or the device fails by the script.
        """
        if not self._opened or self._started_t is None or self._renderer is None:
            raise SourceError(f"{self.uri}: not open")
        if not self._fast and not self._wait_until_due(self._started_t, timeout_s):
            return None
        t_s = self._index / self._fps
        end_s = self.scene.disturbances.end_s
        if end_s is not None and t_s >= end_s:
            raise EndOfStream(f"{self.uri}: the scene has ended")
        if t_s >= self._hang_s:
            threading.Event().wait()
        lost = within(self.scene.disturbances.lose, t_s)
        if lost is not None:
            self._opened = False
            if self._fast:
                self._index = math.ceil(lost[1] * self._fps)
            raise SourceError(f"{self.uri}: device failed", "the scene's script makes it fail; open it again")
        pixels = self._renderer.draw(self._index)
        sequence = self._first_sequence + self._index
        self._index += 1
        levels = Levels(0.0, 1.0 / (1 << (self._bits - 8)))
        return Frame(self._formatted(pixels), sequence, time.monotonic(), levels, media_s=t_s)

    def close(self) -> None:
        """Stop reading; the scene time continues."""
        self._opened = False

    def counters(self) -> Counters:
        """`skipped`: frames that were not read in time; their numbers are missing in the sequence."""
        return {"skipped": self._skipped}

    def _wait_until_due(self, started_t: float, timeout_s: float) -> bool:
        wait_s = started_t + self._index / self._fps - time.monotonic()
        if wait_s > 0:
            time.sleep(min(wait_s, timeout_s))
        newest = math.floor((time.monotonic() - started_t) * self._fps)
        if newest < self._index:
            return False
        self._skipped += newest - self._index
        self._index = newest
        return True

    def _formatted(self, gray: Array) -> Array:
        if self._color:
            rgb = np.empty((*gray.shape, 3), np.uint8)
            rgb[..., 0] = gray
            rgb[..., 1] = gray - (gray >> 3)
            rgb[..., 2] = gray - (gray >> 2)  # channels differ, so that swapped ones are visible
            return rgb
        if self._bits == 8:
            return gray
        return np.asarray(gray.astype(np.uint16) << (self._bits - 8))


def _size(query: Query, options: SourceOptions) -> Tuple[int, int]:
    size = query.pair("size", "x", (options.width or 640, options.height or 480))
    if size is None or min(size) < 16 or max(size) > 16384:
        raise query.error("size", str(size), "16x16 to 16384x16384")
    return size


def _disturbances(query: Query) -> Disturbances:
    end_s = query.number("end", 0.0, 0.0, _LONGEST_S)
    return Disturbances(
        strobe=query.pair("strobe", ":", None),
        dark=query.windows("dark"),
        cover=query.windows("cover"),
        freeze=query.windows("freeze"),
        lose=query.windows("lose"),
        end_s=end_s or None,
    )


def _scene(uri: str, name: str, script: str, picture: str) -> Scene:
    if script:
        try:
            scene = parse_scene(read_regular(script, MAX_TEXT_BYTES).decode("utf-8"), script)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{script}: {error}", "expected a scene script in JSON") from error
    elif name in SCENES:
        scene = SCENES[name]
    else:
        raise InputError(f"{uri}: unknown scene '{name}'", f"expected one of {', '.join(SCENES)}, or ?script=PATH")
    return replace(scene, look="picture") if picture else scene


def _render_face(scene: Scene, picture: str) -> FaceRenderer:
    if scene.look == "marker":
        return marker
    try:
        if picture:
            return ImageFaceRenderer(Path(picture), _WHOLE, _WHOLE)
        return ImageFaceRenderer(ASTRONAUT, _ASTRONAUT_FACE, _ASTRONAUT_CROP)
    except SourceError as error:
        raise InputError(error.message, error.hint) from error
