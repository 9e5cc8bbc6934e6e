"""The contract suite of outboxes. A test class inherits `OutboxContract` and implements `make`."""

import json
from typing import Any, List, Optional

import pytest

from edge_agent.core.ports import Outbox
from edge_agent.core.protocol.messages import Message
from tests.fakes.mqtt_agent import moment
from tests.fakes.schemas import validate

EVENTS = "edge-agent/lobby/door/events"


def message(
    seq: int, kind: str = "event", event_type: str = "start", size: int = 1000, camera: str = "door"
) -> Message:
    """An event or crop of roughly `size` bytes."""
    topic = f"edge-agent/lobby/{camera}/" + (f"crops/{seq}" if kind == "crop" else "events")
    return Message(
        topic, b"x" * size, kind=kind, camera=camera, seq=seq, boot=41,
        event_type=None if kind == "crop" else event_type, gap_topic=f"edge-agent/lobby/{camera}/events",
    )  # fmt: skip


def contents(outbox: Outbox, limit: int = 10_000) -> List[Any]:
    """What would be sent now: seq of events, ("crop", seq), or (of, from, to, count, reason) of gaps."""
    batch = outbox.batch(limit)
    assert [s.key for s in batch] == sorted(s.key for s in batch)
    outbox.release([stored.key for stored in batch])
    return [_short(stored.message) for stored in batch]


def _short(sent: Message) -> Any:
    if sent.kind != "gap":
        return ("crop", sent.seq) if sent.kind == "crop" else sent.seq
    gap = validate(sent.payload)
    return gap["of"], gap["from_seq"], gap["to_seq"], gap["count"], gap["reason"]


class OutboxContract:
    """Run over every implementation."""

    def make(self, max_bytes: int = 1_000_000, max_crop_bytes: int = 1_000_000) -> Outbox:
        """An empty outbox."""
        raise NotImplementedError

    def test_keeps_order_and_marks_messages_in_flight(self) -> None:
        outbox = self.make()
        outbox.put([message(1), message(2)], moment())
        outbox.put([message(3)], moment(1))
        first = outbox.batch(2)
        assert [s.message.seq for s in first] == [1, 2]
        assert [s.message.seq for s in outbox.batch(2)] == [3]
        assert outbox.batch(2) == []
        assert outbox.status().in_flight == 3 and outbox.status().pending == 3

    def test_returns_every_field_of_a_message(self) -> None:
        outbox = self.make()
        sent = Message(
            "a/b", b"\x00\xff", qos=1, kind="crop", content_type="image/jpeg", properties=(("event_id", "é"),),
            camera="door", seq=7, boot=2, gap_topic="a/events",
        )  # fmt: skip
        outbox.put([sent], moment(5.0))
        (stored,) = outbox.batch(1)
        assert stored.message == sent
        assert stored.queued_at == "2026-11-22T17:05:17.483120Z" and stored.tries == 0

    def test_deletes_only_accepted_messages(self) -> None:
        outbox = self.make()
        outbox.put([message(1), message(2), message(3)], moment())
        keys = [s.key for s in outbox.batch(3)]
        outbox.accept(keys[1])
        outbox.accept(keys[1])
        outbox.release([keys[0], keys[2]])
        assert contents(outbox) == [1, 3]
        for key in keys:
            outbox.accept(key)
        assert (outbox.status().pending, outbox.status().bytes, outbox.status().in_flight) == (0, 0, 0)

    def test_a_rejected_message_keeps_its_place(self) -> None:
        outbox = self.make()
        outbox.put([message(1), message(2), message(3)], moment())
        batch = outbox.batch(2)
        outbox.reject(batch[1].key, "connection lost", fatal=False)
        outbox.reject(batch[0].key, "connection lost", fatal=False)
        again = outbox.batch(3)
        assert [(s.message.seq, s.tries) for s in again] == [(1, 1), (2, 1), (3, 0)]

    def test_kinds_may_stay_behind_and_come_in_order_afterwards(self) -> None:
        outbox = self.make()
        for seq in range(1, 31):
            outbox.put([message(seq, "crop"), message(seq)], moment())
        first = outbox.batch(4)
        outbox.release([first[0].key, first[2].key])
        outbox.accept(first[1].key)
        shown = [s.message for s in outbox.batch(20, ("crop",))]
        assert [(s.kind, s.seq) for s in shown] == [("event", seq) for seq in range(3, 23)]
        assert [s.message.seq for s in outbox.batch(20, ("crop",))] == list(range(23, 31))
        assert outbox.batch(20, ("crop",)) == []
        rest = [s.message for s in outbox.batch(100)]
        assert [(s.kind, s.seq) for s in rest] == [("crop", seq) for seq in range(1, 31)]
        assert outbox.batch(100) == []

    @pytest.mark.parametrize("camera", ["door", None])
    def test_discarded_crops_are_dropped_and_announced(self, camera: Optional[str]) -> None:
        outbox = self.make()
        for seq in range(1, 6):
            outbox.put([message(seq, "crop"), message(seq)], moment())
        outbox.put([message(1, "crop", camera="yard"), message(1, camera="yard")], moment())
        flying = outbox.batch(3)
        outbox.discard_crops(camera)
        outbox.release([stored.key for stored in flying[:2]])
        outbox.reject(flying[2].key, "connection lost", fatal=False)
        yard = ("crop", 1) if camera else ("crops", 1, 1, 1, "disabled")
        assert contents(outbox) == [("crops", 1, 5, 5, "disabled"), 1, 2, 3, 4, 5, yard, 1]
        outbox.put([message(6, "crop"), message(6)], moment())
        assert contents(outbox)[-2:] == [("crop", 6), 6], "those of later are wanted"

    def test_the_second_rejection_quarantines_and_announces(self) -> None:
        outbox = self.make()
        outbox.put([message(1), message(2)], moment())
        for _ in range(2):
            (stored,) = outbox.batch(1)
            assert stored.message.seq == 1
            outbox.reject(stored.key, "connection lost", fatal=False)
        assert outbox.status().quarantined == 1
        assert contents(outbox) == [("events", 1, 1, 1, "quarantined"), 2]

    def test_a_fatal_rejection_quarantines_at_once_and_a_release_never(self) -> None:
        outbox = self.make()
        outbox.put([message(1)], moment())
        for _ in range(5):
            outbox.release([s.key for s in outbox.batch(1)])
        (stored,) = outbox.batch(1)
        assert stored.tries == 0
        outbox.reject(stored.key, "Topic name invalid", fatal=True)
        assert outbox.status().quarantined == 1 and outbox.status().in_flight == 0
        assert contents(outbox) == [("events", 1, 1, 1, "quarantined")]

    def test_a_rejected_gap_announces_nothing_more(self) -> None:
        outbox = self.make()
        outbox.put([message(1)], moment())
        for _ in range(2):
            outbox.reject(outbox.batch(1)[0].key, "no", fatal=True)
        assert contents(outbox) == [] and outbox.status().pending == 0

    def test_a_gap_is_sent_until_it_arrives(self) -> None:
        outbox = self.make()
        outbox.put([message(1)], moment())
        outbox.reject(outbox.batch(1)[0].key, "no", fatal=True)
        for _ in range(9):
            outbox.reject(outbox.batch(1)[0].key, "connection lost", fatal=False)
        assert contents(outbox) == [("events", 1, 1, 1, "quarantined")]

    def test_unknown_keys_are_ignored(self) -> None:
        outbox = self.make()
        outbox.accept(99)
        outbox.reject(99, "late", fatal=True)
        outbox.release([99])
        assert outbox.status().quarantined == 0

    def test_crops_go_first_then_updates_then_events(self) -> None:
        outbox = self.make(max_bytes=10_000)
        outbox.put(
            [message(1), message(2, event_type="update"), message(3, "crop"), message(3, event_type="end")], moment()
        )
        outbox.put([message(4, size=5_000)], moment())
        assert contents(outbox) == [1, 2, ("crops", 3, 3, 1, "full"), 3, 4]
        outbox.put([message(5, size=500)], moment())
        assert contents(outbox) == [1, ("events", 2, 2, 1, "full"), ("crops", 3, 3, 1, "full"), 3, 4, 5]
        outbox.put([message(6, size=2_000)], moment())
        assert contents(outbox) == [("events", 1, 3, 3, "full"), ("crops", 3, 3, 1, "full"), 4, 5, 6]
        assert outbox.status().bytes <= 10_000 and outbox.status().dropped == 4

    def test_a_long_loss_is_one_gap(self) -> None:
        outbox = self.make(max_bytes=20_000)
        for seq in range(1, 501):
            outbox.put([message(seq)], moment(seq))
        shown = contents(outbox)
        of, first, last, count, reason = shown[0]
        assert (of, first, reason) == ("events", 1, "full") and count == last
        assert shown[1:] == list(range(last + 1, 501)), "nothing is lost in the middle, nothing unannounced"
        assert outbox.status().dropped == count and outbox.status().bytes <= 20_000

    def test_lost_updates_between_kept_events_are_announced_one_by_one_then_merged(self) -> None:
        outbox = self.make(max_bytes=12_000)
        for seq in range(1, 200):
            outbox.put([message(seq, event_type="update" if seq % 2 else "start")], moment(seq))
            shown = contents(outbox)
            lost = [n for gap in shown if isinstance(gap, tuple) for n in range(gap[1], gap[2] + 1)]
            assert sorted(lost + [s for s in shown if isinstance(s, int)]) == list(range(1, seq + 1))
            assert sum(gap[3] for gap in shown if isinstance(gap, tuple)) == len(lost)
            firsts = [s[1] if isinstance(s, tuple) else s for s in shown]
            assert firsts == sorted(firsts), "gaps stand in the place of what was lost"
        assert outbox.status().bytes <= 12_000

    def test_cameras_and_boots_have_gaps_of_their_own(self) -> None:
        outbox = self.make(max_bytes=4_000)
        for seq in range(1, 11):
            outbox.put([message(seq), message(seq, camera="yard")], moment(seq))
        gaps = {}
        for stored in outbox.batch(100):
            if stored.message.kind == "gap":
                gaps[stored.message.topic] = json.loads(stored.message.payload)
        assert set(gaps) == {EVENTS, EVENTS.replace("door", "yard")}
        assert {gap["camera"] for gap in gaps.values()} == {"door", "yard"}

    def test_crops_have_a_bound_of_their_own(self) -> None:
        outbox = self.make(max_crop_bytes=3_000)
        for seq in range(1, 8):
            outbox.put([message(seq, "crop"), message(seq, event_type="end")], moment(seq))
        shown = contents(outbox)
        assert [s for s in shown if isinstance(s, int)] == list(range(1, 8)), "events stay"
        assert [s for s in shown if isinstance(s, tuple) and s[0] == "crop"] == [("crop", 6), ("crop", 7)]
        assert shown[0] == ("crops", 1, 5, 5, "full")

    def test_messages_in_flight_are_not_dropped(self) -> None:
        outbox = self.make(max_bytes=5_000)
        outbox.put([message(1), message(2)], moment())
        flying = outbox.batch(2)
        for seq in range(3, 20):
            outbox.put([message(seq)], moment())
        outbox.flush()
        assert outbox.status().in_flight == 2 and outbox.status().bytes <= 5_000
        outbox.release([stored.key for stored in flying])
        shown = contents(outbox)
        assert shown[:2] == [1, 2] and shown[2][:2] == ("events", 3)

    @pytest.mark.parametrize("seed", range(10))
    def test_every_event_is_delivered_kept_or_announced_in_a_random_run(self, seed: int) -> None:
        """Random puts, sends, acknowledgements and losses: every seq is delivered, stored or announced, in order."""
        import random

        rng = random.Random(seed)
        outbox = self.make(max_bytes=15_000, max_crop_bytes=5_000)
        seq, delivered, announced = 0, [], set()
        for _ in range(400):
            seq += 1
            parts = [message(seq, event_type=rng.choice(["start", "update", "end"]), size=rng.randint(200, 1500))]
            if rng.random() < 0.3:
                parts.insert(0, message(seq, "crop", size=rng.randint(500, 3000)))
            outbox.put(parts, moment(seq))
            sent = outbox.batch(rng.randint(0, 3))
            if rng.random() < 0.3:
                for stored in sent:
                    fatal = stored.message.kind != "gap" and rng.random() < 0.1
                    outbox.reject(stored.key, "connection lost", fatal)
                continue
            for stored in sent:
                outbox.accept(stored.key)
                delivered.append(_short(stored.message))
        while True:
            sent = outbox.batch(20)
            if not sent:
                break
            for stored in sent:
                outbox.accept(stored.key)
                delivered.append(_short(stored.message))
        for one in delivered:
            if isinstance(one, tuple) and one[0] == "events":
                announced |= set(range(one[1], one[2] + 1))
        came = [one for one in delivered if isinstance(one, int)]
        assert came == sorted(set(came))
        assert set(came) | announced == set(range(1, seq + 1)) and not set(came) & announced
        assert outbox.status().bytes == 0
