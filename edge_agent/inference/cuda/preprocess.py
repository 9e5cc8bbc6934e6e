"""Fills a network's input on the GPU: `preprocess.Preprocessor` as one kernel launch."""

from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

import numpy as np

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.frame import DeviceView, Image
from edge_agent.core.types import Array
from edge_agent.errors import EngineError
from edge_agent.inference.cuda.compiler import KernelCache
from edge_agent.inference.cuda.context import CudaContext, DeviceBuffer, PinnedBuffer

ARGUMENTS = np.dtype(
    [
        *((name, "<u8") for name in ("source", "target")),
        *((name, "<i4") for name in ("pitch", "step", "source_w", "source_h", "samples", "filter")),
        *((name, "<i4") for name in ("net_w", "net_h", "inner_w", "inner_h", "pad_x", "pad_y", "channels")),
        *((name, "<f4") for name in ("scale", "bias", "top")),
    ]
)
"""The kernel's only argument: `Arguments` in kernel/preprocess.cuh, byte for byte."""

_GRAY8, _GRAY16, _RGB8 = 0, 1, 2
_BILINEAR, _AREA, _SMOOTH = 0, 1, 2
_BLOCK = (32, 8, 1)


@dataclass(frozen=True)
class _Layout:
    """Samples of a pixel format: their kind, bytes from pixel to pixel, and byte offset of the first."""

    samples: int
    step: int
    offset: int = 0


_LAYOUTS: Dict[str, _Layout] = {
    "gray8": _Layout(_GRAY8, 1),
    "gray16": _Layout(_GRAY16, 2),
    "rgb8": _Layout(_RGB8, 3),
    "nv12": _Layout(_GRAY8, 1),
    "yuyv": _Layout(_GRAY8, 2),
    "uyvy": _Layout(_GRAY8, 2, 1),
}


@dataclass(frozen=True)
class DeviceTensor:
    """A network's input on the GPU, valid in stream order until the next call.

    Attributes:
        pointer: Device pointer.
        shape: (1, C, net_h, net_w), contiguous.
        dtype: float32 or float16.
    """

    pointer: int
    shape: Tuple[int, int, int, int]
    dtype: "np.dtype[Any]"


class CudaPreprocessor:
    """Fills the input of one model on the GPU. Used by the context's thread.

    An image in memory that the GPU maps (`Image.device`) is read in place. Any other is copied once into page-locked
    memory, which an integrated GPU reads in place; for other GPUs a second, asynchronous copy follows.

    Args:
        context: The GPU; `close` this before it.
        cache: Provides the kernel.
        contract: Describes the model's input.
        interpolation: "linear" or "area", as in `Preprocessor`.
        half: True stores float16, for engines with such an input.

    Attributes:
        copied: Count of images that had to be copied to memory that the GPU maps.

    Raises:
        MissingPackage, InputError, EngineError: As `KernelCache.load`.
    """

    def __init__(
        self,
        context: CudaContext,
        cache: KernelCache,
        contract: ModelContract,
        interpolation: str = "linear",
        half: bool = False,
    ) -> None:
        self._context = context
        self._contract = contract
        self._filter = _AREA if interpolation == "area" else _BILINEAR
        self._dtype = np.dtype(np.float16 if half else np.float32)
        self._kernel = cache.load(context, "preprocess_half" if half else "preprocess_float", ARGUMENTS.itemsize)
        self._staging = _Staging(context)
        self._target: Optional[DeviceBuffer] = None
        self.copied = 0

    def __call__(self, image: Image) -> DeviceTensor:
        """Enqueue the conversion of an image to the model's input; it may not be done when this returns.

        The image must not change until `CudaContext.wait` has returned. Values are those of `Preprocessor`, except that
        resizing does not round to whole gray levels, as OpenCV does.

        Raises:
            EngineError: The pixels' shape or type is not supported, the device view contradicts them, or CUDA failed.
        """
        pixels = image.pixels
        host = _layout_of(pixels)
        placement = self._contract.place((pixels.shape[1], pixels.shape[0]))
        shape = (1, self._contract.channels, placement.net_h, placement.net_w)
        target = self._target_of(int(np.prod(shape)) * self._dtype.itemsize)
        if image.device is not None:
            source, pitch, layout = _device_source(image.device, pixels, host)
        else:
            source, pitch, layout = self._staging.upload(pixels), pixels.shape[1] * host.step, host
            self.copied += 1
        shrinks = placement.inner_w <= pixels.shape[1] and placement.inner_h <= pixels.shape[0]
        resizing = _SMOOTH if image.smooth else self._filter if shrinks else _BILINEAR
        gain = image.levels.gain * self._contract.gain
        arguments = np.array(
            (
                source + layout.offset,
                target.pointer,
                *(pitch, layout.step, pixels.shape[1], pixels.shape[0], layout.samples),
                *(resizing, placement.net_w, placement.net_h),
                *(placement.inner_w, placement.inner_h),
                *(placement.pad_x, placement.pad_y, self._contract.channels),
                *(gain, -image.levels.offset * gain, 255.0 * self._contract.gain),
            ),
            ARGUMENTS,
        )
        grid = (-(-placement.net_w // _BLOCK[0]), -(-placement.net_h // _BLOCK[1]))
        self._context.launch(self._kernel, grid, _BLOCK, arguments.tobytes())
        return DeviceTensor(target.pointer, shape, self._dtype)

    def close(self) -> None:
        """Wait for enqueued work and free everything. Idempotent."""
        if self._context.busy:
            self._context.wait_before_free()
        self._staging.free()
        self._kernel.free()
        if self._target is not None:
            self._target.free()

    def _target_of(self, nbytes: int) -> DeviceBuffer:
        """Memory of the input, which grows with the largest input so far."""
        if self._target is None or self._target.nbytes < nbytes:
            if self._target is not None:
                self._context.wait()
                self._target.free()
            self._target = self._context.device_buffer(nbytes)
        return self._target


class _Staging:
    """Copies images from ordinary memory to memory that the GPU reads; grows with the largest so far."""

    def __init__(self, context: CudaContext) -> None:
        self._context = context
        self._pinned: Optional[PinnedBuffer] = None
        self._device_memory: Optional[DeviceBuffer] = None

    def upload(self, pixels: Array) -> int:
        """Copy pixels, of any strides; the device pointer of the copy, whose rows have no gaps."""
        if self._context.busy:  # the GPU may still read the last image
            self._context.wait()
        if self._pinned is None or self._pinned.nbytes < pixels.nbytes:
            self.free()
            self._pinned = self._context.pinned(pixels.nbytes)
            if not self._context.integrated:
                self._device_memory = self._context.device_buffer(pixels.nbytes)
        staged = self._pinned.array[: pixels.nbytes]
        np.copyto(staged.view(pixels.dtype).reshape(pixels.shape), pixels)
        if self._device_memory is None:
            return self._pinned.pointer
        self._context.upload(self._device_memory.pointer, staged)
        return self._device_memory.pointer

    def free(self) -> None:
        """Free the memory; no enqueued work may still use it. Idempotent."""
        for buffer in (self._device_memory, self._pinned):
            if buffer is not None:
                buffer.free()
        self._device_memory = self._pinned = None


def _layout_of(pixels: Array) -> _Layout:
    if pixels.size and pixels.ndim == 2 and pixels.dtype == np.uint8:
        return _LAYOUTS["gray8"]
    if pixels.size and pixels.ndim == 2 and pixels.dtype == np.uint16:
        return _LAYOUTS["gray16"]
    if pixels.size and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8:
        return _LAYOUTS["rgb8"]
    raise EngineError(
        f"an image of shape {pixels.shape} and {pixels.dtype}",
        "expected (H, W) uint8 or uint16, or (H, W, 3) uint8",
    )


def _device_source(device: DeviceView, pixels: Array, host: _Layout) -> Tuple[int, int, _Layout]:
    """Pointer, bytes per row and layout of pixels in memory that the GPU maps."""
    layout = _LAYOUTS.get(device.pixel_format)
    if layout is None or layout.samples != host.samples or device.pitch_bytes < pixels.shape[1] * layout.step:
        raise EngineError(
            f"a device view of {device.pixel_format}, {device.pitch_bytes} bytes per row, "
            f"for an image of shape {pixels.shape} and {pixels.dtype}",
            f"expected the same pixels, as one of {', '.join(_LAYOUTS)}",
        )
    return device.pointer, device.pitch_bytes, layout
