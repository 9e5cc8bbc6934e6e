"""Reads recordings (detections as JSON lines, frames with their times) and samples of a source's frames."""

import math
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import numpy as np

from edge_agent.capture import IMAGE_SUFFIXES
from edge_agent.capture.address import split_file
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.transform import CameraTransform
from edge_agent.core.frame import Frame, Image
from edge_agent.core.ports import Source
from edge_agent.core.presence.recording import (
    MAX_LINE_BYTES,
    RecordedDetections,
    SightChange,
    moment_at,
    read_line,
    read_timestamp,
)
from edge_agent.core.types import Array, Moment
from edge_agent.errors import EndOfStream, InputError, SourceError

DEFAULT_FPS = 30.0
_EPOCH = datetime.fromtimestamp(0, timezone.utc)
_EXPECTED = "expected a folder of images, a video file, test:// with an end, or detections in a .jsonl file"
_ONE_EACH = "expected one line per frame"
_LIVE = ("v4l2:", "/dev/", "csi:", "jetson:", "rtsp:", "rtsps:", "http:", "https:")
_GRID = 16
_ALIKE_LEVELS = 4.0  # gray levels: above a sensor's noise averaged over a cell, below a face that moved
_FLAT_LEVELS = 4.0
_FIRST_FRAME_S = 10.0


def read_detections(recording: str) -> Iterator[Union[RecordedDetections, SightChange]]:
    """Yield every entry of a recording; `-` is stdin, and empty lines are skipped.

    Raises:
        InputError: A line is invalid, or earlier than the one before of the same camera; names the line.
    """
    with ExitStack() as stack:
        try:
            lines = sys.stdin.buffer if recording == "-" else stack.enter_context(Path(recording).open("rb"))
        except OSError as error:
            raise InputError(f"{recording}: {error.strerror}", "expected JSON lines of detections") from None
        last: Dict[str, Moment] = {}
        for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE_BYTES + 1), b""), 1):
            if not line.strip():
                continue
            try:
                entry = read_line(line)
                if entry.camera in last and entry.moment.t < last[entry.camera].t:
                    raise ValueError("ts: is before the one above of the same camera; expected times that go on")
            except ValueError as error:
                where = "stdin" if recording == "-" else recording
                raise InputError(f"{where}:{number}: {error}") from None
            last[entry.camera] = entry.moment
            yield entry


def read_frames(
    recording: str, timestamps: Optional[Path], fps: Optional[float], camera: CameraParams, stack: ExitStack
) -> Tuple[str, Iterator[Tuple[Frame, Moment]]]:
    """Return the kind of the source, and its frames with their times.

    Args:
        recording: A folder, a video file or a synthetic scene that ends.
        timestamps: One line per frame, or None.
        fps: Instead of the recording's own times; None for those, and `DEFAULT_FPS` where it has none.
        camera: Settings of its camera.
        stack: Closes the source.

    Raises:
        InputError: There is no such recording; while reading, a time is invalid or goes back, or times and frames
            differ in number.
    """
    from edge_agent.app.factories import source_of
    from edge_agent.capture.address import hide_credentials

    if recording.startswith(_LIVE):
        raise InputError(f"{hide_credentials(recording)}: is live", _EXPECTED)
    place, _, query = recording.partition("?")
    if place.startswith("test:") and "end=" not in query:
        raise InputError(f"{recording}: never ends", "add end=SECONDS")
    if "loop=1" in query:
        raise InputError(f"{recording}: never ends", "leave loop out")
    if not place.startswith(("test:", "file:")) and not Path(place).exists():
        raise InputError(f"{place}: no such file or folder", _EXPECTED)
    source = source_of(replace(camera, uri=f"{place}?{query + '&' if query else ''}pace=fast"))
    if source.kind == "still" and not Path(place).is_dir() and not place.startswith("test:"):
        raise InputError(f"{recording}: is one image", _EXPECTED)
    times = None if timestamps is None else _read_times(timestamps)
    stack.callback(source.close)
    return source.kind, _timed(source, times, fps, str(timestamps))


def _read_times(path: Path) -> List[Moment]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--timestamps {path}: {getattr(error, 'strerror', 'not UTF-8')}", "expected one time per line"
        ) from None
    times: List[Moment] = []
    for number, line in enumerate(lines, 1):
        try:
            times.append(_time(line.strip()))
            if len(times) > 1 and times[-1].t < times[-2].t:
                raise ValueError("is before the line above; expected times that go on")
        except (ValueError, OverflowError) as error:
            raise InputError(f"{path}:{number}: {error}") from None
    return times


def _time(text: str) -> Moment:
    if text.endswith("Z"):
        return moment_at(read_timestamp(text))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < 1e11:
        raise ValueError("expected seconds, or a time like 2026-01-31T12:00:00.000000Z")
    return moment_at(_EPOCH + timedelta(seconds=seconds))


def _timed(
    source: Source, times: Optional[List[Moment]], fps: Optional[float], name: str
) -> Iterator[Tuple[Frame, Moment]]:
    """Yield every frame with its time. A frame or a time too many is an error: the others may be paired wrongly."""
    number = 0
    for frame in _all(source):
        if times is None:
            own_s = None if fps is not None else frame.media_s
            seconds = number / (fps or DEFAULT_FPS) if own_s is None else own_s
            yield frame, moment_at(_EPOCH + timedelta(seconds=seconds))
        elif number < len(times):
            yield frame, times[number]
        else:
            frame.release()
            raise InputError(f"{name}: {number} times, but {source.uri} has more frames", _ONE_EACH)
        number += 1
    if times is not None and number < len(times):
        raise InputError(f"{name}:{number + 1}: one time more than the {number} frames of {source.uri}", _ONE_EACH)


def _all(source: Source) -> Iterator[Frame]:
    try:
        source.open()
        while True:
            frame = source.read(1.0)
            if source.counters().get("unreadable"):
                raise InputError(f"{source.uri}: holds a file that is no image", "repair or remove it")
            if frame is not None:
                yield frame
    except EndOfStream:
        return
    except SourceError as error:
        raise InputError(error.message, error.hint) from None


class _Kept(NamedTuple):
    """A kept image, its number in the order of frames, and its coarse copy for comparison."""

    at: int
    sketch: Array
    image: Image


class FrameSample:
    """Keeps up to twice as many images as wanted, then every second one, with a longer gap between images from then on.

    The kept images are spread evenly over the source's duration, and the same frames give the same images.

    Args:
        wanted: How many images.

    Attributes:
        seen: Frames offered.
        alike: Frames that resembled a kept image.
        flat: Frames without contrast: dark, covered, or overexposed.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._gap = 1  # frames between two that are kept
        self._kept: List[_Kept] = []
        self.seen = self.alike = self.flat = 0

    def offer(self, image: Image) -> None:
        """Keep a copy of the next frame's image, unless it comes too soon, is flat, or resembles a kept one."""
        self.seen += 1
        if self._kept and self.seen - self._kept[-1].at < self._gap:
            return
        sketch = _sketch(image.levels.to_gray8(image.pixels))
        if float(np.ptp(sketch)) < _FLAT_LEVELS:
            self.flat += 1
        elif any(float(np.abs(sketch - other.sketch).max()) < _ALIKE_LEVELS for other in self._kept):
            self.alike += 1
        else:
            self._kept.append(_Kept(self.seen, sketch, Image(image.pixels.copy(), image.levels)))
        if len(self._kept) == 2 * self._wanted:
            self._thin_out()

    def _thin_out(self) -> None:
        self._gap = max(self._gap + 1, self.seen // self._wanted)
        before, self._kept = self._kept, []
        for entry in before:
            if not self._kept or entry.at - self._kept[-1].at >= self._gap:
                self._kept.append(entry)

    def images(self) -> List[Image]:
        """Return at most as many as wanted, in order of time."""
        count = len(self._kept)
        indices = [index * count // self._wanted for index in range(self._wanted)]
        return [self._kept[index].image for index in (indices if count > self._wanted else range(count))]


def gather(uri: str, wanted: int, seconds: float, least: int, camera: Optional[CameraParams] = None) -> List[Image]:
    """Return sample images of a source. Files and folders are read to their end, live sources for `seconds`.

    Args:
        uri: The source.
        wanted: How many images.
        seconds: Duration for live sources.
        least: The fewest images that suffice.
        camera: Settings of the source's camera: images are then upright, masked and cut to the region of interest, as
            the engine gets them. None for images as captured.

    Raises:
        InputError: Fewer than `least` images differ, or no source opens the URI.
        SourceError: The source cannot be opened, or failed.
    """
    from edge_agent.app.factories import source_of

    # Other URIs yield a path that does not exist.
    path = split_file(uri)[0] if "://" not in uri or uri.startswith("file:") else Path(uri)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        raise InputError(f"{path}: is one image, and {least} or more are needed", "give the folder that it is in")
    finite = path.is_dir() or path.is_file()
    if finite and "?" not in uri:
        uri += "?pace=fast"
    source = source_of(CameraParams(uri) if camera is None else replace(camera, uri=uri))
    sample = FrameSample(wanted)
    source.open()
    try:
        _read(source, sample, float("inf") if finite else seconds, _image_of(camera))
    finally:
        source.close()
    images = sample.images()
    if len(images) < least:
        raise InputError(
            f"{source.uri}: too few images to calibrate with: {len(images)} that differ, expected {least} or more "
            f"(of {sample.seen} frames {sample.alike} were alike, {sample.flat} dark or empty)",
            "have somebody move in front of the camera, record longer (--seconds), or give more images",
        )
    return images


def _image_of(camera: Optional[CameraParams]) -> Callable[[Frame], Image]:
    """Return a function from a frame to the engine's image, which is valid until the frame's release."""
    if camera is None:
        return lambda frame: Image(frame.pixels, frame.levels)
    view = CameraTransform(camera)
    return lambda frame: view.region(view.upright(frame))[0]


def _read(source: Source, sample: FrameSample, seconds: float, image_of: Callable[[Frame], Image]) -> None:
    started = last = time.monotonic()
    while time.monotonic() - started < seconds:
        try:
            frame = source.read(0.5)
        except EndOfStream:
            return
        if frame is None:
            if time.monotonic() - last > _FIRST_FRAME_S:
                return
            continue
        last = time.monotonic()
        with frame:
            if frame.damaged:
                continue
            sample.offer(image_of(frame))


def _sketch(gray: Array) -> Array:
    """Return (16, 16) float32 cell means of a gray or RGB image."""
    if gray.ndim == 3:
        gray = gray[:, :, 1]
    rows, columns = max(1, gray.shape[0] // _GRID), max(1, gray.shape[1] // _GRID)
    cut = gray[: rows * _GRID, : columns * _GRID]
    return np.asarray(cut.reshape(_GRID, rows, _GRID, columns).mean(axis=(1, 3)), np.float32)
