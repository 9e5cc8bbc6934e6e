"""Video files by PyAV, played in real time (late frames are skipped) or as fast as asked."""

import time
from collections import deque
from typing import Any, Deque, Generator, Iterator, NamedTuple, Optional, Tuple

import av

from edge_agent.capture import SourceOptions
from edge_agent.capture.address import split_file
from edge_agent.capture.media_picture import gray_of, rgb_of, video_of
from edge_agent.core.frame import Frame
from edge_agent.core.types import Counters
from edge_agent.errors import EndOfStream, SourceError

_EXPECTED = "expected a video file that FFmpeg reads"
_LONGEST_GAP_S = 10.0  # a larger step between two timestamps is a broken file, not a pause
_CATCH_UP_S = 0.05  # how long a read may go on decoding late pictures beyond its timeout


class _Timed(NamedTuple):
    picture: Any
    sequence: int
    due_s: float  # since the start of playing


class MediaSource:
    """A video file.

    Args:
        uri: Bare path or `file:` URI. `?pace=fast` gives every frame as soon as it is asked for, else the file plays
            in real time; `?loop=1` starts over at its end, and the sequence goes on.
        options: `color` is honoured.
    """

    kind = "encoded"
    mode = "cpu"

    def __init__(self, uri: str, options: SourceOptions) -> None:
        path, query = split_file(uri)
        self._fast = query.choice("pace", ("real", "fast")) == "fast"
        self._loop = query.flag("loop")
        query.finish()
        self.uri = uri
        self._path = path
        self._pixels_of = rgb_of if options.color else gray_of
        self._pictures: Optional[Generator[_Timed, None, None]] = None
        self._ahead: Deque[_Timed] = deque()
        self._ended = False
        self._started_t = 0.0
        self._sequence = 0
        self._skipped = 0
        self._decode_errors = 0

    def open(self) -> None:
        """Open the file and decode its first picture.

        Raises:
            SourceError: There is no such file, or nothing in it can be decoded.
        """
        self.close()
        self._pictures = self._play()
        self._ended = False
        try:
            self._look_ahead(1)
        except SourceError:
            self.close()
            raise
        self._started_t = time.monotonic()

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The next frame (`pace=fast`) or the one that is due now; None when none became due in time.

        Raises:
            EndOfStream: After the last frame.
            SourceError: Not open, or the file cannot be read on.
        """
        if self._pictures is None:
            raise SourceError(f"{self.uri}: not open")
        deadline = time.monotonic() + timeout_s
        self._look_ahead(1)
        if not self._ahead:
            raise EndOfStream(f"{self.uri}: the file has ended")
        if not self._fast:
            due_t = self._started_t + self._ahead[0].due_s
            wait_s = min(due_t, deadline) - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            if due_t > time.monotonic():
                return None
            self._skip_late(max(deadline, time.monotonic() + _CATCH_UP_S))
        timed = self._ahead.popleft()
        pixels, levels = self._pixels_of(timed.picture)
        return Frame(pixels, timed.sequence, time.monotonic(), levels)

    def close(self) -> None:
        """Close the file; frames handed out keep their pixels."""
        if self._pictures is not None:
            self._pictures.close()
            self._pictures = None
        self._ahead.clear()

    def counters(self) -> Counters:
        """`skipped`: decoded too late to be shown; `decode_errors`: packets that could not be decoded."""
        return {"skipped": self._skipped, "decode_errors": self._decode_errors}

    def _look_ahead(self, count: int) -> None:
        """Decode until `count` pictures wait, or the file has ended."""
        while len(self._ahead) < count and not self._ended:
            following = self._decode_next()
            if following is None:
                self._ended = True
            else:
                self._ahead.append(following)

    def _decode_next(self) -> Optional[_Timed]:
        try:
            return None if self._pictures is None else next(self._pictures, None)
        except (av.FFmpegError, UnicodeDecodeError) as error:  # the latter: from the file's tags
            raise SourceError(f"{self.uri}: {getattr(error, 'strerror', error)}", _EXPECTED) from error

    def _skip_late(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            self._look_ahead(2)
            if len(self._ahead) < 2 or self._started_t + self._ahead[1].due_s > time.monotonic():
                return
            self._ahead.popleft()
            self._skipped += 1

    def _play(self) -> Generator[_Timed, None, None]:
        """Every picture of the file, over and over when looping, on one time line."""
        due_s: Optional[float] = None
        while True:
            last_s: Optional[float] = None
            pass_started = self._sequence
            for picture, period_s in self._decode():
                step_s = period_s
                if picture.time is not None and last_s is not None and 0.0 <= picture.time - last_s <= _LONGEST_GAP_S:
                    step_s = picture.time - last_s
                last_s = picture.time
                due_s = 0.0 if due_s is None else due_s + step_s
                yield _Timed(picture, self._sequence, due_s)
                self._sequence += 1
            if self._sequence == pass_started:
                raise SourceError(f"{self.uri}: no picture can be decoded", _EXPECTED)
            if not self._loop:
                return

    def _decode(self) -> Iterator[Tuple[Any, float]]:
        """Every picture of the file once, with the seconds that one picture usually lasts."""
        with av.open(str(self._path)) as container:
            try:
                stream = video_of(container)
            except SourceError as error:
                raise SourceError(f"{self.uri}: {error.message}", _EXPECTED) from None
            period_s = 1.0 / float(stream.average_rate or 25)
            for packet in container.demux(stream):
                try:
                    pictures = packet.decode()
                except av.FFmpegError:
                    self._decode_errors += 1
                    continue
                for picture in pictures:
                    yield picture, period_s
