"""Events and crops as messages for the outbox, no larger than the broker takes."""

import hashlib
import logging
from typing import List, Optional, Tuple

from edge_agent.core.ports import EncodeJpeg
from edge_agent.core.presence.crops import CropParams
from edge_agent.core.protocol.messages import CropInfo, Message, encode_event, gap_for_events, gap_for_message, to_json
from edge_agent.core.protocol.topics import Topics
from edge_agent.core.types import Crop, FaceEvent, LostEvents, Moment

log = logging.getLogger(__name__)

QUALITY_STEPS = (1.0, 0.7, 0.45)
MIN_SIDE_PX = 32


class EventEncoder:
    """Encodes one agent's events.

    Args:
        topics: Where to.
        boot: The boot counter.
        crops: Whether, how good and how large.
        encode_jpeg: Of the publish thread; None turns crops off.
        max_packet_bytes: The setting; the broker may allow less.
    """

    def __init__(
        self,
        topics: Topics,
        boot: int,
        crops: CropParams,
        encode_jpeg: Optional[EncodeJpeg],
        max_packet_bytes: int = 1_000_000,
    ) -> None:
        self._topics, self._boot, self.crops, self._encode_jpeg = topics, boot, crops, encode_jpeg
        self._setting = self._max_packet_bytes = max_packet_bytes

    def limit(self, maximum_packet_size: Optional[int]) -> None:
        """What the broker announced at connect."""
        self._max_packet_bytes = min(self._setting, maximum_packet_size or self._setting)

    def fits(self, message: Message) -> bool:
        """Whether the broker takes a message of this size."""
        return message.packet_bytes <= self._max_packet_bytes

    def of_event(self, event: FaceEvent, now: Moment) -> List[Message]:
        """The event's message, after its crop's; a gap in its place when it is larger than the broker takes."""
        topics = self._topics.camera(event.info.camera)
        crop = self._of_crop(event) if event.crop is not None and self.crops.enabled else None
        payload = encode_event(event, self._topics.node, self._boot, now, crop[1] if crop else None)
        message = Message(
            topics.events, to_json(payload), kind="event", content_type="application/json",
            camera=event.info.camera, seq=event.seq, boot=self._boot, event_type=event.event_type,
            gap_topic=topics.events, event_id=event.event_id,
        )  # fmt: skip
        if not self.fits(message):
            log.warning("%s: event %d is larger than the broker takes", event.info.camera, event.seq)
            gap = gap_for_message(message, "too_large")
            return [] if gap is None else [gap]
        return [crop[0], message] if crop else [message]

    def of_lost(self, lost: LostEvents) -> Message:
        """The gap that stands in for events that went before they could be kept."""
        span = lost.from_seq, lost.to_seq
        return gap_for_events(self._topics.camera(lost.camera).events, lost.camera, self._boot, span, "overrun")

    def _of_crop(self, event: FaceEvent) -> Optional[Tuple[Message, CropInfo]]:
        crop = event.crop
        if crop is None or self._encode_jpeg is None:
            return None
        topics = self._topics.camera(event.info.camera)
        topic = topics.crop(event.event_id)
        jpeg = self.jpeg(crop)
        if jpeg is None:
            log.warning("%s: the crop of %s cannot be made small enough", event.info.camera, event.event_id)
            return None
        sha256 = hashlib.sha256(jpeg).hexdigest()
        message = Message(
            topic, jpeg, kind="crop", content_type="image/jpeg",
            properties=(("event_id", event.event_id), ("sha256", sha256)),
            camera=event.info.camera, seq=event.seq, boot=self._boot, gap_topic=topics.events,
        )  # fmt: skip
        if not self.fits(message):
            log.warning("%s: the crop of %s is larger than the broker takes", event.info.camera, event.event_id)
            return None
        return message, CropInfo(topic, sha256, len(jpeg), crop.box)

    def jpeg(self, crop: Crop) -> Optional[bytes]:
        """Coarser first, then half the size, until it fits; None when nothing does, or crops are off."""
        encode_jpeg = self._encode_jpeg
        if encode_jpeg is None:
            return None
        limit = min(self.crops.max_bytes, self._max_packet_bytes - 1024)
        pixels = crop.pixels
        while min(pixels.shape[:2]) >= min(MIN_SIDE_PX, *crop.pixels.shape[:2]):
            for step in QUALITY_STEPS:
                jpeg = encode_jpeg(pixels, max(1, round(self.crops.jpeg_quality * step)))
                if len(jpeg) <= limit:
                    return jpeg
            pixels = pixels[::2, ::2].copy()
        return None
