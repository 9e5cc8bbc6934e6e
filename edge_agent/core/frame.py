"""Captured frames with one owner each, and the images that are derived from them."""

from dataclasses import dataclass
from types import TracebackType
from typing import Callable, Optional, Type

import numpy as np

from edge_agent.core.types import Array


@dataclass(frozen=True)
class Levels:
    """Conversion of raw pixel values to 8-bit gray: clip((raw - offset) * gain, 0, 255).

    8-bit full range is (0, 1); limited-range Y is (16, 255/219); right-justified 10-bit is (0, 1/4).
    """

    offset: float = 0.0
    gain: float = 1.0

    def to_gray8(self, pixels: Array) -> Array:
        """(H, W[, 3]) uint8 of the same image; `pixels` itself when no conversion is needed."""
        if self.offset == 0.0 and self.gain == 1.0 and pixels.dtype == np.uint8:
            return pixels
        if pixels.dtype == np.uint8:
            table = np.clip((np.arange(256) - self.offset) * self.gain, 0, 255).astype(np.uint8)
            return np.asarray(table[pixels])
        scaled = (pixels.astype(np.float32) - np.float32(self.offset)) * np.float32(self.gain)
        return np.asarray(np.clip(scaled, 0, 255).astype(np.uint8))


FULL_RANGE = Levels()
LIMITED_RANGE = Levels(16.0, 255.0 / 219.0)


@dataclass(frozen=True)
class DeviceView:
    """GPU address of the same pixels: device pointer, bytes per row, pixel format name."""

    pointer: int
    pitch_bytes: int
    pixel_format: str


@dataclass(frozen=True)
class Image:
    """Input of an engine: upright, masked, cropped to the region of interest.

    Attributes:
        pixels: (H, W) uint8 or uint16, or (H, W, 3 RGB) uint8; may be a strided view; borrowed, read only.
        levels: Conversion to 8-bit.
        device: The same pixels in GPU memory, where the source put them there.
        mask: (H, W) bool: pixels that a privacy mask has blackened; None without masks.
        smooth: Whether resizing also averages neighbours, with the weights 1, 2, 1 in both directions, and does not
            round, because the levels amplify noise.
    """

    pixels: Array
    levels: Levels = FULL_RANGE
    device: Optional[DeviceView] = None
    mask: Optional[Array] = None
    smooth: bool = False


class Frame:
    """One captured frame. It has one owner; `release` (or leaving the `with` block) returns the buffer.

    Args:
        pixels: (H, W) uint8 or uint16, or (H, W, 3 RGB) uint8, as the source delivers it; may be a strided view
            into a driver's buffer. Valid and constant until release.
        sequence: The source's counter.
        t: Monotonic seconds of exposure (or of arrival, where the source does not report it).
        levels: Conversion to 8-bit gray.
        device: The same buffer in GPU memory, if any.
        damaged: Whether the source knows that data of this frame, or of one that it was predicted from, is missing;
            what it shows then proves nothing. Its pixels may be a placeholder.
        media_s: Seconds since the start of the recording, where the source is one.
        on_release: Called once, in the thread that releases.

    Attributes:
        faint: Set by the judge of visibility: so noisy that faces may be missed, so that their absence proves nothing.
    """

    __slots__ = ("_on_release", "_pixels", "damaged", "device", "faint", "levels", "media_s", "sequence", "t")

    def __init__(
        self,
        pixels: Array,
        sequence: int,
        t: float,
        levels: Levels = FULL_RANGE,
        device: Optional[DeviceView] = None,
        on_release: Optional[Callable[[], None]] = None,
        damaged: bool = False,
        media_s: Optional[float] = None,
    ) -> None:
        self.media_s = media_s
        self.damaged = damaged
        self.faint = False
        self._pixels: Optional[Array] = pixels
        self._on_release = on_release
        self.sequence = sequence
        self.t = t
        self.levels = levels
        self.device = device

    @property
    def pixels(self) -> Array:
        """The raw pixels.

        Raises:
            RuntimeError: The frame was released already; its buffer may hold another image by now.
        """
        if self._pixels is None:
            raise RuntimeError(f"frame {self.sequence} was used after its release")
        return self._pixels

    @property
    def is_placeholder(self) -> bool:
        """Whether the source could decode nothing of it."""
        return self.damaged and self.pixels.size == 1

    @property
    def released(self) -> bool:
        return self._pixels is None

    def release(self) -> None:
        """Return the buffer. Idempotent."""
        if self._pixels is None:
            return
        self._pixels = None
        if self._on_release is not None:
            self._on_release()

    def __enter__(self) -> "Frame":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.release()


def undecodable(sequence: int, t: float, media_s: Optional[float] = None) -> Frame:
    """A damaged frame without an image: its pixels are one black placeholder."""
    return Frame(np.zeros((1, 1), np.uint8), sequence, t, damaged=True, media_s=media_s)
