"""Settings of one camera: source, orientation, region of interest, zones, masks, exposure."""

from dataclasses import dataclass
from typing import Dict, Literal, Optional, Tuple

from edge_agent.core.params import param

Point = Tuple[float, float]
Polygon = Tuple[Point, ...]
Rect = Tuple[float, float, float, float]
PixelFormatName = Literal["auto", "GREY", "Y10", "Y12", "Y16", "Y16_BE", "NV12", "YUYV", "UYVY", "MJPG"]


@dataclass(frozen=True)
class CameraParams:
    """One camera. Positions are normalised 0..1 to the upright full frame (after rotation and flip)."""

    uri: str = param(
        description="Source of frames: v4l2:/dev/..., csi://0 (Bayer sensor on a Jetson), jetson:... "
        "(/dev/video0, rtsp:// or a video file through jetson-utils), rtsp://, http(s)://, a video or image file, "
        "a folder of images, or test://",
        min_length=1,
        restart=True,
        show=False,
    )
    label: str = param("", "Display name, e.g. in Home Assistant; the camera's id when empty", restart=True)
    width: Optional[int] = param(
        None, "Requested frame width, px; the source's own when unset", ge=16, le=16384, restart=True
    )
    height: Optional[int] = param(
        None, "Requested frame height, px; the source's own when unset", ge=16, le=16384, restart=True
    )
    fps: Optional[float] = param(
        None, "Requested frames per second; the source's own when unset", gt=0, le=1000, restart=True
    )
    pixel_format: PixelFormatName = param(
        "auto",
        "V4L2 format to request; auto selects the cheapest that supports the requested size and rate",
        restart=True,
    )
    color: bool = param(
        False, "Keep colour where the source delivers it; off: gray, for which the model is made", restart=True
    )
    rotate: Literal[0, 90, 180, 270] = param(0, "Clockwise degrees that turn the frame upright", restart=True)
    flip: Literal["none", "horizontal", "vertical", "both"] = param("none", "Mirror after rotation", restart=True)
    roi: Optional[Rect] = param(
        None,
        "Region of interest [left, top, right, bottom], cropped before inference: the model is weak on faces under "
        "10 % of the image",
        restart=True,
    )
    zones: Dict[str, Polygon] = param(
        factory=dict,
        description="Named polygons [[x, y], ...] reported in events, each with its own occupancy",
        restart=True,
    )
    masks: Tuple[Polygon, ...] = param(
        (),
        "Privacy polygons [[[x, y], ...], ...], blackened in every frame before inference, crops and snapshots",
        restart=True,
    )
    min_face_px: int = param(0, "Faces whose shorter side is below this many source px are ignored", ge=0, le=8192)
    min_score: float = param(0.0, "Faces scored below this are ignored; raise it against false alarms", ge=0, le=100)
    controls: Dict[str, int] = param(
        factory=dict, description="V4L2 controls by name, set at every open, e.g. exposure, gain", restart=True
    )
    auto_exposure: bool = param(
        False,
        "Control exposure and gain by the brightness of the frames, for V4L2 cameras without automatic exposure (mono "
        "CSI sensors); `controls` set the start values",
        restart=True,
    )
    exposure_target: float = param(
        100.0, "Mean gray level of lit frames, 0 to 255, that auto_exposure aims at", ge=10, le=200, restart=True
    )
    exposure_max: Optional[int] = param(
        None,
        "Longest exposure that auto_exposure sets, in the driver's unit; lower it against motion blur. The driver's "
        "limit when unset",
        ge=1,
        restart=True,
    )
    gain_max: Optional[int] = param(
        None,
        "Highest gain that auto_exposure sets, in the driver's unit; lower it against noise. The driver's limit when "
        "unset",
        ge=0,
        restart=True,
    )
    dark_means: Literal["cannot_see", "nobody"] = param(
        "cannot_see",
        "What darkness means: cannot_see, or nobody for a place whose light is off when nobody is there (hall, yard "
        "with a lamp that people switch on): presence is then OFF while the image is black, also when the lens is "
        "covered in the dark",
        restart=True,
    )
    stall_after_s: float = param(
        5.0, "Seconds without a frame after which the camera counts as lost", gt=0, le=600, restart=True
    )
    delay_on_s: Optional[float] = param(None, "Overrides presence.delay_on_s for this camera", ge=0, le=3600)
    delay_off_s: Optional[float] = param(None, "Overrides presence.delay_off_s for this camera", ge=0, le=86400)
