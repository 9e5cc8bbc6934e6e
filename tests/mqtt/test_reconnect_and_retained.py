"""Reconnecting and retained state, on a clock that the test moves."""

import random
from typing import List

import pytest

from edge_agent.core.protocol.messages import Message
from edge_agent.mqtt.reconnect import Backoff, FlapDetector, ProtocolFallback, SessionResult
from edge_agent.mqtt.retained import Rank, RetainedState

DOWN = SessionResult("connection refused")
SILENT = SessionResult("silent", answered=False)


@pytest.mark.parametrize(("failures", "bound"), [(0, 1.0), (1, 2.0), (3, 8.0), (5, 32.0), (6, 60.0), (500, 60.0)])
def test_delays_fill_the_whole_range_evenly(failures: int, bound: float) -> None:
    """Full jitter: quarters of the range are hit equally often, within four sigma."""
    rng = random.Random(7)
    delays = []
    for _ in range(4000):
        backoff = Backoff(rng)
        backoff._failures = failures
        delays.append(backoff.after(DOWN))
    assert min(delays) >= 0.0 and max(delays) <= bound
    for quarter in range(4):
        hits = sum(bound * quarter / 4 <= delay < bound * (quarter + 1) / 4 for delay in delays)
        assert abs(hits - 1000) < 4 * (4000 * 0.25 * 0.75) ** 0.5


def test_bounds_double_and_a_stable_session_resets_them() -> None:
    class Most(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    backoff = Backoff(Most())
    assert [backoff.after(DOWN) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff.after(SessionResult("lost", connected=True, lasted_s=59.0)) == 60
    assert backoff.after(SessionResult("lost", connected=True, lasted_s=61.0)) == 1


def test_refused_credentials_wait_one_to_five_minutes() -> None:
    backoff = Backoff(random.Random(3))
    delays = [backoff.after(SessionResult("refused", needs_operator=True)) for _ in range(500)]
    assert 60.0 <= min(delays) < 75.0 and 285.0 < max(delays) <= 300.0


def versions(setting: str, results: List[SessionResult]) -> List[str]:
    fallback = ProtocolFallback(setting)
    spoken = []
    for result in results:
        fallback.ended(result)
        spoken.append(fallback.version)
    return spoken


def test_the_version_falls_back_after_a_refusal_or_two_silences() -> None:
    unsupported = SessionResult("unsupported", unsupported=True)
    lost = SessionResult("lost", connected=True)
    assert versions("5", [DOWN, unsupported, lost, SILENT, SILENT]) == ["5"] + ["3.1.1"] * 4
    assert versions("5", [SILENT, SILENT, SILENT, SILENT]) == ["5", "3.1.1", "3.1.1", "5"]
    assert versions("5", [SILENT, DOWN, SILENT, lost, SILENT]) == ["5"] * 5
    assert versions("5", [SILENT, SILENT, lost]) == ["5", "3.1.1", "5"]
    assert versions("3.1.1", [SILENT, SILENT, lost, unsupported]) == ["3.1.1"] * 4


def test_more_than_three_losses_in_a_minute_are_flapping() -> None:
    detector = FlapDetector()
    assert [detector.lost(t) for t in (0, 10, 20, 30, 95, 96, 97, 98)] == [False] * 3 + [True] + [False] * 3 + [True]


def message(topic: str, payload: bytes) -> Message:
    return Message(topic, payload, retain=True)


def due(state: RetainedState, t: float = 0.0) -> List[bytes]:
    sent = []
    for message in state.due(t):
        state.sent(message.topic, t)
        sent.append(message.payload)
    return sent


def test_state_is_sent_in_rank_order_and_again_at_every_connect() -> None:
    state = RetainedState()
    state.set(message("online", b"5"), Rank.ONLINE)
    state.set(message("presence", b"3"), Rank.PRESENCE)
    state.set(message("camera", b"2"), Rank.AVAILABILITY)
    state.set(message("info", b"1"), Rank.INFO)
    state.set(message("config", b"4"), Rank.DISCOVERY)
    for _ in range(2):
        state.connected()
        assert due(state) == [b"1", b"2", b"3", b"4", b"5"]
        assert due(state) == [] and not state.acknowledged


def test_only_the_newest_value_is_ever_sent() -> None:
    state = RetainedState()
    for payload in (b"ON", b"OFF", b"ON", b"None"):
        state.set(message("p", payload), Rank.PRESENCE)
    assert due(state) == [b"None"]
    state.set(message("p", b"ON"), Rank.PRESENCE)
    state.set(message("p", b"OFF"), Rank.PRESENCE)
    assert due(state) == [], "one at a time per topic"
    state.accepted("p")
    assert due(state) == [b"OFF"]
    state.accepted("p")
    state.set(message("p", b"OFF"), Rank.PRESENCE)
    assert due(state) == [] and state.acknowledged, "the same value is not sent again"


def test_a_rate_limited_topic_waits_and_then_sends_the_newest_value() -> None:
    state = RetainedState()
    state.set(message("n", b"0"), Rank.PRESENCE)
    assert due(state, 10.0) == [b"0"]
    state.accepted("n")
    for count in (b"1", b"2", b"3"):
        state.set(message("n", count), Rank.PRESENCE, 1.0)
    assert due(state, 10.9) == []
    assert due(state, 11.0) == [b"3"]
    state.accepted("n")
    state.set(message("n", b"4"), Rank.PRESENCE, 1.0)
    state.set(message("n", b"None"), Rank.PRESENCE)
    assert due(state, 11.1) == [b"None"], "a change of presence is not rate-limited"


def test_a_refused_topic_is_tried_again_later_even_when_it_changes() -> None:
    state = RetainedState()
    state.set(message("p", b"ON"), Rank.PRESENCE)
    due(state)
    state.refused("p", 60.0)
    state.set(message("p", b"OFF"), Rank.PRESENCE)
    assert due(state, 59.0) == [] and due(state, 60.0) == [b"OFF"]
