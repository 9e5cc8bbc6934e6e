"""`C/face/image`: the newest crop, retained for Home Assistant's image entity, and cleared when its time is over."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterable, Mapping, Optional, Protocol

from edge_agent.core.ports import Clock
from edge_agent.core.protocol.messages import IMAGE_SCHEMA, Message, timestamp, to_json
from edge_agent.core.protocol.topics import Topics
from edge_agent.core.types import Crop, Outcome


class MessageSink(Protocol):
    """What the images need of `mqtt.publisher`."""

    def retain(self, message: Message) -> None:
        """A retained topic has a value."""


@dataclass(frozen=True)
class _Shown:
    event_id: str
    message: Message
    until_t: float


class FaceImages:
    """One image per camera, with attributes beside it that name its event. Used by the publish thread only.

    Args:
        topics: Where to.
        cameras: Whose images; what an earlier run has left there is cleared.
        speaker: Sends.
        encode: A crop as JPEG; the same bytes for the same crop, so that the image equals its event's crop.
        ttl_s: Seconds that an image stays.
        clock: Both clocks.
    """

    def __init__(
        self,
        topics: Topics,
        cameras: Iterable[str],
        speaker: MessageSink,
        encode: Callable[[Crop], Optional[bytes]],
        ttl_s: float,
        clock: Clock,
    ) -> None:
        self._topics, self._speaker, self._encode, self._ttl_s, self._clock = topics, speaker, encode, ttl_s, clock
        self._shown: Dict[str, _Shown] = {}
        for camera in cameras:
            self._clear(camera)

    def outcome(self, outcome: Outcome) -> None:
        """Show the first acceptable crop of an appearance, and in its place the best one when the appearance ends."""
        if outcome.first_crop is not None:
            self._show(outcome.camera, *outcome.first_crop)
        for event in outcome.events:
            shown = self._shown.get(outcome.camera)
            if event.crop is not None and (shown is None or shown.event_id == event.event_id):
                self._show(outcome.camera, event.event_id, event.crop)

    def tick(self, t: float) -> None:
        """Clear what is over; what stays expires at the broker at the same time, whatever happens to the agent."""
        for camera, shown in list(self._shown.items()):
            if t >= shown.until_t:
                self.clear(camera)
            else:
                self._speaker.retain(replace(shown.message, expiry_s=max(1, round(shown.until_t - t))))

    def clear(self, camera: str) -> None:
        """Take a camera's image away."""
        if self._shown.pop(camera, None) is not None:
            self._clear(camera)

    def clear_all(self) -> None:
        """Take all away: nobody would when the agent has gone."""
        for camera in list(self._shown):
            self.clear(camera)

    def _show(self, camera: str, event_id: str, crop: Crop) -> None:
        jpeg = self._encode(crop)
        if jpeg is None:
            return
        sha256 = hashlib.sha256(jpeg).hexdigest()
        message = Message(
            self._topics.camera(camera).image, jpeg, qos=0, retain=True, kind="image", content_type="image/jpeg",
            properties=(("event_id", event_id), ("sha256", sha256)), expiry_s=max(1, round(self._ttl_s)),
        )  # fmt: skip
        self._shown[camera] = _Shown(event_id, message, self._clock().t + self._ttl_s)
        self._tell(
            camera, {"event_id": event_id, "sha256": sha256, "bytes": len(jpeg), "ts": timestamp(crop.info.moment.at)}
        )
        self._speaker.retain(message)

    def _clear(self, camera: str) -> None:
        self._tell(camera, {"event_id": None, "sha256": None, "bytes": None, "ts": None})
        self._speaker.retain(Message(self._topics.camera(camera).image, b"", qos=0, retain=True, kind="image"))

    def _tell(self, camera: str, facts: Mapping[str, Any]) -> None:
        payload = to_json({"schema": IMAGE_SCHEMA, **facts})
        topic = self._topics.camera(camera).image_attributes
        self._speaker.retain(Message(topic, payload, retain=True, content_type="application/json"))
