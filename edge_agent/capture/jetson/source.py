"""Cameras (mainly Bayer sensors through Argus), streams and files by NVIDIA's jetson-utils, in memory of the GPU."""

import functools
import logging
import math
import time
from pathlib import Path
from typing import Any, List, Optional, Tuple

from edge_agent.capture import SourceOptions
from edge_agent.capture.jetson.address import command_line, parse_address, require_reachable
from edge_agent.capture.jetson.images import Converter, ImagePool
from edge_agent.capture.jetson.module import Call, CallFailed, load_jetson_utils
from edge_agent.capture.v4l2.format import offered_formats
from edge_agent.capture.v4l2.kernel import Kernel, LinuxKernel
from edge_agent.capture.v4l2.node import NodeFinder
from edge_agent.core.frame import Frame
from edge_agent.core.types import Counters
from edge_agent.errors import EndOfStream, MissingPackage, SourceError

log = logging.getLogger(__name__)

MOST_FAULTS = 5
"""Consecutive captures that may fail immediately: a race in jetson-utils fails single captures."""
_MONO = frozenset({"GREY", "Y10", "Y12", "Y16", "Y16_BE"})
_MONO_HINT = "jetson-utils cannot read GREY, Y10, Y12 or Y16; use v4l2:{0}"
_HINTS = {
    "csi": "connect a Bayer camera and start nvargus-daemon; use v4l2:/dev/video... for a mono sensor",
    "v4l2": _MONO_HINT,
    "rtsp": "expected a stream of H.264 or H.265, the right path, user and password",
    "file": "expected a complete video in a codec that this board decodes",
}


class JetsonSource:
    """A `core.ports.Source` over one `videoSource`.

    Slots of its ring are not lent: they are overwritten while in use, and freed when the size changes or the source
    closes. Each capture is converted on the GPU into an image of the pool; while all images are lent, frames are
    dropped. jetson-utils reports no error for a lost camera: reads return None, and the caller's stall limit reopens.

    Args:
        uri: A URI for `jetson.address.parse_address`.
        options: Size, rate and colour.
        module: jetson-utils; imported when None.
        kernel: System calls, to query the formats of a V4L2 camera.
        root: Parent of `dev`, `sys` and `etc`.

    Raises:
        InputError: The URI is invalid.
        MissingPackage: jetson-utils is missing, or is another package.
    """

    def __init__(
        self,
        uri: str,
        options: Optional[SourceOptions] = None,
        module: Any = None,
        kernel: Optional[Kernel] = None,
        root: Path = Path("/"),
    ) -> None:
        self._address = parse_address(uri)
        self.uri = self._address.redacted
        self.kind = "sensor" if self._address.kind == "csi" else "encoded"
        self.mode = "converted"
        self._options = options or SourceOptions()
        try:
            self._module = load_jetson_utils(root) if module is None else module
        except MissingPackage as error:
            raise MissingPackage(f"{self.uri}: {error.message}", error.hint) from error
        self._kernel: Kernel = kernel or LinuxKernel()
        self._finder = NodeFinder(self.uri, self._address.location, root)
        self._source: Any = None
        self._converter: Optional[Converter] = None
        self._pools: List[ImagePool] = []  # the last one is in use; older ones still have lent images
        self._sequence = -1
        self._captured = 0
        self._faults = 0
        self._counters: Counters = {"skipped": 0, "overwritten": 0, "capture_faults": 0, "failed_opens": 0}

    def open(self) -> None:
        """Create the source; streaming starts with the first read.

        `Open` of jetson-utils is not called: when it fails, it returns without the GIL, and the process crashes.

        Raises:
            SourceError: The source cannot be opened now.
        """
        self.close()
        location = self._address.location
        require_reachable(self._address)
        if self._address.kind == "v4l2":
            location = f"v4l2:///dev/{self._node()}"
        try:
            with Call():
                self._source = self._module.videoSource(location, argv=command_line(self._address, self._options))
                self._converter = Converter(self._module)
        except CallFailed as error:
            self._counters["failed_opens"] += 1
            self.close()
            raise SourceError(
                f"{self.uri}: {error}", _HINTS[self._address.kind].format(self._address.location)
            ) from error
        self._captured = self._faults = 0
        if self._address.kind == "v4l2" and hasattr(self._source, "GetOptions"):
            self.kind = "sensor" if self._source.GetOptions().get("codec") == "raw" else "encoded"
        log.info("%s: opened as %s", self.uri, location if self._address.kind != "rtsp" else "a stream")

    def _hint(self) -> str:
        return _HINTS[self._address.kind].format(self._address.location)

    def _node(self) -> str:
        """The current name of the camera's node; jetson-utils does not resolve links, and fails on mono cameras."""
        device, _ = self._finder.open(self._kernel)
        try:
            offered = offered_formats(device)
        except OSError:  # jetson-utils may still be able to open it
            offered = []
        finally:
            device.close()
        if offered and _MONO.issuperset(offered):
            raise SourceError(
                f"{self.uri}: the camera offers only {', '.join(offered)}", _MONO_HINT.format(self._address.location)
            )
        return Path(device.path).name

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The newest frame, or None when none arrived within `timeout_s` or all images are lent.

        Raises:
            EndOfStream: The file has ended.
            SourceError: The source is not open, or the stream has failed; the source is closed.
        """
        if self._source is None or self._converter is None:
            raise SourceError(f"{self.uri}: not open", "open the source before reading")
        deadline_t = time.monotonic() + timeout_s
        if self._pools and not self._pools[-1].wait(timeout_s):
            self._counters["skipped"] += 1
            return None
        try:
            # jetson-utils' timeout uses the wall clock. Set forward, it ends early, so the monotonic deadline is
            # checked too; set back, it ends late, and only the watchdog helps.
            captured = self._capture(self._converter, deadline_t)
            return None if captured is None else self._frame(self._converter, captured)
        except SourceError:
            self.close()
            raise

    def _capture(self, converter: Converter, deadline_t: float) -> Any:
        while True:
            started_t = time.monotonic()
            left_s = max(0.0, deadline_t - started_t)
            captured = None
            try:
                with Call():
                    captured = converter.capture(self._source, math.ceil(left_s * 1000))
            except CallFailed as error:
                self._fault(error, is_immediate=time.monotonic() - started_t < 0.9 * left_s)
            if captured is not None or left_s == 0.0:
                return captured

    def _fault(self, error: CallFailed, is_immediate: bool) -> None:
        """Handle a failed capture: an end, a single miss, a fault, or, before March 2023, a timeout."""
        if not self._source.IsStreaming():
            if self._address.kind == "file" and self._captured:
                raise EndOfStream(f"{self.uri}: ended") from error
            raise SourceError(f"{self.uri}: the source does not stream: {error}", self._hint()) from error
        if not is_immediate:
            return
        self._counters["capture_faults"] += 1
        self._faults += 1
        if self._faults >= MOST_FAULTS:
            raise SourceError(f"{self.uri}: {MOST_FAULTS} captures in a row failed: {error}") from error

    def _frame(self, converter: Converter, captured: Any) -> Frame:
        t = time.monotonic()  # the frame's own timestamp is the pipeline's running time, not the monotonic clock
        self._faults = 0
        self._captured += 1
        self._count_overwritten()
        pool = self._pool((captured.width, captured.height))
        target = pool.take()
        self._sequence += 1
        frame = Frame(
            target.pixels,
            self._sequence,
            t,
            device=target.device,
            on_release=functools.partial(pool.give_back, target),
        )
        try:
            with Call():
                converter.fill(target, captured)
        except CallFailed as error:
            frame.release()
            raise SourceError(f"{self.uri}: {error}", "check for free GPU memory") from error
        return frame

    def _count_overwritten(self) -> None:
        """Count frames that arrived between two captures; jetson-utils has a frame counter since March 2023."""
        if hasattr(self._source, "GetFrameCount"):
            lost = self._source.GetFrameCount() - self._captured
            if lost > 0:
                self._counters["overwritten"] += lost
                self._captured += lost

    def _pool(self, size: Tuple[int, int]) -> ImagePool:
        self._pools = [pool for pool in self._pools if pool is self._pools[-1] or not pool.idle]
        if not self._pools or self._pools[-1].size != size:
            try:
                with Call():
                    self._pools.append(ImagePool(self._module, size, self._options.color))
            except CallFailed as error:
                raise SourceError(f"{self.uri}: {error}", "check for free memory") from error
        return self._pools[-1]

    def close(self) -> None:
        """Stop, and free jetson-utils' resources. Idempotent; lent frames stay readable in the pool's memory."""
        source, self._source = self._source, None
        converter, self._converter = self._converter, None
        try:
            with Call():
                if source is not None:
                    source.Close()
                if converter is not None:
                    converter.close()
        except CallFailed as error:
            log.warning("%s: while closing: %s", self.uri, error)

    def counters(self) -> Counters:
        """Losses since the source was created.

        skipped: reads without a capture, because all images were lent. overwritten: frames that arrived between two
        captures. capture_faults: captures that failed immediately. failed_opens: each leaks memory in jetson-utils.
        """
        return dict(self._counters)
