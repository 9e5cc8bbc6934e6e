"""Live network cameras: one thread per connection receives and decodes, and a read returns the newest frame."""

import threading
import time
from typing import Any, Callable, NamedTuple, Optional, Protocol, Tuple

from edge_agent.capture import SourceOptions
from edge_agent.capture.address import hide_credentials
from edge_agent.capture.media_decode import Decoded, PixelReader
from edge_agent.core.frame import Frame, undecodable
from edge_agent.core.types import Counters
from edge_agent.errors import SourceError

OPEN_TIMEOUT_S = 5.0
_LONGEST_OPEN_S = 15.0  # the capture thread counts as hung after 20 s
_GRACE_S = 2.0  # no timeout covers name resolution; after this, `open` stops waiting

HINT_SILENT = "expected a camera that streams to this address; check the address, the camera and the network"
HINT_PASSWORD = "check user and password of the address; special characters in them must be percent-encoded"
HINT_PATH = "check the path of the address"


def open_timeout_s(stall_after_s: float) -> float:
    """How long a camera may take to answer a connection, in seconds."""
    return max(OPEN_TIMEOUT_S, min(stall_after_s, _LONGEST_OPEN_S))


def refusal(status: int) -> SourceError:
    """The error for an HTTP or RTSP status that refuses the request; without the address."""
    if status == 401:
        return SourceError("the camera refuses user and password, or requires them (401 Unauthorized)", HINT_PASSWORD)
    if status == 403:
        return SourceError("the camera refuses access to this user (403 Forbidden)", HINT_PASSWORD)
    if status == 404:
        return SourceError("the camera has nothing at this path (404 Not Found)", HINT_PATH)
    return SourceError(f"the camera refuses the request with status {status}", HINT_PATH)


class Closable(Protocol):
    """A connection that another thread may end."""

    def close(self) -> None:
        """End it; a read that waits returns or raises."""


class _Taken(NamedTuple):
    frame: Optional[Any]  # av.VideoFrame; None for data that cannot be decoded
    sequence: int
    t: float  # monotonic seconds, the backlog before the decoder taken off
    damaged: bool


class Link:
    """One connection, as its thread and the capture thread share it.

    Args:
        counters: The source's, which outlive connections.
        stall_after_s: Without a frame for so long the connection has failed.
        first_sequence: Number of its first frame.
    """

    def __init__(self, counters: Counters, stall_after_s: float, first_sequence: int) -> None:
        self.counters = counters
        self.stall_after_s = stall_after_s
        self.stopping = False
        self._sequence = first_sequence
        self._condition = threading.Condition()
        self._connected = False
        self._connection: Optional[Closable] = None
        self._newest: Optional[_Taken] = None
        self._fault: Optional[SourceError] = None
        self._trouble: Optional[SourceError] = None
        self._last_t = 0.0

    def use(self, connection: Optional[Closable]) -> None:
        """Remember what `stop` must close. Called by the connection's thread."""
        with self._condition:
            self._connection = connection
            if not self.stopping or connection is None:
                return
        connection.close()

    def connected(self) -> None:
        """Let `open` return: the camera has accepted the request. Called by the connection's thread."""
        with self._condition:
            if not self._connected:
                self._connected = True
                self._last_t = time.monotonic()
                self._condition.notify_all()

    def alive(self, t: float) -> None:
        """Note at monotonic `t` that data arrived which is left out on purpose."""
        self._last_t = t

    def trouble(self, error: Optional[SourceError]) -> None:
        """Remember why frames are missing, for the error that follows if none comes."""
        self._trouble = error

    def offer(self, decoded: Decoded, t: float) -> None:
        """Replace the newest frame by one that was exposed at monotonic `t`."""
        frame, damaged = decoded
        with self._condition:
            if self.stopping:
                return
            if self._newest is not None:
                self.counters["dropped"] += 1
            self._newest = _Taken(frame, self._sequence, t, damaged)
            self._sequence += 1
            if frame is not None:  # a stream of which nothing can be decoded has failed
                self._last_t = time.monotonic()
            self._condition.notify_all()

    def wait(self, seconds: float) -> None:
        """Wait unless the connection is stopped."""
        with self._condition:
            self._condition.wait_for(lambda: self.stopping, seconds)

    def fail(self, error: SourceError) -> None:
        """Report the end of the connection."""
        with self._condition:
            self._fault = error
            self._connection = None
            self._condition.notify_all()

    def wait_connected(self, timeout_s: float) -> Optional[SourceError]:
        """None once the camera has accepted the request, else the error, without the address."""
        with self._condition:
            self._condition.wait_for(lambda: self._connected or self._fault, timeout_s)
            if self._connected:
                return None
            return self._fault or SourceError(f"no answer within {timeout_s:.0f} s", HINT_SILENT)

    def take(self, timeout_s: float) -> Tuple[Optional[_Taken], Optional[SourceError]]:
        """The newest frame or None, and the error, if there is one."""
        with self._condition:
            self._condition.wait_for(lambda: self._newest or self._fault, timeout_s)
            taken, self._newest = self._newest, None
            fault = self._fault
            silent_s = time.monotonic() - self._last_t
            if (taken is None or taken.frame is None) and not fault and silent_s > self.stall_after_s:
                why = self._trouble or SourceError("", HINT_SILENT)
                text = f"no frame for {self.stall_after_s:g} s"
                taken, fault = None, SourceError(f"{text}: {why.message}" if why.message else text, why.hint)
            return taken, fault

    def stop(self) -> int:
        """End the connection, and return the first unused sequence."""
        with self._condition:
            self.stopping = True
            self._newest = None
            connection, self._connection = self._connection, None
            self._condition.notify_all()
        if connection is not None:
            connection.close()
        return self._sequence


class LiveSource:
    """A network camera. A separate thread receives; `read` returns the newest frame.

    Args:
        uri: The address with user and password.
        options: Only `color` and `stall_after_s` are used.
        play: Connects and offers frames until the stream ends; returns the reason, or raises SourceError without the
            address in its message. Runs in the connection's thread.
    """

    kind = "encoded"
    mode = "cpu"

    def __init__(self, uri: str, options: SourceOptions, play: Callable[[Link], SourceError]) -> None:
        self.uri = hide_credentials(uri)
        self.stall_after_s = options.stall_after_s
        self._play = play
        self._to_pixels = PixelReader(options.color)
        self._counters: Counters = {"dropped": 0, "decode_errors": 0, "skipped_packets": 0, "lag_ms": 0}
        self._link: Optional[Link] = None
        self._thread: Optional[threading.Thread] = None
        self._next_sequence = 0

    def open(self) -> None:
        """Connect within `open_timeout_s` and two seconds.

        Raises:
            SourceError: The address does not answer, refuses the connection, or sends no video.
        """
        self.close()
        link = Link(self._counters, self.stall_after_s, self._next_sequence)
        # A daemon thread, because a call into the system or FFmpeg may block, which must not delay a shutdown.
        self._thread = threading.Thread(target=self._run, args=(link,), name="media-stream", daemon=True)
        self._link = link
        self._thread.start()
        fault = link.wait_connected(open_timeout_s(self.stall_after_s) + _GRACE_S)
        if fault is not None:
            self.close()
            raise SourceError(f"{self.uri}: {fault.message}", fault.hint)

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The newest unread frame, or None when none arrived within `timeout_s`.

        Raises:
            SourceError: The source is not open, the stream ended, or no frame arrived for `stall_after_s`.
        """
        if self._link is None:
            raise SourceError(f"{self.uri}: not open")
        taken, fault = self._link.take(timeout_s)
        if taken is None:
            if fault is not None:
                raise SourceError(f"{self.uri}: {fault.message}", fault.hint)
            return None
        self._next_sequence = taken.sequence + 1
        if taken.frame is None:
            return undecodable(taken.sequence, taken.t)
        pixels, levels = self._to_pixels(taken.frame)
        return Frame(pixels, taken.sequence, taken.t, levels, damaged=taken.damaged)

    def close(self) -> None:
        """Disconnect; frames that were returned keep their pixels."""
        if self._link is not None and self._thread is not None:
            first_unused = self._link.stop()
            self._thread.join(0.5)
            self._next_sequence = max(self._next_sequence, first_unused)
            self._link = self._thread = None

    def counters(self) -> Counters:
        """Counts since the source was created, but for `lag_ms`.

        dropped: frames replaced by a newer one before they were read. decode_errors: packets that cannot be decoded.
        skipped_packets: left out because decoding was behind. lag_ms: how far it is behind now.
        """
        return dict(self._counters)

    def _run(self, link: Link) -> None:
        try:
            fault = self._play(link)
        except SourceError as error:
            fault = error
        link.fail(fault)
