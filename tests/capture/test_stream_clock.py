"""Lag of a live stream, from its own timestamps."""

from edge_agent.capture.stream_clock import StreamClock


def test_a_stream_that_keeps_up_has_no_lag() -> None:
    clock = StreamClock()
    assert [clock.lag_s(i / 15, 100 + i / 15) for i in range(30)] == [0.0] * 30


def test_a_backlog_is_lag_and_shrinks_as_it_is_worked_off() -> None:
    clock = StreamClock()
    clock.lag_s(0.0, 100.0)
    lags = [clock.lag_s(i * 0.1, 100.0 + i * 0.18) for i in range(1, 51)]
    assert 3.9 < lags[-1] <= 4.0
    lags = [clock.lag_s(5.0 + i * 0.1, 109.0) for i in range(1, 41)]
    assert 0.0 <= lags[-1] < 0.02


def test_frames_read_while_probing_are_old_until_the_stream_is_caught_up() -> None:
    clock = StreamClock()
    probed = [clock.lag_s(i * 0.1, 101.0) for i in range(10)]
    assert probed == [0.0] * 10, "their arrival is all that is known; each later one is nearer to the truth"
    assert clock.lag_s(1.0, 101.0) == 0.0
    assert clock.lag_s(1.5, 103.0) > 1.4


def test_clocks_that_drift_apart_are_no_lag_and_a_new_time_base_is_none() -> None:
    clock = StreamClock()
    for i in range(20000):
        assert clock.lag_s(i * 0.1, 100 + i * 0.1 * 1.0002) < 0.01
    assert clock.lag_s(5.0, 9000.0) == 0.0, "the timestamps started again"
    assert clock.lag_s(5.1, 9000.1) < 0.01
    assert clock.lag_s(None, 9100.0) == 0.0
