"""Live streams by PyAV: RTSP, and MJPEG over HTTP. Everything is decoded, the newest picture wins."""

import threading
import time
from typing import Any, Dict, Optional, Tuple

import av

from edge_agent.capture import SourceOptions
from edge_agent.capture.address import hide_credentials
from edge_agent.capture.media_picture import gray_of, rgb_of, video_of
from edge_agent.core.frame import Frame
from edge_agent.core.types import Counters
from edge_agent.errors import SourceError

OPEN_TIMEOUT_S = 5.0
_GRACE_S = 2.0  # FFmpeg's own timeout does not cover name resolution: we stop waiting, the thread ends when it can
_PROBE_S = 1.0  # FFmpeg would look at 5 s of a stream before it hands out the first picture
_HINT = "expected a camera that streams to this address; check address, user and password, and the network"


def stream_options(scheme: str, timeout_s: float, libavformat: Tuple[int, ...]) -> Dict[str, str]:
    """FFmpeg's options for a live stream, all of whose waits end.

    Args:
        scheme: Of the URI.
        timeout_s: Longest wait for the network.
        libavformat: Its version; before 59 (FFmpeg 5), RTSP's `timeout` meant "listen" and `stimeout` the timeout.
    """
    timeout_us = str(int(timeout_s * 1e6))
    options = {"fflags": "nobuffer", "flags": "low_delay", "analyzeduration": str(int(_PROBE_S * 1e6))}
    if scheme.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
        options["timeout" if libavformat[0] >= 59 else "stimeout"] = timeout_us
    else:
        options["rw_timeout"] = timeout_us
    return options


class StreamSource:
    """A network camera. A thread of its own decodes; `read` takes the newest picture.

    Args:
        uri: rtsp://, rtsps://, http:// or https://, with user and password where the camera wants them. The query
            belongs to the camera.
        options: `color` and `stall_after_s` are honoured.
    """

    kind = "encoded"
    mode = "cpu"

    def __init__(self, uri: str, options: SourceOptions) -> None:
        self.uri = hide_credentials(uri)
        self._full_uri = uri
        self._stall_after_s = options.stall_after_s
        self._pixels_of = rgb_of if options.color else gray_of
        self._counters: Counters = {"dropped": 0, "decode_errors": 0}
        self._reader: Optional[_Reader] = None
        self._next_sequence = 0

    def open(self) -> None:
        """Connect, within `OPEN_TIMEOUT_S` and a little.

        Raises:
            SourceError: The address does not answer, refuses, or sends no video.
        """
        self.close()
        self._reader = _Reader(self._full_uri, self._stall_after_s, self._counters, self._next_sequence)
        self._reader.start()
        fault = self._reader.wait_connected(OPEN_TIMEOUT_S + _GRACE_S)
        if fault:
            self.close()
            raise SourceError(f"{self.uri}: {fault}", _HINT)

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The newest picture that was not read yet, or None when none came in time.

        Raises:
            SourceError: Not open, the stream broke off or ended, or nothing came for `stall_after_s`.
        """
        if self._reader is None:
            raise SourceError(f"{self.uri}: not open")
        taken, fault = self._reader.take(timeout_s)
        if taken is None:
            if fault:
                raise SourceError(f"{self.uri}: {fault}", _HINT)
            return None
        picture, sequence, t = taken
        self._next_sequence = sequence + 1
        pixels, levels = self._pixels_of(picture)
        return Frame(pixels, sequence, t, levels)

    def close(self) -> None:
        """Disconnect; pictures handed out keep their pixels."""
        if self._reader is not None:
            self._next_sequence = max(self._next_sequence, self._reader.stop())
            self._reader = None

    def counters(self) -> Counters:
        """`dropped`: decoded, but a newer one came before it was read; `decode_errors`: damaged packets."""
        return dict(self._counters)


class _Reader(threading.Thread):
    """One connection. A daemon: FFmpeg may wait inside for its timeout, and a shutdown must not."""

    def __init__(self, uri: str, stall_after_s: float, counters: Counters, first_sequence: int) -> None:
        super().__init__(name="media-stream", daemon=True)
        self._uri = uri
        self._stall_after_s = stall_after_s
        self._counters = counters
        self._sequence = first_sequence
        self._changed = threading.Condition()
        self._connected = False
        self._stopping = False
        self._newest: Optional[Tuple[Any, int, float]] = None
        self._fault = ""
        self._last_t = 0.0

    def run(self) -> None:
        """Connect and decode until the stream breaks off or `stop` is called."""
        try:
            fault = self._follow()
        except SourceError as error:
            fault = error.message
        except (av.FFmpegError, UnicodeDecodeError, ValueError) as error:
            # Never str(error): FFmpeg's text repeats the address with its password.
            fault = getattr(error, "strerror", None) or "FFmpeg cannot read what is sent"
            if isinstance(error, av.error.ExitError):
                fault = "no answer in time"
            if self._connected:
                fault = f"the stream broke off: {fault}"
        with self._changed:
            self._fault = fault
            self._changed.notify_all()

    def wait_connected(self, timeout_s: float) -> str:
        """The empty text once video flows, else what went wrong."""
        with self._changed:
            self._changed.wait_for(lambda: self._connected or self._fault, timeout_s)
            return "" if self._connected else self._fault or f"no answer within {timeout_s:.0f} s"

    def take(self, timeout_s: float) -> Tuple[Optional[Tuple[Any, int, float]], str]:
        """(picture, sequence, monotonic arrival) or None, and what went wrong, if anything."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._fault, timeout_s)
            taken, self._newest = self._newest, None
            fault = self._fault
            if not taken and not fault and time.monotonic() - self._last_t > self._stall_after_s:
                fault = f"no picture for {self._stall_after_s:g} s"
            return taken, fault

    def stop(self) -> int:
        """Ask the thread to end, without waiting long for it; the first sequence that was not used."""
        with self._changed:
            self._stopping = True
            self._newest = None
        self.join(0.5)
        return self._sequence

    def _follow(self) -> str:
        scheme = self._uri.partition(":")[0].lower()
        network_s = min(self._stall_after_s, OPEN_TIMEOUT_S)
        options = stream_options(scheme, OPEN_TIMEOUT_S, av.library_versions["libavformat"])
        with av.open(self._uri, options=options, timeout=(OPEN_TIMEOUT_S, network_s)) as container:
            stream = video_of(container)
            with self._changed:
                self._connected = True
                self._last_t = time.monotonic()
                self._changed.notify_all()
            for packet in container.demux(stream):
                if self._stopping:
                    return ""
                self._decode(packet, time.monotonic())
        return "the stream has ended"

    def _decode(self, packet: Any, t: float) -> None:
        try:
            pictures = packet.decode()
        except av.FFmpegError:
            self._counters["decode_errors"] += 1
            return
        for picture in pictures:
            with self._changed:
                if self._stopping:
                    return
                if self._newest is not None:
                    self._counters["dropped"] += 1
                self._newest = (picture, self._sequence, t)
                self._sequence += 1
                self._last_t = t
                self._changed.notify_all()
