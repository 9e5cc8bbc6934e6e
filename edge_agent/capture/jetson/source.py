"""Cameras, streams and files by NVIDIA's jetson-utils: Bayer sensors behind Argus above all, in memory the GPU sees."""

import functools
import logging
import math
import time
from pathlib import Path
from typing import Any, List, Optional, Tuple

from edge_agent.capture import SourceOptions
from edge_agent.capture.jetson.address import arguments, parse_address, require_there
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
"""Captures in a row that may fail at once: jetson-utils' race between two frames fails one now and then."""
_MONO = frozenset({"GREY", "Y10", "Y12", "Y16", "Y16_BE"})
_MONO_HINT = "jetson-utils cannot read GREY, Y10, Y12 or Y16; use v4l2:{0}"
_HINTS = {
    "csi": "is a Bayer camera connected and nvargus-daemon running? A mono sensor is read by v4l2:/dev/video...",
    "v4l2": _MONO_HINT,
    "rtsp": "expected a stream of H.264 or H.265, the right path, user and password",
    "file": "is it a whole video of a codec that this board decodes?",
}


class JetsonSource:
    """A `core.ports.Source` over one `videoSource`.

    Its ring is never lent: it overwrites silently, and is freed under its readers when the size changes or the source
    goes. Each capture is converted on the GPU into an image of our own; while all of them are lent nothing is captured.
    A gone camera is no error to jetson-utils: reads come back empty, and the caller's stall limit reopens it.

    Args:
        uri: See `jetson.address.parse_address`.
        options: Wanted size, rate and colour.
        module: jetson-utils; looked for when None.
        kernel: Asked which formats a V4L2 camera has.
        root: Where `dev`, `sys` and `etc` are.

    Raises:
        InputError: The URI cannot be understood.
        MissingPackage: jetson-utils is not there, or is another one.
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
        self.uri = self._address.shown
        self.kind = "sensor" if self._address.kind == "csi" else "encoded"
        self.mode = "converted"
        self._options = options or SourceOptions()
        try:
            self._module = load_jetson_utils(root) if module is None else module
        except MissingPackage as error:
            raise MissingPackage(f"{self.uri}: {error.message}", error.hint) from error
        self._kernel: Kernel = kernel or LinuxKernel()
        self._finder = NodeFinder(self.uri, self._address.place, root)
        self._source: Any = None
        self._converter: Optional[Converter] = None
        self._pools: List[ImagePool] = []  # the last one is in use; older ones wait for what they have lent
        self._sequence = -1
        self._captured = 0
        self._faults = 0
        self._counters: Counters = {"skipped": 0, "overwritten": 0, "capture_faults": 0, "failed_opens": 0}

    def open(self) -> None:
        """Make the source; it starts to stream with the first read.

        `Open` of jetson-utils is not called: where it fails, it returns without Python's lock, and the process dies.

        Raises:
            SourceError: It cannot be opened now.
        """
        self.close()
        place = self._address.place
        require_there(self._address)
        if self._address.kind == "v4l2":
            place = f"v4l2:///dev/{self._node()}"
        try:
            with Call():
                self._source = self._module.videoSource(place, argv=arguments(self._address, self._options))
                self._converter = Converter(self._module)
        except CallFailed as error:
            self._counters["failed_opens"] += 1
            self.close()
            raise SourceError(f"{self.uri}: {error}", _HINTS[self._address.kind].format(self._address.place)) from error
        self._captured = self._faults = 0
        if self._address.kind == "v4l2" and hasattr(self._source, "GetOptions"):
            self.kind = "sensor" if self._source.GetOptions().get("codec") == "raw" else "encoded"
        log.info("%s: opened as %s", self.uri, place if self._address.kind != "rtsp" else "a stream")

    def _node(self) -> str:
        """The name of the camera's node now: jetson-utils takes no links, and fails on mono cameras."""
        device, _ = self._finder.open(self._kernel)
        try:
            offered = offered_formats(device)
        except OSError:  # jetson-utils may know better
            offered = []
        finally:
            device.close()
        if offered and _MONO.issuperset(offered):
            raise SourceError(
                f"{self.uri}: the camera offers only {', '.join(offered)}", _MONO_HINT.format(self._address.place)
            )
        return Path(device.path).name

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The newest frame, or None when none came within `timeout_s`, or all images are lent.

        Raises:
            EndOfStream: A file has ended.
            SourceError: Not open, or the stream is broken; `close` has been done.
        """
        if self._source is None or self._converter is None:
            raise SourceError(f"{self.uri}: not open", "open the source before reading")
        deadline_t = time.monotonic() + timeout_s
        if self._pools and not self._pools[-1].wait(timeout_s):
            self._counters["skipped"] += 1
            return None
        try:
            # Its timeout is on the wall clock. Set forward, it is early, so we look at ours; set back, it is late by as
            # much, and only the watchdog helps.
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
                self._fault(error, at_once=time.monotonic() - started_t < 0.9 * left_s)
            if captured is not None or left_s == 0.0:
                return captured

    def _fault(self, error: CallFailed, at_once: bool) -> None:
        """A capture has raised: an end, a chance miss, a fault, or, before March 2023, only a timeout."""
        if not self._source.IsStreaming():
            if self._address.kind == "file" and self._captured:
                raise EndOfStream(f"{self.uri}: ended") from error
            hint = _HINTS[self._address.kind].format(self._address.place)
            raise SourceError(f"{self.uri}: it does not stream: {error}", hint) from error
        if not at_once:
            return
        self._counters["capture_faults"] += 1
        self._faults += 1
        if self._faults >= MOST_FAULTS:
            raise SourceError(f"{self.uri}: {MOST_FAULTS} captures in a row failed: {error}") from error

    def _frame(self, converter: Converter, captured: Any) -> Frame:
        t = time.monotonic()  # its own timestamp is the pipeline's running time, on no clock of ours
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
            raise SourceError(f"{self.uri}: {error}", "is the GPU's memory used up?") from error
        return frame

    def _count_overwritten(self) -> None:
        """Frames that came between two captures; jetson-utils tells how many came since March 2023."""
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
                raise SourceError(f"{self.uri}: {error}", "is the memory used up?") from error
        return self._pools[-1]

    def close(self) -> None:
        """Stop, and free jetson-utils' part. Idempotent; frames still lent stay readable, their memory is ours."""
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
        """What was lost since the source was made.

        skipped: reads without a capture, because all images were lent. overwritten: frames that came between two
        captures. capture_faults: captures that failed at once. failed_opens: each leaks memory in jetson-utils.
        """
        return dict(self._counters)
