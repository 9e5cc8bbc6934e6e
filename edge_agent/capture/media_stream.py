"""Live RTSP streams, received and decoded by PyAV.

Every packet is decoded unless decoding falls behind: then frames that no other needs are left out, and then all up to
the next keyframe, so that a frame is at most about a second old.
"""

import errno
import time
from typing import Any, Dict, Optional, Protocol, Tuple

import av

from edge_agent.capture import SourceOptions
from edge_agent.capture.address import NetworkAddress, Query, split_network, without_options
from edge_agent.capture.live import HINT_PATH, HINT_SILENT, Link, LiveSource, open_timeout_s, refusal
from edge_agent.capture.media_decode import VIDEO_CODECS, PacketDecoder, video_stream
from edge_agent.capture.stream_clock import StreamClock
from edge_agent.errors import SourceError

_BEHIND_S = 1.0  # from this lag on, frames that no other frame needs are not decoded
_FAR_BEHIND_S = 1.5  # from this lag on, nothing is decoded up to the next keyframe
_CAUGHT_UP_S = 0.3
_PROBE_S = 1.0  # FFmpeg's default analyses 5 s of a stream before it returns the first frame
_PROTOCOLS = "rtsp,rtsps,rtp,srtp,tcp,udp,tls"
_FORMATS = "mpegts,flv,mjpeg,matroska,webm,mov,mp4,h264,hevc,mpeg,mpegvideo,avi,asf,m4v"  # of what HTTP cameras send
_STATUS = {av.error.HTTPUnauthorizedError: 401, av.error.HTTPForbiddenError: 403, av.error.HTTPNotFoundError: 404}


def stream_options(transport: str, timeout_s: float, libavformat: Tuple[int, ...]) -> Dict[str, str]:
    """FFmpeg's options for an RTSP stream, with a limit on every wait.

    Args:
        transport: `tcp` or `udp`.
        timeout_s: Longest wait for the network in seconds.
        libavformat: Its version. Before 59 (FFmpeg 5), RTSP's `timeout` meant "listen"; the timeout was `stimeout`.
    """
    return {
        **_probe_options(),
        "rtsp_transport": transport,
        "timeout" if libavformat[0] >= 59 else "stimeout": str(int(timeout_s * 1e6)),
        "protocol_whitelist": _PROTOCOLS,
    }


def _probe_options() -> Dict[str, str]:
    """FFmpeg's options for any live stream: little delay, and only codecs of cameras."""
    # Not fflags=nobuffer: it discards what was read while probing, the first keyframe included.
    return {
        "analyzeduration": str(int(_PROBE_S * 1e6)),
        "codec_whitelist": ",".join(sorted(VIDEO_CODECS)),
    }


class StreamSource(LiveSource):
    """An RTSP camera.

    Args:
        uri: rtsp:// or rtsps://, with user and password where the camera requires them. `?transport=udp` receives by
            UDP instead of TCP; the rest of the query is passed to the camera.
        options: Only `color` and `stall_after_s` are used.

    Raises:
        InputError: The transport is unknown.
    """

    def __init__(self, uri: str, options: SourceOptions) -> None:
        super().__init__(uri, options, self._stream)
        self._camera_uri, own = without_options(uri, ("transport",))
        self._transport = Query(self.uri, own).choice("transport", ("tcp", "udp"))

    def _stream(self, link: Link) -> SourceError:
        address = split_network(self._camera_uri)
        address.resolve()
        open_s = open_timeout_s(link.stall_after_s)
        options = stream_options(self._transport, max(link.stall_after_s, open_s), av.library_versions["libavformat"])
        started = time.monotonic()
        connected = False
        try:
            # Not `options`: with them PyAV 12 crashes on formats whose streams appear late (FLV).
            timeout = open_s, max(link.stall_after_s, open_s)
            with av.open(self._camera_uri, container_options=options, timeout=timeout) as media:
                connected = True
                _decode_container(media, link)
        except (av.FFmpegError, UnicodeDecodeError, ValueError) as error:
            if connected:
                raise SourceError(f"the stream broke off: {_ffmpeg_text(error)}", HINT_SILENT) from None
            raise self._open_error(error, time.monotonic() - started > open_s - 0.1, address) from None
        return SourceError("the stream has ended", HINT_SILENT)

    def _open_error(self, error: Exception, late: bool, address: NetworkAddress) -> SourceError:
        status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 0)
        if status:
            return refusal(status)
        number = getattr(error, "errno", None)
        if number == errno.EPROTONOSUPPORT and self._transport == "tcp":
            return SourceError("the camera does not stream over TCP", "add ?transport=udp to the address")
        if number == errno.EPROTONOSUPPORT:
            return SourceError("the camera does not stream over UDP", "remove transport=udp from the address")
        if number == errno.ECONNREFUSED:
            return address.refused()
        if late or isinstance(error, av.error.ExitError):
            hint = "remove transport=udp from the address, or let UDP through the firewall; " if self._is_udp() else ""
            return SourceError("no answer in time", hint + HINT_SILENT)
        other = isinstance(error, (av.error.HTTPClientError, av.error.HTTPServerError))
        return SourceError(_ffmpeg_text(error), HINT_PATH if other else HINT_SILENT)

    def _is_udp(self) -> bool:
        return self._transport == "udp"


class Readable(Protocol):
    """Bytes of a live stream."""

    def read(self, size: int) -> bytes:
        """At most `size` bytes, as soon as there are any; empty at the end.

        Raises:
            SourceError: The connection broke off.
        """


class _File:
    """Bytes of a live stream as the file that PyAV reads from, which hides what its reads raise."""

    def __init__(self, source: Readable, link: Link) -> None:
        self._source = source
        self._link = link
        self.error: Optional[SourceError] = None

    def read(self, size: int) -> bytes:
        """As `Readable.read`; empty once the link is stopped or has failed."""
        if self._link.stopping:
            return b""
        try:
            return self._source.read(size)
        except SourceError as error:
            self.error = error
            return b""


def play_file(source: Readable, link: Link) -> SourceError:
    """Decode a container such as MPEG-TS from its bytes, and return why it ended. FFmpeg opens nothing by itself."""
    file = _File(source, link)
    options = {**_probe_options(), "format_whitelist": _FORMATS, "protocol_whitelist": "data"}
    try:
        with av.open(file, container_options=options) as media:
            _decode_container(media, link)
    except (av.FFmpegError, UnicodeDecodeError, ValueError) as error:
        text = f"what the camera sends cannot be read as video: {_ffmpeg_text(error)}"
        return file.error or SourceError(text, HINT_PATH)
    return file.error or SourceError("the stream has ended", HINT_SILENT)


def _ffmpeg_text(error: Exception) -> str:
    """The reason of an error of PyAV. Never str(error): FFmpeg's text contains the address with its password."""
    if isinstance(error, av.error.ExitError):
        return "no answer in time"
    return getattr(error, "strerror", None) or "FFmpeg cannot read what is sent"


def _decode_container(container: Any, link: Link) -> None:
    """Decode the video of an `av.container.InputContainer` until it ends or the link is stopped.

    Raises:
        SourceError: It has no video of a camera's codec.
        av.FFmpegError: It cannot be read further.
    """
    stream = video_stream(container)
    if stream.codec_context.name not in VIDEO_CODECS:
        raise SourceError(f"its video is of a kind that is not accepted: {stream.codec_context.name}", HINT_PATH)
    decoder = PacketDecoder(stream, live=True)
    errors = link.counters["decode_errors"]
    clock = StreamClock()
    behind = False
    link.connected()
    for packet in container.demux(stream):
        if link.stopping:
            return
        arrived_t = time.monotonic()
        stamp = packet.dts if packet.dts is not None else packet.pts
        lag_s = clock.lag_s(None if stamp is None else float(stamp * packet.time_base), arrived_t)
        link.counters["lag_ms"] = int(lag_s * 1000)
        decoder.skip_unreferenced(lag_s > _BEHIND_S)
        behind = lag_s > (_CAUGHT_UP_S if behind else _FAR_BEHIND_S)
        if behind and not packet.is_keyframe:
            link.counters["skipped_packets"] += 1
            link.alive(arrived_t)
            continue
        for decoded in decoder.decode(packet, arrived_t - lag_s):
            link.offer(decoded, arrived_t - lag_s)  # when it would have arrived without a backlog
        link.counters["decode_errors"] = errors + decoder.errors
