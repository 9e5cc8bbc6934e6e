"""Parsing of `csi://0` and `jetson:...` URIs, and the arguments for jetson-utils."""

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
# For CSI cameras, jetson-utils swaps the first two; "none" here means the sensor's orientation.
_CSI_FLIPS = {"none": "rotate-180", "rotate-180": "none", "horizontal": "horizontal", "vertical": "vertical"}


class Address(NamedTuple):
    """A parsed URI.

    Attributes:
        kind: "csi", "v4l2", "rtsp" or "file".
        location: The address for jetson-utils; for "v4l2" the node or link, resolved at every open.
        redacted: The URI without credentials.
        flip: Value of `--input-flip`; "" for none.
        loop: Repeat a file without end.
    """

    kind: str
    location: str
    redacted: str
    flip: str = ""
    loop: bool = False


def parse_address(uri: str) -> Address:
    """Parse `csi://N[?flip=...]`, or `jetson:` followed by that, a V4L2 node, an RTSP address or a video file.

    Raises:
        InputError: The URI is none of these.
    """
    inner = uri[len("jetson:") :] if uri.lower().startswith("jetson:") else uri
    redacted = uri[: len(uri) - len(inner)] + hide_credentials(inner)
    scheme = inner.partition(":")[0].lower()
    if scheme == "csi":
        return _csi(inner, redacted)
    if scheme == "v4l2" or inner.startswith("/dev/"):
        node = inner.partition(":")[2] if scheme == "v4l2" else inner
        return Address("v4l2", "/" + node.lstrip("/"), redacted)
    if scheme == "rtsp":
        return Address("rtsp", inner, redacted)
    if "://" in inner and scheme != "file":
        raise InputError(f"{redacted}: jetson-utils is not used for '{scheme}'", _EXPECTED)
    path, query = split_file(inner)
    loop = query.flag("loop")
    query.finish()
    if path.suffix.lower() not in _VIDEOS:
        raise InputError(
            f"{redacted}: not a video that jetson-utils reads", f"{_EXPECTED}; videos are {', '.join(_VIDEOS)}"
        )
    return Address("file", f"file://{path.absolute()}", redacted, loop=loop)


def command_line(address: Address, wanted: SourceOptions) -> List[str]:
    """The options as a command line, which every version accepts; the options dictionary came in May 2023."""
    # Silent, because its messages contain whole URIs; the level is global, so all kinds use the same.
    options = [f"--num-buffers={NUM_BUFFERS}", "--log-level=silent"]
    if wanted.width:
        options.append(f"--input-width={wanted.width}")
    if wanted.height:
        options.append(f"--input-height={wanted.height}")
    if wanted.fps:
        options.append(f"--input-rate={wanted.fps:g}")
    if address.flip:
        options.append(f"--input-flip={address.flip}")
    if address.loop:
        options.append("--input-loop=-1")
    return options


def require_reachable(address: Address) -> None:
    """Check that the file or host exists, because each failed open in jetson-utils leaks memory.

    Raises:
        SourceError: The file does not exist, or the host does not answer.
    """
    if address.kind == "file" and not Path(address.location[len("file://") :]).is_file():
        raise SourceError(f"{address.redacted}: no such file")
    if address.kind == "rtsp":
        try:
            target = urlsplit(hide_credentials(address.location))  # keeps credentials out of error texts
            socket.create_connection((target.hostname or "", target.port or RTSP_PORT), CONNECT_TIMEOUT_S).close()
        except (OSError, ValueError) as error:
            raise SourceError(f"{address.redacted}: {error}", "check the camera's power and address") from error


def _csi(inner: str, redacted: str) -> Address:
    location, _, text = inner.partition("?")
    number = location.partition("://")[2]
    query = Query(redacted, text)
    flip = query.choice("flip", tuple(_CSI_FLIPS))
    query.finish()
    if not (number.isdecimal() and number.isascii()):
        raise InputError(f"{redacted}: no camera number", "expected csi:// and the number of the camera, e.g. csi://0")
    return Address("csi", f"csi://{number}", redacted, _CSI_FLIPS[flip])
