"""The seams between the thinking and the machine. Adapters implement these; nothing else crosses."""

from typing import Callable, Container, List, Mapping, Optional, Protocol, Sequence

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.frame import Frame, Image
from edge_agent.core.protocol.messages import Message, OutboxStatus, Stored
from edge_agent.core.types import Array, Counters, Detections, EngineInfo, Moment

Clock = Callable[[], Moment]
NewId = Callable[[], str]
EncodeJpeg = Callable[[Array, int], bytes]


class Source(Protocol):
    """A camera, stream, file or scene. Owned and called by one thread; only `Frame.release` may come from others.

    Attributes:
        uri: What was opened, without credentials.
        kind: "sensor" (raw pixels: a live one always shows noise), "encoded" (a codec may repeat a picture), or
            "still" (pictures that rightly never change). Decides how a frozen picture is told.
        mode: How its pictures come to lie, as of the last open: "cpu" (in ordinary memory, so an engine on a GPU copies
            them), one of `BufferPool.modes`, or "converted" (by jetson-utils, into memory that the GPU sees).
    """

    uri: str
    kind: str
    mode: str

    def open(self) -> None:
        """Take the device. Bounded in time.

        Raises:
            SourceError: It cannot be opened now; `close` has been done.
        """

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The next frame, or None when none came within `timeout_s`.

        Raises:
            EndOfStream: There will be no more.
            SourceError: The device is gone or broken; close and open again.
        """

    def close(self) -> None:
        """Give everything back. Idempotent; frames still lent stay readable until released."""

    def counters(self) -> Counters:
        """What was lost inside the source since it was made: e.g. sequence gaps, error-flagged buffers."""


class MappedBuffer(Protocol):
    """Memory that CPU and GPU see both, from a `BufferPool`.

    Attributes:
        array: (N,) uint8, the CPU's side. No view of it may be used after `BufferPool.free`, when it goes.
        pointer: The same memory for the GPU: a device pointer.
    """

    array: Array
    pointer: int


class BufferPool(Protocol):
    """Memory for pictures where the GPU reads them in place. Made and freed in the one thread that owns the GPU.

    A camera asks for it when it is opened and gives it back when it has been closed and its last frame released.
    """

    def modes(self) -> Sequence[str]:
        """The ways worth trying on this GPU, best first.

        "userptr": the camera's driver writes into memory of `allocate`. "registered": the driver's own
        buffers are shown to the GPU by `register`. "copied": one copy into memory of `allocate`.
        """

    def allocate(self, count: int, nbytes: int) -> Sequence[MappedBuffer]:
        """So many locked buffers of whole pages, each `nbytes` or longer, with anything in them; all or none.

        Raises:
            EngineError: There is not so much memory.
            SourceError: The GPU's thread does not answer now; it may at the next open.
        """

    def register(self, arrays: Sequence[Array]) -> Sequence[MappedBuffer]:
        """Lock memory that is there already, (N,) uint8 each of whole pages, and show it to the GPU; all or none.

        Raises:
            EngineError: The GPU cannot, or there is not so much memory.
            SourceError: As `allocate`.
        """

    def free(self, buffers: Sequence[MappedBuffer], then: Callable[[], None]) -> None:
        """Give buffers back, soon, and call `then` when that is done, in whichever thread did it. Never waits."""


class Engine(Protocol):
    """Preprocessing and network of one model. Owned and called by one thread.

    Attributes:
        info: What runs, for `B/info`.
        contract: Which tensors mean what.
        pool: Memory of which it reads pictures in place, of the same thread; None where any memory will do.
    """

    info: EngineInfo
    contract: ModelContract
    pool: Optional[BufferPool]

    def infer(self, picture: Image) -> Mapping[str, Array]:
        """Raw outputs by role (see `core.contract`), without the batch axis.

        The arrays are valid until the next call.

        Raises:
            EngineError: The engine failed.
        """

    def close(self) -> None:
        """Free everything. Idempotent."""


class Detector(Protocol):
    """An engine with its decoder: finds the faces in one image. Shared by all cameras; called by one thread."""

    def detect(self, picture: Image) -> Detections:
        """Faces in px of the picture, clipped to it, best first.

        Raises:
            EngineError: The engine failed.
        """


class Outbox(Protocol):
    """Store first, send second, forget only upon acknowledgement. Used by the publish thread only."""

    def open(self) -> None:
        """Take what it needs; first of all, in the thread that uses it.

        Raises:
            InputError: Another agent uses it.
        """

    def put(self, messages: Sequence[Message], moment: Moment) -> None:
        """Keep messages, in order, all or none; what must be dropped to make room is counted and announced."""

    def batch(self, limit: int, without: Container[str] = ()) -> List[Stored]:
        """The oldest messages that are not in flight, in order, marked in flight; at most `limit`.

        Args:
            limit: How many.
            without: Kinds of messages that stay behind.
        """

    def accept(self, key: int) -> None:
        """The broker has acknowledged it: forget it."""

    def reject(self, key: int, reason: str, fatal: bool) -> None:
        """It was not delivered: send again, or (fatal, or too often) put it into quarantine."""

    def release(self, keys: Sequence[int]) -> None:
        """They are no longer in flight, through no fault of theirs: send again, in order."""

    def discard_crops(self, camera: Optional[str]) -> None:
        """Send no crop of this camera, or of any (None), that was put so far: give them up and announce it."""

    def flush(self) -> None:
        """Make what was put so far as safe as this outbox can; called once for all that one step has put."""

    def status(self) -> OutboxStatus:
        """Sizes and losses."""

    @property
    def faults(self) -> Sequence[str]:
        """What is wrong with the outbox itself, in words, for health."""

    def close(self) -> None:
        """Idempotent."""
