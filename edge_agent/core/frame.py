"""A picture with one owner, used in a `with` block, whose pixels never change while it is held."""

from dataclasses import dataclass
from types import TracebackType
from typing import Callable, Optional, Type

import numpy as np

from edge_agent.core.types import Array


@dataclass(frozen=True)
class Levels:
    """How raw pixel values become 8-bit gray: clip((raw - offset) * gain, 0, 255).

    8-bit full range is (0, 1); limited-range Y is (16, 255/219); right-justified 10-bit is (0, 1/4).
    """

    offset: float = 0.0
    gain: float = 1.0

    def to_gray8(self, pixels: Array) -> Array:
        """(H, W[, 3]) uint8 of the same picture; `pixels` itself when nothing has to change."""
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
    """Where the same pixels lie for the GPU: device pointer, bytes per row, and pixel format name."""

    pointer: int
    pitch_bytes: int
    pixel_format: str


@dataclass(frozen=True)
class Image:
    """Pixels as an engine takes them: upright, masked, cropped to the region of interest.

    Attributes:
        pixels: (H, W) uint8 or uint16, or (H, W, 3 RGB) uint8; may be a strided view; borrowed, never written.
        levels: How they become 8-bit.
        device: The same pixels for the GPU, where they are there already.
    """

    pixels: Array
    levels: Levels = FULL_RANGE
    device: Optional[DeviceView] = None


class Frame:
    """One captured frame. Exactly one owner; `release` (or leaving the `with` block) gives the buffer back.

    Args:
        pixels: (H, W) uint8 or uint16, or (H, W, 3 RGB) uint8, as the source delivers it; may be a strided view
            into a driver's buffer. Valid and unchanging until release.
        sequence: The source's counter.
        t: Monotonic seconds of exposure (or arrival, where the source cannot know).
        levels: How pixels become 8-bit gray.
        device: GPU view of the same buffer, if any.
        on_release: Called once, from whichever thread releases.
    """

    __slots__ = ("_on_release", "_pixels", "device", "levels", "sequence", "t")

    def __init__(
        self,
        pixels: Array,
        sequence: int,
        t: float,
        levels: Levels = FULL_RANGE,
        device: Optional[DeviceView] = None,
        on_release: Optional[Callable[[], None]] = None,
    ) -> None:
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
            RuntimeError: When the frame was released already: a recycled buffer looks like a valid picture.
        """
        if self._pixels is None:
            raise RuntimeError(f"frame {self.sequence} was used after its release")
        return self._pixels

    @property
    def released(self) -> bool:
        """True once the buffer has gone back."""
        return self._pixels is None

    def release(self) -> None:
        """Give the buffer back. Idempotent."""
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
