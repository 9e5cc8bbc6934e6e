"""The bounded queue of the publish thread: never blocks, counts what it drops, never loses the last report."""

import random
from datetime import datetime, timezone
from typing import Any, Dict, List, Optional

import numpy as np
import pytest

from edge_agent.core.types import (
    Box,
    CameraReport,
    Crop,
    FaceEvent,
    FrameInfo,
    LostEvents,
    Moment,
    Outcome,
    Presence,
    Quality,
    Sight,
)
from edge_agent.runtime.publish_queue import MAX_RECEIVED, PublishQueue

NOW = Moment(1.0, datetime(2026, 1, 1, tzinfo=timezone.utc))


def event(seq: int, kind: str = "start", face: Optional[int] = None, camera: str = "a") -> FaceEvent:
    info = FrameInfo(camera, seq, NOW, 640, 480)
    crop = Crop(np.zeros((8, 8), np.uint8), Box(0, 0, 1, 1), Quality(1, 1, 8, 0.5, False), info)
    return FaceEvent(
        kind, f"id{face or seq}", seq, 1, info, NOW, NOW if kind == "end" else None, Box(0, 0, 1, 1), 0.9, 0.9, "max",
        crop=crop if kind == "end" else None,
    )  # fmt: skip


def shown(publish_queue: PublishQueue) -> List[Any]:
    """In short: seq of events, (from, to) of lost ones, and the presence of each report."""
    found: List[Any] = []
    for item in publish_queue.take(0):
        if isinstance(item, LostEvents):
            found.append((item.from_seq, item.to_seq))
            continue
        found += [one.seq for one in item.events]
        if item.report:
            found.append(item.report.presence)
    return found


def report(presence: Presence, camera: str = "a") -> CameraReport:
    return CameraReport(camera, presence, Sight.OK, NOW)


def test_outcomes_and_other_items_come_out_in_order():
    publish_queue = PublishQueue()
    first, item, second = Outcome("a", (event(1),)), object(), Outcome("a", (event(2),))
    publish_queue.put_outcome(first)
    publish_queue.put(item)
    publish_queue.put_outcome(second)
    assert publish_queue.take(0) == [first, item, second]
    assert publish_queue.take(0) == []


def test_a_full_queue_drops_the_oldest_and_counts_its_events():
    publish_queue = PublishQueue(capacity=3)
    for seq in range(1, 8):
        publish_queue.put_outcome(Outcome("a", (event(seq),)))
    assert shown(publish_queue) == [(1, 4), 5, 6, 7], "and names them"
    assert publish_queue.lost_events == 4


def test_a_flood_of_one_kind_of_message_crowds_out_no_other_kind():
    publish_queue = PublishQueue()
    for number in range(MAX_RECEIVED + 10):
        publish_queue.put_received(number)
    publish_queue.put_received("echo", "own")
    assert publish_queue.take(0) == [*range(MAX_RECEIVED), "echo"] and publish_queue.lost_received == 10
    for number in range(MAX_RECEIVED + 10):
        publish_queue.put_received(number, "own")
    assert publish_queue.take(0) == list(range(MAX_RECEIVED)), "that one is bounded too"


def test_a_report_survives_until_a_newer_one_of_the_same_camera():
    publish_queue = PublishQueue(capacity=2)
    publish_queue.put_outcome(Outcome("a", (event(1),), report=report(Presence.YES)))
    publish_queue.put_outcome(Outcome("b", report=report(Presence.NO, "b")))
    for seq in range(2, 6):
        publish_queue.put_outcome(Outcome("a", (event(seq),)))
    items = publish_queue.take(0)
    outcomes = [item for item in items if isinstance(item, Outcome)]
    assert {item.report.camera for item in outcomes if item.report} == {"a", "b"}
    assert items[-1].events[0].seq == 5


def test_an_old_report_is_dropped_when_a_newer_one_waits():
    publish_queue = PublishQueue(capacity=1)
    publish_queue.put_outcome(Outcome("a", report=report(Presence.YES)))
    publish_queue.put_outcome(Outcome("a", report=report(Presence.NO)))
    assert [item.report.presence for item in publish_queue.take(0)] == [Presence.NO]


def test_the_end_of_a_visit_whose_start_was_taken_is_never_lost_but_its_crop_is():
    publish_queue = PublishQueue(capacity=2)
    publish_queue.put_outcome(Outcome("a", (event(1, face=1), event(2, face=2)), report(Presence.YES)))
    publish_queue.take(0)
    publish_queue.put_outcome(Outcome("a", (event(3, "update", 2), event(4, "end", 2), event(5, face=3))))
    publish_queue.put_outcome(Outcome("a", (event(6, "end", 1), event(7, "end", 3)), report(Presence.NO)))
    for seq in range(8, 12):
        publish_queue.put_outcome(Outcome("a", (event(seq),)))
    items = publish_queue.take(0)
    ends = [one for item in items if isinstance(item, Outcome) for one in item.events if one.event_type == "end"]
    assert [(one.seq, one.crop) for one in ends] == [(4, None), (6, None)]
    assert [item.report.presence for item in items if isinstance(item, Outcome) and item.report] == [Presence.NO]
    lost = [(item.from_seq, item.to_seq) for item in items if isinstance(item, LostEvents)]
    assert lost == [(3, 3), (5, 5), (7, 9)] and publish_queue.lost_events == 5
    publish_queue.put_outcome(Outcome("a", (event(12, "end", 1),)))
    publish_queue.put_outcome(Outcome("a", (event(13),)))
    publish_queue.put_outcome(Outcome("a", (event(14),)))
    assert shown(publish_queue) == [(12, 12), 13, 14], "nothing of it is open any more"


@pytest.mark.parametrize("seed", range(10))
def test_every_sequence_number_is_accounted_for(seed):
    """Every number is delivered or reported as lost, once and in order; every start that is taken has its end."""
    rng = random.Random(seed)
    publish_queue = PublishQueue(capacity=8)
    seqs, there = {"a": 0, "b": 0}, {"a": [], "b": []}
    received: Dict[str, List[int]] = {"a": [], "b": []}
    seen_open, truth, faces, longest = set(), {}, 0, 0

    def take() -> None:
        nonlocal longest
        items = publish_queue.take(0)
        longest = max(longest, len(items))
        for item in items:
            if isinstance(item, LostEvents):
                received[item.camera] += range(item.from_seq, item.to_seq + 1)
                continue
            for one in item.events:
                received[item.camera].append(one.seq)
                (seen_open.discard if one.event_type == "end" else seen_open.add)(one.event_id)
            if item.report:
                truth[item.camera] = item.report.presence

    for _ in range(600):
        camera = rng.choice("ab")
        events = []
        for _ in range(rng.randint(1, 3)):
            seqs[camera] += 1
            kind = rng.choice(["start", "update", "end"]) if there[camera] else "start"
            if kind == "start":
                faces += 1
                there[camera].append(faces)
            face = there[camera][-1] if kind == "start" else rng.choice(there[camera])
            if kind == "end" or len(there[camera]) > 4:
                kind = "end"
                there[camera].remove(face)
            events.append(event(seqs[camera], kind, face, camera))
        presence = Presence.YES if there[camera] else Presence.NO
        publish_queue.put_outcome(Outcome(camera, tuple(events), report(presence, camera)))
        if rng.random() < 0.05:
            take()
    take()
    assert {camera: received[camera] == list(range(1, seqs[camera] + 1)) for camera in received} == {
        "a": True,
        "b": True,
    }
    assert seen_open <= {f"id{face}" for camera in there for face in there[camera]}, "nobody stays who has gone"
    assert truth == {camera: Presence.YES if there[camera] else Presence.NO for camera in there}
    assert publish_queue.lost_events > 300 and longest < 60
