"""Memory of CPU and GPU alike, lent to frames. jetson-utils' own ring is never lent: it overwrites whoever reads."""

import threading
from collections import deque
from typing import Any, Deque, NamedTuple, Optional, Tuple

from edge_agent.capture.jetson.module import has_streams
from edge_agent.core.frame import DeviceView
from edge_agent.core.types import Array

IMAGES = 4
"""One that is filled, and three that may be lent: slot, infer thread, hand-over."""


class Lendable(NamedTuple):
    """A mapped image and its two views.

    Attributes:
        image: The cudaImage; it owns the memory.
        pixels: (H, W) uint8 gray, or (H, W, 3) uint8 RGB: a view, not writable.
        device: The same bytes for the GPU.
    """

    image: Any
    pixels: Array
    device: DeviceView


class ImagePool:
    """Mapped images of one size. Made, taken from and dropped by the capture thread; given back to from any.

    Args:
        module: jetson-utils.
        size: (width, height) px.
        color: True for RGB, else gray.
    """

    def __init__(self, module: Any, size: Tuple[int, int], color: bool) -> None:
        self.size = size
        self._free: Deque[Lendable] = deque(_image(module, size, color) for _ in range(IMAGES))
        self._returned = threading.Condition()

    @property
    def idle(self) -> bool:
        """True when nothing is lent."""
        return len(self._free) == IMAGES

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is a free image; False when there is none after `timeout_s`."""
        with self._returned:
            return self._returned.wait_for(lambda: bool(self._free), timeout_s)

    def take(self) -> Lendable:
        """A free image; there must be one."""
        return self._free.popleft()

    def give_back(self, image: Lendable) -> None:
        """It may be overwritten from now on."""
        with self._returned:
            self._free.append(image)
            self._returned.notify()


class Converter:
    """Captures, and turns what was captured into one of our images, on a stream of its own where there are streams.

    jetson-utils makes only colour of NV12 and YUYV, and makes gray of colour: so it takes two steps, both on the GPU.

    Args:
        module: jetson-utils.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        # Not a non-blocking one: where the frame lies in NVMM, jetson-utils copies it on the default stream first, and
        # only a blocking stream waits for that.
        self._stream: Optional[int] = module.cudaStreamCreate() if has_streams(module) else None

    def capture(self, source: Any, timeout_ms: int) -> Any:
        """The newest frame, in jetson-utils' ring and still being converted; None when none came in time."""
        if self._stream is None:
            return source.Capture(format="rgb8", timeout=timeout_ms)
        return source.Capture(format="rgb8", timeout=timeout_ms, stream=self._stream)

    def fill(self, target: Lendable, captured: Any) -> None:
        """Convert, and wait until it is done: from then on the ring's slot may be overwritten."""
        if self._stream is None:
            self._module.cudaConvertColor(captured, target.image)
            self._module.cudaDeviceSynchronize()
        else:
            self._module.cudaConvertColor(captured, target.image, stream=self._stream)
            self._module.cudaStreamSynchronize(self._stream)

    def close(self) -> None:
        """Idempotent."""
        if self._stream is not None:
            self._module.cudaStreamDestroy(self._stream)
            self._stream = None


def _image(module: Any, size: Tuple[int, int], color: bool) -> Lendable:
    name, channels = ("rgb8", 3) if color else ("gray8", 1)
    image = module.cudaAllocMapped(width=size[0], height=size[1], format=name)
    # Not by __array_interface__: jetson-utils leaks the dictionary that it makes for it.
    pixels = module.cudaToNumpy(image)
    pixels.flags.writeable = False
    device = DeviceView(int(image.ptr), size[0] * channels, name)
    return Lendable(image, pixels if color else pixels[:, :, 0], device)
