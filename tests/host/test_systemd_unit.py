"""States of units from a fake systemctl program, and read permission by file modes."""

import os
from pathlib import Path

import pytest

from edge_agent.host.systemd import Account, account, unit_of, unit_state

SYSTEMCTL = """#!/bin/sh
[ "$1" = show ] && [ "$4" = edge-agent@yard.service ] || exit 3
{body}
"""


@pytest.fixture
def systemctl(tmp_path):
    """A function that writes a systemctl and returns its folder."""

    def write(body):
        program = tmp_path / "systemctl"
        program.write_text(SYSTEMCTL.format(body=body))
        program.chmod(0o755)
        return str(tmp_path)

    return write


def state(path, running):
    return unit_state("edge-agent@yard.service", path, running)


def test_the_unit_of_an_env_file():
    assert unit_of(None) == unit_of(Path("/tmp/yard.env")) == "edge-agent.service"
    assert unit_of(Path("/etc/edge-agent/edge-agent.env")) == "edge-agent.service"
    assert unit_of(Path("/etc/edge-agent/yard.env")) == "edge-agent@yard.service"


def test_the_state_of_a_unit_and_failures(systemctl, tmp_path):
    path = systemctl("printf 'Result=watchdog\\nLoadState=loaded\\nActiveState=failed\\nUnitFileState=enabled\\n'")
    assert state(path, tmp_path) == ("loaded", "enabled", "failed", "watchdog")
    assert state(path, tmp_path / "nothing") is None, "systemd does not run"
    assert state(str(tmp_path / "empty"), tmp_path) is None, "no such program"
    assert state(systemctl("exit 1"), tmp_path) is None
    assert state(systemctl("echo nonsense"), tmp_path) is None
    assert state(systemctl("echo LoadState=not-found"), tmp_path) == ("not-found", "", "", "")


def test_modes_of_file_and_folders_decide_read_permission(tmp_path):
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    file = folder / "agent.env"
    file.write_text("")
    own, group = file.stat().st_uid, file.stat().st_gid
    stranger, member = Account("s", 4_000_000, frozenset()), Account("m", 4_000_000, frozenset([group]))
    root, owner = Account("root", 0, frozenset()), Account("o", own, frozenset())
    for mode, may in ((0o640, (False, True)), (0o644, (True, True)), (0o604, (True, False)), (0o600, (False, False))):
        file.chmod(mode)
        assert (stranger.may_read(file), member.may_read(file)) == may, oct(mode)
        assert root.may_read(file) and owner.may_read(file)
    file.chmod(0o644)
    folder.chmod(0o700)
    assert not stranger.may_read(file) and root.may_read(file)
    with pytest.raises(FileNotFoundError):
        root.may_read(folder / "nothing")


def test_accounts():
    me = account()
    assert me is not None and me.uid == os.geteuid()
    assert account("no-such-user-at-all") is None
    root = account("root")
    assert root is not None and root.uid == 0
