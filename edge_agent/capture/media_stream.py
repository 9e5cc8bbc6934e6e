"""Live RTSP and HTTP streams, decoded by PyAV; a read returns the newest frame.

Every packet is decoded unless decoding falls behind: then frames that no other needs are left out, and then all up to
the next keyframe, so that a frame is at most about a second old.
"""

import threading
import time
from typing import Any, Dict, NamedTuple, Optional, Tuple

import av

from edge_agent.capture import SourceOptions
from edge_agent.capture.address import hide_credentials
from edge_agent.capture.media_decode import PacketDecoder, gray_pixels, rgb_pixels, video_stream
from edge_agent.capture.stream_clock import StreamClock
from edge_agent.core.frame import Frame, undecodable
from edge_agent.core.types import Counters
from edge_agent.errors import SourceError

OPEN_TIMEOUT_S = 5.0
_GRACE_S = 2.0  # FFmpeg's timeout does not cover name resolution; after this, `open` stops waiting
_BEHIND_S = 1.0  # from this lag on, frames that no other frame needs are not decoded
_FAR_BEHIND_S = 1.5  # from this lag on, nothing is decoded up to the next keyframe
_CAUGHT_UP_S = 0.3
_PROBE_S = 1.0  # FFmpeg's default analyses 5 s of a stream before it returns the first frame
_HINT = "expected a camera that streams to this address; check address, user and password, and the network"


def stream_options(scheme: str, timeout_s: float, libavformat: Tuple[int, ...]) -> Dict[str, str]:
    """FFmpeg's options for a live stream, with a limit on every wait.

    Args:
        scheme: The URI's scheme.
        timeout_s: Longest wait for the network in seconds.
        libavformat: Its version. Before 59 (FFmpeg 5), RTSP's `timeout` meant "listen"; the timeout was `stimeout`.
    """
    timeout_us = str(int(timeout_s * 1e6))
    # Not fflags=nobuffer: it discards what was read while probing, the first keyframe included.
    options = {"flags": "low_delay", "analyzeduration": str(int(_PROBE_S * 1e6))}
    if scheme.startswith("rtsp"):
        options["rtsp_transport"] = "tcp"
        options["timeout" if libavformat[0] >= 59 else "stimeout"] = timeout_us
    else:
        options["rw_timeout"] = timeout_us
    return options


class StreamSource:
    """A network camera. A separate thread decodes; `read` returns the newest frame.

    Args:
        uri: rtsp://, rtsps://, http:// or https://, with user and password where the camera requires them. The query
            is passed to the camera.
        options: Only `color` and `stall_after_s` are used.
    """

    kind = "encoded"
    mode = "cpu"

    def __init__(self, uri: str, options: SourceOptions) -> None:
        self.uri = hide_credentials(uri)
        self._full_uri = uri
        self._stall_after_s = options.stall_after_s
        self._to_pixels = rgb_pixels if options.color else gray_pixels
        self._counters: Counters = {"dropped": 0, "decode_errors": 0, "skipped_packets": 0, "lag_ms": 0}
        self._reader: Optional[_Reader] = None
        self._next_sequence = 0

    def open(self) -> None:
        """Connect within `OPEN_TIMEOUT_S` + `_GRACE_S`.

        Raises:
            SourceError: The address does not answer, refuses the connection, or sends no video.
        """
        self.close()
        self._reader = _Reader(self._full_uri, self._stall_after_s, self._counters, self._next_sequence)
        self._reader.start()
        fault = self._reader.wait_connected(OPEN_TIMEOUT_S + _GRACE_S)
        if fault:
            self.close()
            raise SourceError(f"{self.uri}: {fault}", _HINT)

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The newest unread frame, or None when none arrived within `timeout_s`.

        Raises:
            SourceError: The source is not open, the stream ended, or no frame arrived for `stall_after_s`.
        """
        if self._reader is None:
            raise SourceError(f"{self.uri}: not open")
        taken, fault = self._reader.take(timeout_s)
        if taken is None:
            if fault:
                raise SourceError(f"{self.uri}: {fault}", _HINT)
            return None
        self._next_sequence = taken.sequence + 1
        if taken.frame is None:
            return undecodable(taken.sequence, taken.t)
        pixels, levels = self._to_pixels(taken.frame)
        return Frame(pixels, taken.sequence, taken.t, levels, damaged=taken.damaged)

    def close(self) -> None:
        """Disconnect; frames that were returned keep their pixels."""
        if self._reader is not None:
            self._next_sequence = max(self._next_sequence, self._reader.stop())
            self._reader = None

    def counters(self) -> Counters:
        """Counts since the source was created, but for `lag_ms`.

        dropped: frames replaced by a newer one before they were read. decode_errors: packets that cannot be decoded.
        skipped_packets: left out because decoding was behind. lag_ms: how far it is behind now.
        """
        return dict(self._counters)


class _Taken(NamedTuple):
    frame: Optional[Any]  # av.VideoFrame; None for a packet that cannot be decoded
    sequence: int
    t: float  # monotonic seconds, the backlog before the decoder taken off
    damaged: bool


class _Reader(threading.Thread):
    """One connection. A daemon thread, because FFmpeg may block until its timeout and must not delay a shutdown."""

    def __init__(self, uri: str, stall_after_s: float, counters: Counters, first_sequence: int) -> None:
        super().__init__(name="media-stream", daemon=True)
        self._uri = uri
        self._stall_after_s = stall_after_s
        self._counters = counters
        self._decode_errors = counters["decode_errors"]
        self._sequence = first_sequence
        self._condition = threading.Condition()
        self._connected = False
        self._stopping = False
        self._newest: Optional[_Taken] = None
        self._fault = ""
        self._last_t = 0.0

    def run(self) -> None:
        """Connect and decode until the stream ends or `stop` is called."""
        try:
            fault = self._decode_stream()
        except SourceError as error:
            fault = error.message
        except (av.FFmpegError, UnicodeDecodeError, ValueError) as error:
            # Never str(error): FFmpeg's text contains the address with its password.
            fault = getattr(error, "strerror", None) or "FFmpeg cannot read what is sent"
            if isinstance(error, av.error.ExitError):
                fault = "no answer in time"
            if self._connected:
                fault = f"the stream broke off: {fault}"
        with self._condition:
            self._fault = fault
            self._condition.notify_all()

    def wait_connected(self, timeout_s: float) -> str:
        """An empty string once the stream is connected, else the error text."""
        with self._condition:
            self._condition.wait_for(lambda: self._connected or self._fault, timeout_s)
            return "" if self._connected else self._fault or f"no answer within {timeout_s:.0f} s"

    def take(self, timeout_s: float) -> Tuple[Optional[_Taken], str]:
        """The newest frame or None, and the error text, empty without an error."""
        with self._condition:
            self._condition.wait_for(lambda: self._newest or self._fault, timeout_s)
            taken, self._newest = self._newest, None
            fault = self._fault
            silent_s = time.monotonic() - self._last_t
            if (taken is None or taken.frame is None) and not fault and silent_s > self._stall_after_s:
                taken, fault = None, f"no frame for {self._stall_after_s:g} s"
            return taken, fault

    def stop(self) -> int:
        """Request the end of the thread, wait for it at most 0.5 s, and return the first unused sequence."""
        with self._condition:
            self._stopping = True
            self._newest = None
        self.join(0.5)
        return self._sequence

    def _decode_stream(self) -> str:
        scheme = self._uri.partition(":")[0].lower()
        network_s = max(self._stall_after_s, OPEN_TIMEOUT_S)
        options = stream_options(scheme, network_s, av.library_versions["libavformat"])
        with av.open(self._uri, options=options, timeout=(OPEN_TIMEOUT_S, network_s)) as container:
            stream = video_stream(container)
            decoder = PacketDecoder(stream)
            clock = StreamClock()
            behind = False
            with self._condition:
                self._connected = True
                self._last_t = time.monotonic()
                self._condition.notify_all()
            for packet in container.demux(stream):
                if self._stopping:
                    return ""
                arrived_t = time.monotonic()
                stamp = packet.dts if packet.dts is not None else packet.pts
                lag_s = clock.lag_s(None if stamp is None else float(stamp * packet.time_base), arrived_t)
                self._counters["lag_ms"] = int(lag_s * 1000)
                decoder.skip_unreferenced(lag_s > _BEHIND_S)
                behind = lag_s > (_CAUGHT_UP_S if behind else _FAR_BEHIND_S)
                if behind and not packet.is_keyframe:
                    self._counters["skipped_packets"] += 1
                    self._last_t = arrived_t
                    continue
                self._decode(decoder, packet, arrived_t - lag_s)
                self._counters["decode_errors"] = self._decode_errors + decoder.errors
        return "the stream has ended"

    def _decode(self, decoder: PacketDecoder, packet: Any, t: float) -> None:
        """Decode one packet and offer its frames; `t` is when it would have arrived without a backlog."""
        for frame, damaged in decoder.decode(packet, t):
            with self._condition:
                if self._stopping:
                    return
                if self._newest is not None:
                    self._counters["dropped"] += 1
                self._newest = _Taken(frame, self._sequence, t, damaged)
                self._sequence += 1
                if frame is not None:  # a stream of which nothing can be decoded has failed
                    self._last_t = time.monotonic()
                self._condition.notify_all()
