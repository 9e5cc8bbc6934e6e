"""Packages of three versions, built from this checkout, and machines that have none of them yet."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Iterator, List, Mapping, Set, Tuple

import pytest

from tests.fakes.systemd_machine import Machine, why_not
from tests.system.deb.trees import FIRST, make_tree

BUILD_S, INSTALL_S = 300.0, 180.0
PYTHON = os.environ.get("DEB_PYTHON", "3.11")
"""Of the machine: LANE_ROOT may be another release's."""
VERSIONS = {"first": FIRST, "second": "0.2.0", "third": "0.3.0"}
BROKER = "listener 1883 127.0.0.1\nallow_anonymous true\n"


class Site:
    """A clean Debian machine, and the steps of an administrator."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def dpkg(self, *arguments: str) -> str:
        """Run dpkg, which must succeed without questions."""
        return self.machine.run("dpkg", *arguments, deadline_s=INSTALL_S)

    def refused(self, *command: str) -> str:
        """Run a command that must fail; returns its output."""
        script = 'if "$@" 2>&1; then echo "it has not failed"; exit 1; fi'
        return self.machine.run("sh", "-c", script, "sh", *command, deadline_s=INSTALL_S)

    def configure(self, more: Mapping[str, Any] = {}, mode: int = 0o640) -> None:
        """Edit the settings, as an administrator does."""
        given = {
            "NODE": "attic",
            "CAMERAS__DOOR__URI": "test://one?fps=10",
            "MODEL__BACKEND": "scripted",
            "MODEL__MODEL": "scripted",
            "CROPS__ENABLED": "false",
            "MQTT__HOST": "127.0.0.1",
            **more,
        }
        text = "# mine\n" + "".join(f"EDGE_AGENT_{key}={value}\n" for key, value in given.items())
        self.machine.write("/etc/edge-agent/edge-agent.env", text, mode)

    def set_up(self) -> None:
        """The first version is installed, configured and runs."""
        self.dpkg("-i", "/srv/first.deb")
        self.configure()
        self.machine.run("systemctl", "start", "edge-agent")

    def version(self) -> str:
        """Of the installed program."""
        return self.machine.run("edge-agent", "--version").split()[-1]

    def pid(self) -> str:
        """Of the agent; "0" when it does not run."""
        return self.machine.show("edge-agent", "MainPID")

    def versions(self) -> List[str]:
        """The kept versions, e.g. "0.1.0 current"."""
        lines = self.machine.run("/usr/lib/edge-agent/versions", "list").splitlines()
        return sorted(" ".join([line.split("-")[0], *line.split()[1:]]) for line in lines)

    def agent(self, *arguments: str) -> str:
        """Run the program as the service would; it must succeed."""
        service = ("env", "HOME=/dev/null", "STATE_DIRECTORY=/var/lib/edge-agent")
        return self.machine.run("runuser", "-u", "edge-agent", "--", *service, "edge-agent", *arguments)

    def waiting(self) -> Set[Tuple[int, int]]:
        """Which events the outbox holds, by boot and number."""
        rows = self.agent("outbox", "list", "--json").splitlines()
        events = [row for row in map(json.loads, rows) if row["kind"] == "event"]
        return {(row["boot"], row["seq"]) for row in events}

    def published(self, wanted: Set[Tuple[int, int]]) -> None:
        """Start the broker, and wait until every one of these events has come."""
        heard = "/run/heard"
        self.machine.run("systemctl", "start", "mosquitto")
        listen = f"exec mosquitto_sub -h 127.0.0.1 -q 1 -t edge-agent/attic/door/events >{heard}"
        self.machine.run("systemd-run", "-q", "sh", "-c", listen)

        def all_have() -> bool:
            events = map(json.loads, self.machine.run("cat", heard).splitlines())
            return wanted <= {(event["boot"], event["seq"]) for event in events}

        self.machine.eventually(all_have, "every event that waited has come")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The machines' /srv: NAME.deb files, and the checkout with its wheels."""
    reason = why_not() if os.environ.get("DEB_LANE") else "needs minutes and a clean machine: scripts/deb-lane"
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("packages")
    for name, version in VERSIONS.items():
        tree = folder / f"tree-{name}"
        make_tree(tree, version)
        _build(tree, folder / f"{name}.deb", "--extras", "")
    _build(folder / "tree-first", folder / "whole.deb")
    for name, wheels in (("first", "wheels"), ("second", "wheels-newer")):
        _run(folder / f"tree-{name}", "scripts/wheelhouse", "--extras", "", str(folder / wheels))
    return folder


@pytest.fixture
def site(shared: Path) -> Iterator[Site]:
    """A machine with a broker that is not running yet."""
    with Machine(shared, "srv") as machine:
        machine.write("/etc/mosquitto/conf.d/lane.conf", BROKER)
        machine.run("systemctl", "disable", "--now", "mosquitto")
        yield Site(machine)


def _build(tree: Path, package: Path, *extras: str) -> None:
    built = _run(tree, "scripts/build-deb", *extras, "--output", str(tree / "dist"))
    Path(built.strip()).rename(package)


def _run(tree: Path, script: str, *rest: str) -> str:
    command = [script, "--arch", "amd64", "--python", PYTHON, *rest]
    return subprocess.run(command, cwd=tree, check=True, timeout=BUILD_S, stdout=subprocess.PIPE, text=True).stdout
