"""V4L2 cameras: USB, CSI mono sensors and virtual ones. Frames are views of the driver's buffers."""

import functools
import logging
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Optional, Tuple

from edge_agent.capture import SourceOptions
from edge_agent.capture.pixels import Decoder
from edge_agent.capture.v4l2.controls import needed_controls, set_controls
from edge_agent.capture.v4l2.exposure import ExposureControl, start_exposure
from edge_agent.capture.v4l2.format import negotiate_format, set_frame_rate
from edge_agent.capture.v4l2.kernel import Device, Kernel, LinuxKernel, explain
from edge_agent.capture.v4l2.memory import MemoryChoice, device_view
from edge_agent.capture.v4l2.node import Identity, NodeFinder
from edge_agent.capture.v4l2.stream import Filled, Stream
from edge_agent.core.frame import Frame, Levels, undecodable
from edge_agent.core.types import Array, Counters
from edge_agent.errors import SourceError

log = logging.getLogger(__name__)

BUFFERS = 6  # one being filled, one queued, and four that may be lent: mailbox, inference, hand-over, one spare
CLOCK_TOLERANCE_S = 10.0


class V4l2Source:
    """A `core.ports.Source` over one video node.

    A buffer is lent with its frame and queued again at the first read after the frame's release. When only two
    buffers are left to the driver, further frames are copies, so that lent frames never stall the camera.

    Args:
        path: Node or link; links are resolved at every open.
        options: Size, rate, format, colour, controls, exposure, and the GPU's buffer pool.
        syscalls: The system calls; real ones when None.
        root: Parent of `dev` and `sys`.
    """

    def __init__(
        self,
        path: str,
        options: Optional[SourceOptions] = None,
        syscalls: Optional[Kernel] = None,
        root: Optional[Path] = None,
    ) -> None:
        path = "/" + path.lstrip("/") if path.startswith("//") else path  # v4l2:///dev/video0
        self.uri = f"v4l2:{path}"
        self._options = options or SourceOptions()
        self.kind = "encoded" if self._options.pixel_format == "MJPG" else "sensor"
        self.mode = "cpu"
        self._kernel: Kernel = syscalls or LinuxKernel()
        self._memory = MemoryChoice(self.uri, self._options.pool)
        self._finder = NodeFinder(self.uri, path, root or Path("/"))
        self._open: Optional[_OpenDevice] = None
        self._counters: Counters = {"error_buffers": 0, "short_buffers": 0, "sequence_gaps": 0, "copied": 0}

    def open(self) -> None:
        """Find the camera, negotiate the format, set the controls, and start streaming.

        Raises:
            SourceError: The camera cannot be opened now.
            MissingPackage: The format needs a package that is not installed.
        """
        self.close()
        self._memory.query_modes()
        device, identity = self._finder.open(self._kernel)
        try:
            with ExitStack() as resources:
                resources.callback(device.close)
                stream, decoder = self._start(device, identity, resources)
                exposure = start_exposure(device, self.uri, self._options.exposure, self._options.controls)
                self._open = _OpenDevice(device, stream, decoder, exposure, resources.pop_all())
        except OSError as error:  # outside the block, so that this process is not listed as a user of the node
            raise explain(self.uri, device.path, error) from error

    def _start(self, device: Device, identity: Identity, resources: ExitStack) -> Tuple[Stream, Decoder]:
        wanted = self._options
        layout = negotiate_format(device, self.uri, wanted)
        rate = set_frame_rate(device, self.uri, wanted.fps)
        set_controls(device, self.uri, {**needed_controls(device), **wanted.controls})
        decoder = Decoder(layout, wanted.color)
        stream = self._memory.start(device, BUFFERS, for_gpu=decoder.borrows)
        resources.callback(stream.stop)
        self.mode = stream.mode
        self.kind = "encoded" if layout.format.is_encoded else "sensor"
        log.info(
            "%s: '%s' at %s: %s %dx%d, %s frames per second, %d buffers, capture mode %s",
            self.uri,
            identity.card,
            device.path,
            layout.format.name,
            layout.width,
            layout.height,
            "unknown" if rate is None else f"{rate:g}",
            stream.count,
            stream.mode,
        )
        return stream, decoder

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The next valid frame, or None when none arrived within `timeout_s`.

        Raises:
            SourceError: The source is not open, or the stream has failed; the source is closed.
        """
        if self._open is None:
            raise SourceError(f"{self.uri}: not open", "open the source before reading")
        device = self._open.device
        try:
            return self._next(self._open, time.monotonic() + timeout_s)
        except OSError as error:
            self.close()
            raise explain(self.uri, device.path, error) from error

    def _next(self, opened: "_OpenDevice", deadline_t: float) -> Optional[Frame]:
        opened.stream.queue_returned()
        while True:
            left_s = max(0.0, deadline_t - time.monotonic())
            filled = opened.stream.take(left_s)
            frame = None if filled is None else self._frame(opened, filled)
            if frame is not None or left_s == 0.0:
                return frame

    def _frame(self, opened: "_OpenDevice", filled: Filled) -> Optional[Frame]:
        """The frame in a buffer; when it holds no valid one the buffer is queued again.

        Then the result is None, or a damaged frame where the format is encoded: such cameras go on delivering.
        """
        stream, decoder = opened.stream, opened.decoder
        t = _exposure_t(filled.timestamp_s, time.monotonic())
        self._counters["sequence_gaps"] += opened.count(filled.sequence)
        decoded = self._decode(decoder, filled)
        if decoded is None:
            stream.queue(filled.number)
            return undecodable(opened.sequence, t) if decoder.layout.format.is_encoded else None
        pixels, levels = decoded
        if opened.exposure is not None:
            opened.exposure.observe(pixels, levels)
        if decoder.borrows and stream.lend():
            give_back = functools.partial(stream.give_back, filled.number)
            device = device_view(decoder.layout, stream.pointer(filled))
            return Frame(pixels, opened.sequence, t, levels, device, give_back)
        if decoder.borrows:
            self._counters["copied"] += 1
            pixels = pixels.copy()
        stream.queue(filled.number)
        return Frame(pixels, opened.sequence, t, levels)

    def _decode(self, decoder: Decoder, filled: Filled) -> Optional[Tuple[Array, Levels]]:
        """The pixels in a buffer; None for a faulty buffer, which is counted."""
        if filled.is_error:
            self._counters["error_buffers"] += 1
            return None
        if filled.memory.size < decoder.layout.least_bytes:
            self._counters["short_buffers"] += 1
            return None
        decoded = decoder.decode(filled.memory)
        if decoded is None:
            self._counters["error_buffers"] += 1
        return decoded

    def close(self) -> None:
        """Stop streaming and close the device. Idempotent; lent frames stay readable until they are released."""
        if self._open is None:
            return
        was_open, self._open = self._open, None
        was_open.resources.close()
        self._memory.note_end(was_open.stream.mode, delivered=was_open.sequence >= 0)

    def counters(self) -> Counters:
        """Frames lost or copied since the source was created.

        error_buffers: flagged by the driver, or not decodable. short_buffers: not filled completely. sequence_gaps:
        frames that the driver dropped. copied: frames copied because too many were lent.
        """
        return dict(self._counters)


class _OpenDevice:
    """The state of an open device; `sequence` is the driver's counter, extended beyond its 32 bits."""

    def __init__(
        self,
        device: Device,
        stream: Stream,
        decoder: Decoder,
        exposure: Optional[ExposureControl],
        resources: ExitStack,
    ) -> None:
        self.device = device
        self.stream = stream
        self.decoder = decoder
        self.exposure = exposure
        self.resources = resources
        self.sequence = -1

    def count(self, sequence: int) -> int:
        """Update the sequence from the next buffer's counter; returns the number of frames missing before it."""
        if self.sequence < 0:
            self.sequence = sequence
            return 0
        step = (sequence - self.sequence) & 0xFFFFFFFF
        if not 0 < step < 1 << 31:  # the driver does not count, or restarted its counter
            step = 1
        self.sequence += step
        return step - 1


def _exposure_t(timestamp_s: Optional[float], arrived_t: float) -> float:
    """The driver's monotonic timestamp if it is plausible, else the time of arrival."""
    if timestamp_s is None or not arrived_t - CLOCK_TOLERANCE_S < timestamp_s <= arrived_t:
        return arrived_t
    return timestamp_s
