"""What agents say, as a table that fits a terminal. Pure: messages and times go in, lines come out."""

import math
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Deque, Dict, List, Optional, Tuple

from edge_agent.commands.live import json_object

COLUMNS = ("NODE/CAMERA", "PRESENCE", "SINCE", "FACES", "SIGHT", "FPS", "LATENCY", "LAST EVENT")
SILENT_S = 120.0
"""Agents speak of their health every 30 s by default."""
RECENT = 200


def printable(text: str) -> str:
    """`text` without what could drive a terminal: payloads come from whoever may publish."""
    return "".join(char if char.isprintable() else "?" for char in text)


@dataclass
class _Camera:
    available: str = ""
    presence: str = ""
    faces: str = ""
    sight: str = ""
    since: Optional[datetime] = None
    event: str = ""
    event_t: float = 0.0


@dataclass
class _Node:
    available: str = ""
    version: str = ""
    health: Dict[str, Any] = field(default_factory=dict)
    health_t: Optional[float] = None
    cameras: Dict[str, _Camera] = field(default_factory=dict)


class Table:
    """The state of every agent heard of, and the newest lines.

    Args:
        base: First level or levels of the topics.
    """

    def __init__(self, base: str) -> None:
        self._levels = base.count("/") + 1
        self._nodes: Dict[str, _Node] = {}
        self._recent: Deque[str] = deque(maxlen=RECENT)

    def note(self, line: str) -> None:
        """A line for the lower part."""
        self._recent.append(line)

    def take(self, topic: str, payload: bytes, t: float) -> None:
        """One message, come at `t`, monotonic seconds; what is not understood is passed over."""
        parts = topic.split("/")[self._levels :]
        if len(parts) < 2:
            return
        if len(parts) == 2 or parts[1] == "response":
            self._of_node(parts[0], parts[1], payload, t)
        else:
            node = self._nodes.setdefault(parts[0], _Node())
            self._of_camera(node.cameras.setdefault(parts[1], _Camera()), "/".join(parts[2:]), payload, t)

    def lines(self, t: float, now: datetime, width: int = 100, height: int = 40) -> List[str]:
        """The whole picture, at most `height` lines of at most `width` characters."""
        rows: List[Tuple[str, ...]] = [COLUMNS]
        notes: Dict[int, List[str]] = {}
        for name in sorted(self._nodes):
            node = self._nodes[name]
            notes.setdefault(len(rows), []).extend(_heading(name, node, t))
            rows += [_row(f"{name}/{camera}", node, camera, t, now) for camera in sorted(node.cameras)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        made: List[str] = []
        for number, row in enumerate(rows):
            made += notes.get(number, ())
            made.append("  ".join(cell.ljust(size) for cell, size in zip(row, widths)).rstrip())
        made += notes.get(len(rows), ())
        if not self._nodes:
            made = ["nothing heard yet"]
        room = height - len(made) - 1
        if room > 0 and self._recent:
            made += ["", *list(self._recent)[-room:]]
        return [printable(line)[:width] for line in made[:height]]

    def _of_node(self, name: str, what: str, payload: bytes, t: float) -> None:
        node = self._nodes.setdefault(name, _Node())
        if what == "availability":
            node.available = _text(payload)
        elif what == "info":
            node.version = str(json_object(payload).get("version", ""))
        elif what == "health":
            node.health, node.health_t = json_object(payload), t

    def _of_camera(self, camera: _Camera, what: str, payload: bytes, t: float) -> None:
        if what == "availability":
            camera.available = _text(payload)
        elif what == "presence":
            camera.presence = _text(payload)
        elif what == "face_count":
            camera.faces = _text(payload)
        elif what == "presence/attributes":
            attributes = json_object(payload)
            camera.sight, camera.since = str(attributes.get("reason", "")), _time(attributes.get("since"))
        elif what == "events":
            event = json_object(payload)
            gap = "gap" if "from_seq" in event else None
            camera.event, camera.event_t = f"{gap or event.get('event_type')} #{event.get('seq', '')}".rstrip(" #"), t


def _heading(name: str, node: _Node, t: float) -> List[str]:
    health = node.health
    outbox = _part(health, "outbox")
    state = str(health.get("state", "unknown"))
    if node.health_t is not None and t - node.health_t > SILENT_S:
        state = f"silent for {span(t - node.health_t)}"
    gone = node.available == "offline"
    was = "was " if gone and health else ""
    made = [f"{name}: {node.available or 'unknown'}, health {was}{state}, outbox {outbox.get('pending', '?')} pending"]
    if node.version:
        made[0] += f", version {node.version}"
    uptime_s = _number(health.get("uptime_s"))
    if uptime_s is not None and node.health_t is not None and not gone:
        made[0] += f", up {span(uptime_s + t - node.health_t)}"
    reasons = health.get("reasons")
    return made + [f"  ! {reason}" for reason in (reasons if isinstance(reasons, list) else ())]


def _row(label: str, node: _Node, camera: str, t: float, now: datetime) -> Tuple[str, ...]:
    known = node.cameras[camera]
    health = _part(_part(node.health, "cameras"), camera)
    latency = _number(_part(health, "latency_ms").get("p95"))
    presence = {"None": "unknown"}.get(known.presence, known.presence)
    if known.available == "offline" or node.available == "offline":
        presence = f"({presence})"
    since = "" if known.since is None else span((now - known.since).total_seconds())
    event = f"{known.event}, {span(t - known.event_t)} ago" if known.event else ""
    # Before the first result there is no rate either.
    fps = None if latency is None else _number(health.get("fps_inferred"))
    return (
        label,
        presence,
        since,
        {"None": "?"}.get(known.faces, known.faces),
        known.sight,
        "" if fps is None else f"{fps:.1f}",
        "" if latency is None else f"{latency:.0f} ms",
        event,
    )


def span(seconds: float) -> str:
    """A length of time, for people: "12 s", "5 min", "3 h", "2 d"."""
    for unit, size, until in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < until:
            return f"{max(0.0, seconds) / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def _text(payload: bytes) -> str:
    return payload[:100].decode("utf-8", "replace")


def _number(value: Any) -> Optional[float]:
    """A finite number, or None."""
    try:
        number = float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _part(owner: Dict[str, Any], name: str) -> Dict[str, Any]:
    value = owner.get(name)
    return value if isinstance(value, dict) else {}


def _time(text: object) -> Optional[datetime]:
    try:
        return datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return None
