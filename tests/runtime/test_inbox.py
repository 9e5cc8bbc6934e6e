"""The bounded queue to the publish thread: never blocks, counts what it drops, never loses the last truth."""

from datetime import datetime, timezone

from edge_agent.core.types import Box, CameraReport, FaceEvent, FrameInfo, Moment, Outcome, Presence, Sight
from edge_agent.runtime.inbox import MAX_REQUESTS, Inbox

NOW = Moment(1.0, datetime(2026, 1, 1, tzinfo=timezone.utc))


def event(seq: int) -> FaceEvent:
    info = FrameInfo("a", seq, NOW, 640, 480)
    return FaceEvent("start", f"id{seq}", seq, 1, info, NOW, None, Box(0, 0, 1, 1), 0.9, 0.9, "max")


def report(presence: Presence, camera: str = "a") -> CameraReport:
    return CameraReport(camera, presence, Sight.OK, NOW)


def test_outcomes_and_notices_come_out_in_order():
    inbox = Inbox()
    first, notice, second = Outcome("a", (event(1),)), object(), Outcome("a", (event(2),))
    inbox.put_outcome(first)
    inbox.put_notice(notice)
    inbox.put_outcome(second)
    assert inbox.take(0) == [first, notice, second]
    assert inbox.take(0) == []


def test_a_full_inbox_drops_the_oldest_and_counts_its_events():
    inbox = Inbox(capacity=3)
    for seq in range(1, 8):
        inbox.put_outcome(Outcome("a", (event(seq),)))
    assert [item.events[0].seq for item in inbox.take(0)] == [5, 6, 7]
    assert inbox.lost_events == 4


def test_a_flood_of_one_kind_of_requests_crowds_out_no_other():
    inbox = Inbox()
    for number in range(MAX_REQUESTS + 10):
        inbox.put_request(number)
    inbox.put_request("echo", "own")
    assert inbox.take(0) == [*range(MAX_REQUESTS), "echo"] and inbox.lost_requests == 10
    for number in range(MAX_REQUESTS + 10):
        inbox.put_request(number, "own")
    assert inbox.take(0) == list(range(MAX_REQUESTS)), "that one is bounded too"


def test_a_report_survives_until_a_newer_one_of_the_same_camera():
    inbox = Inbox(capacity=2)
    inbox.put_outcome(Outcome("a", (event(1),), report=report(Presence.YES)))
    inbox.put_outcome(Outcome("b", report=report(Presence.NO, "b")))
    for seq in range(2, 6):
        inbox.put_outcome(Outcome("a", (event(seq),)))
    items = inbox.take(0)
    assert {item.report.camera for item in items if item.report} == {"a", "b"}
    assert items[-1].events[0].seq == 5


def test_an_old_report_goes_when_a_newer_one_waits():
    inbox = Inbox(capacity=1)
    inbox.put_outcome(Outcome("a", report=report(Presence.YES)))
    inbox.put_outcome(Outcome("a", report=report(Presence.NO)))
    assert [item.report.presence for item in inbox.take(0)] == [Presence.NO]
