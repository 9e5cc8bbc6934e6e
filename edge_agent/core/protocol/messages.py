"""MQTT messages: their data types, and the JSON of each payload (schemas in `schemas/`).

In order: messages and their state in the outbox; events, presence, info and health; gap messages, which announce lost
events and crops; the profiles of `C/detections`.
"""

import json
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Callable, Dict, List, Literal, Mapping, Optional, Tuple

import numpy as np

from edge_agent.core.types import (
    CLEAR,
    EVIDENCE,
    Box,
    CameraReport,
    Detections,
    FaceEvent,
    FrameInfo,
    Moment,
    normalised_boxes,
)

EVENT_SCHEMA = "edge-agent.face-event/1"
GAP_SCHEMA = "edge-agent.gap/1"
INFO_SCHEMA = "edge-agent.info/1"
HEALTH_SCHEMA = "edge-agent.health/1"
ATTRIBUTES_SCHEMA = "edge-agent.presence/1"
RESPONSE_SCHEMA = "edge-agent.response/1"
IMAGE_SCHEMA = "edge-agent.face-image/1"
DETECTIONS_SCHEMA = "edge-agent.detections/1"
ONLINE = b"online"
OFFLINE = b"offline"


@dataclass(frozen=True)
class Message:
    """One MQTT message to be sent.

    Attributes:
        kind: "event", "gap" or "crop" (through the outbox), "state" (retained), "health", "response", "image".
        content_type: MQTT 5 content type, or None.
        properties: MQTT 5 user properties.
        expiry_s: MQTT 5 message expiry, or None.
        camera: Camera id of an event or crop.
        seq: Counter per (boot, camera) of an event; for a crop, that of its "end" event.
        boot: Boot counter of an event or crop.
        event_type: "start", "update" or "end" of an event; updates are dropped first.
        event_id: Event id, so that an open visit can be closed at the next start.
        gap_topic: Topic of the gap message if this message is lost, or None.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    kind: str = "state"
    content_type: Optional[str] = None
    properties: Tuple[Tuple[str, str], ...] = ()
    expiry_s: Optional[int] = None
    camera: Optional[str] = None
    seq: Optional[int] = None
    boot: Optional[int] = None
    event_type: Optional[str] = None
    gap_topic: Optional[str] = None
    event_id: Optional[str] = None

    @property
    def packet_bytes(self) -> int:
        """An upper bound of the PUBLISH packet's size: header, topic, packet id, properties, stamped payload."""
        properties = sum(5 + len(key.encode()) + len(value.encode()) for key, value in self.properties)
        return (
            32 + STAMP_BYTES + len(self.topic.encode()) + len(self.content_type or "") + properties + len(self.payload)
        )


STAMP_BYTES = 128
"""Upper bound of what `stamp_delivery` adds."""


@dataclass(frozen=True)
class Stored:
    """A message in the outbox.

    Attributes:
        key: Messages are ordered by key.
        queued_t: Monotonic seconds of enqueuing; a durable outbox derives it from `queued_at` after a reboot.
        queued_at: UTC timestamp of enqueuing.
        tries: Failed deliveries.
        synced: Whether the system clock was synchronised at `queued_at`.
    """

    key: int
    message: Message
    queued_t: float
    queued_at: str
    tries: int = 0
    synced: bool = True


@dataclass(frozen=True)
class OutboxStatus:
    pending: int = 0
    in_flight: int = 0
    bytes: int = 0
    oldest_s: float = 0.0
    dropped: int = 0
    quarantined: int = 0


@dataclass(frozen=True)
class CropInfo:
    """Description of a crop in its "end" event."""

    topic: str
    sha256: str
    bytes: int
    box: Box
    encoding: str = "jpeg"


def timestamp(at: datetime) -> str:
    """RFC 3339, UTC, microseconds, Z."""
    return at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def to_json(payload: Mapping[str, Any]) -> bytes:
    """Compact UTF-8 JSON.

    Raises:
        ValueError: It contains NaN or infinity, which JSON cannot represent.
    """
    return json.dumps(payload, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def encode_event(
    event: FaceEvent, node: str, boot: int, now: Moment, crop: Optional[CropInfo] = None
) -> Dict[str, Any]:
    """Payload of an event enqueued at `now`; `stamp_delivery` adds the fields of its delivery."""
    info = event.info
    last = event.ended or info.moment
    quality = event.quality
    return {
        "schema": EVENT_SCHEMA,
        "event_id": event.event_id,
        "event_type": event.event_type,
        "seq": event.seq,
        "node": node,
        "camera": info.camera,
        "boot": boot,
        "track_id": event.track_id,
        "ts": timestamp(info.moment.at),
        "start_ts": timestamp(event.started.at),
        "end_ts": None if event.ended is None else timestamp(event.ended.at),
        "duration_ms": max(0, round(1000.0 * (last.t - event.started.t))),
        "clock_synced": info.moment.synced,
        "frame": {"sequence": info.sequence, "width": info.width, "height": info.height},
        "box": _box(event.box),
        "score": round(float(event.score), 4),
        "top_score": round(float(event.top_score), 4),
        "score_kind": event.score_kind,
        "zones": list(event.zones),
        "quality": None
        if quality is None
        else {
            "score": round(float(quality.score), 4),
            "sharpness": round(float(quality.sharpness), 1),
            "face_px": int(quality.face_px),
            "exposure": round(float(quality.exposure), 3),
            "edge": bool(quality.edge),
        },
        "crop": None
        if crop is None
        else {
            "topic": crop.topic,
            "sha256": crop.sha256,
            "bytes": crop.bytes,
            "box": _box(crop.box),
            "encoding": crop.encoding,
        },
        "latency_ms": {
            "capture_to_infer": _ms(event.infer_started_t - info.moment.t) if event.infer_started_t else None,
            "infer": _ms(event.infer_s),
            "capture_to_outbox": _ms(now.t - info.moment.t),
        },
        "end_reason": event.end_reason,
    }


def stamp_delivery(payload: bytes, now: datetime, queued_ms: int, replayed: bool) -> bytes:
    """An event's payload with `published_at` and `delivery`, which are known when it is sent."""
    delivery = {"published_at": timestamp(now), "delivery": {"replayed": replayed, "queued_ms": queued_ms}}
    return payload[:-1] + b"," + to_json(delivery)[1:]


def close_after_restart(last: bytes, boot: int, seq: int) -> bytes:
    """The "end" event of a visit that was open at a crash, derived from its last stored event.

    `boot` and `seq` are those of the agent that closes it: the crashed one may have used its next numbers for events
    that were not stored.

    Raises:
        ValueError: `last` is not an event.
    """
    event = json.loads(last)
    if not isinstance(event, dict) or event.get("schema") != EVENT_SCHEMA:
        raise ValueError("not an event")
    end = {"event_type": "end", "boot": boot, "seq": seq, "end_ts": event["ts"], "crop": None, "end_reason": "restart"}
    return to_json({**event, **end})


def encode_attributes(report: CameraReport, parameters: Mapping[str, Any]) -> Dict[str, Any]:
    """Attributes of a camera's presence: since when, the reason, and the parameters that were used."""
    return {
        "schema": ATTRIBUTES_SCHEMA,
        "presence": report.presence.value,
        "reason": report.sight.value,
        "since": timestamp(report.since.at),
        "faces": report.faces,
        "best_score": None if report.best_score is None else round(float(report.best_score), 4),
        "event_ids": list(report.event_ids),
        "parameters": dict(parameters),
    }


def encode_count(faces: Optional[int]) -> bytes:
    return b"None" if faces is None else b"%d" % faces


def encode_availability(available: bool) -> bytes:
    return ONLINE if available else OFFLINE


def encode_info(info: Mapping[str, Any], node: str, boot: int) -> Dict[str, Any]:
    schemas = [
        EVENT_SCHEMA, GAP_SCHEMA, INFO_SCHEMA, HEALTH_SCHEMA, ATTRIBUTES_SCHEMA, RESPONSE_SCHEMA, IMAGE_SCHEMA,
        DETECTIONS_SCHEMA,
    ]  # fmt: skip
    return {"schema": INFO_SCHEMA, "node": node, "boot": boot, "schemas": schemas, **info}


def encode_health(health: Mapping[str, Any], node: str, boot: int, now: Moment) -> Dict[str, Any]:
    """Payload of `B/health`; `health` comes from `health_payload`."""
    return {"schema": HEALTH_SCHEMA, "node": node, "boot": boot, "ts": timestamp(now.at), **health}


def _box(box: Box) -> Dict[str, float]:
    return {side: round(float(getattr(box, side)), 4) for side in ("left", "top", "right", "bottom")}


def _ms(seconds: float) -> float:
    return round(1000.0 * seconds, 2)


Span = Tuple[int, int]
"""First and last `seq`."""


def gap_for_message(lost: Message, reason: str) -> Optional[Message]:
    """The gap message that replaces a lost event or crop; None for other messages.

    Args:
        lost: An event or a crop.
        reason: "full" (no room), "too_large" (for the broker), "quarantined" (refused permanently or repeatedly),
            "expired" (too old), "purged" (by a user), "disabled" (crops were switched off), "unreadable" (stored on a
            disk that cannot be read).
    """
    if lost.gap_topic is None or lost.seq is None:
        return None
    of = "crops" if lost.kind == "crop" else "events"
    return _gap(lost.gap_topic, lost.camera, lost.boot, of, (lost.seq, lost.seq), reason)


def gap_for_events(topic: str, camera: Optional[str], boot: Optional[int], span: Span, reason: str) -> Message:
    """The gap message that replaces events of which only the numbers are known.

    Args:
        topic: Topic of the camera's events.
        camera: Camera id.
        boot: Boot counter.
        span: First and last `seq`.
        reason: As for `gap_for_message`, or "overrun" (events came faster than they were stored).
    """
    return _gap(topic, camera, boot, "events", span, reason)


def event_span(message: Message) -> Optional[Span]:
    """First and last `seq` of an event or of a gap of events; None for crops and their gaps."""
    if message.kind == "gap":
        payload = _gap_payload(message)
        return (payload["from_seq"], payload["to_seq"]) if payload["of"] == "events" else None
    return (message.seq, message.seq) if message.kind == "event" and message.seq is not None else None


def gap_key(gap: Message) -> Tuple[str, str, str, str]:
    """Key that two gaps must share to be merged: topic, boot, kind of what was lost, reason."""
    payload = _gap_payload(gap)
    return gap.topic, str(payload["boot"]), payload["of"], payload["reason"]


def merge_gaps(first: Message, second: Message) -> Optional[Message]:
    """Merge two gaps with the same `gap_key`; None when they differ or other events lie between.

    Gaps of crops always merge: their `seq` are those of "end" events, which are delivered themselves.
    """
    a, b = _gap_payload(first), _gap_payload(second)
    if gap_key(first) != gap_key(second) or (a["of"] == "events" and b["from_seq"] != a["to_seq"] + 1):
        return None
    return replace(
        first, payload=to_json({**a, "to_seq": max(a["to_seq"], b["to_seq"]), "count": a["count"] + b["count"]})
    )


def _gap(topic: str, camera: Optional[str], boot: Optional[int], of: str, span: Span, reason: str) -> Message:
    payload = {
        "schema": GAP_SCHEMA,
        "camera": camera,
        "boot": boot,
        "of": of,
        "from_seq": span[0],
        "to_seq": span[1],
        "count": span[1] - span[0] + 1,
        "reason": reason,
    }
    return Message(topic, to_json(payload), kind="gap", content_type="application/json", camera=camera, boot=boot)


def _gap_payload(gap: Message) -> Any:
    return json.loads(gap.payload)


DetectionsProfile = Literal["off", "native", "deepstream-minimal", "axis"]

_FACE = "Face"
_UNKNOWN = ("", "0", "", "", "", "", "", "", "")
"""Gender, age, hair, cap, glasses, facial hair, name, an empty field, eye colour: all unknown.

DeepStream's converter writes two separators after the name, hence the empty field, and 0 for an unknown age.
"""


def encode_detections(profile: DetectionsProfile, detections: Detections, info: FrameInfo, node: str) -> Dict[str, Any]:
    """Payload of one frame's detections.

    "native" is the agent's own schema. "deepstream-minimal" is that of Gst-nvmsgconv with payload-type 1 (schema
    version 4.0): boxes in px, one pipe-separated string per object: id (-1 when not tracked), left, top, right, bottom,
    class, then "#" and attributes of a face. "axis" is a frame of Axis' Analytics Data Format,
    com.axis.analytics_scene_description.v0.beta: normalised boxes, unknown fields omitted.

    Args:
        profile: Any but "off".
        detections: In px of the upright full frame.
        info: Identity of the frame.
        node: Id of the agent.
    """
    return _PROFILES[profile](detections, info, node)


def _native(detections: Detections, info: FrameInfo, node: str) -> Dict[str, Any]:
    found: List[Dict[str, Any]] = [
        {"box": vars(box), "score": round(float(score), 4)}
        for box, score in zip(normalised_boxes(detections, info.width, info.height), detections.confidence)
    ]
    if detections.evidence is not None:
        for entry, evidence in zip(found, detections.evidence.tolist()):
            if evidence != CLEAR:
                entry["evidence"] = EVIDENCE[evidence]
    return {
        "schema": DETECTIONS_SCHEMA,
        "node": node,
        "camera": info.camera,
        "ts": timestamp(info.moment.at),
        "frame": {"sequence": info.sequence, "width": info.width, "height": info.height},
        "score_kind": detections.score_kind,
        "detections": found,
    }


def _deepstream_minimal(detections: Detections, info: FrameInfo, node: str) -> Dict[str, Any]:
    return {
        "version": "4.0",
        "id": str(info.sequence),
        "@timestamp": timestamp(info.moment.at)[:-4] + "Z",
        "sensorId": f"{node}/{info.camera}",
        "objects": [
            "|".join(["-1", *(f"{side:.2f}" for side in np.maximum(xyxy, 0.0)), _FACE, "#", *_UNKNOWN, f"{score:.4f}"])
            for xyxy, score in detections
        ],
    }


def _axis(detections: Detections, info: FrameInfo, node: str) -> Dict[str, Any]:
    at = timestamp(info.moment.at)
    observations: List[Mapping[str, Any]] = [
        {
            "bounding_box": vars(box),
            "class": {"type": _FACE, "score": round(min(1.0, float(score)), 4)},
            "timestamp": at,
        }
        for box, score in zip(normalised_boxes(detections, info.width, info.height), detections.confidence)
    ]
    return {"frame": {"timestamp": at, "observations": observations, "operations": []}}


_PROFILES: Mapping[str, Callable[[Detections, FrameInfo, str], Dict[str, Any]]] = {
    "native": _native,
    "deepstream-minimal": _deepstream_minimal,
    "axis": _axis,
}
