"""Recovery: outage of all cameras, growing memory, and the limits of restarts."""

import json

import pytest

from edge_agent.core.meters import SlopeMeter
from edge_agent.core.recovery import (
    CAMERAS,
    MB,
    MEMORY,
    MEMORY_FAULT_HOLD_S,
    MIN_INTERVAL_S,
    NVARGUS,
    WARM_UP_S,
    CameraWatch,
    MemoryWatch,
    RecoveryParams,
    RestartBudget,
)


class RecordFile:
    """Stores the record as JSON, or fails."""

    def __init__(self):
        self.text, self.works = "null", True

    def save(self, value):
        if self.works:
            self.text = json.dumps(value)
        return self.works

    def budget(self, t, kernel="k"):
        return RestartBudget(kernel, t, json.loads(self.text), self.save)


def test_limits_persist_over_restarts_of_the_process_but_not_of_the_machine():
    file = RecordFile()
    first = file.budget(1000.0)
    assert first.allows(CAMERAS, 1000.0) and first.record(CAMERAS, 1000.0)
    again = file.budget(1010.0)
    assert not again.allows(CAMERAS, 1000.0 + MIN_INTERVAL_S[CAMERAS] - 1)
    assert again.allows(CAMERAS, 1000.0 + MIN_INTERVAL_S[CAMERAS])
    assert again.allows(MEMORY, 1010.0) and again.allows(NVARGUS, 1010.0), "each kind has its own limit"
    assert again.counts == {NVARGUS: 0, CAMERAS: 1, MEMORY: 0}
    rebooted = file.budget(5.0, kernel="another")
    assert rebooted.allows(CAMERAS, 5.0) and rebooted.counts[CAMERAS] == 1


def test_a_restart_that_cannot_be_recorded_is_refused():
    file = RecordFile()
    file.works = False
    assert not file.budget(0.0).record(CAMERAS, 0.0)


@pytest.mark.parametrize(
    "kept",
    [None, [], "x", {"kernel": "k"}, {"kernel": "k", "last_t": 5, "counts": "x"},
     {"kernel": "k", "last_t": {CAMERAS: 1e300, "other": 1}, "counts": {CAMERAS: -1, MEMORY: True, NVARGUS: "1"}}],
)  # fmt: skip
def test_a_damaged_record_is_ignored(kept):
    budget = RestartBudget("k", 100.0, kept, lambda value: True)
    assert budget.counts == {NVARGUS: 0, CAMERAS: 0, MEMORY: 0}
    assert all(budget.allows(kind, 100.0 + MIN_INTERVAL_S[kind]) for kind in MIN_INTERVAL_S)


def test_an_outage_needs_all_cameras_to_fail():
    watch = CameraWatch(0.0)
    assert watch.outage_s(60.0, {"door": 0, "yard": 0}, ()) == 60.0
    for hour in range(24):
        t = 100.0 + 3600.0 * hour
        assert watch.outage_s(t, {"door": hour + 1, "yard": 0}, ()) == 0.0, "one working camera is enough"
    assert watch.outage_s(t + 10, {"door": 24, "yard": 0}, ()) == 10.0
    assert watch.outage_s(t + 20, {"door": 24, "yard": 1}, ()) == 0.0


def test_an_ended_source_is_no_outage_and_hides_none():
    watch = CameraWatch(0.0)
    assert watch.outage_s(50.0, {"film": 9}, ("film",)) == 0.0
    assert watch.outage_s(90.0, {"film": 9}, ("film",)) == 0.0
    other = CameraWatch(0.0)
    assert other.outage_s(70.0, {"film": 9, "door": 0}, ("film",)) == 70.0


PARAMS = RecoveryParams(max_rss_mb=1000, max_growth_mb=200)


def observed(watch, *phases, t=0.0):
    """Observe every 30 s; phases are (seconds, MB at the start, MB at the end). Returns (t, restart, fault)."""
    found = []
    for seconds, start_mb, end_mb in phases:
        for step in range(int(seconds // 30)):
            mb = start_mb + (end_mb - start_mb) * step / (seconds // 30)
            found.append((t, watch.observe(t, int(mb * MB)), watch.fault))
            t += 30
    return found


def restarts(found):
    return [t for t, restart, _ in found if restart]


def faults(found):
    return [t for t, _, fault in found if fault]


def test_a_leak_is_first_a_fault_and_later_a_restart():
    found = observed(MemoryWatch(PARAMS), (WARM_UP_S + 30, 300, 300), (7200, 300, 700))
    assert faults(found) and restarts(found)
    assert restarts(found)[0] - faults(found)[0] == MEMORY_FAULT_HOLD_S
    assert "grown by 20" in next(fault for _, _, fault in found if fault)


def test_a_size_reached_during_warm_up_is_a_fault_without_restart():
    found = observed(MemoryWatch(PARAMS), (4 * 3600, 1200, 1200))
    assert faults(found) and not restarts(found)
    assert "1200 MB resident, limit 1000" in found[-1][2]


def test_warm_up_is_no_growth_and_a_single_step_is_no_leak():
    assert not faults(observed(MemoryWatch(PARAMS), (WARM_UP_S, 100, 900), (7200, 900, 900)))
    found = observed(MemoryWatch(PARAMS), (WARM_UP_S + 30, 300, 300), (60, 300, 600), (9 * 3600, 600, 600))
    assert faults(found)[-1] < found[-1][0], "it does not grow any more"


def test_a_short_excess_is_reported_and_cleared():
    found = observed(MemoryWatch(PARAMS), (WARM_UP_S + 30, 850, 850), (90, 1010, 1010), (600, 850, 850))
    assert len(faults(found)) == 3 and not restarts(found) and found[-1][2] == ""


def test_without_a_memory_figure_there_is_no_restart():
    watch = MemoryWatch(PARAMS)
    assert not any(watch.observe(t, None) for t in range(0, 36000, 30)) and watch.fault == ""


def test_the_slope_does_not_depend_on_the_sampling_rate():
    for every_s in (1.0, 60.0):
        meter = SlopeMeter()
        slopes = [meter.sample(n * every_s, 1000.0 * n * every_s) for n in range(int(3600 / every_s))]
        assert slopes[0] is None and slopes[-1] == pytest.approx(1000.0 * 3600.0)
