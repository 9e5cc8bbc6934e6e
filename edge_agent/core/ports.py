"""Interfaces between the core and the adapters, which implement them."""

from typing import Callable, Container, Iterable, List, Mapping, Optional, Protocol, Sequence

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
        kind: "sensor" (raw pixels: a live one always shows noise), "encoded" (a codec may repeat a frame), or
            "still" (images that never change). Decides how a frozen camera is detected.
        mode: Memory of its frames, as of the last open: "cpu" (ordinary memory, copied by an engine on a GPU), one of
            `BufferPool.modes`, or "converted" (by jetson-utils, into memory that the GPU reads).
    """

    uri: str
    kind: str
    mode: str

    def open(self) -> None:
        """Open the device. Bounded in time.

        Raises:
            SourceError: It cannot be opened now; `close` was called.
        """

    def read(self, timeout_s: float) -> Optional[Frame]:
        """The next frame, or None when none came within `timeout_s`.

        Raises:
            EndOfStream: The source has ended.
            SourceError: The device has failed; close and open it again.
        """

    def close(self) -> None:
        """Release the device. Idempotent; frames in use stay readable until they are released."""

    def counters(self) -> Counters:
        """Losses inside the source since it was created, such as sequence gaps and buffers flagged as erroneous."""


class MappedBuffer(Protocol):
    """Memory that both CPU and GPU can access, from a `BufferPool`.

    Attributes:
        array: (N,) uint8, as the CPU sees it. No view of it may be used after `BufferPool.free`.
        pointer: Device pointer to the same memory.
    """

    array: Array
    pointer: int


class BufferPool(Protocol):
    """Memory for frames that the GPU reads in place. Allocated and freed in the thread that owns the GPU.

    A camera allocates at open, and frees once it is closed and its last frame is released.
    """

    def modes(self) -> Sequence[str]:
        """Modes supported on this GPU, best first.

        "userptr": the camera's driver writes into memory of `allocate`. "registered": `register` maps the driver's own
        buffers for the GPU. "copied": one copy into memory of `allocate`.
        """

    def allocate(self, count: int, nbytes: int) -> Sequence[MappedBuffer]:
        """`count` page-locked buffers of whole pages, each at least `nbytes`, uninitialised; all or none.

        Raises:
            EngineError: Not enough memory.
            SourceError: The GPU's thread does not answer now; it may at the next open.
        """

    def register(self, arrays: Sequence[Array]) -> Sequence[MappedBuffer]:
        """Page-lock existing memory, (N,) uint8 arrays of whole pages, and map it for the GPU; all or none.

        Raises:
            EngineError: The GPU does not support it, or there is not enough memory.
            SourceError: As `allocate`.
        """

    def free(self, buffers: Sequence[MappedBuffer], then: Callable[[], None]) -> None:
        """Free buffers soon, then call `then`, in the thread that freed them. Does not block."""


class Engine(Protocol):
    """Preprocessing and network of one model. Owned and called by one thread.

    Attributes:
        info: Description, for `B/info`.
        contract: Meaning of the tensors.
        pool: Memory that the engine reads in place; same thread. None where it reads ordinary memory.
    """

    info: EngineInfo
    contract: ModelContract
    pool: Optional[BufferPool]

    def infer(self, image: Image) -> Mapping[str, Array]:
        """Raw outputs by role (see `ModelContract`), without the batch axis; valid until the next call.

        Raises:
            EngineError: The engine failed.
        """

    def close(self) -> None:
        """Free all resources. Idempotent."""


class Detector(Protocol):
    """An engine with its decoder: finds the faces in one image. Shared by all cameras; called by one thread."""

    def detect(self, image: Image) -> Detections:
        """Faces in px of `image`, clipped to it, best first.

        Raises:
            EngineError: The engine failed.
        """


class MessageSink(Protocol):
    """Sends messages that need no place in the outbox; implemented by the publisher. Publish thread only."""

    @property
    def retained(self) -> Sequence[str]:
        """Topics on which the broker retains a message of this agent."""

    def retain(self, message: Message) -> None:
        """Set the value of a retained topic; an empty payload clears it."""

    def set_discovery(self, messages: Sequence[Message]) -> None:
        """Set retained discovery messages; they are sent after presence and before `online`."""

    def send(self, message: Message) -> None:
        """Send a message once and soon; it is dropped while there is no connection."""

    def send_now(self, message: Message) -> None:
        """Send a message at once, or drop it when the broker's window is full."""

    def republish(self) -> None:
        """Send all retained topics again."""

    def is_acknowledged(self, topics: Iterable[str]) -> bool:
        """Whether the broker has acknowledged these retained topics in this session."""

    def discard_crops(self, camera: Optional[str] = None) -> None:
        """Discard the crops of a camera, or of all, that still wait in the outbox."""


class Outbox(Protocol):
    """Queue of messages: stored before they are sent, deleted after the acknowledgement. Publish thread only."""

    def open(self) -> None:
        """Open the store, in the thread that uses it.

        Raises:
            InputError: Another agent uses it.
        """

    def put(self, messages: Sequence[Message], moment: Moment) -> None:
        """Store messages in order, all or none; messages dropped to make room are counted and get a gap message."""

    def batch(self, limit: int, without: Container[str] = ()) -> List[Stored]:
        """Mark the oldest waiting messages as in flight, at most `limit`, and return them in order.

        Args:
            limit: Maximum number.
            without: Message kinds to leave in the queue.
        """

    def accept(self, key: int) -> None:
        """Delete a message that the broker has acknowledged."""

    def reject(self, key: int, reason: str, fatal: bool) -> None:
        """Queue an undelivered message again; after a fatal or repeated failure, quarantine it."""

    def release(self, keys: Sequence[int]) -> None:
        """Queue messages again, in order, after a failure that they did not cause."""

    def discard_crops(self, camera: Optional[str]) -> None:
        """Discard all stored crops of this camera, or of all (None), and store gap messages for them."""

    def flush(self) -> None:
        """Make the stored messages as durable as this outbox can; called once after each step."""

    def status(self) -> OutboxStatus: ...

    @property
    def faults(self) -> Sequence[str]:
        """Faults of the outbox itself, as texts for the health message."""

    def close(self) -> None:
        """Close the store. Idempotent."""
