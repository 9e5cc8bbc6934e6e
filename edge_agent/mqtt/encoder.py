"""Encodes events and crops as messages for the outbox, within the broker's packet size."""

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
    """Encodes the events of one agent.

    Args:
        topics: Topics of the node.
        boot: The boot counter.
        crops: Settings of crops; may be replaced at any time.
        encode_jpeg: JPEG encoder of the publish thread; None disables crops.
        max_packet_bytes: Limit of the settings; the broker may announce a lower one.

    Attributes:
        topics: Topics of the node.
        boot: The boot counter.
    """

    def __init__(
        self,
        topics: Topics,
        boot: int,
        crops: CropParams,
        encode_jpeg: Optional[EncodeJpeg],
        max_packet_bytes: int = 1_000_000,
    ) -> None:
        self.topics, self.boot, self.crops, self._encode_jpeg = topics, boot, crops, encode_jpeg
        self._max_packet_setting = self._max_packet_bytes = max_packet_bytes

    def limit(self, maximum_packet_size: Optional[int]) -> None:
        """Apply the limit that the broker announced at connect; None when it announced none."""
        self._max_packet_bytes = min(self._max_packet_setting, maximum_packet_size or self._max_packet_setting)

    def fits(self, message: Message) -> bool:
        """Whether the message is within the packet size limit."""
        return message.packet_bytes <= self._max_packet_bytes

    def of_event(self, event: FaceEvent, now: Moment) -> List[Message]:
        """Return the messages of an event and its crop; a gap message when the event exceeds the packet limit."""
        topics = self.topics.camera(event.info.camera)
        crop = self._of_crop(event) if event.crop is not None and self.crops.enabled else None
        payload = encode_event(event, self.topics.node, self.boot, now, crop[1] if crop else None)
        message = Message(
            topics.events, to_json(payload), kind="event", content_type="application/json",
            camera=event.info.camera, seq=event.seq, boot=self.boot, event_type=event.event_type,
            gap_topic=topics.events, event_id=event.event_id,
        )  # fmt: skip
        if not self.fits(message):
            log.warning("%s: event %d exceeds the packet size limit", event.info.camera, event.seq)
            gap = gap_for_message(message, "too_large")
            return [] if gap is None else [gap]
        return [crop[0], message] if crop else [message]

    def of_lost(self, lost: LostEvents) -> Message:
        """Return the gap message for events that were dropped before they could be stored."""
        span = lost.from_seq, lost.to_seq
        return gap_for_events(self.topics.camera(lost.camera).events, lost.camera, self.boot, span, "overrun")

    def jpeg(self, crop: Crop) -> Optional[bytes]:
        """Return the crop as JPEG, with lower quality or at half the size until it fits; None when it never does."""
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

    def _of_crop(self, event: FaceEvent) -> Optional[Tuple[Message, CropInfo]]:
        crop = event.crop
        if crop is None or self._encode_jpeg is None:
            return None
        topics = self.topics.camera(event.info.camera)
        topic = topics.crop(event.event_id)
        jpeg = self.jpeg(crop)
        if jpeg is None:
            log.warning("%s: the crop of %s cannot be made small enough", event.info.camera, event.event_id)
            return None
        sha256 = hashlib.sha256(jpeg).hexdigest()
        message = Message(
            topic, jpeg, kind="crop", content_type="image/jpeg",
            properties=(("event_id", event.event_id), ("sha256", sha256)),
            camera=event.info.camera, seq=event.seq, boot=self.boot, gap_topic=topics.events,
        )  # fmt: skip
        if not self.fits(message):
            log.warning("%s: the crop of %s exceeds the packet size limit", event.info.camera, event.event_id)
            return None
        return message, CropInfo(topic, sha256, len(jpeg), crop.box)
