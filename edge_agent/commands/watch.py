"""`edge-agent watch`: shows live messages of all agents on a broker, as a table on a terminal, else as lines."""

import argparse
import json
import math
import shutil
import sys
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Deque, Dict, List, Optional, Tuple
from urllib.parse import urlsplit

from edge_agent.commands.arguments import add_command
from edge_agent.commands.live import Account, json_object
from edge_agent.errors import EdgeAgentError, InputError
from edge_agent.mqtt.params import MqttParams, TlsParams

COLUMNS = ("NODE/CAMERA", "PRESENCE", "SINCE", "FACES", "SIGHT", "FPS", "LATENCY", "LAST EVENT")
SILENT_S = 120.0
"""Without health for so long a node counts as silent; the default interval of health messages is 30 s."""
RECENT = 200


def printable(text: str) -> str:
    """`text` without control characters, for any client may have published it."""
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
    """The state of every agent that has published, and the newest lines.

    Args:
        base: First level or levels of the topics.
    """

    def __init__(self, base: str) -> None:
        self._levels = base.count("/") + 1
        self._nodes: Dict[str, _Node] = {}
        self._recent: Deque[str] = deque(maxlen=RECENT)

    def add_line(self, line: str) -> None:
        """Append a line to the lower part."""
        self._recent.append(line)

    def take(self, topic: str, payload: bytes, t: float) -> None:
        """Update the state from one message, received at `t`, monotonic seconds; unknown ones are ignored."""
        parts = topic.split("/")[self._levels :]
        if len(parts) < 2:
            return
        if len(parts) == 2 or parts[1] == "response":
            self._update_node(parts[0], parts[1], payload, t)
        else:
            node = self._nodes.setdefault(parts[0], _Node())
            self._update_camera(node.cameras.setdefault(parts[1], _Camera()), "/".join(parts[2:]), payload, t)

    def lines(self, t: float, now: datetime, width: int = 100, height: int = 40) -> List[str]:
        """The whole screen, at most `height` lines of at most `width` characters."""
        rows: List[Tuple[str, ...]] = [COLUMNS]
        headings: Dict[int, List[str]] = {}
        for name in sorted(self._nodes):
            node = self._nodes[name]
            headings.setdefault(len(rows), []).extend(_heading(name, node, t))
            rows += [_row(f"{name}/{camera}", node, camera, t, now) for camera in sorted(node.cameras)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        lines: List[str] = []
        for number, row in enumerate(rows):
            lines += headings.get(number, ())
            lines.append("  ".join(cell.ljust(size) for cell, size in zip(row, widths)).rstrip())
        lines += headings.get(len(rows), ())
        if not self._nodes:
            lines = ["no message yet"]
        room = height - len(lines) - 1
        if room > 0 and self._recent:
            lines += ["", *list(self._recent)[-room:]]
        return [printable(line)[:width] for line in lines[:height]]

    def _update_node(self, name: str, what: str, payload: bytes, t: float) -> None:
        node = self._nodes.setdefault(name, _Node())
        if what == "availability":
            node.available = _text(payload)
        elif what == "info":
            node.version = str(json_object(payload).get("version", ""))
        elif what == "health":
            node.health, node.health_t = json_object(payload), t

    def _update_camera(self, camera: _Camera, what: str, payload: bytes, t: float) -> None:
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
    # Without a first result the rate is not meaningful.
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
    """A duration with its unit: "12 s", "5 min", "3 h", "2 d"."""
    for unit, size, until in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < until:
            return f"{max(0.0, seconds) / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def _text(payload: bytes) -> str:
    return payload[:100].decode("utf-8", "replace")


def _number(value: Any) -> Optional[float]:
    """`value` as a finite number, else None."""
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


REDRAW_S = 1.0
NOTHING: Tuple[str, Any] = ("nothing", None)
ENTER, LEAVE, HOME = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H\x1b[J"
OLDER_LINES = 100
LINE_CHARS = 500
"""Longest line shown; an agent's own are shorter."""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "watch",
        "show live messages of all agents",
        "A presence in parentheses is the last one known. FPS: frames inferred per second; LATENCY: from capture to "
        "result, p95; both come from the last health message, which may be half a minute old.",
    )
    parser.add_argument(
        "--broker", default="mqtt://localhost", metavar="URL", help="mqtt[s]://[USER@]HOST[:PORT] (mqtt://localhost)"
    )
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="file whose first line is USER's password")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="certificate authority of the broker, PEM")
    parser.add_argument("--cert", type=Path, metavar="FILE", help="client certificate, PEM")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its key, unless --cert holds it")
    parser.add_argument("--base", default="edge-agent", help="first level(s) of the topics (edge-agent)")
    parser.add_argument("--node", default="+", help="show this agent only")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="stop after so long; default: at Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print one JSON object per message")


def run(args: argparse.Namespace) -> int:
    """Show messages until Ctrl-C or `--duration`; returns 0 when at least one was received."""
    if args.duration is not None and not args.duration > 0:
        raise InputError(f"--duration {args.duration:g}: expected a number above 0")
    if args.node != "+" and set(args.node) & set("+#/"):
        raise InputError(f"--node {args.node}: not a node's name", "expected the agent's EDGE_AGENT_NODE")
    return _Watch(address(args), args).run()


def address(args: argparse.Namespace) -> MqttParams:
    """The broker settings from the command line.

    Raises:
        InputError: The address is malformed, or holds a password.
    """
    url = args.broker if "//" in args.broker else f"mqtt://{args.broker}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.password is not None:
        raise InputError("--broker holds a password, which other users could read", "use --password-file")
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path.strip("/"):
        raise InputError(f"--broker {args.broker}: not a broker's address", "expected mqtt[s]://[USER@]HOST[:PORT]")
    files = [None if path is None else str(path) for path in (args.ca, args.cert, args.key, args.password_file)]
    secure = parts.scheme == "mqtts"
    if not secure and any(files[:3]):
        raise InputError("--ca, --cert and --key are for an encrypted connection", "expected --broker mqtts://...")
    if args.password_file is not None and parts.username is None:
        raise InputError("--password-file without a user", "expected --broker mqtt[s]://USER@HOST")
    tls = TlsParams(secure, *files[:3])
    return MqttParams(
        parts.hostname, port or (8883 if secure else 1883), username=parts.username, password_file=files[3], tls=tls
    )


def filters(base: str, node: str) -> List[str]:
    """Topic filters of all that is shown; crops are left out."""
    root = f"{base}/{node}"
    own = ("availability", "info", "health", "response/+")
    camera = ("availability", "presence", "presence/attributes", "face_count", "events", "zones/+/presence", "+/state")
    return [f"{root}/{name}" for name in own] + [f"{root}/+/{name}" for name in camera]


class _Watch:
    def __init__(self, params: MqttParams, args: argparse.Namespace) -> None:
        self._params, self._args = params, args
        self._account, self._table = Account(args.base), Table(args.base)
        self._live = not args.json and sys.stdout.isatty()
        self._started_t = self._drawn_t = time.monotonic()
        self._received = 0

    def run(self) -> int:
        from edge_agent.app.factories import subscriber_of

        subscriber = self._subscriber = subscriber_of(self._params, filters(self._args.base, self._args.node))
        subscriber.open()
        until_t = None if self._args.duration is None else time.monotonic() + self._args.duration
        try:
            with ExitStack() as stack:
                if self._live:
                    print(ENTER, end="")
                    stack.callback(print, LEAVE, end="", flush=True)
                while until_t is None or time.monotonic() < until_t:
                    self._step()
        except KeyboardInterrupt:
            pass
        finally:
            subscriber.close()
        if self._live:
            print("\n".join(self._lines()))
        if not self._received:
            below = "/".join((self._args.base, self._args.node))
            raise EdgeAgentError(
                f"no message below {below}", "check --base, that an agent runs, and that this user may read there"
            )
        return 0

    def _step(self) -> None:
        """Wait shortly for an item and show it."""
        kind, value = self._subscriber.next(0.2) or NOTHING
        if kind == "message":
            self._message(value.topic, value.payload, value.retain)
        elif kind in ("lost", "again"):
            self._print("the connection to the broker is lost" if kind == "lost" else "connected again")
        if self._live and time.monotonic() - self._drawn_t >= REDRAW_S:
            self._drawn_t = time.monotonic()
            print(HOME + "\n".join(self._lines()), end="", flush=True)

    def _message(self, topic: str, payload: bytes, retained: bool) -> None:
        self._received += 1
        t = time.monotonic()
        if self._args.json:
            print(json.dumps(_as_json(t - self._started_t, topic, payload, retained)), flush=True)
            return
        self._table.take(topic, payload, t)
        line: Optional[str]
        try:
            line = self._account.line(topic, payload, retained)
        except (TypeError, ValueError, AttributeError, OverflowError):
            line = f"{topic}: malformed payload"
        for history in (self._account.presence, self._account.events, self._account.latencies_ms):
            del history[:-OLDER_LINES]
        if line is not None:
            self._print(line)

    def _print(self, line: str) -> None:
        line = f"{datetime.now():%H:%M:%S}  {printable(line[:LINE_CHARS])}"
        if self._live:
            self._table.add_line(line)
        elif self._args.json:
            print(line, file=sys.stderr, flush=True)
        else:
            print(line, flush=True)

    def _lines(self) -> List[str]:
        size = shutil.get_terminal_size()
        return self._table.lines(time.monotonic(), datetime.now(timezone.utc), size.columns, size.lines - 1)


def _as_json(t_s: float, topic: str, payload: bytes, retained: bool) -> Any:
    text = payload.decode("utf-8", "replace")
    value: Any = text
    if text[:1] == "{":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
    return {"t_s": round(t_s, 3), "topic": topic, "retained": retained, "payload": value}
