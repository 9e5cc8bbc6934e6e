"""Memory mapped for CPU and GPU, lent to frames. jetson-utils' own ring is not lent: it overwrites slots in use."""

import threading
from collections import deque
from typing import Any, Deque, NamedTuple, Optional, Tuple

from edge_agent.capture.jetson.module import has_streams
from edge_agent.core.frame import DeviceView
from edge_agent.core.types import Array

IMAGES = 4
"""One being filled, and three that may be lent: mailbox, inference, hand-over."""


class MappedImage(NamedTuple):
    """A mapped image with its views for CPU and GPU.

    Attributes:
        image: The cudaImage; it owns the memory.
        pixels: (H, W) uint8 gray, or (H, W, 3) uint8 RGB: a read-only view.
        device: The same bytes for the GPU.
    """

    image: Any
    pixels: Array
    device: DeviceView


class ImagePool:
    """Mapped images of one size. Used by the capture thread, except `give_back`, which any thread may call.

    Args:
        module: jetson-utils.
        size: (width, height) px.
        color: True for RGB, else gray.
    """

    def __init__(self, module: Any, size: Tuple[int, int], color: bool) -> None:
        self.size = size
        self._free: Deque[MappedImage] = deque(_image(module, size, color) for _ in range(IMAGES))
        self._returned = threading.Condition()

    @property
    def idle(self) -> bool:
        """Whether no image is lent."""
        return len(self._free) == IMAGES

    def wait(self, timeout_s: float) -> bool:
        """Wait for a free image; False when none is free after `timeout_s`."""
        with self._returned:
            return self._returned.wait_for(lambda: bool(self._free), timeout_s)

    def take(self) -> MappedImage:
        """Take a free image; there must be one."""
        return self._free.popleft()

    def give_back(self, image: MappedImage) -> None:
        """Return an image, which may be overwritten from now on."""
        with self._returned:
            self._free.append(image)
            self._returned.notify()


class Converter:
    """Captures frames and converts them into images of the pool, on a CUDA stream of its own if supported.

    jetson-utils converts NV12 and YUYV only to colour, and colour to gray: two steps, both on the GPU.

    Args:
        module: jetson-utils.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        # A blocking stream: jetson-utils first copies frames from NVMM on the default stream, and only a blocking
        # stream waits for that.
        self._stream: Optional[int] = module.cudaStreamCreate() if has_streams(module) else None

    def capture(self, source: Any, timeout_ms: int) -> Any:
        """The newest frame in jetson-utils' ring, possibly still being converted; None after a timeout."""
        if self._stream is None:
            return source.Capture(format="rgb8", timeout=timeout_ms)
        return source.Capture(format="rgb8", timeout=timeout_ms, stream=self._stream)

    def fill(self, target: MappedImage, captured: Any) -> None:
        """Convert, and wait for the end; afterwards the ring's slot may be overwritten."""
        if self._stream is None:
            self._module.cudaConvertColor(captured, target.image)
            self._module.cudaDeviceSynchronize()
        else:
            self._module.cudaConvertColor(captured, target.image, stream=self._stream)
            self._module.cudaStreamSynchronize(self._stream)

    def close(self) -> None:
        """Destroy the stream. Idempotent."""
        if self._stream is not None:
            self._module.cudaStreamDestroy(self._stream)
            self._stream = None


def _image(module: Any, size: Tuple[int, int], color: bool) -> MappedImage:
    name, channels = ("rgb8", 3) if color else ("gray8", 1)
    image = module.cudaAllocMapped(width=size[0], height=size[1], format=name)
    # Not by __array_interface__, whose dictionary jetson-utils leaks.
    pixels = module.cudaToNumpy(image)
    pixels.flags.writeable = False
    device = DeviceView(int(image.ptr), size[0] * channels, name)
    return MappedImage(image, pixels if color else pixels[:, :, 0], device)
