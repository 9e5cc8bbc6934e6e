"""A bounded loss is announced: `edge-agent.gap/1`, on the topic of the events and in the place of what was lost."""

import json
from dataclasses import replace
from typing import Any, Optional, Tuple

from edge_agent.core.messages import GAP_SCHEMA, Message, to_json


def gap_for(lost: Message, reason: str) -> Optional[Message]:
    """The message that stands in for a lost event or crop; None for what needs no announcement (a gap itself).

    Args:
        lost: An event or a crop.
        reason: "full" (no room), "too_large" (for the broker), "quarantined" (refused for good, or time and again),
            "expired" (too old), "purged" (by hand), "disabled" (crops were turned off).
    """
    if lost.gap_topic is None or lost.seq is None:
        return None
    payload = {
        "schema": GAP_SCHEMA,
        "camera": lost.camera,
        "boot": lost.boot,
        "of": "crops" if lost.kind == "crop" else "events",
        "from_seq": lost.seq,
        "to_seq": lost.seq,
        "count": 1,
        "reason": reason,
    }
    return Message(
        lost.gap_topic,
        to_json(payload),
        kind="gap",
        content_type="application/json",
        camera=lost.camera,
        boot=lost.boot,
    )


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


def _read(gap: Message) -> Any:
    return json.loads(gap.payload)
