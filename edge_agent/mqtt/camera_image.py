"""The newest crop of a camera, retained on `C/face/image` for Home Assistant until its time to live ends."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterable, Mapping, Optional

from edge_agent.core.ports import Clock, MessageSink
from edge_agent.core.protocol.commands import CommandResult
from edge_agent.core.protocol.messages import IMAGE_SCHEMA, Message, timestamp, to_json
from edge_agent.core.protocol.topics import Topics
from edge_agent.core.types import Crop, Outcome
from edge_agent.mqtt.handlers import PublishHandler


@dataclass(frozen=True)
class _Published:
    event_id: str
    message: Message
    until_t: float


class CameraImages(PublishHandler):
    """Publishes one image per camera, and beside it attributes that name the image's event.

    Args:
        topics: Topics of the node.
        cameras: Cameras with an image; an image that an earlier run left at the broker is cleared.
        sink: Sends the messages.
        encode: Returns a crop as JPEG, the same bytes for the same crop, so that the image equals its event's crop.
        ttl_s: Seconds until an image is cleared.
        clock: Both clocks.
    """

    def __init__(
        self,
        topics: Topics,
        cameras: Iterable[str],
        sink: MessageSink,
        encode: Callable[[Crop], Optional[bytes]],
        ttl_s: float,
        clock: Clock,
    ) -> None:
        self._topics, self._sink, self._encode, self._ttl_s, self._clock = topics, sink, encode, ttl_s, clock
        self._published: Dict[str, _Published] = {}
        for camera in cameras:
            self._clear(camera)

    def outcome(self, outcome: Outcome) -> None:
        """Publish the first acceptable crop of a visit, and replace it by the best one when the visit ends."""
        if outcome.first_crop is not None:
            self._publish(outcome.camera, *outcome.first_crop)
        for event in outcome.events:
            published = self._published.get(outcome.camera)
            if event.crop is not None and (published is None or published.event_id == event.event_id):
                self._publish(outcome.camera, event.event_id, event.crop)

    def done(self, result: CommandResult) -> None:
        """Clear the image of a camera whose crops a command has turned off."""
        command = result.command
        if command.name == "crops" and result.error is None and command.camera and not command.arguments["on"]:
            self.clear(command.camera)

    def tick(self, t: float) -> None:
        """Clear expired images. The others also expire at the broker, even when the agent has ended."""
        for camera, published in list(self._published.items()):
            if t >= published.until_t:
                self.clear(camera)
            else:
                self._sink.retain(replace(published.message, expiry_s=max(1, round(published.until_t - t))))

    def clear(self, camera: str) -> None:
        """Clear the image of a camera, if there is one."""
        if self._published.pop(camera, None) is not None:
            self._clear(camera)

    def finish(self) -> None:
        """Clear all images, since none would be cleared in time after the end of the agent."""
        for camera in list(self._published):
            self.clear(camera)

    def _publish(self, camera: str, event_id: str, crop: Crop) -> None:
        jpeg = self._encode(crop)
        if jpeg is None:
            return
        sha256 = hashlib.sha256(jpeg).hexdigest()
        message = Message(
            self._topics.camera(camera).image, jpeg, qos=0, retain=True, kind="image", content_type="image/jpeg",
            properties=(("event_id", event_id), ("sha256", sha256)), expiry_s=max(1, round(self._ttl_s)),
        )  # fmt: skip
        self._published[camera] = _Published(event_id, message, self._clock().t + self._ttl_s)
        taken_at = timestamp(crop.info.moment.at)
        self._publish_attributes(camera, {"event_id": event_id, "sha256": sha256, "bytes": len(jpeg), "ts": taken_at})
        self._sink.retain(message)

    def _clear(self, camera: str) -> None:
        self._publish_attributes(camera, {"event_id": None, "sha256": None, "bytes": None, "ts": None})
        self._sink.retain(Message(self._topics.camera(camera).image, b"", qos=0, retain=True, kind="image"))

    def _publish_attributes(self, camera: str, attributes: Mapping[str, Any]) -> None:
        payload = to_json({"schema": IMAGE_SCHEMA, **attributes})
        topic = self._topics.camera(camera).image_attributes
        self._sink.retain(Message(topic, payload, retain=True, content_type="application/json"))
