"""What an agent publishes, told in one readable line per message."""

import json
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

PRESENCE = {"ON": "a face is here", "OFF": "nobody", "None": "cannot see"}


@dataclass
class Account:
    """Follows the messages of agents under one base topic and keeps what a summary needs.

    Attributes:
        presence: Every value seen on a presence topic, in order, without repeats.
        events: Event types seen, in order.
        latencies_ms: Capture to outbox, of the events.
    """

    base: str
    presence: List[str] = field(default_factory=list)
    events: List[str] = field(default_factory=list)
    latencies_ms: List[float] = field(default_factory=list)
    _told: Dict[str, str] = field(default_factory=dict)

    def line(self, topic: str, payload: bytes, retained: bool = False) -> Optional[str]:
        """One message in words, or None for what a person need not see."""
        parts = topic.split("/")[len(self.base.split("/")) :]
        if len(parts) == 2:
            return self._of_node(parts[0], parts[1], payload, retained)
        if len(parts) >= 3:
            return self._of_camera(f"{parts[0]}/{parts[1]}", parts[2:], payload, retained)
        return None

    def _of_node(self, node: str, name: str, payload: bytes, retained: bool) -> Optional[str]:
        if name == "availability":
            return f"{node}: agent is {_text(payload)}{_old(retained)}"
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
            return f"{camera}: presence {value:4} {PRESENCE.get(value, '')}{_old(retained)}"
        if rest == ["presence", "attributes"]:
            return self._if_new(f"{camera}: sight", str(json_object(payload).get("reason")))
        if rest == ["events"]:
            return f"{camera}: {self._event(json_object(payload))}"
        if rest[0] == "crops" and is_crop("/".join(rest)):
            return f"{camera}: crop of {rest[1][:13]}..., {len(payload)} bytes"
        if rest[0] == "zones" and rest[-1] == "presence":
            return f"{camera}: zone {rest[1]} {_text(payload)}{_old(retained)}"
        if rest[-1] == "state":
            return f"{camera}: switch {rest[0]} {_text(payload)}{_old(retained)}"
        if camera.endswith("/response") and rest != ["selftest"]:
            answer = json_object(payload)
            why = f": {answer['error']}" if answer.get("error") else ""
            return f"{camera.split('/')[0]}: {rest[0]} {answer.get('status')}{why}"
        return None

    def _if_new(self, subject: str, state: str) -> Optional[str]:
        """What is told again and again is worth a line when it changes."""
        if self._told.get(subject) == state:
            return None
        self._told[subject] = state
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
        took = f", {latency:.0f} ms after the picture" if latency is not None and kind == "start" else ""
        lasted = f", after {event.get('duration_ms', 0) / 1000:.1f} s" if kind == "end" else ""
        return f"face {kind:6} #{event.get('seq')} score {event.get('score', 0):.2f}{lasted}{took}{why}{late}"


def is_crop(topic: str) -> bool:
    """True for `C/crops/<event_id>`; the switch of that name has `set` and `state` beside it."""
    parts = topic.split("/")
    return parts[-2:-1] == ["crops"] and parts[-1] not in ("set", "state")


def _text(payload: bytes) -> str:
    return payload.decode("utf-8", "replace")


def json_object(payload: bytes) -> Dict[str, Any]:
    """A payload's object; empty for what is none, since payloads come from whoever may publish."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _old(retained: bool) -> str:
    return " (retained)" if retained else ""


def _engine(engine: Dict[str, Any]) -> str:
    if not engine.get("backend"):
        return "engine is starting"
    return f"{engine.get('model')} on {engine['backend']}, {engine.get('precision')}"
