"""Recordings as files: detections as JSON lines, and frames with their times."""

import math
import sys
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Iterator, List, Optional, Tuple, Union

from edge_agent.core.recording import MAX_LINE_BYTES, Seen, SightChange, moment_at, read_line, read_timestamp
from edge_agent.core.types import Moment
from edge_agent.errors import EndOfStream, InputError, SourceError

if TYPE_CHECKING:
    from edge_agent.core.camera import CameraParams
    from edge_agent.core.frame import Frame
    from edge_agent.core.ports import Source

DEFAULT_FPS = 30.0
_EPOCH = datetime.fromtimestamp(0, timezone.utc)
_EXPECTED = "expected a folder of pictures, a video file, test:// with an end, or detections in a .jsonl file"
_ONE_EACH = "expected one line per frame"
_LIVE = ("v4l2:", "/dev/", "csi:", "jetson:", "rtsp:", "rtsps:", "http:", "https:")


def read_detections(recording: str) -> Iterator[Union[Seen, SightChange]]:
    """Every line of a recording, `-` being stdin; empty lines are passed over.

    Raises:
        InputError: A line that is none, or whose camera's time goes back; names it.
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
    recording: str, timestamps: Optional[Path], fps: Optional[float], camera: "CameraParams", stack: ExitStack
) -> Tuple[str, Iterator[Tuple["Frame", Moment]]]:
    """The kind of the source, and its frames with the times that they were taken at.

    Args:
        recording: A folder, a video file or a made scene that ends.
        timestamps: One line per frame, or None.
        fps: Where there are no timestamps; None is the default.
        camera: Whether colour is wanted.
        stack: Closes the source.

    Raises:
        InputError: No such recording; as it is read, times that are none, go back, or are too few or too many.
    """
    from edge_agent.app.factories import source_options
    from edge_agent.capture import open_source
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
    source = open_source(f"{place}?{query + '&' if query else ''}pace=fast", source_options(camera))
    if source.kind == "still" and not Path(place).is_dir() and not place.startswith("test:"):
        raise InputError(f"{recording}: is one picture", _EXPECTED)
    times = None if timestamps is None else _read_times(timestamps)
    stack.callback(source.close)
    return source.kind, _timed(source, times, fps or DEFAULT_FPS, str(timestamps))


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


def _timed(source: "Source", times: Optional[List[Moment]], fps: float, name: str) -> Iterator[Tuple["Frame", Moment]]:
    """Every frame with its time; one without the other is a fault, for all that follow would be wrong."""
    number = 0
    for frame in _all(source):
        if times is None:
            yield frame, moment_at(_EPOCH + timedelta(seconds=number / fps))
        elif number < len(times):
            yield frame, times[number]
        else:
            frame.release()
            raise InputError(f"{name}: {number} times, but {source.uri} has more frames", _ONE_EACH)
        number += 1
    if times is not None and number < len(times):
        raise InputError(f"{name}:{number + 1}: one time more than the {number} frames of {source.uri}", _ONE_EACH)


def _all(source: "Source") -> Iterator["Frame"]:
    try:
        source.open()
        while True:
            frame = source.read(1.0)
            if source.counters().get("unreadable"):
                raise InputError(f"{source.uri}: holds a file that is no picture", "mend or remove it")
            if frame is not None:
                yield frame
    except EndOfStream:
        return
    except SourceError as error:
        raise InputError(error.message, error.hint) from None
