"""A bounded loss is announced: `edge-agent.gap/1`, on the topic of the events and in the place of what was lost."""

import json
from dataclasses import replace
from typing import Any, Optional, Tuple

from edge_agent.core.messages import GAP_SCHEMA, Message, to_json

Span = Tuple[int, int]
"""The first and the last `seq`."""


def gap_for(lost: Message, reason: str) -> Optional[Message]:
    """The message that stands in for a lost event or crop; None for what needs no announcement (a gap itself).

    Args:
        lost: An event or a crop.
        reason: "full" (no room), "too_large" (for the broker), "quarantined" (refused for good, or time and again),
            "expired" (too old), "purged" (by hand), "disabled" (crops were turned off), "unreadable" (kept on a disk
            that cannot be read).
    """
    if lost.gap_topic is None or lost.seq is None:
        return None
    of = "crops" if lost.kind == "crop" else "events"
    return _gap(lost.gap_topic, lost.camera, lost.boot, of, (lost.seq, lost.seq), reason)


def gap_of_events(topic: str, camera: Optional[str], boot: Optional[int], span: Span, reason: str) -> Message:
    """The message that stands in for events of which only the numbers are known; see `gap_for`.

    Args:
        topic: Of the camera's events.
        camera: Whose.
        boot: The boot counter.
        span: The numbers.
        reason: As for `gap_for`, or "overrun" (events came faster than they were kept).
    """
    return _gap(topic, camera, boot, "events", span, reason)


def span_of(message: Message) -> Optional[Span]:
    """The numbers of events that a message, or what it stands in for, has; None for crops and their gaps."""
    if message.kind == "gap":
        payload = _read(message)
        return (payload["from_seq"], payload["to_seq"]) if payload["of"] == "events" else None
    return (message.seq, message.seq) if message.kind == "event" and message.seq is not None else None


def stream(gap: Message) -> Tuple[str, str, str, str]:
    """What two gaps must share to be joined: topic, boot, what was lost, why."""
    payload = _read(gap)
    return gap.topic, str(payload["boot"]), payload["of"], payload["reason"]


def merge_gaps(first: Message, second: Message) -> Optional[Message]:
    """One gap instead of two, when they are of one stream and reason and nothing that was kept lies between.

    Lost crops always merge: their `seq` are those of "end" events, which arrive themselves.
    """
    a, b = _read(first), _read(second)
    if stream(first) != stream(second) or (a["of"] == "events" and b["from_seq"] != a["to_seq"] + 1):
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


def _read(gap: Message) -> Any:
    return json.loads(gap.payload)
