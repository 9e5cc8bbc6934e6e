"""Compares the scene's list of visits with what the proxy and the subscriber received."""

import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Callable, DefaultDict, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from edge_agent.capture.synthetic.scene import Scene, SceneFace
from edge_agent.commands.live import is_crop
from edge_agent.mqtt.publisher import COUNT_INTERVAL_S
from tests.fakes.broker import Heard
from tests.fakes.proxy import Passed

FPS = 20.0
MAX_LOST_S = 0.25
GRACE_S = 0.6
"""Longest time from a face to its event on disk, on a busy machine."""
STARTING_S = 10.0
"""Longest time from the start of the process to the camera's first frame."""
OUTAGE_S = 1.0
"""What a broker acknowledged so shortly before it was killed may not have reached the subscriber."""
SLOW_S = 0.25
"""Further time that a busy machine may need to publish a change, beyond what `truth` allows for."""
COMPARISONS, COMPARISON_INTERVAL_S = 200, 0.03
NEAR = 0.06

Stream = Tuple[int, str]
"""Boot and camera."""


def scene(camera: int) -> Scene:
    """A crowd of short visits, then one or two faces that stay, then nobody: 3.05 seconds, again and again.

    Presence turns off between, so that the rate limit on counts delays none but those of the crowd's later comers.
    """
    places = [(0.14 + 0.24 * column, 0.27 + 0.46 * row) for row in range(2) for column in range(4)]
    # Off the grid of frames, so that rounding cannot decide whether a face is in one; long enough to outlast a busy
    # machine, which may keep the agent from its turn for a quarter of a second.
    short = [SceneFace(0.363 + 0.04 * n, 0.913 + 0.03 * n, (place, place), (0.28,)) for n, place in enumerate(places)]
    long = [SceneFace(1.613, 2.313, (place, place), (0.28,)) for place in places[camera : camera + camera + 1]]
    return Scene((*short, *long), period_s=3.05)


def script(shown: Scene) -> str:
    """Return the scene as `test://...?script=` reads it."""
    faces = [
        {"start_s": face.start_s, "end_s": face.end_s, "path": list(face.path), "size": list(face.sizes)}
        for face in shown.cast
    ]
    return json.dumps({"period_s": shown.period_s, "appearances": faces})


@dataclass
class Life:
    """One process of the agent, from start to end.

    Attributes:
        saw_until: When it was killed, or asked to stop.
        may_forget: It was killed with an outbox in memory.
    """

    began_at: float
    ended_at: float = math.inf
    saw_until: float = math.inf
    may_forget: bool = False


class Seen(NamedTuple):
    """One received event or gap."""

    boot: int
    camera: str
    body: Dict[str, Any]


@dataclass
class Evidence:
    """Everything that was seen, parsed once.

    Attributes:
        outages: Wall-clock spans in which the subscriber may have missed what the broker acknowledged.
    """

    scenes: Dict[str, Scene]
    lives: List[Life] = field(default_factory=list)
    outages: List[Tuple[float, float]] = field(default_factory=list)
    _parsed: Dict[bytes, Any] = field(default_factory=dict)

    def event(self, topic: str, payload: bytes) -> Optional[Seen]:
        """An event or gap; None for any other message."""
        if not topic.endswith("/events"):
            return None
        body = self._parsed.get(payload)
        if body is None:
            body = self._parsed[payload] = json.loads(payload)
        return Seen(body["boot"], body["camera"], body)

    def life_of(self, at: float) -> Optional[Life]:
        """Return the life of this instant."""
        return next((life for life in self.lives if life.began_at <= at <= life.ended_at), None)


class Account:
    """The evidence at one moment: what has arrived, and what is wrong with it."""

    def __init__(self, evidence: Evidence, record: Sequence[Passed], heard: Sequence[Heard], now_at: float) -> None:
        self.faults: List[str] = []
        self.events = self.duplicates = self.refused = self.without_crop = 0
        self.gaps: List[Dict[str, Any]] = []
        self.origins: Dict[Stream, float] = {}
        self.life: Dict[int, Life] = {}
        self._evidence, self._now_at = evidence, now_at
        self._by_seq: DefaultDict[Stream, Dict[int, Dict[str, Any]]] = defaultdict(dict)
        self._lost: DefaultDict[Stream, Set[int]] = defaultdict(set)
        self._lost_crops: DefaultDict[Stream, Set[int]] = defaultdict(set)
        self._crops: Set[str] = set()
        self._kinds: DefaultDict[str, Set[str]] = defaultdict(set)
        self._collect(record)
        self._find_origins()
        self._compare(record, heard)
        self._numbers()
        self.missing = self._missing()

    def _collect(self, record: Sequence[Passed]) -> None:
        """Check the messages that the broker acknowledged at the proxy, in order."""
        for passed in record:
            if not passed.arrived:
                self.refused += passed.fate == "refuse" or (passed.code or 0) >= 0x80
                continue
            if is_crop(passed.topic):
                self._crops.add(passed.topic)
            seen = self._evidence.event(passed.topic, passed.payload)
            if seen is None:
                continue
            if passed.retain:
                self.faults.append(f"an event was published as retained: {seen.body}")
            stream = (seen.boot, seen.camera)
            if "event_id" not in seen.body:
                self._gap(stream, seen.body)
                continue
            known = self._by_seq[stream].get(seen.body["seq"])
            if known is not None:
                self._same(known, seen.body)
                continue
            self.events += 1
            self.without_crop += seen.body["end_reason"] == "left" and not seen.body["crop"]
            newest = max(self._by_seq[stream], default=0)
            if seen.body["seq"] < newest:
                self.faults.append(f"{stream}: {seen.body['seq']} arrived first after {newest}")
            self._by_seq[stream][seen.body["seq"]] = seen.body
            self._kinds[seen.body["event_id"]].add(seen.body["event_type"])

    def _same(self, known: Dict[str, Any], body: Dict[str, Any]) -> None:
        if known["event_id"] != body["event_id"] or known["event_type"] != body["event_type"]:
            self.faults.append(f"one number, two events: {known} and {body}")

    def _gap(self, stream: Stream, body: Dict[str, Any]) -> None:
        if body in self.gaps:
            return
        self.gaps.append(body)
        lost = self._lost if body["of"] == "events" else self._lost_crops
        lost[stream].update(range(body["from_seq"], body["to_seq"] + 1))
        if body["of"] == "events" and body["count"] != body["to_seq"] - body["from_seq"] + 1:
            self.faults.append(f"a gap that cannot count: {body}")

    def _find_origins(self) -> None:
        """When each scene began, from stamp and number of frames; the process's life bounds the result."""
        for stream, events in self._by_seq.items():
            own = [body for body in events.values() if body["end_reason"] != "restart"]
            if not own:
                continue
            origin = min(_seconds(body["ts"]) - body["frame"]["sequence"] / FPS for body in own)
            life = self._evidence.life_of(_seconds(own[0]["ts"]))
            if life is None or not life.began_at <= origin <= life.began_at + STARTING_S:
                self.faults.append(f"{stream}: a scene that began at {origin}, in no life of the agent's")
                continue
            if self.life.setdefault(stream[0], life) is not life:
                self.faults.append(f"boot {stream[0]} belongs to two processes")
            self.origins[stream] = origin

    def _compare(self, record: Sequence[Passed], heard: Sequence[Heard]) -> None:
        """The subscriber received what the broker acknowledged, in the same order, and none of it as retained."""
        got = {(h.topic, h.payload) for h in heard}
        for passed in record:
            outage = any(start <= passed.t <= end for start, end in self._evidence.outages)
            kept = passed.topic.endswith("/events") or is_crop(passed.topic)
            if kept and passed.arrived and not outage and (passed.topic, passed.payload) not in got:
                self.faults.append(f"acknowledged, but not received: {passed.as_line()[:400]}")
        first: Dict[Tuple[Stream, int], Dict[str, Any]] = {}
        newest: DefaultDict[Stream, int] = defaultdict(int)
        for message in heard:
            seen = self._evidence.event(message.topic, message.payload)
            if seen is None or "event_id" not in seen.body:
                continue
            if message.retain:
                self.faults.append(f"an event was received as retained: {seen.body}")
            stream, seq = (seen.boot, seen.camera), seen.body["seq"]
            if (stream, seq) in first:
                self.duplicates += 1
                self._same(first[stream, seq], seen.body)
                continue
            first[stream, seq] = seen.body
            if seq < newest[stream]:
                self.faults.append(f"{stream}: {seq} was first received after {newest[stream]}")
            newest[stream] = max(newest[stream], seq)

    def _numbers(self) -> None:
        """Every hole in (boot, seq) is announced; every named crop has arrived, or its loss is announced."""
        for stream, events in self._by_seq.items():
            holes = set(range(1, max(events) + 1)) - set(events) - self._lost[stream]
            if holes:
                self.faults.append(f"{stream}: {len(holes)} numbers missing without a gap: {sorted(holes)[:20]}")
            for seq, body in events.items():
                if body["crop"] and body["crop"]["topic"] not in self._crops and seq not in self._lost_crops[stream]:
                    self.faults.append(f"{stream}: event {seq} names a crop that never came")

    def _missing(self) -> List[str]:
        """Visits without a start or an end so far, beyond what gaps account for."""
        missing: List[str] = []
        for stream, origin in self.origins.items():
            life, shown = self.life[stream[0]], self._evidence.scenes[stream[1]]
            until_at = min(life.saw_until, self._now_at) - GRACE_S
            ids = self._ids(stream, shown)
            lost = 0
            here: List[str] = []
            for face in shown.scripted_faces(until_at - origin):
                found = ids.get((face.start_s, face.path[0]), set())
                over = life.ended_at < self._now_at or origin + face.end_s + MAX_LOST_S < until_at
                wanted = 2 if over else 1
                arrived = self._arrived(found, over)
                if arrived < wanted:
                    lost += wanted - arrived
                    here.append(f"{stream}: {wanted} events of the face at {face.start_s:.2f}-{face.end_s:.2f} s")
            if lost > len(self._lost[stream]) and not life.may_forget:
                missing += here
        silent = [
            life
            for life in self._evidence.lives
            if life not in self.life.values()
            and min(life.saw_until, self._now_at) - life.began_at > STARTING_S
            and not life.may_forget
        ]
        return missing + [f"a life from {life.began_at} on that published nothing" for life in silent]

    def _ids(self, stream: Stream, shown: Scene) -> Dict[Tuple[float, Any], Set[str]]:
        """Return event ids by visit; a start without a face in the scene is a fault."""
        ids: DefaultDict[Tuple[float, Any], Set[str]] = defaultdict(set)
        for body in self._by_seq[stream].values():
            t_s = body["frame"]["sequence"] / FPS
            face = _face_at(shown, t_s, body["box"])
            if face is not None:
                ids[(face.start_s, face.path[0])].add(body["event_id"])
            elif body["event_type"] == "start":
                self.faults.append(f"{stream}: an event of a face that was not there: {body}")
        return ids

    def _arrived(self, ids: Set[str], over: bool) -> int:
        """Count how many of start and end have arrived."""
        kinds = {kind for event_id in ids for kind in self._kinds[event_id]}
        return len(kinds & ({"start", "end"} if over else {"start"}))

    def truth(self, now_at: float) -> Optional[Dict[str, int]]:
        """Faces per camera that the scene shows now; None when it has just changed or is about to, or is unknown."""
        faces: Dict[str, int] = {}
        for camera, shown in self._evidence.scenes.items():
            origins = [o for (boot, c), o in self.origins.items() if c == camera and self._alive(boot)]
            if not origins:
                return None
            t_s = now_at - origins[0]
            for face in shown.scripted_faces(t_s + 1.0):
                joined = bool(shown.faces(face.start_s - 0.01))
                slow_s = 0.2 + COUNT_INTERVAL_S * joined
                if -0.05 < t_s - face.start_s < slow_s or -0.05 < t_s - face.end_s < MAX_LOST_S + 0.15:
                    return None
            faces[camera] = len(shown.faces(t_s))
        return faces

    def boot(self) -> int:
        """Boot number of the running process; 0 until each of its cameras has published."""
        streams = [stream for stream in self.origins if self._alive(stream[0])]
        return max(boot for boot, _ in streams) if len(streams) == len(self._evidence.scenes) else 0

    def _alive(self, boot: int) -> bool:
        return self.life[boot].ended_at == math.inf


def untrue(
    truth: Callable[[float], Optional[Dict[str, int]]],
    compare: Callable[[Dict[str, int]], List[str]],
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> List[str]:
    """Return what still differs when the scene has been quiet for `SLOW_S`; a shorter quiet shows only what is right.

    Args:
        truth: Faces per camera at a wall-clock second; None when that is not known.
        compare: Returns the differences from these faces; takes a while.
        clock: Wall-clock seconds.
        sleep: Waits for so many seconds.
    """
    known: Optional[Dict[str, int]] = None
    since_at = 0.0
    for _ in range(COMPARISONS):
        faces = truth(clock())
        if faces != known:
            known, since_at = faces, clock()
        if faces is not None:
            wrong = compare(faces)
            if not wrong:
                return []
            # The check takes a while; what has changed meanwhile proves nothing.
            if clock() - since_at >= SLOW_S and truth(clock()) == faces:
                return wrong
        sleep(COMPARISON_INTERVAL_S)
    return ["the scene was never quiet for long, so nothing could be compared"]


def _face_at(shown: Scene, t_s: float, box: Dict[str, float]) -> Optional[SceneFace]:
    """The visit, in absolute scene seconds, that a box at scene second `t_s` shows."""
    x, y = (box["left"] + box["right"]) / 2, (box["top"] + box["bottom"]) / 2
    began_s = math.floor(t_s / (shown.period_s or math.inf)) * (shown.period_s or 0.0)
    for face in shown.cast:
        placed = face.at(t_s - began_s)
        if placed is not None and abs(placed.x - x) < NEAR and abs(placed.y - y) < NEAR:
            return face.later(began_s)
    return None


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
