"""Sources of pictures, chosen by URI. Only the module that is chosen is loaded."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Dict, Mapping, NamedTuple, Optional, Tuple, cast

from edge_agent.capture.address import hide_credentials, split_file
from edge_agent.core.camera.auto_exposure import ExposureParams
from edge_agent.core.ports import BufferPool, Source
from edge_agent.errors import InputError, MissingPackage

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".webp"})
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mkv", ".avi", ".mov", ".webm", ".ts", ".mts", ".mpg", ".mpeg", ".flv", ".wmv"}
    | {".h264", ".264", ".h265", ".265", ".hevc", ".mjpg", ".mjpeg", ".gif", ".y4m", ".nut"}
)


@dataclass(frozen=True)
class SourceOptions:
    """What a source is asked for beside its URI; each takes what concerns it (see `core.camera.CameraParams`).

    Attributes:
        pool: Memory of which the network reads pictures in place; None where any will do.
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


class _Choice(NamedTuple):
    module: str
    name: str


_MEDIA = _Choice("edge_agent.capture.media", "MediaSource")
_STREAM = _Choice("edge_agent.capture.media_stream", "StreamSource")
_IMAGES = _Choice("edge_agent.capture.images", "ImageSource")
_V4L2 = _Choice("edge_agent.capture.v4l2.source", "V4l2Source")
_JETSON = _Choice("edge_agent.capture.jetson.source", "JetsonSource")
_SCHEMES: Dict[str, _Choice] = {
    "v4l2": _V4L2,
    "csi": _JETSON,
    "jetson": _JETSON,
    "rtsp": _STREAM,
    "rtsps": _STREAM,
    "http": _STREAM,
    "https": _STREAM,
    "test": _Choice("edge_agent.capture.synthetic.source", "SyntheticSource"),
}
# By their own names: a stranger's project is called edge-agent on the package index.
_PACKAGES = {"av": "av", "cv2": "opencv-python-headless"}
_EXPECTED = (
    "expected v4l2:/dev/..., /dev/video*, csi://0, jetson:..., rtsp[s]://, http[s]://, test://, or a video file, "
    "a picture or a folder"
)


def open_source(uri: str, options: Optional[SourceOptions] = None) -> Source:
    """The source that `uri` names, not yet opened.

    Args:
        uri: A scheme of the table above, a `file:` URI, or a bare path; files take `?pace=fast`, `?loop=1`, `?fps=`.
        options: What the camera's settings ask for.

    Raises:
        InputError: The URI names no known kind of source, or its options cannot be understood.
        MissingPackage: The kind of source needs a package that is not installed.
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


def _choose(uri: str) -> Tuple[_Choice, str]:
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
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return _MEDIA, uri
    if suffix in PICTURE_SUFFIXES or path.is_dir():
        return _IMAGES, uri
    why = "its name does not tell what it is" if path.exists() else "no such file or folder"
    raise InputError(f"{path}: {why}", _EXPECTED)
