"""Limits of the root helper, on unreliable clocks."""

import os
import subprocess

import pytest

from tests.system.systemd.test_unit_files import UNITS

DAY_S = 86_400
STAMP = 1_700_000_000


@pytest.fixture
def reboots(tmp_path):
    """Calls the helper for a failed unit; returns whether it has the machine rebooted."""
    programs, settings, state = (tmp_path / name for name in ("bin", "settings", "state"))
    for folder in (programs, settings, state):
        folder.mkdir()
    (settings / "allow-reboot").touch()

    def call(clock, uptime_s, status=1):
        answers = {
            "systemctl": f'echo "$@" >>{tmp_path}/asked; case "$*" in *ExecMainStatus*) echo {status} ;; esac',
            "date": f"echo {clock}",
            "cut": f"echo {uptime_s}",
            "sync": ":",
        }
        for name, answer in answers.items():
            (programs / name).write_text(f"#!/bin/sh\n{answer}\n")
            (programs / name).chmod(0o755)
        (tmp_path / "asked").write_text("")
        environ = {"PATH": f"{programs}:{os.environ['PATH']}", "STATE_DIRECTORY": str(state)}
        command = ["sh", str(UNITS / "recovery"), "failed", "edge-agent.service"]
        subprocess.run(command, env={**environ, "CONFIGURATION_DIRECTORY": str(settings)}, check=True, timeout=10)
        return "reboot" in (tmp_path / "asked").read_text()

    call.settings, call.stamp = settings, state / "reboot"
    return call


@pytest.mark.parametrize(
    ("clock", "uptime_s", "yes"),
    [
        (STAMP + 600, 300, False),
        (STAMP + DAY_S - 1, 9 * DAY_S, False),
        (STAMP + DAY_S, 300, True),
        (STAMP - 600, 300, False),  # a board without a clock of its own, whose time starts again at the reboot
        (STAMP - 600, DAY_S, True),  # a stamp of a wrong clock must not forbid it for ever
    ],
)
def test_it_reboots_once_a_day_at_most_whatever_the_clock_says(reboots, clock, uptime_s, yes):
    reboots.stamp.touch()
    os.utime(reboots.stamp, (STAMP, STAMP))
    assert reboots(clock, uptime_s) is yes
    assert (reboots.stamp.stat().st_mtime > STAMP) is yes, "and remembers it"


def test_it_reboots_only_where_enabled_and_useful(reboots):
    assert reboots(STAMP, 300)
    reboots.stamp.unlink()
    assert not reboots(STAMP, 300, status=78), "settings do not change by a reboot"
    (reboots.settings / "allow-reboot").unlink()
    assert not reboots(STAMP, 300)
