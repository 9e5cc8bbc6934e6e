"""The size of an image, read from its file's header without decoding it."""

import re
import struct
from typing import Dict, Optional, Tuple

_PNM = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s")
_JPEG_NO_SIZE = frozenset((0xC4, 0xC8, 0xCC))  # tables within the range of the frame headers
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323


def image_size(data: bytes) -> Optional[Tuple[int, int]]:
    """(width, height) in px that decoding allocates at most, before any rotation.

    Returns:
        None when `data` does not begin like a PNG, JPEG, BMP, TIFF, PNM or WebP file.
    """
    for magic, read in _READERS:
        if data.startswith(magic):
            try:
                return read(data)
            except (struct.error, IndexError):  # the file ends within its header
                return None
    return None


def _png(data: bytes) -> Optional[Tuple[int, int]]:
    width, height = struct.unpack_from(">II", data, 16)
    return (width, height) if data[12:16] == b"IHDR" else None


def _jpeg(data: bytes) -> Optional[Tuple[int, int]]:
    at = 2
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            return None
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker == 0xDA:
            return None
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD9:  # markers without a length
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _JPEG_NO_SIZE:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        at += struct.unpack_from(">H", data, at)[0]


def _bmp(data: bytes) -> Optional[Tuple[int, int]]:
    header_bytes = struct.unpack_from("<I", data, 14)[0]
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return abs(width), abs(height)


def _tiff(data: bytes) -> Optional[Tuple[int, int]]:
    order = "<" if data.startswith(b"II") else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    at = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), data, at)[0]
    entry_bytes, first = (20, at + 8) if big else (12, at + 2)
    values: Dict[int, int] = {}
    for entry in range(first, first + min(count, 4096) * entry_bytes, entry_bytes):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT) and kind in _TIFF_TYPES:
            values[tag] = struct.unpack_from(order + _TIFF_TYPES[kind], data, entry + (12 if big else 8))[0]
    if _WIDTH not in values or _HEIGHT not in values:
        return None
    # A tile is decoded as a whole, even one that is larger than the image.
    return max(values[_WIDTH], values.get(_TILE_WIDTH, 0)), max(values[_HEIGHT], values.get(_TILE_HEIGHT, 0))


def _pnm(data: bytes) -> Optional[Tuple[int, int]]:
    found = _PNM.match(data[: 1 << 16])
    return (int(found[1]), int(found[2])) if found else None


def _webp(data: bytes) -> Optional[Tuple[int, int]]:
    kind = data[12:16]
    if data[8:12] != b"WEBP":
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return (width & 0x3FFF, height & 0x3FFF) if kind == b"VP8 " else None


_READERS = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8\xff", _jpeg),
    (b"BM", _bmp),
    (b"II*\0", _tiff),
    (b"MM\0*", _tiff),
    (b"II+\0", _tiff),
    (b"MM\0+", _tiff),
    (b"P", _pnm),
    (b"RIFF", _webp),
)
