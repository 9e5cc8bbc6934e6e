"""`csi://0` and `jetson:...`: which of jetson-utils' inputs is meant, and how it is asked for."""

import socket
from pathlib import Path
from typing import List, NamedTuple
from urllib.parse import urlsplit

from edge_agent.capture import SourceOptions
from edge_agent.capture.address import Query, hide_credentials, split_file
from edge_agent.errors import InputError, SourceError

NUM_BUFFERS = 8
CONNECT_TIMEOUT_S = 2.0
RTSP_PORT = 554
_VIDEOS = (".mkv", ".mp4", ".qt", ".flv", ".avi", ".h264", ".h265", ".mov", ".webm")
_EXPECTED = "expected csi://0, jetson:/dev/video0, jetson:rtsp://... or jetson:/path/of/a/video.mp4"
# For CSI cameras, jetson-utils takes the first two for each other; "none" here is what the sensor sees.
_CSI_FLIPS = {"none": "rotate-180", "rotate-180": "none", "horizontal": "horizontal", "vertical": "vertical"}


class Address(NamedTuple):
    """What a URI means.

    Attributes:
        kind: "csi", "v4l2", "rtsp" or "file".
        place: As jetson-utils takes it; for "v4l2" the node or link, which is resolved at every open.
        shown: The URI without credentials.
        flip: For `--input-flip`; "" leaves it.
        loop: Play a file again and again.
    """

    kind: str
    place: str
    shown: str
    flip: str = ""
    loop: bool = False


def parse_address(uri: str) -> Address:
    """Understand `csi://N[?flip=...]` and `jetson:` before that, a V4L2 node, an RTSP address or a video file.

    Raises:
        InputError: It names nothing of these.
    """
    inner = uri[len("jetson:") :] if uri.lower().startswith("jetson:") else uri
    shown = uri[: len(uri) - len(inner)] + hide_credentials(inner)
    scheme = inner.partition(":")[0].lower()
    if scheme == "csi":
        return _csi(inner, shown)
    if scheme == "v4l2" or inner.startswith("/dev/"):
        node = inner.partition(":")[2] if scheme == "v4l2" else inner
        return Address("v4l2", "/" + node.lstrip("/"), shown)
    if scheme == "rtsp":
        return Address("rtsp", inner, shown)
    if "://" in inner and scheme != "file":
        raise InputError(f"{shown}: jetson-utils is not asked for '{scheme}'", _EXPECTED)
    path, query = split_file(inner)
    loop = query.flag("loop")
    query.finish()
    if path.suffix.lower() not in _VIDEOS:
        raise InputError(f"{shown}: no video that jetson-utils reads", f"{_EXPECTED}; videos are {', '.join(_VIDEOS)}")
    return Address("file", f"file://{path.absolute()}", shown, loop=loop)


def arguments(address: Address, wanted: SourceOptions) -> List[str]:
    """What is asked for, as a command line, which every version reads; the dictionary came in May 2023."""
    # Silent, since its errors show whole URIs; the level is the process's, so it is the same for all kinds.
    given = [f"--num-buffers={NUM_BUFFERS}", "--log-level=silent"]
    if wanted.width:
        given.append(f"--input-width={wanted.width}")
    if wanted.height:
        given.append(f"--input-height={wanted.height}")
    if wanted.fps:
        given.append(f"--input-rate={wanted.fps:g}")
    if address.flip:
        given.append(f"--input-flip={address.flip}")
    if address.loop:
        given.append("--input-loop=-1")
    return given


def require_there(address: Address) -> None:
    """Look whether a file or a host is there, since each failed attempt of jetson-utils' own leaks.

    Raises:
        SourceError: It is not there.
    """
    if address.kind == "file" and not Path(address.place[len("file://") :]).is_file():
        raise SourceError(f"{address.shown}: no such file")
    if address.kind == "rtsp":
        try:
            target = urlsplit(hide_credentials(address.place))  # no part of them can get into an error
            socket.create_connection((target.hostname or "", target.port or RTSP_PORT), CONNECT_TIMEOUT_S).close()
        except (OSError, ValueError) as error:
            raise SourceError(f"{address.shown}: {error}", "is the camera on, and the address right?") from error


def _csi(inner: str, shown: str) -> Address:
    place, _, text = inner.partition("?")
    number = place.partition("://")[2]
    query = Query(shown, text)
    flip = query.choice("flip", tuple(_CSI_FLIPS))
    query.finish()
    if not (number.isdecimal() and number.isascii()):
        raise InputError(f"{shown}: no camera number", "expected csi:// and the number of the camera, e.g. csi://0")
    return Address("csi", f"csi://{number}", shown, _CSI_FLIPS[flip])
