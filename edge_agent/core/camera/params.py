"""What a user says of one camera: where it is, which way up, where to look, what to leave out."""

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
        description="Where pictures come from: v4l2:/dev/..., csi://0 (Bayer sensor on a Jetson), jetson:... "
        "(/dev/video0, rtsp:// or a video file through jetson-utils), rtsp://, http(s)://, a video file, a picture, "
        "a folder, or test://",
        min_length=1,
        restart=True,
        show=False,
    )
    label: str = param("", "Name that people see, e.g. in Home Assistant; the camera's id when empty", restart=True)
    width: Optional[int] = param(
        None, "Requested picture width, px; the source's own when unset", ge=16, le=16384, restart=True
    )
    height: Optional[int] = param(
        None, "Requested picture height, px; the source's own when unset", ge=16, le=16384, restart=True
    )
    fps: Optional[float] = param(
        None, "Requested frames per second; the source's own when unset", gt=0, le=1000, restart=True
    )
    pixel_format: PixelFormatName = param(
        "auto", "V4L2 format to ask for; auto takes the cheapest that has the wanted size and rate", restart=True
    )
    color: bool = param(
        False, "Keep colour where the source has it (the model's secondary use); gray otherwise", restart=True
    )
    rotate: Literal[0, 90, 180, 270] = param(0, "Clockwise degrees that turn the picture upright", restart=True)
    flip: Literal["none", "horizontal", "vertical", "both"] = param("none", "Mirror after rotation", restart=True)
    roi: Optional[Rect] = param(
        None,
        "Region of interest [left, top, right, bottom], cut out before inference: the model is weak on faces under "
        "10 % of the picture",
        restart=True,
    )
    zones: Dict[str, Polygon] = param(
        factory=dict,
        description="Named polygons [[x, y], ...] reported in events, each with its own occupancy",
        restart=True,
    )
    masks: Tuple[Polygon, ...] = param(
        (), "Privacy polygons [[[x, y], ...], ...], blacked before anything else sees the picture", restart=True
    )
    min_face_px: int = param(0, "Faces whose shorter side is below this many source px are ignored", ge=0, le=8192)
    min_score: float = param(0.0, "Faces scored below this are ignored; raise it against false alarms", ge=0, le=100)
    controls: Dict[str, int] = param(
        factory=dict, description="V4L2 controls by name, set at every open, e.g. exposure, gain", restart=True
    )
    auto_exposure: bool = param(
        False,
        "Set exposure and gain by what the picture shows, for V4L2 cameras without automatic of their own (mono CSI "
        "sensors); `controls` say where it starts",
        restart=True,
    )
    exposure_target: float = param(
        100.0, "Gray level, 0 to 255, that auto_exposure aims at, by lit frames only", ge=10, le=200, restart=True
    )
    exposure_max: Optional[int] = param(
        None,
        "Longest exposure that auto_exposure sets, in the driver's unit; less blurs less. The driver's own when unset",
        ge=1,
        restart=True,
    )
    gain_max: Optional[int] = param(
        None,
        "Highest gain that auto_exposure sets, in the driver's unit; less is less noise. The driver's own when unset",
        ge=0,
        restart=True,
    )
    stall_after_s: float = param(
        5.0, "Seconds without a frame after which the camera counts as lost", gt=0, le=600, restart=True
    )
    delay_on_s: Optional[float] = param(None, "Overrides presence.delay_on_s for this camera", ge=0, le=3600)
    delay_off_s: Optional[float] = param(None, "Overrides presence.delay_off_s for this camera", ge=0, le=86400)
