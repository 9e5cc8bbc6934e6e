"""Pictures out of a source that tell something: spread over its time, no two alike, none empty."""

import time
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional

import numpy as np

from edge_agent.capture import PICTURE_SUFFIXES, SourceOptions, open_source
from edge_agent.capture.address import split_file
from edge_agent.core.camera import CameraParams
from edge_agent.core.frame import Frame, Picture
from edge_agent.core.ports import Source
from edge_agent.core.types import Array
from edge_agent.core.view import View
from edge_agent.errors import EndOfStream, InputError

_GRID = 16
_ALIKE = 4.0  # gray levels: above a sensor's noise averaged over a cell, below a face that moved
_FLAT = 4.0
_FIRST_S = 10.0


class _Kept(NamedTuple):
    """A picture, when it came (counted in frames), and what it looks like."""

    at: int
    sketch: Array
    picture: Picture


class Gathering:
    """Keeps fewer than twice as many pictures as wanted; when full, it thins them out and from then on waits longer.

    So what is kept is spread evenly over however long the source runs, and the same frames give the same pictures.

    Args:
        wanted: How many.

    Attributes:
        seen: Frames offered.
        alike: Those that showed what another had shown.
        flat: Those that showed nothing: dark, covered, or burnt out.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._gap = 1  # frames between two that are kept
        self._kept: List[_Kept] = []
        self.seen = self.alike = self.flat = 0

    def offer(self, picture: Picture) -> None:
        """Look at the picture of the next frame, which stays the caller's."""
        self.seen += 1
        if self._kept and self.seen - self._kept[-1].at < self._gap:
            return
        sketch = _sketch(picture.levels.to_gray8(picture.pixels))
        if float(np.ptp(sketch)) < _FLAT:
            self.flat += 1
        elif any(float(np.abs(sketch - other.sketch).max()) < _ALIKE for other in self._kept):
            self.alike += 1
        else:
            self._kept.append(_Kept(self.seen, sketch, Picture(picture.pixels.copy(), picture.levels)))
        if len(self._kept) == 2 * self._wanted:
            self._thin_out()

    def _thin_out(self) -> None:
        self._gap = max(self._gap + 1, self.seen // self._wanted)
        before, self._kept = self._kept, []
        for entry in before:
            if not self._kept or entry.at - self._kept[-1].at >= self._gap:
                self._kept.append(entry)

    def pictures(self) -> List[Picture]:
        """At most as many as wanted, in the order of time."""
        count = len(self._kept)
        places = [index * count // self._wanted for index in range(self._wanted)]
        return [self._kept[place].picture for place in (places if count > self._wanted else range(count))]


def gather(uri: str, wanted: int, seconds: float, least: int, camera: Optional[CameraParams] = None) -> List[Picture]:
    """Pictures of a source: files and folders are read to their end, whatever is live for `seconds`.

    Args:
        uri: The source.
        wanted: How many.
        seconds: See above.
        least: With how many it is still of use.
        camera: Whose source it is, when the agent has it: pictures are then as the engine gets them, turned upright,
            masked, and cut to the region of interest.

    Raises:
        InputError: There are fewer than `least` that differ, or the source cannot be understood.
        SourceError: It cannot be opened, or broke.
    """
    from edge_agent.app.factories import source_options

    # Of anything else than a file, no path that exists comes out.
    path = split_file(uri)[0] if "://" not in uri or uri.startswith("file:") else Path(uri)
    if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES:
        raise InputError(f"{path}: is one picture, and {least} or more are needed", "give the folder that it is in")
    finite = path.is_dir() or path.is_file()
    if finite and "?" not in uri:
        uri += "?pace=fast"
    source = open_source(uri, SourceOptions() if camera is None else source_options(camera))
    found = Gathering(wanted)
    source.open()
    try:
        _read(source, found, float("inf") if finite else seconds, _look_of(camera))
    finally:
        source.close()
    pictures = found.pictures()
    if len(pictures) < least:
        raise InputError(
            f"{source.uri}: too few pictures to calibrate with: {len(pictures)} that differ, expected {least} or more "
            f"(of {found.seen} frames {found.alike} were alike, {found.flat} dark or empty)",
            "let somebody walk about before the camera, record longer (--seconds), or give more pictures",
        )
    return pictures


def _look_of(camera: Optional[CameraParams]) -> Callable[[Frame], Picture]:
    """From a frame to what the engine gets, valid until the frame's release."""
    if camera is None:
        return lambda frame: Picture(frame.pixels, frame.levels)
    view = View(camera)
    return lambda frame: view.region(view.upright(frame))[0]


def _read(source: Source, found: Gathering, seconds: float, look: Callable[[Frame], Picture]) -> None:
    started = last = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            frame = source.read(0.5)
        except EndOfStream:
            return
        if frame is None:
            if time.monotonic() - last > _FIRST_S:
                return
            continue
        last = time.monotonic()
        with frame:
            found.offer(look(frame))


def _sketch(gray: Array) -> Array:
    """(16, 16) float32: means of the cells of a gray or RGB picture."""
    if gray.ndim == 3:
        gray = gray[:, :, 1]
    rows, columns = max(1, gray.shape[0] // _GRID), max(1, gray.shape[1] // _GRID)
    cut = gray[: rows * _GRID, : columns * _GRID]
    return np.asarray(cut.reshape(_GRID, rows, _GRID, columns).mean(axis=(1, 3)), np.float32)
