"""Negotiation of pixel format, size and frame rate with a driver; the values set by the driver are read back."""

import errno
import logging
import os
from fractions import Fraction
from typing import Dict, Iterator, List, Optional, Tuple

from edge_agent.capture import SourceOptions
from edge_agent.capture.pixels import FORMATS, ImageLayout, PixelFormat
from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.kernel import Device
from edge_agent.errors import SourceError

log = logging.getLogger(__name__)

_FOURCC = {
    "GREY": abi.PIX_FMT_GREY,
    "Y10": abi.PIX_FMT_Y10,
    "Y12": abi.PIX_FMT_Y12,
    "Y16": abi.PIX_FMT_Y16,
    "Y16_BE": abi.PIX_FMT_Y16_BE,
    "NV12": abi.PIX_FMT_NV12,
    "YUYV": abi.PIX_FMT_YUYV,
    "UYVY": abi.PIX_FMT_UYVY,
    "MJPG": abi.PIX_FMT_MJPEG,
}
_BY_FOURCC: Dict[int, PixelFormat] = {_FOURCC[name]: format for name, format in FORMATS.items()}
# Cheapest to decode first, raw before encoded. For gray, this is the order of FORMATS.
_GRAY_ORDER = list(FORMATS)
_COLOR_ORDER = ["NV12", "YUYV", "UYVY", "MJPG", "GREY", "Y10", "Y12", "Y16", "Y16_BE"]


def negotiate_format(device: Device, uri: str, options: SourceOptions) -> ImageLayout:
    """Choose and set the format. An adjustment of the size by the driver is logged.

    Args:
        device: Open, without buffers.
        uri: For messages.
        options: `pixel_format` is a name of `FORMATS`, or "auto" for the cheapest format with the wanted size and
            rate. Without a width or height, the driver's current value is used.

    Raises:
        SourceError: The camera has no supported format, or not the configured one.
        OSError: The driver reports an error.
    """
    offered = offered_formats(device)
    names = [name for name in offered if name in FORMATS]
    others = [name for name in offered if name not in FORMATS]
    current = abi.Format(type=abi.BUF_TYPE_VIDEO_CAPTURE)
    device.ioctl(abi.G_FMT, current)
    size = (options.width or current.fmt.pix.width, options.height or current.fmt.pix.height)
    if options.pixel_format != "auto":
        wanted = options.pixel_format
        if wanted not in names:
            raise SourceError(f"{uri}: the camera has no {wanted}", f"it offers {', '.join(names + others) or 'none'}")
    elif names:
        order = _COLOR_ORDER if options.color else _GRAY_ORDER
        wanted = min(names, key=lambda each: (_mismatch(device, _FOURCC[each], size, options.fps), order.index(each)))
    else:
        raise SourceError(
            f"{uri}: no pixel format that can be read",
            f"expected one of {', '.join(FORMATS)}; it offers {', '.join(others) or 'none'}",
        )
    return _set(device, uri, FORMATS[wanted], size, exact=bool(options.width or options.height))


def offered_formats(device: Device) -> List[str]:
    """The camera's formats in the driver's order: names of `FORMATS`, or FourCC codes of others."""
    codes = list(_offered(device))
    return [_BY_FOURCC[code].name if code in _BY_FOURCC else _text(code) for code in codes]


def set_frame_rate(device: Device, uri: str, fps: Optional[float]) -> Optional[float]:
    """Set the frame rate unless `fps` is None. Returns the driver's rate, or None when it reports none."""
    parm = abi.StreamParm(type=abi.BUF_TYPE_VIDEO_CAPTURE)
    adjustable = device.supports(abi.G_PARM, parm) and bool(parm.parm.capture.capability & abi.CAP_TIMEPERFRAME)
    if fps is not None and not adjustable:
        log.warning("%s: the driver has no setting for the frame rate; fps=%g is ignored", uri, fps)
    elif fps is not None:
        interval = 1 / Fraction(fps).limit_denominator(1001)
        parm = abi.StreamParm(type=abi.BUF_TYPE_VIDEO_CAPTURE)
        parm.parm.capture.timeperframe = abi.Fract(interval.numerator, interval.denominator)
        device.ioctl(abi.S_PARM, parm)
    got = parm.parm.capture.timeperframe
    rate = got.denominator / got.numerator if adjustable and got.numerator and got.denominator else None
    if fps is not None and rate is not None and abs(rate - fps) > 0.01 * fps:
        log.warning("%s: asked for %g frames per second, the driver gives %g", uri, fps, rate)
    return rate


def _set(device: Device, uri: str, wanted: PixelFormat, size: Tuple[int, int], exact: bool) -> ImageLayout:
    request = abi.Format(type=abi.BUF_TYPE_VIDEO_CAPTURE)
    pix = request.fmt.pix
    pix.width, pix.height = size
    pix.pixelformat = _FOURCC[wanted.name]
    pix.field = abi.FIELD_ANY
    pix.priv = abi.PIX_FMT_PRIV_MAGIC
    device.ioctl(abi.S_FMT, request)
    got = _BY_FOURCC.get(pix.pixelformat)
    if got != wanted:
        raise SourceError(
            f"{uri}: asked for {wanted.name} {size[0]}x{size[1]}, the driver gives {_text(pix.pixelformat)}",
            "choose another pixel_format or size",
        )
    if not (pix.width and pix.height):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), "S_FMT")
    if exact and (pix.width, pix.height) != size:
        log.warning("%s: asked for %dx%d, the driver gives %dx%d", uri, *size, pix.width, pix.height)
    full_range = pix.quantization == abi.QUANTIZATION_FULL_RANGE or (
        pix.quantization == abi.QUANTIZATION_DEFAULT and pix.colorspace == abi.COLORSPACE_JPEG
    )  # as V4L2_MAP_QUANTIZATION_DEFAULT defines for Y'CbCr
    return ImageLayout.make(wanted, pix.width, pix.height, pix.bytesperline, full_range)


def _offered(device: Device) -> Iterator[int]:
    item = abi.FmtDesc(type=abi.BUF_TYPE_VIDEO_CAPTURE)
    while device.supports(abi.ENUM_FMT, item):
        yield item.pixelformat
        item = abi.FmtDesc(index=item.index + 1, type=abi.BUF_TYPE_VIDEO_CAPTURE)


def _mismatch(device: Device, code: int, size: Tuple[int, int], fps: Optional[float]) -> Tuple[bool, bool]:
    """(lacks the size, lacks the rate at that size); both False when the driver does not enumerate them."""
    sizes = list(_sizes(device, code))
    lacks_size = bool(sizes) and not any(_fits(each, size) for each in sizes)
    if fps is None or lacks_size:
        return lacks_size, False
    rates = _rates(device, code, size)
    return lacks_size, bool(rates) and max(rates) < 0.99 * fps


def _sizes(device: Device, code: int) -> Iterator[abi.FrmSizeEnum]:
    item = abi.FrmSizeEnum(pixel_format=code)
    while device.supports(abi.ENUM_FRAMESIZES, item):
        yield item
        if item.type != abi.FRMSIZE_TYPE_DISCRETE:
            return
        item = abi.FrmSizeEnum(index=item.index + 1, pixel_format=code)


def _fits(item: abi.FrmSizeEnum, size: Tuple[int, int]) -> bool:
    if item.type == abi.FRMSIZE_TYPE_DISCRETE:
        return (item.size.discrete.width, item.size.discrete.height) == size
    step = item.size.stepwise
    return _on_steps(size[0], step.min_width, step.max_width, step.step_width) and _on_steps(
        size[1], step.min_height, step.max_height, step.step_height
    )


def _on_steps(value: int, least: int, most: int, step: int) -> bool:
    return least <= value <= most and (value - least) % max(1, step) == 0


def _rates(device: Device, code: int, size: Tuple[int, int]) -> List[float]:
    """Frame rates at a size; for a continuous range, the highest."""
    rates = []
    item = abi.FrmIvalEnum(pixel_format=code, width=size[0], height=size[1])
    while device.supports(abi.ENUM_FRAMEINTERVALS, item):
        interval = item.interval.discrete  # a range has its shortest interval at the same offset
        rates.append(interval.denominator / max(1, interval.numerator))
        if item.type != abi.FRMIVAL_TYPE_DISCRETE:
            break
        item = abi.FrmIvalEnum(index=item.index + 1, pixel_format=code, width=size[0], height=size[1])
    return rates


def _text(code: int) -> str:
    name = (code & 0x7FFFFFFF).to_bytes(4, "little").decode("ascii", "replace").strip()
    return f"{name}_BE" if code >> 31 else name
