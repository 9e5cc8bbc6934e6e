"""Three-state presence: delays with and without frames, and never "no" without an observation."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.presence.state_machine import PresenceMachine, PresenceParams
from edge_agent.core.types import Presence, Sight

YES, NO, UNKNOWN = Presence.YES, Presence.NO, Presence.UNKNOWN
BLIND = [sight for sight in Sight if not sight.can_see]


def seeing(delay_on_s=0.0, delay_off_s=2.0):
    machine = PresenceMachine(PresenceParams(delay_on_s, delay_off_s))
    machine.set_sight(Sight.OK)
    return machine


def test_unknown_until_the_first_frame():
    machine = seeing()
    assert machine.state is UNKNOWN
    machine.tick(1e6)
    assert machine.state is UNKNOWN
    machine.observe(False, 1e6)
    assert machine.state is NO


def test_one_frame_is_enough_for_yes_by_default():
    machine = seeing()
    machine.observe(True, 1.0)
    assert machine.state is YES


def test_ticks_alone_turn_presence_off_delay_off_s_after_the_last_face():
    machine = seeing()
    machine.observe(True, 1.0)
    machine.observe(False, 1.5)
    machine.tick(2.999)
    assert machine.state is YES
    machine.tick(3.0)
    assert machine.state is NO


def test_a_face_that_was_in_the_last_frame_never_times_out():
    machine = seeing()
    machine.observe(True, 1.0)
    machine.tick(1000.0)
    assert machine.state is YES


def test_a_face_that_returns_within_the_delay_changes_nothing():
    machine = seeing()
    machine.observe(True, 1.0)
    machine.observe(False, 2.0)
    machine.observe(True, 2.9)
    machine.observe(False, 3.0)
    machine.tick(4.8)
    assert machine.state is YES
    machine.tick(4.9)
    assert machine.state is NO


def test_delay_on_expires_by_a_frame_that_shows_the_face():
    machine = seeing(delay_on_s=1.0)
    machine.observe(False, 0.0)
    machine.observe(True, 1.0)
    machine.observe(False, 1.9)
    assert machine.state is NO
    machine.observe(True, 2.0)
    machine.observe(True, 2.9)
    machine.tick(100.0)
    assert machine.state is NO, "a stalled camera, or a face just lost, shows no face"
    machine.observe(True, 100.0)
    assert machine.state is YES


def test_unknown_stays_unknown_while_delay_on_runs():
    machine = seeing(delay_on_s=1.0)
    machine.observe(True, 1.0)
    assert machine.state is UNKNOWN
    machine.observe(True, 2.0)
    assert machine.state is YES


def test_delay_on_does_not_apply_to_a_yes():
    machine = seeing(delay_on_s=1.0)
    machine.observe(True, 1.0)
    machine.observe(True, 2.0)
    machine.observe(False, 2.1)
    machine.observe(True, 2.2)
    assert machine.state is YES


@pytest.mark.parametrize("sight", BLIND)
def test_losing_sight_is_unknown_at_once_and_regaining_it_resets(sight):
    machine = seeing()
    machine.observe(True, 1.0)
    machine.set_sight(sight)
    assert machine.state is UNKNOWN
    machine.observe(False, 1.1)
    machine.tick(100.0)
    assert machine.state is UNKNOWN
    machine.set_sight(Sight.OK)
    machine.tick(101.0)
    assert machine.state is UNKNOWN
    machine.observe(False, 102.0)
    assert machine.state is NO, "the delay belongs to a YES, and there was none since"


def test_without_delays_presence_follows_each_frame():
    machine = seeing(delay_off_s=0.0)
    states = []
    for t, face in enumerate([True, False, True]):
        machine.observe(face, float(t))
        states.append(machine.state)
    assert states == [YES, NO, YES]


def test_changed_delays_apply_from_the_next_call():
    machine = seeing(delay_off_s=60.0)
    machine.observe(True, 0.0)
    machine.observe(False, 1.0)
    machine.params = PresenceParams(0.0, 3.0)
    machine.tick(3.0)
    assert machine.state is NO


STEPS = st.one_of(
    st.tuples(st.just("frame"), st.booleans()),
    st.tuples(st.just("tick"), st.none()),
    st.tuples(st.just("sight"), st.sampled_from(Sight)),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 8), STEPS), max_size=40),
    st.sampled_from([0, 2, 5]),
    st.sampled_from([0, 2, 9]),
)
def test_agrees_with_a_definition_over_the_whole_history(script, delay_on, delay_off):
    """The reference computes each state from the whole log (whole seconds, so sums are exact)."""
    machine = PresenceMachine(PresenceParams(float(delay_on), float(delay_off)))
    t, log, answer = 0, None, UNKNOWN
    for dt, (kind, value) in script:
        t += dt
        if kind == "sight":
            machine.set_sight(value)
            if not value.can_see:
                log, answer = None, UNKNOWN
            elif log is None:
                log, answer = [], UNKNOWN
        elif kind == "frame":
            machine.observe(value, float(t))
            if log is not None:
                log.append((t, value))
        else:
            machine.tick(float(t))
        if kind != "sight" and log:
            answer = defined(log, t, delay_on, delay_off, answer)
        assert machine.state is answer
        if log is None:
            assert machine.state is UNKNOWN


def defined(log, now, delay_on, delay_off, before):
    """`log` is what frames showed since sight was gained."""
    faces = [t for t, face in log if face]
    if log[-1][1]:
        empty = [i for i, (_, face) in enumerate(log) if not face]
        since = log[empty[-1] + 1 if empty else 0][0]
        return YES if log[-1][0] - since >= delay_on else before
    return YES if before is YES and now - faces[-1] < delay_off else NO
