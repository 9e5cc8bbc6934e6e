"""Events and crops are encoded within the broker's packet size."""

import hashlib
import json
from typing import Any, Optional

import numpy as np
import pytest

from edge_agent.core.presence.crops import CropParams
from edge_agent.core.protocol.topics import Topics
from edge_agent.mqtt.encoder import EventEncoder
from tests.fakes.mqtt_agent import event, fake_jpeg, moment
from tests.fakes.schemas import validate

TOPICS = Topics("edge-agent", "lobby")


def encoder(encode: Any = fake_jpeg, max_packet_bytes: int = 1_000_000, **crops: Any) -> EventEncoder:
    return EventEncoder(TOPICS, 41, CropParams(**crops), encode, max_packet_bytes)


def test_the_crop_comes_just_before_its_end_and_is_bound_to_it() -> None:
    crop, end = encoder().of_event(event(7, "end", crop=True), moment(7))
    info = json.loads(end.payload)["crop"]
    assert crop.topic == info["topic"] == f"edge-agent/lobby/door/crops/{event(7).event_id}"
    assert info["sha256"] == hashlib.sha256(crop.payload).hexdigest() and info["bytes"] == len(crop.payload)
    assert dict(crop.properties) == {"event_id": event(7).event_id, "sha256": info["sha256"]}
    assert (crop.kind, crop.content_type, crop.retain, crop.seq) == ("crop", "image/jpeg", False, 7)
    assert crop.gap_topic == end.topic == end.gap_topic and not end.retain and end.qos == 1


@pytest.mark.parametrize("off", [encoder(None), encoder(enabled=False)], ids=["no encoder", "setting"])
def test_crops_can_be_off(off: EventEncoder) -> None:
    (end,) = off.of_event(event(7, "end", crop=True), moment(7))
    assert json.loads(end.payload)["crop"] is None


@pytest.mark.parametrize(
    ("side", "max_bytes", "quality", "shape"),
    [(200, 20_000, 85, 200), (300, 20_000, 85, 300), (400, 20_000, 38, 400), (600, 20_000, 85, 300)],
)
def test_a_large_crop_gets_coarser_then_smaller(side: int, max_bytes: int, quality: int, shape: int) -> None:
    """fake_jpeg's size is pixels * quality / 400, so the last attempt can be derived from it."""
    tried = []

    def encode(pixels: np.ndarray, at: int) -> bytes:
        tried.append((pixels.shape[0], at))
        return fake_jpeg(pixels, at)

    crop, _ = encoder(encode, max_bytes=max_bytes).of_event(event(7, "end", crop=True, side=side), moment(7))
    assert tried[-1] == (shape, quality) and len(crop.payload) <= max_bytes


def test_a_crop_that_never_fits_is_left_out_of_its_event() -> None:
    (end,) = encoder(lambda *_: b"\xff\xd8" * 5000, max_bytes=2_000).of_event(event(7, "end", crop=True), moment(7))
    assert json.loads(end.payload)["crop"] is None


@pytest.mark.parametrize("announced", [None, 2_000])
def test_the_smaller_limit_counts(announced: Optional[int]) -> None:
    zones = tuple(f"zone{n}" for n in range(300))
    limited = encoder(max_packet_bytes=3_000_000)
    limited.limit(announced)
    (sent,) = limited.of_event(event(7, zones=zones), moment(7))
    assert sent.kind == ("gap" if announced else "event")
    if announced:
        gap = validate(sent.payload)
        assert (gap["from_seq"], gap["to_seq"], gap["count"], gap["reason"]) == (7, 7, 1, "too_large")


def test_packet_size_is_an_upper_bound() -> None:
    """Against paho's own packing, with the delivery stamp in."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    from edge_agent.core.protocol.messages import stamp_delivery
    from edge_agent.mqtt.paho_client import publish_properties

    class Packing(Client):
        def _packet_queue(self, command: int, packet: bytes, *_: Any) -> Any:
            sizes.append(len(packet))

    for message in encoder().of_event(event(7, "end", crop=True), moment(7)):
        sizes: list = []
        payload = message.payload
        if message.kind == "event":
            payload = stamp_delivery(payload, moment().at, 999_999_999_999, True)
        client = Packing(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        topic, properties = message.topic.encode(), publish_properties(message)
        client._sock = object()  # packs only when there is a connection
        client._send_publish(1, topic, payload, 1, False, False, None, properties)
        client._sock = None
        assert sizes[0] <= message.packet_bytes <= sizes[0] + 200
