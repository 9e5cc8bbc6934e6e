"""Layouts, numbers and ioctl codes of linux/videodev2.h for single-planar capture on 64-bit Linux.

Names are those of the header without their prefix (`struct v4l2_buffer` -> `Buffer`, `VIDIOC_QBUF` -> `QBUF`).
"""

import ctypes
from ctypes import c_char, c_int32, c_int64, c_long, c_uint8, c_uint32, c_uint64, c_ulong, c_void_p
from typing import Dict, Type, Union

BUF_TYPE_VIDEO_CAPTURE = 1
FIELD_ANY = 0
FIELD_NONE = 1
MEMORY_MMAP = 1
MEMORY_USERPTR = 2

CAP_VIDEO_CAPTURE = 0x00000001
CAP_VIDEO_CAPTURE_MPLANE = 0x00001000
CAP_META_CAPTURE = 0x00800000
CAP_STREAMING = 0x04000000
CAP_DEVICE_CAPS = 0x80000000
CAP_TIMEPERFRAME = 0x1000

BUF_FLAG_MAPPED = 0x00000001
BUF_FLAG_QUEUED = 0x00000002
BUF_FLAG_DONE = 0x00000004
BUF_FLAG_ERROR = 0x00000040
BUF_FLAG_TIMESTAMP_MASK = 0x0000E000
BUF_FLAG_TIMESTAMP_UNKNOWN = 0x00000000
BUF_FLAG_TIMESTAMP_MONOTONIC = 0x00002000

BUF_CAP_SUPPORTS_MMAP = 1 << 0
BUF_CAP_SUPPORTS_USERPTR = 1 << 1
BUF_CAP_SUPPORTS_ORPHANED_BUFS = 1 << 4

# Without this value in pix.priv, the kernel ignores the later fields of struct v4l2_pix_format.
PIX_FMT_PRIV_MAGIC = 0xFEEDCAFE
COLORSPACE_JPEG = 7
COLORSPACE_SRGB = 8
QUANTIZATION_DEFAULT = 0
QUANTIZATION_FULL_RANGE = 1
QUANTIZATION_LIM_RANGE = 2

FRMSIZE_TYPE_DISCRETE = 1
FRMSIZE_TYPE_CONTINUOUS = 2
FRMSIZE_TYPE_STEPWISE = 3
FRMIVAL_TYPE_DISCRETE = 1
FRMIVAL_TYPE_CONTINUOUS = 2
FRMIVAL_TYPE_STEPWISE = 3

CTRL_TYPE_INTEGER = 1
CTRL_TYPE_BOOLEAN = 2
CTRL_TYPE_MENU = 3
CTRL_TYPE_BUTTON = 4
CTRL_TYPE_INTEGER64 = 5
CTRL_TYPE_CTRL_CLASS = 6
CTRL_TYPE_STRING = 7
CTRL_TYPE_BITMASK = 8
CTRL_TYPE_INTEGER_MENU = 9
CTRL_FLAG_DISABLED = 0x0001
CTRL_FLAG_READ_ONLY = 0x0004
CTRL_FLAG_INACTIVE = 0x0010
CTRL_FLAG_NEXT_CTRL = 0x80000000
CTRL_WHICH_CUR_VAL = 0


def fourcc(text: str, big_endian: bool = False) -> int:
    """The number of a four-character pixel format name, e.g. "GREY"."""
    return int.from_bytes(text.encode("ascii"), "little") | (0x80000000 if big_endian else 0)


PIX_FMT_GREY = fourcc("GREY")
PIX_FMT_Y10 = fourcc("Y10 ")
PIX_FMT_Y12 = fourcc("Y12 ")
PIX_FMT_Y16 = fourcc("Y16 ")
PIX_FMT_Y16_BE = fourcc("Y16 ", big_endian=True)
PIX_FMT_YUYV = fourcc("YUYV")
PIX_FMT_UYVY = fourcc("UYVY")
PIX_FMT_NV12 = fourcc("NV12")
PIX_FMT_MJPEG = fourcc("MJPG")


BufType = ctypes.c_int  # enum v4l2_buf_type, as STREAMON and STREAMOFF take it
Argument = Union[ctypes.Structure, ctypes.c_int]


class Capability(ctypes.Structure):
    """struct v4l2_capability."""

    _fields_ = [
        ("driver", c_char * 16),
        ("card", c_char * 32),
        ("bus_info", c_char * 32),
        ("version", c_uint32),
        ("capabilities", c_uint32),
        ("device_caps", c_uint32),
        ("reserved", c_uint32 * 3),
    ]


class FmtDesc(ctypes.Structure):
    """struct v4l2_fmtdesc."""

    _fields_ = [
        ("index", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("description", c_char * 32),
        ("pixelformat", c_uint32),
        ("mbus_code", c_uint32),
        ("reserved", c_uint32 * 3),
    ]


class PixFormat(ctypes.Structure):
    """struct v4l2_pix_format."""

    _fields_ = [
        ("width", c_uint32),
        ("height", c_uint32),
        ("pixelformat", c_uint32),
        ("field", c_uint32),
        ("bytesperline", c_uint32),
        ("sizeimage", c_uint32),
        ("colorspace", c_uint32),
        ("priv", c_uint32),
        ("flags", c_uint32),
        ("ycbcr_enc", c_uint32),
        ("quantization", c_uint32),
        ("xfer_func", c_uint32),
    ]


class FormatUnion(ctypes.Union):
    """The union in struct v4l2_format; the pointers of its other members align it to 8 bytes."""

    _fields_ = [("pix", PixFormat), ("raw_data", c_uint8 * 200), ("_align", c_void_p)]


class Format(ctypes.Structure):
    """struct v4l2_format."""

    _fields_ = [("type", c_uint32), ("fmt", FormatUnion)]


class Fract(ctypes.Structure):
    """struct v4l2_fract."""

    _fields_ = [("numerator", c_uint32), ("denominator", c_uint32)]


class CaptureParm(ctypes.Structure):
    """struct v4l2_captureparm."""

    _fields_ = [
        ("capability", c_uint32),
        ("capturemode", c_uint32),
        ("timeperframe", Fract),
        ("extendedmode", c_uint32),
        ("readbuffers", c_uint32),
        ("reserved", c_uint32 * 4),
    ]


class StreamParmUnion(ctypes.Union):
    """The union in struct v4l2_streamparm."""

    _fields_ = [("capture", CaptureParm), ("raw_data", c_uint8 * 200)]


class StreamParm(ctypes.Structure):
    """struct v4l2_streamparm."""

    _fields_ = [("type", c_uint32), ("parm", StreamParmUnion)]


class FrmSizeStepwise(ctypes.Structure):
    """struct v4l2_frmsize_stepwise; a discrete size is its first two fields."""

    _fields_ = [
        ("min_width", c_uint32),
        ("max_width", c_uint32),
        ("step_width", c_uint32),
        ("min_height", c_uint32),
        ("max_height", c_uint32),
        ("step_height", c_uint32),
    ]


class FrmSizeDiscrete(ctypes.Structure):
    """struct v4l2_frmsize_discrete."""

    _fields_ = [("width", c_uint32), ("height", c_uint32)]


class FrmSizeUnion(ctypes.Union):
    """The union in struct v4l2_frmsizeenum."""

    _fields_ = [("discrete", FrmSizeDiscrete), ("stepwise", FrmSizeStepwise)]


class FrmSizeEnum(ctypes.Structure):
    """struct v4l2_frmsizeenum."""

    _fields_ = [
        ("index", c_uint32),
        ("pixel_format", c_uint32),
        ("type", c_uint32),
        ("size", FrmSizeUnion),
        ("reserved", c_uint32 * 2),
    ]


class FrmIvalStepwise(ctypes.Structure):
    """struct v4l2_frmival_stepwise; a discrete interval is its first field."""

    _fields_ = [("min", Fract), ("max", Fract), ("step", Fract)]


class FrmIvalUnion(ctypes.Union):
    """The union in struct v4l2_frmivalenum."""

    _fields_ = [("discrete", Fract), ("stepwise", FrmIvalStepwise)]


class FrmIvalEnum(ctypes.Structure):
    """struct v4l2_frmivalenum."""

    _fields_ = [
        ("index", c_uint32),
        ("pixel_format", c_uint32),
        ("width", c_uint32),
        ("height", c_uint32),
        ("type", c_uint32),
        ("interval", FrmIvalUnion),
        ("reserved", c_uint32 * 2),
    ]


class RequestBuffers(ctypes.Structure):
    """struct v4l2_requestbuffers."""

    _fields_ = [
        ("count", c_uint32),
        ("type", c_uint32),
        ("memory", c_uint32),
        ("capabilities", c_uint32),
        ("reserved", c_uint32),
    ]


class Timeval(ctypes.Structure):
    """struct timeval, 64-bit."""

    _fields_ = [("tv_sec", c_long), ("tv_usec", c_long)]


class Timecode(ctypes.Structure):
    """struct v4l2_timecode."""

    _fields_ = [
        ("type", c_uint32),
        ("flags", c_uint32),
        ("frames", c_uint8),
        ("seconds", c_uint8),
        ("minutes", c_uint8),
        ("hours", c_uint8),
        ("userbits", c_uint8 * 4),
    ]


class BufferMemory(ctypes.Union):
    """The union `m` in struct v4l2_buffer: where the memory is."""

    _fields_ = [("offset", c_uint32), ("userptr", c_ulong), ("planes", c_void_p), ("fd", c_int32)]


class Buffer(ctypes.Structure):
    """struct v4l2_buffer."""

    _fields_ = [
        ("index", c_uint32),
        ("type", c_uint32),
        ("bytesused", c_uint32),
        ("flags", c_uint32),
        ("field", c_uint32),
        ("timestamp", Timeval),
        ("timecode", Timecode),
        ("sequence", c_uint32),
        ("memory", c_uint32),
        ("m", BufferMemory),
        ("length", c_uint32),
        ("reserved2", c_uint32),
        ("request_fd", c_int32),
    ]


class QueryExtCtrl(ctypes.Structure):
    """struct v4l2_query_ext_ctrl."""

    _fields_ = [
        ("id", c_uint32),
        ("type", c_uint32),
        ("name", c_char * 32),
        ("minimum", c_int64),
        ("maximum", c_int64),
        ("step", c_uint64),
        ("default_value", c_int64),
        ("flags", c_uint32),
        ("elem_size", c_uint32),
        ("elems", c_uint32),
        ("nr_of_dims", c_uint32),
        ("dims", c_uint32 * 4),
        ("reserved", c_uint32 * 32),
    ]


class ExtControlValue(ctypes.Union):
    """The union in struct v4l2_ext_control, packed as the struct around it."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("value", c_int32), ("value64", c_int64), ("ptr", c_void_p)]


class ExtControl(ctypes.Structure):
    """struct v4l2_ext_control, which is packed."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("id", c_uint32), ("size", c_uint32), ("reserved2", c_uint32), ("value", ExtControlValue)]


class ExtControls(ctypes.Structure):
    """struct v4l2_ext_controls."""

    _fields_ = [
        ("which", c_uint32),
        ("count", c_uint32),
        ("error_idx", c_uint32),
        ("request_fd", c_int32),
        ("reserved", c_uint32),
        ("controls", ctypes.POINTER(ExtControl)),
    ]


_WRITE, _READ = 1, 2  # as asm-generic/ioctl.h names them: what the kernel does with the argument


def _ioc(direction: int, number: int, argument: Type[Argument]) -> int:
    return direction << 30 | ctypes.sizeof(argument) << 16 | ord("V") << 8 | number


QUERYCAP = _ioc(_READ, 0, Capability)
ENUM_FMT = _ioc(_READ | _WRITE, 2, FmtDesc)
G_FMT = _ioc(_READ | _WRITE, 4, Format)
S_FMT = _ioc(_READ | _WRITE, 5, Format)
REQBUFS = _ioc(_READ | _WRITE, 8, RequestBuffers)
QUERYBUF = _ioc(_READ | _WRITE, 9, Buffer)
QBUF = _ioc(_READ | _WRITE, 15, Buffer)
DQBUF = _ioc(_READ | _WRITE, 17, Buffer)
STREAMON = _ioc(_WRITE, 18, BufType)
STREAMOFF = _ioc(_WRITE, 19, BufType)
G_PARM = _ioc(_READ | _WRITE, 21, StreamParm)
S_PARM = _ioc(_READ | _WRITE, 22, StreamParm)
S_EXT_CTRLS = _ioc(_READ | _WRITE, 72, ExtControls)
ENUM_FRAMESIZES = _ioc(_READ | _WRITE, 74, FrmSizeEnum)
ENUM_FRAMEINTERVALS = _ioc(_READ | _WRITE, 75, FrmIvalEnum)
QUERY_EXT_CTRL = _ioc(_READ | _WRITE, 103, QueryExtCtrl)

IOCTL_NAMES: Dict[int, str] = {
    QUERYCAP: "QUERYCAP",
    ENUM_FMT: "ENUM_FMT",
    G_FMT: "G_FMT",
    S_FMT: "S_FMT",
    REQBUFS: "REQBUFS",
    QUERYBUF: "QUERYBUF",
    QBUF: "QBUF",
    DQBUF: "DQBUF",
    STREAMON: "STREAMON",
    STREAMOFF: "STREAMOFF",
    G_PARM: "G_PARM",
    S_PARM: "S_PARM",
    S_EXT_CTRLS: "S_EXT_CTRLS",
    ENUM_FRAMESIZES: "ENUM_FRAMESIZES",
    ENUM_FRAMEINTERVALS: "ENUM_FRAMEINTERVALS",
    QUERY_EXT_CTRL: "QUERY_EXT_CTRL",
}
