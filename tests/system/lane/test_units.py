"""The units under a real systemd: starts, restarts and reloads."""

import json
import os
import time

import pytest

from edge_agent.host.journal import MESSAGE_IDS
from tests.system.lane.conftest import Lane, unit

REFUSED = "settings refused"
QUIET_S = float(os.environ.get("LANE_QUIET_S", "0"))
"""At least so long; all tests together take a minute or two."""
FROZEN = {
    "capture": ("test://one?fps=10&hang=3", {}),
    "infer": ("test://one?fps=10", {"MODEL__MODEL": "scripted?hang_after=20"}),
    "publish": ("test://one?fps=10", {}),
}


@pytest.fixture(scope="module", autouse=True)
def quiet(lane: Lane):
    """An agent without camera and broker, that runs beside all tests of this file and must never be restarted."""
    began_t = time.monotonic()
    lane.start("quiet", {"MQTT__PORT": 1, "CAMERAS__YARD__URI": "v4l2:/dev/video8"}, "v4l2:/dev/video9")
    yield
    time.sleep(max(0.0, began_t + QUIET_S - time.monotonic()))
    assert lane.restarts("quiet") == 0
    assert lane.machine.show(unit("quiet"), "ActiveState") == "active"
    lane.machine.run("systemctl", "stop", unit("quiet"))


def test_verify_reports_nothing_and_little_is_exposed(lane: Lane):
    units = ["edge-agent.service", unit("x"), "edge-agent-reload.path", "edge-agent-reload@x.path"]
    units += ["edge-agent-failed@x.service", "edge-agent-nvargus.path", "edge-agent-nvargus.service"]
    assert lane.machine.run("sh", "-c", 'systemd-analyze verify "$@" 2>&1', "sh", *units) == ""
    assert lane.machine.code("systemd-analyze", "security", "--threshold=25", unit("quiet")) == 0


def test_it_starts_without_camera_and_broker_and_reports_it(lane: Lane):
    assert lane.machine.show(unit("quiet"), "ActiveState") == "active", "start returned, so it is ready"
    for word in ("2 cameras", "cannot see", "/dev/video9", "/dev/video8", "not connected"):
        assert word in lane.status("quiet")


def test_it_runs_as_its_own_user_and_keeps_its_state_to_itself(lane: Lane):
    assert lane.machine.run("stat", "-c", "%U %a", "/var/lib/edge-agent/quiet") == "edge-agent 700"
    uid = lane.machine.run("id", "-u", "edge-agent")
    status = lane.machine.run("cat", f"/proc/{lane.pid('quiet')}/status").splitlines()
    assert next(line for line in status if line.startswith("Uid:")).split()[1:] == [uid] * 4
    assert "CapEff:\t0000000000000000" in status


def test_the_password_comes_as_a_credential_and_the_journal_has_fields(lane: Lane):
    lane.start("happy")
    lane.machine.eventually(lambda: "; broker connected" in lane.status("happy"), "logged in")
    assert lane.machine.run("stat", "-c", "%U %a", "/etc/edge-agent/mqtt-password") == "root 600"
    lane.machine.eventually(lambda: "1 with a face" in lane.status("happy"), "presence is in the status")
    entries = lane.machine.run("journalctl", "-u", unit("happy"), "CAMERA_ID=door", "-o", "json", "--no-pager")
    entry = json.loads(entries.splitlines()[0])
    assert entry["THREAD_NAME"] == "capture-door" and entry["SYSLOG_IDENTIFIER"] == "edge-agent"
    assert int(entry["PRIORITY"]) == 6
    query = ("journalctl", "-u", unit("happy"), "-o", "json", "--no-pager")
    ready = [json.loads(line) for line in lane.machine.run(*query, f"MESSAGE_ID={MESSAGE_IDS['ready']}").splitlines()]
    assert [entry["EVENT"] for entry in ready] == ["ready"]
    seen = json.loads(lane.machine.run(*query, "EVENT=sight-changed").splitlines()[0])
    assert (seen["CAMERA_ID"], seen["MESSAGE_ID"]) == ("door", MESSAGE_IDS["sight-changed"])


def test_check_by_root_is_as_the_service_and_knows_its_unit_and_settings(lane: Lane):
    lane.settings("checked")
    lane.machine.run("sed", "-i", "/_NODE=/d", "/etc/edge-agent/checked.env")
    agent, env_file = "/opt/edge-agent/current/bin/edge-agent", "/etc/edge-agent/checked.env"

    def findings(*by: str) -> dict:
        output = lane.machine.run(*by, agent, "check", "--json", "--env-file", env_file, check=False)
        return {finding["name"]: finding for finding in json.loads(output)["findings"]}

    found = findings()
    assert "-checked, cameras door" in found["settings"]["found"], "no instance shares the host's topics with another"
    assert found["checked as"]["found"] == f"edge-agent, with the folders and the password of {unit('checked')}"
    for name in ("broker", "state folder", "engine", "env file"):
        assert found[name]["state"] == "ok", found[name]
    assert found["state folder"]["found"] == "/var/lib/edge-agent/checked"
    owners = lane.machine.run("stat", "-c", "%U %a", "/var/lib/edge-agent/checked", "/var/cache/edge-agent/checked")
    assert owners.splitlines() == ["edge-agent 700"] * 2
    assert lane.machine.run("sh", "-c", "ls -d /tmp/edge-agent-*", check=False) == "", "the password's copy has gone"
    by_user = findings("runuser", "-u", "edge-agent", "--")
    assert by_user["checked as"]["remedy"] == f"sudo edge-agent check --env-file {env_file}"
    output = lane.machine.run("env", "HOME=/root", agent, "check", check=False)
    assert "sudo edge-agent check --env-file /etc/edge-agent/edge-agent.env" in output, "no settings file was named"

    lane.machine.run("systemctl", "start", unit("checked"))
    found = findings()
    assert found["unit"]["found"] == f"{unit('checked')} is active and disabled", found["unit"]
    assert found["unit"]["remedy"] == f"sudo systemctl enable --now {unit('checked')}"
    lane.machine.run("systemctl", "enable", unit("checked"))
    lane.machine.run("chmod", "600", env_file)
    found = findings()
    assert found["unit"]["state"] == "ok" and found["env file"]["state"] == "fail"
    lane.machine.run("systemctl", "disable", "--now", unit("checked"))


def test_without_a_password_file_it_starts_and_has_none(lane: Lane):
    lane.drop_in("bare", "[Service]\nLoadCredential=\nLoadCredential=mqtt-password:/etc/edge-agent/no-such-file\n")
    lane.start("bare")
    lane.machine.eventually(lambda: "not connected" in lane.status("bare"), "it runs")
    lane.wait_for_log("bare", "authori")
    lane.machine.run("systemctl", "stop", unit("bare"))


def test_killed_it_is_started_again_and_stopped_it_stays_stopped(lane: Lane):
    lane.start("killed")
    before = lane.pid("killed")
    lane.machine.run("systemctl", "kill", "-s", "KILL", unit("killed"))
    lane.machine.eventually(
        lambda: lane.pid("killed") not in ("0", before) and lane.machine.show(unit("killed"), "SubState") == "running",
        "it runs again",
    )
    assert lane.restarts("killed") == 1
    lane.machine.run("systemctl", "stop", unit("killed"))
    assert lane.machine.show(unit("killed"), "Result") == "success"
    assert "stopped in" in lane.machine.journal(unit("killed"))


def test_a_crash_loop_ends_and_starts_the_on_failure_unit(lane: Lane):
    lane.drop_in("crash", "[Unit]\nStartLimitBurst=3\n[Service]\nRestartSec=100ms\n")
    lane.machine.write("/etc/edge-agent/allow-reboot", "")
    lane.machine.write("/var/lib/edge-agent-recovery/reboot", "")
    lane.start("crash")

    def crashed() -> bool:
        lane.machine.run("systemctl", "kill", "-s", "KILL", unit("crash"), check=False)
        return lane.machine.show(unit("crash"), "ActiveState") == "failed"

    lane.machine.eventually(crashed, "systemd gives up")
    assert lane.restarts("crash") == 3
    failed = f"edge-agent-failed@{unit('crash')}.service"
    lane.machine.eventually(lambda: "not rebooting" in lane.machine.journal(failed), "OnFailure has run")
    assert "has given up" in lane.machine.journal(failed)
    lane.machine.run("rm", "/etc/edge-agent/allow-reboot")
    lane.settings("crash", {"PRESENCE__DELAY_OFF_S": 3})
    lane.machine.eventually(lambda: lane.machine.show(unit("crash"), "SubState") == "running", "an edit revives it")
    lane.machine.run("systemctl", "stop", unit("crash"))


def test_settings_that_cannot_be_used_are_not_retried_until_they_are_edited(lane: Lane):
    lane.settings("wrong", {"PRESENCE__DELAY_OF_S": 3})
    assert lane.machine.code("systemctl", "start", unit("wrong")) != 0
    assert lane.machine.show(unit("wrong"), "ExecMainStatus") == "78"
    assert lane.restarts("wrong") == 0
    assert "PRESENCE__DELAY_OFF_S" in lane.machine.journal(unit("wrong")), "the message names the setting"
    failed = f"edge-agent-failed@{unit('wrong')}.service"
    lane.machine.eventually(lambda: "when they are edited" in lane.machine.journal(failed), "OnFailure has run")
    lane.settings("wrong", {"PRESENCE__DELAY_OFF_S": 3})
    lane.machine.eventually(lambda: lane.machine.show(unit("wrong"), "SubState") == "running", "the edit starts it")
    lane.machine.run("systemctl", "stop", unit("wrong"))


def test_reload_by_signal_by_systemctl_and_by_an_edit_of_that_instance_only(lane: Lane):
    lane.start("one")
    lane.start("other")
    pids = lane.pid("one"), lane.pid("other")
    taken = "settings read again"

    lane.machine.run("systemctl", "kill", "-s", "HUP", "--kill-who=main", unit("one"))
    lane.wait_for_log("one", f"{taken}: nothing has changed")
    lane.machine.run("systemctl", "reload", unit("one"))
    lane.wait_for_log("one", f"{taken}: nothing has changed", times=2)

    lane.settings("one", {"PRESENCE__DELAY_OFF_S": 7})
    lane.wait_for_log("one", f"{taken}: EDGE_AGENT_PRESENCE__DELAY_OFF_S")
    text = lane.machine.run("sed", "s/_OFF_S=.*/_OFF_S=8/", "/etc/edge-agent/one.env")
    lane.machine.write("/etc/edge-agent/.one.env.new", f"{text}\n")
    lane.machine.run("mv", "/etc/edge-agent/.one.env.new", "/etc/edge-agent/one.env")
    lane.wait_for_log("one", f"{taken}: EDGE_AGENT_PRESENCE__DELAY_OFF_S", times=2)

    assert taken not in lane.machine.journal(unit("other"))
    assert (lane.pid("one"), lane.pid("other")) == pids
    assert lane.restarts("one") == lane.restarts("other") == 0
    assert lane.machine.show(unit("one"), "ActiveState") == "active", "READY has ended the reload"

    def published() -> int:
        return json.loads(lane.retained("edge-agent/one/door/presence/attributes"))["parameters"]["delay_off_s"]

    lane.machine.eventually(lambda: published() == 8, "the parameters of presence are published")


def test_a_broken_env_file_changes_nothing_but_health(lane: Lane):
    lane.start("broken")
    pid = lane.pid("broken")
    lane.settings("broken", {"PRESENCE__DELAY_OFF_S": "soon"})
    lane.wait_for_log("broken", REFUSED)
    assert lane.pid("broken") == pid

    def reasons() -> str:
        return " ".join(json.loads(lane.retained("edge-agent/broken/health"))["reasons"])

    lane.machine.eventually(lambda: REFUSED in reasons(), "health reports it")
    assert "DELAY_OFF_S" in reasons()
    assert lane.machine.show(unit("broken"), "ActiveState") == "active"
    lane.settings("broken", {"PRESENCE__DELAY_OFF_S": 4})
    lane.machine.eventually(lambda: REFUSED not in reasons(), "all is well again")
    assert lane.pid("broken") == pid

    lane.settings("broken", {"CAMERAS__DOOR__ROTATE": 90})
    lane.wait_for_log("broken", "new settings need a restart: EDGE_AGENT_CAMERAS__DOOR__ROTATE")
    lane.machine.eventually(lambda: lane.pid("broken") not in ("0", pid), "systemd starts it again")


def test_a_thread_that_never_returns_ends_in_a_watchdog_restart(lane: Lane):
    """All three at once, since each takes a step's deadline and the watchdog's time."""
    for name, (camera, more) in FROZEN.items():
        lane.drop_in(name, "[Service]\nWatchdogSec=10\n")
        lane.start(name, more, camera)
    # The publish thread reads the settings again; reading this never returns, as with a network folder that hangs.
    file = "/etc/edge-agent/publish.env"
    lane.machine.run("sh", "-c", f"rm {file} && mkfifo {file} && chmod 644 {file}")
    lane.machine.run("systemctl", "kill", "-s", "HUP", "--kill-who=main", unit("publish"))
    for name in FROZEN:
        lane.machine.eventually(lambda name=name: lane.restarts(name) >= 1, f"{name}: the watchdog has acted")
        output, thread = lane.machine.journal(unit(name)), "capture-door" if name == "capture" else name
        assert "Watchdog timeout" in output and f"{thread} does not return" not in output, "that is the status line's"
        assert f"{thread} has not returned from its step" in output
        assert ("a call to the camera does not return" in output) is (name == "capture"), "the camera is lost"
        assert "Current thread" in output or "Thread 0x" in output, "and the stack of every thread"
    # Its successor waits for the other end of the pipe.
    lane.settings("publish")
    lane.machine.run("rm", file)
    lane.machine.run("systemctl", "stop", *map(unit, FROZEN))


def test_nvargus_is_restarted_on_request_and_not_too_often(lane: Lane):
    lane.machine.write(
        "/etc/systemd/system/nvargus-daemon.service", "[Service]\nExecStart=/bin/sleep infinity\nTimeoutStopSec=1\n"
    )
    lane.machine.run("systemctl", "daemon-reload")
    lane.machine.run("systemctl", "start", "nvargus-daemon", "edge-agent-nvargus.path")
    first = lane.machine.show("nvargus-daemon", "MainPID")
    request = "/run/edge-agent-requests/restart-nvargus"
    lane.machine.run("runuser", "-u", "edge-agent", "--", "touch", request)
    lane.machine.eventually(lambda: lane.machine.show("nvargus-daemon", "MainPID") not in ("0", first), "restarted")
    second = lane.machine.show("nvargus-daemon", "MainPID")
    lane.machine.eventually(lambda: lane.machine.code("test", "-e", request) == 1, "the request is gone")
    lane.machine.run("touch", request)
    lane.machine.eventually(lambda: "not again" in lane.machine.journal("edge-agent-nvargus"), "refused")
    assert lane.machine.show("nvargus-daemon", "MainPID") == second


def test_the_drop_in_of_jetpack_7_makes_reload_wait(lane: Lane):
    version = int(lane.machine.run("systemctl", "--version").split()[1])
    if version < 254:
        pytest.skip(f"needs systemd 254, the machine has {version}: SUITE=trixie scripts/systemd-lane")
    folder = f"/etc/systemd/system/{unit('seven')}.d"
    lane.machine.run("mkdir", "-p", folder)
    lane.machine.run("cp", "/opt/edge-agent/source/systemd/drop-ins/jetpack7.conf", folder)
    lane.machine.run("systemctl", "daemon-reload")
    assert lane.machine.run("sh", "-c", f"systemd-analyze verify {unit('seven')} 2>&1") == ""
    lane.start("seven")
    assert lane.machine.show(unit("seven"), "Type") == "notify-reload"
    for times in (1, 2, 3):
        lane.machine.run("systemctl", "reload", unit("seven"))
        assert lane.machine.journal(unit("seven")).count("settings read again") == times, "done when reload returns"
    lane.machine.run("systemctl", "stop", unit("seven"))


def test_many_edits_in_a_row_end_neither_the_watching_nor_the_agent(lane: Lane):
    lane.drop_in("edited", "[Unit]\nStartLimitBurst=3\n[Service]\nRestartSec=100ms\n")
    lane.start("edited")
    for delay_s in range(3, 10):
        lane.settings("edited", {"PRESENCE__DELAY_OFF_S": delay_s})
        lane.wait_for_log("edited", "settings read again: EDGE_AGENT_PRESENCE__DELAY_OFF_S", times=delay_s - 2)
    for times, degrees in enumerate((90, 180, 270, 0), 1):
        before = lane.pid("edited")
        lane.settings("edited", {"CAMERAS__DOOR__ROTATE": degrees})
        lane.machine.eventually(lambda before=before: lane.pid("edited") not in ("0", before), f"restart {times}")
        lane.machine.eventually(lambda: lane.machine.show(unit("edited"), "SubState") == "running", "ready")
    lane.machine.run("systemctl", "stop", unit("edited"))


def test_a_start_is_done_when_the_engine_is_open_and_may_take_its_time(lane: Lane):
    lane.drop_in("slow", "[Service]\nTimeoutStartSec=8\n")
    began_t = time.monotonic()
    lane.start("slow", {"MODEL__MODEL": "scripted?open_s=12"})
    assert time.monotonic() - began_t >= 12
    assert lane.machine.show(unit("slow"), "ActiveState") == "active" and lane.restarts("slow") == 0
    lane.machine.run("systemctl", "stop", unit("slow"))
