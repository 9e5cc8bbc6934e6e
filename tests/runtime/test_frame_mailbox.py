"""The hand-over: the newest frame wins, losses of sight are delivered, cameras are served in rotation."""

import threading
from datetime import datetime, timezone

import numpy as np

from edge_agent.core.frame import Frame
from edge_agent.core.types import Moment, Sight
from edge_agent.runtime.frame_mailbox import MAX_PENDING_SIGHTS, FrameMailbox

NOW = Moment(1.0, datetime(2026, 1, 1, tzinfo=timezone.utc))


def frame(sequence: int, released=None) -> Frame:
    on_release = (lambda: released.append(sequence)) if released is not None else None
    return Frame(np.zeros((2, 2), np.uint8), sequence, float(sequence), on_release=on_release)


def test_newest_frame_wins_and_the_displaced_one_is_released_and_counted():
    mailbox, released = FrameMailbox(["a"]), []
    for sequence in (1, 2, 3):
        mailbox.put("a", frame(sequence, released))
    delivery = mailbox.take(0)
    assert delivery.frame.sequence == 3
    assert released == [1, 2]
    assert mailbox.counters("a") == {"inferred": 1, "idle": 0, "dropped_busy": 2}
    assert mailbox.take(0) is None


def test_a_loss_is_delivered_even_when_sight_came_back_before_it_was_taken():
    mailbox, released = FrameMailbox(["a"]), []
    mailbox.set_sight("a", Sight.OK, NOW)
    mailbox.put("a", frame(1, released))
    mailbox.set_sight("a", Sight.LOST, NOW)
    assert released == [1], "a frame from before the loss must not be delivered after it"
    mailbox.set_sight("a", Sight.OK, NOW)
    mailbox.put("a", frame(2))
    delivery = mailbox.take(0)
    assert [sight for sight, _ in delivery.sights] == [Sight.OK, Sight.LOST, Sight.OK]
    assert delivery.frame.sequence == 2


def test_the_same_sight_is_delivered_once_and_pending_changes_are_bounded():
    mailbox = FrameMailbox(["a"])
    assert mailbox.set_sight("a", Sight.DARK, NOW) is True
    assert mailbox.set_sight("a", Sight.DARK, NOW) is False
    for _ in range(100):
        mailbox.set_sight("a", Sight.OK, NOW)
        mailbox.set_sight("a", Sight.LOST, NOW)
    sights = [sight for sight, _ in mailbox.take(0).sights]
    assert len(sights) == MAX_PENDING_SIGHTS
    assert sights[-1] is Sight.LOST is mailbox.sights()["a"]


def test_the_least_recently_served_camera_goes_first():
    mailbox, order = FrameMailbox(["a", "b", "c"]), []
    for turn in range(9):
        for camera in "abc":
            mailbox.put(camera, frame(turn))
        order.append(mailbox.take(0).camera)
    assert {tuple(sorted(order[i : i + 3])) for i in (0, 3, 6)} == {("a", "b", "c")}


def test_take_wakes_on_a_put_from_another_thread_and_else_times_out():
    mailbox = FrameMailbox(["a"])
    assert mailbox.take(0.01) is None
    threading.Timer(0.02, mailbox.put, ("a", frame(7))).start()
    assert mailbox.take(10).frame.sequence == 7


def test_close_releases_frames_that_were_not_taken():
    mailbox, released = FrameMailbox(["a", "b"]), []
    mailbox.put("a", frame(1, released))
    mailbox.close()
    mailbox.close()
    assert released == [1]
    assert mailbox.counters("a") == {"inferred": 0, "idle": 0, "dropped_busy": 1}


def test_every_frame_is_either_inferred_or_dropped_under_contention():
    cameras, each = ["a", "b", "c"], 2000
    mailbox, released = FrameMailbox(cameras), []
    done = threading.Event()

    def capture(camera: str) -> None:
        for sequence in range(each):
            mailbox.put(camera, frame(sequence, released))

    def infer() -> None:
        while not done.is_set():
            delivery = mailbox.take(0.01)
            if delivery is not None:
                delivery.frame.release()

    threads = [threading.Thread(target=capture, args=(camera,)) for camera in cameras]
    consumer = threading.Thread(target=infer)
    for thread in (*threads, consumer):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    consumer.join()
    mailbox.close()
    assert len(released) == each * len(cameras)
    assert sum(sum(mailbox.counters(camera).values()) for camera in cameras) == each * len(cameras)


def test_a_change_of_sight_that_was_not_taken_keeps_the_camera_in_doubt():
    mailbox = FrameMailbox(["a"])
    mailbox.set_doubt("a", True)
    mailbox.set_sight("a", Sight.DARK, NOW)
    mailbox.set_doubt("a", False)
    assert mailbox.in_doubt("a"), "between the proof and its delivery the taker still believes that it can see"
    assert mailbox.take(0).frame is None
    assert not mailbox.in_doubt("a")
    assert mailbox.counters("a")["inferred"] == 0, "no frame came with it"
