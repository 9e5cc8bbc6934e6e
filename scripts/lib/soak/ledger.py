"""Checks the messages that passed the proxy: no hole between events, and no OFF while a camera cannot see."""

import json
import math
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from scripts.lib.soak.faults import DETECT_S, Blind
from tests.fakes.proxy import Passed

TELL_S = 1.5
"""Longest time from detected loss of sight to the published `None`, on a busy machine."""


class Account(NamedTuple):
    """Counts of one camera's events."""

    events: int
    visits: int
    duplicates: int
    gaps: int
    covered: int
    holes: int
    disordered: int


@dataclass
class Ledger:
    """Collects the messages that passed the proxy, in order.

    Args:
        base: Topic of the node.
        cameras: Their ids.
        fps: Of the scenes.
    """

    base: str
    cameras: Tuple[str, ...]
    fps: float
    last: Dict[str, bytes] = field(default_factory=dict)
    presence: Dict[str, List[Tuple[float, bytes]]] = field(default_factory=dict)
    _events: Dict[str, List[Passed]] = field(default_factory=dict)
    _origin: Dict[str, float] = field(default_factory=dict)

    def take(self, record: List[Passed]) -> None:
        """Move the record into the ledger and empty it, so that it does not grow with the run."""
        passed, record[:] = record[:], []
        for one in passed:
            self.last[one.topic] = one.payload
            camera, _, what = one.topic[len(self.base) + 1 :].partition("/")
            if what == "events":
                self._events.setdefault(camera, []).append(one)
            elif what == "presence":
                self.presence.setdefault(camera, []).append((one.t, one.payload))

    def health(self) -> Dict[str, Any]:
        """Return the newest health message; empty before the first."""
        return dict(json.loads(self.last.get(f"{self.base}/health", b"{}")))

    def origin(self, camera: str) -> Optional[float]:
        """Return the Unix time of the scene's second 0, from the frames of events; None with too few events."""
        if camera not in self._origin:
            bodies = [json.loads(one.payload) for one in self._events.get(camera, [])]
            starts = [body for body in bodies if body.get("event_type") == "start"]
            if len(starts) < 5:
                return None
            self._origin[camera] = min(
                datetime.fromisoformat(body["ts"].replace("Z", "+00:00")).timestamp()
                - body["frame"]["sequence"] / self.fps
                for body in starts
            )
        return self._origin[camera]

    def false_off(self, camera: str, windows: List[Blind]) -> List[str]:
        """Return a line for each OFF that was published while the camera could not see."""
        origin = self.origin(camera)
        if origin is None:
            return [f"{camera}: too few events to judge by"]
        spans = [(origin + w.start_s + DETECT_S + TELL_S, origin + w.end_s, w) for w in windows]
        return [
            f"{camera}: OFF {t - origin:.2f} s into the scene, which was {w.kind} from {w.start_s:g} to {w.end_s:g}"
            for t, payload in self.presence.get(camera, [])
            if payload == b"OFF"
            for start, end, w in spans
            if start <= t < end
        ]

    def account(self, camera: str) -> Account:
        """Count the events that the broker acknowledged."""
        seen: Dict[int, int] = {}
        starts, gaps, newest, disordered, covered = 0, 0, 0, 0, set()
        for one in self._events.get(camera, []):
            if not one.arrived:
                continue
            body = json.loads(one.payload)
            if "from_seq" in body:
                gaps += 1
                covered.update(range(body["from_seq"], body["to_seq"] + 1))
                continue
            seq = body["seq"]
            if seq not in seen:
                disordered += seq < newest
                newest = max(newest, seq)
                starts += body["event_type"] == "start"
            seen[seq] = seen.get(seq, 0) + 1
        accounted = covered.union(seen)
        holes = max(accounted, default=0) - len(accounted)
        events = sum(seen.values())
        return Account(events, starts, events - len(seen), gaps, len(covered), holes, disordered)


def slope(x: List[float], y: List[float]) -> float:
    """Return the least-squares slope, y per x; 0 where x does not vary."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = math.fsum((a - mean_x) ** 2 for a in x)
    return math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / spread if spread else 0.0


def sample(pid: int) -> Dict[str, float]:
    """Read memory, descriptors, threads and processor time of a process from /proc."""
    proc = Path("/proc") / str(pid)
    stat = (proc / "stat").read_text("ascii").rsplit(")", 1)[1].split()
    return {
        "rss_mb": int((proc / "statm").read_text("ascii").split()[1]) * 4096 / 1e6,
        "fds": sum(1 for _ in (proc / "fd").iterdir()),
        "threads": int(stat[17]),
        "cpu_s": (int(stat[11]) + int(stat[12])) / 100.0,
    }
