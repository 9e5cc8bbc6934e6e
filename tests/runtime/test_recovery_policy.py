"""Decisions to restart, on injected time, memory and cameras."""

import random
from types import SimpleNamespace

from edge_agent.core.recovery import CAMERAS, MB, MEMORY, NVARGUS, RecoveryParams, RestartBudget
from edge_agent.runtime.supervisor import SPREAD, RecoveryPolicy

HOUR_S = 3600.0


class Rig:
    """A policy on cameras whose frames are counted by hand. The record survives `restart`."""

    def __init__(self, cameras=("door",), nvargus=None, supervised=True, rss_mb=100.0, seed=1, **params):
        self.params, self.supervised, self.nvargus = RecoveryParams(**params), supervised, nvargus
        self.record, self.disk_works, self.t, self.rss_mb, self.seed = None, True, 50.0, rss_mb, seed
        self.names = cameras
        self.restart()

    def restart(self):
        self.captures = {name: SimpleNamespace(counters=SimpleNamespace(frames=0), ended=False) for name in self.names}
        self.policy = RecoveryPolicy(
            self.params, RestartBudget("k", self.t, self.record, self._save), self.captures,
            lambda: int(self.rss_mb * MB), self.nvargus, self.supervised, self.t, random.Random(self.seed),
        )  # fmt: skip

    def _save(self, value):
        self.record = value if self.disk_works else self.record
        return self.disk_works

    def run(self, seconds, delivering=(), every_s=10.0):
        """Call the policy; returns the first reason to restart and the seconds until then, or None."""
        began_t = self.t
        while self.t < began_t + seconds:
            self.t += every_s
            for name in delivering:
                self.captures[name].counters.frames += 1
            reason = self.policy(self.t)
            if reason:
                return reason, self.t - began_t
        return None


def test_no_camera_for_long_is_a_restart_once_an_hour_at_most():
    rig = Rig(camera_restart_after_s=1800)
    stops = []
    for _ in range(6):
        reason, _ = rig.run(9 * HOUR_S)
        assert "no camera has delivered" in reason
        assert rig.policy.faults == [f"restarting: {reason}"]
        stops.append(rig.t)
        rig.restart()
    gaps = [after - before for before, after in zip(stops, stops[1:])]
    assert all(HOUR_S <= gap <= HOUR_S + 10 for gap in gaps), gaps
    assert 1800 <= stops[0] - 50 <= 1800 * (1 + SPREAD) + 10
    assert rig.policy.counts[CAMERAS] == 6


def test_agents_that_lose_their_cameras_together_do_not_restart_together():
    assert len({Rig(camera_restart_after_s=1800, seed=seed).run(HOUR_S, every_s=1.0)[1] for seed in range(8)}) > 4


def test_an_overnight_outage_of_one_of_two_is_no_restart():
    assert Rig(cameras=("door", "yard")).run(12 * HOUR_S, delivering=("yard",)) is None


def test_ten_minutes_without_a_camera_are_no_restart():
    assert Rig().run(600) is None


def test_sources_that_have_ended_are_no_restart():
    rig = Rig()
    rig.captures["door"].ended = True
    assert rig.run(12 * HOUR_S) is None


def test_zero_disables_restarts_and_so_does_the_lack_of_a_service_manager():
    assert Rig(camera_restart_after_s=0).run(12 * HOUR_S) is None
    assert Rig(supervised=False).run(12 * HOUR_S) is None


def test_a_restart_that_cannot_be_recorded_is_not_taken():
    rig = Rig()
    rig.disk_works = False
    assert rig.run(12 * HOUR_S) is None
    asked = []
    rig = Rig(nvargus=lambda: asked.append(rig.t) or True)
    rig.disk_works = False
    assert rig.run(12 * HOUR_S) is None and not asked and set(rig.policy.counts.values()) == {0}


def test_nvargus_is_restarted_first_and_once_an_hour():
    asked = []
    rig = Rig(nvargus=lambda: asked.append(rig.t) or True, nvargus_after_s=600, camera_restart_after_s=1800)
    rig.run(9 * HOUR_S)
    assert len(asked) == 1 and 600 <= asked[0] - 50 < 800 < rig.t - 50
    assert rig.policy.counts == {NVARGUS: 1, CAMERAS: 1, MEMORY: 0}
    rig.restart()
    rig.run(HOUR_S / 3)
    assert len(asked) == 1, "the limit holds over the restart"


def test_a_request_that_fails_is_not_counted_and_retried():
    tries = []
    rig = Rig(nvargus=lambda: tries.append(rig.t) and False, nvargus_after_s=60, camera_restart_after_s=0)
    rig.run(660, every_s=1.0)
    assert rig.policy.counts[NVARGUS] == 0
    assert 10 <= len(tries) <= 20


def test_memory_is_a_fault_first_then_a_restart_and_that_every_six_hours_at_most():
    rig = Rig(max_rss_mb=1000, max_growth_mb=200, camera_restart_after_s=0)
    assert rig.run(1.1 * HOUR_S) is None
    rig.rss_mb = 1100
    assert rig.run(60) is None and "1100 MB resident" in rig.policy.faults[0]
    reason, _ = rig.run(HOUR_S)
    assert "1100 MB" in reason and rig.policy.counts[MEMORY] == 1
    rig.rss_mb = 100
    rig.restart()
    assert rig.run(1.1 * HOUR_S) is None
    rig.rss_mb = 1100
    _, took_s = rig.run(9 * HOUR_S)
    assert 4.8 * HOUR_S < took_s < 5 * HOUR_S
