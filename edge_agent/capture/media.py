"""Video files, decoded by PyAV and played in real time (late frames are skipped) or as fast as they are read."""

import errno
import time
from collections import deque
from typing import Any, Deque, Generator, Iterator, NamedTuple, Optional, Tuple

import av

from edge_agent.capture import SourceOptions
from edge_agent.capture.address import split_file
from edge_agent.capture.media_decode import Decoded, PacketDecoder, PixelReader, video_stream
from edge_agent.core.frame import Frame, undecodable
from edge_agent.core.types import Counters
from edge_agent.errors import EndOfStream, SourceError
from edge_agent.files import require_regular

_EXPECTED = "expected a video file that FFmpeg reads"
# A playlist would name other files and hosts, so those formats are left out.
_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,"
    "h264,hevc,mjpeg,mjpeg_2000,gif,yuv4mpegpipe,nut",
}
_LONGEST_GAP_S = 10.0  # a larger step between two timestamps is a broken file, not a pause
_CATCH_UP_S = 0.05  # how long a read may decode late frames after its timeout


class _TimedFrame(NamedTuple):
    frame: Optional[Any]  # av.VideoFrame; None for a packet that cannot be decoded
    damaged: bool
    sequence: int
    due_s: float  # since the start of playing


class MediaSource:
    """A video file.

    Args:
        uri: Bare path or `file:` URI. `?pace=fast` returns every frame as soon as it is read; otherwise the file
            plays in real time. `?loop=1` restarts the file at its end; the sequence continues.
        options: Only `color` is used.
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
        self._to_pixels = PixelReader(options.color)
        self._frames: Optional[Generator[_TimedFrame, None, None]] = None
        self._queue: Deque[_TimedFrame] = deque()
        self._ended = False
        self._started_t = 0.0
        self._sequence = 0
        self._skipped = 0
        self._decode_errors = 0

    def open(self) -> None:
        """Open the file and decode its first frame.

        Raises:
            SourceError: The file does not exist, or no frame of it can be decoded.
        """
        self.close()
        self._frames = self._play()
        self._ended = False
        try:
            self._fill_queue(1)
        except SourceError:
            self.close()
            raise
        self._started_t = time.monotonic()

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The next frame (`pace=fast`) or the frame that is due now; None when none was due within `timeout_s`.

        Raises:
            EndOfStream: After the last frame.
            SourceError: The source is not open, or the file cannot be read further.
        """
        if self._frames is None:
            raise SourceError(f"{self.uri}: not open")
        deadline = time.monotonic() + timeout_s
        self._fill_queue(1)
        if not self._queue:
            raise EndOfStream(f"{self.uri}: the file has ended")
        if not self._fast:
            due_t = self._started_t + self._queue[0].due_s
            wait_s = min(due_t, deadline) - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            if due_t > time.monotonic():
                return None
            self._skip_late(max(deadline, time.monotonic() + _CATCH_UP_S))
        timed = self._queue.popleft()
        now = time.monotonic()
        if timed.frame is None:
            return undecodable(timed.sequence, now, timed.due_s)
        pixels, levels = self._to_pixels(timed.frame)
        return Frame(pixels, timed.sequence, now, levels, damaged=timed.damaged, media_s=timed.due_s)

    def close(self) -> None:
        """Close the file; frames that were returned keep their pixels."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None
        self._queue.clear()

    def counters(self) -> Counters:
        """`skipped`: frames decoded after their time; `decode_errors`: packets that could not be decoded."""
        return {"skipped": self._skipped, "decode_errors": self._decode_errors}

    def _fill_queue(self, count: int) -> None:
        """Decode until `count` frames are queued, or the file has ended."""
        while len(self._queue) < count and not self._ended:
            following = self._decode_next()
            if following is None:
                self._ended = True
            else:
                self._queue.append(following)

    def _decode_next(self) -> Optional[_TimedFrame]:
        try:
            return None if self._frames is None else next(self._frames, None)
        except (av.FFmpegError, UnicodeDecodeError) as error:  # the latter: invalid tags in the file
            text = getattr(error, "strerror", error)
            if getattr(error, "errno", None) == errno.EINVAL:
                text = "not a video format that is allowed, or damaged"
            raise SourceError(f"{self.uri}: {text}", _EXPECTED) from error

    def _skip_late(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            self._fill_queue(2)
            if len(self._queue) < 2 or self._started_t + self._queue[1].due_s > time.monotonic():
                return
            self._queue.popleft()
            self._skipped += 1

    def _play(self) -> Generator[_TimedFrame, None, None]:
        """Every frame of the file, repeated when looping, with due times that increase across loops."""
        due_s: Optional[float] = None
        while True:
            last_s: Optional[float] = None
            decoded_any = False
            for (frame, damaged), period_s in self._decode():
                step_s = period_s
                time_s = None if frame is None else frame.time
                if time_s is not None and last_s is not None and 0.0 <= time_s - last_s <= _LONGEST_GAP_S:
                    step_s = time_s - last_s
                last_s = time_s if last_s is None or time_s is not None else last_s + period_s
                due_s = 0.0 if due_s is None else due_s + step_s
                decoded_any = decoded_any or frame is not None
                yield _TimedFrame(frame, damaged, self._sequence, due_s)
                self._sequence += 1
            if not decoded_any:
                raise SourceError(f"{self.uri}: no frame can be decoded", _EXPECTED)
            if not self._loop:
                return

    def _decode(self) -> Iterator[Tuple[Decoded, float]]:
        """Every frame of the file once, with the nominal frame period in seconds."""
        try:
            require_regular(self._path)
        except OSError as error:
            raise SourceError(f"{self.uri}: {error.strerror}", _EXPECTED) from error
        with av.open(f"file:{self._path}", container_options=_OPTIONS) as container:
            try:
                stream = video_stream(container)
            except SourceError as error:
                raise SourceError(f"{self.uri}: {error.message}", _EXPECTED) from None
            period_s = 1.0 / float(stream.average_rate or 25)
            decoder = PacketDecoder(stream)
            errors = self._decode_errors
            for packet in container.demux(stream):
                for decoded in decoder.decode(packet, time.monotonic()):
                    self._decode_errors = errors + decoder.errors
                    yield decoded, period_s
