"""Frame sources, chosen by URI. Only the module of the chosen source is imported."""

import os
from dataclasses import dataclass, field
from importlib import import_module
from typing import Dict, Mapping, NamedTuple, Optional, Tuple, cast

from edge_agent.capture.address import hide_credentials, split_file
from edge_agent.core.camera.auto_exposure import ExposureParams
from edge_agent.core.ports import BufferPool, Source
from edge_agent.errors import InputError, MissingPackage

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mkv", ".avi", ".mov", ".webm", ".ts", ".mts", ".mpg", ".mpeg", ".flv", ".wmv"}
    | {".h264", ".264", ".h265", ".265", ".hevc", ".mjpg", ".mjpeg", ".gif", ".y4m", ".nut"}
)


@dataclass(frozen=True)
class SourceOptions:
    """Camera settings for a source; each source uses those that apply to it.

    Attributes:
        width: Wanted width in px.
        height: Wanted height in px.
        fps: Wanted frame rate.
        pixel_format: A name of `pixels.FORMATS`, or "auto".
        color: Whether frames are RGB where the source has colour.
        controls: V4L2 controls by name.
        stall_after_s: A live source without a frame for so long has failed.
        exposure: Settings of the agent's exposure control; None leaves exposure to the camera.
        pool: Allocates frame buffers from which the GPU reads directly; None for ordinary memory.
    """

    width: Optional[int] = None
    height: Optional[int] = None
    fps: Optional[float] = None
    pixel_format: str = "auto"
    color: bool = False
    controls: Mapping[str, int] = field(default_factory=dict)
    stall_after_s: float = 5.0
    exposure: Optional[ExposureParams] = None
    pool: Optional[BufferPool] = None


class _SourceClass(NamedTuple):
    module: str
    name: str


_MEDIA = _SourceClass("edge_agent.capture.media", "MediaSource")
_STREAM = _SourceClass("edge_agent.capture.media_stream", "StreamSource")
_HTTP = _SourceClass("edge_agent.capture.http_source", "HttpSource")
_IMAGES = _SourceClass("edge_agent.capture.images", "ImageSource")
_V4L2 = _SourceClass("edge_agent.capture.v4l2.source", "V4l2Source")
_JETSON = _SourceClass("edge_agent.capture.jetson.source", "JetsonSource")
_SCHEMES: Dict[str, _SourceClass] = {
    "v4l2": _V4L2,
    "csi": _JETSON,
    "jetson": _JETSON,
    "rtsp": _STREAM,
    "rtsps": _STREAM,
    "http": _HTTP,
    "https": _HTTP,
    "test": _SourceClass("edge_agent.capture.synthetic.source", "SyntheticSource"),
}
# Extras are not named: the project "edge-agent" on the package index is not ours.
_PACKAGES = {"av": "av", "cv2": "opencv-python-headless"}
_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # of Linux, in bytes
_EXPECTED = (
    "expected v4l2:/dev/..., /dev/video*, csi://0, jetson:..., rtsp[s]://, http[s]://, test://, or a video file, "
    "an image or a folder"
)


def open_source(uri: str, options: Optional[SourceOptions] = None) -> Source:
    """The source for `uri`, not yet opened.

    Args:
        uri: A URI of a known scheme, a `file:` URI, or a bare path; files take `?pace=fast`, `?loop=1`, `?fps=`.
        options: The camera's settings.

    Raises:
        InputError: The kind of source is unknown, or an option is invalid.
        MissingPackage: The source needs a package that is not installed.
    """
    choice, rest = _choose(uri)
    try:
        source = getattr(import_module(choice.module), choice.name)
    except ModuleNotFoundError as error:
        if error.name not in _PACKAGES:
            raise
        raise MissingPackage(
            f"{hide_credentials(uri)}: package {error.name} is not installed",
            f"pip install {_PACKAGES[error.name]}",
        ) from error
    return cast(Source, source(rest, options or SourceOptions()))


def _choose(uri: str) -> Tuple[_SourceClass, str]:
    if not uri:
        raise InputError("an empty source", _EXPECTED)
    scheme, colon, rest = uri.partition(":")
    scheme = scheme.lower()
    if colon and scheme in _SCHEMES:
        if scheme != "test" and not rest.partition("?")[0].strip("/"):
            raise InputError(f"'{uri}' names no {'device' if scheme == 'v4l2' else 'host'}", _EXPECTED)
        return _SCHEMES[scheme], rest if scheme == "v4l2" else uri
    if "://" in uri and scheme != "file":
        raise InputError(f"{hide_credentials(uri)}: unknown kind of source '{scheme}'", _EXPECTED)
    if uri.startswith("/dev/"):
        return _V4L2, uri
    path, _ = split_file(uri)
    name = os.fsencode(path)
    if b"\0" in name or len(name) >= _LONGEST_PATH or max(map(len, name.split(b"/"))) > _LONGEST_NAME:
        raise InputError(
            f"{str(path)[:80]!r}...: longer than the name of a file can be, or with a null byte", _EXPECTED
        )
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return _MEDIA, uri
    if suffix in IMAGE_SUFFIXES or path.is_dir():
        return _IMAGES, uri
    why = "its suffix is not that of a video or an image" if path.exists() else "no such file or folder"
    raise InputError(f"{path}: {why}", _EXPECTED)
