"""Describes each message of an agent in one readable line."""

import json
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

PRESENCE = {"ON": "a face is here", "OFF": "nobody", "None": "cannot see"}


@dataclass
class Account:
    """Describes the messages of the agents under one base topic, and keeps the figures for a summary.

    Attributes:
        base: First level or levels of the topics.
        presence: Every value received on a presence topic, in order, without repeats.
        events: Event types received, in order.
        latencies_ms: Capture to outbox, of the start events.
    """

    base: str
    presence: List[str] = field(default_factory=list)
    events: List[str] = field(default_factory=list)
    latencies_ms: List[float] = field(default_factory=list)
    _reported: Dict[str, str] = field(default_factory=dict)

    def line(self, topic: str, payload: bytes, retained: bool = False) -> Optional[str]:
        """A description of one message; None when there is nothing new for a person to read."""
        parts = topic.split("/")[len(self.base.split("/")) :]
        if len(parts) == 2:
            return self._of_node(parts[0], parts[1], payload, retained)
        if len(parts) >= 3:
            return self._of_camera(f"{parts[0]}/{parts[1]}", parts[2:], payload, retained)
        return None

    def _of_node(self, node: str, name: str, payload: bytes, retained: bool) -> Optional[str]:
        if name == "availability":
            return f"{node}: agent is {_text(payload)}{_retained_mark(retained)}"
        if name == "info":
            info = json_object(payload)
            engine = info.get("engine") or {}
            return f"{node}: edge-agent {info.get('version')}, {_engine(engine)}"
        if name == "health":
            health = json_object(payload)
            why = "; ".join(health.get("reasons", ()))
            return self._if_new(f"{node}: health", f"{health.get('state')}{f' ({why})' if why else ''}")
        return None

    def _of_camera(self, camera: str, rest: List[str], payload: bytes, retained: bool) -> Optional[str]:
        if rest == ["presence"]:
            value = _text(payload)
            if not self.presence or self.presence[-1] != value:
                self.presence.append(value)
            return f"{camera}: presence {value:4} {PRESENCE.get(value, '')}{_retained_mark(retained)}"
        if rest == ["presence", "attributes"]:
            return self._if_new(f"{camera}: sight", str(json_object(payload).get("reason")))
        if rest == ["events"]:
            return f"{camera}: {self._event(json_object(payload))}"
        if rest[0] == "crops" and is_crop("/".join(rest)):
            return f"{camera}: crop of {rest[1][:13]}..., {len(payload)} bytes"
        if rest[0] == "zones" and rest[-1] == "presence":
            return f"{camera}: zone {rest[1]} {_text(payload)}{_retained_mark(retained)}"
        if rest[-1] == "state":
            return f"{camera}: switch {rest[0]} {_text(payload)}{_retained_mark(retained)}"
        if camera.endswith("/response") and rest != ["selftest"]:
            answer = json_object(payload)
            why = f": {answer['error']}" if answer.get("error") else ""
            return f"{camera.split('/')[0]}: {rest[0]} {answer.get('status')}{why}"
        return None

    def _if_new(self, subject: str, state: str) -> Optional[str]:
        """A line for a repeated state message, only when the state has changed."""
        if self._reported.get(subject) == state:
            return None
        self._reported[subject] = state
        return f"{subject} {state}"

    def _event(self, event: Dict[str, Any]) -> str:
        if "from_seq" in event:
            first, last = event["from_seq"], event.get("to_seq")
            numbers = f"#{first}" if first == last else f"#{first} to #{last}"
            return f"GAP: {event.get('of')} {numbers} lost, {event.get('count')} in all ({event.get('reason')})"
        kind = str(event.get("event_type"))
        self.events.append(kind)
        latency = (event.get("latency_ms") or {}).get("capture_to_outbox")
        if latency is not None and kind == "start":
            self.latencies_ms.append(float(latency))
        late = " (late)" if (event.get("delivery") or {}).get("replayed") else ""
        why = f", {event['end_reason']}" if event.get("end_reason") else ""
        took = f", {latency:.0f} ms after the frame" if latency is not None and kind == "start" else ""
        lasted = f", after {event.get('duration_ms', 0) / 1000:.1f} s" if kind == "end" else ""
        return f"face {kind:6} #{event.get('seq')} score {event.get('score', 0):.2f}{lasted}{took}{why}{late}"


def is_crop(topic: str) -> bool:
    """True for `C/crops/<event_id>`, false for the topics `set` and `state` of the switch `crops`."""
    parts = topic.split("/")
    return parts[-2:-1] == ["crops"] and parts[-1] not in ("set", "state")


def _text(payload: bytes) -> str:
    return payload.decode("utf-8", "replace")


def json_object(payload: bytes) -> Dict[str, Any]:
    """The JSON object of a payload; empty when it is not one, for any client may have published it."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _retained_mark(retained: bool) -> str:
    return " (retained)" if retained else ""


def _engine(engine: Dict[str, Any]) -> str:
    if not engine.get("backend"):
        return "engine is starting"
    return f"{engine.get('model')} on {engine['backend']}, {engine.get('precision')}"
