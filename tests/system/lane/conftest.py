"""One machine for all tests of this folder, with the units and a broker on it, as the package installs them."""

from typing import Any, Iterator, Mapping

import pytest

from tests.fakes.systemd_machine import ROOT, Machine, why_not

PASSWORD = "open sesame"
BROKER = "listener 1883 127.0.0.1\nallow_anonymous false\npassword_file /etc/mosquitto/passwords\n"
INSTALL = """
set -e
cd /opt/edge-agent/source/systemd
cp *.service *.path /etc/systemd/system/
install -m 644 -D edge-agent.sysusers /usr/lib/sysusers.d/edge-agent.conf
install -m 644 -D edge-agent.tmpfiles /usr/lib/tmpfiles.d/edge-agent.conf
install -m 755 -D recovery /usr/lib/edge-agent/recovery
systemd-sysusers
systemd-tmpfiles --create edge-agent.conf
install -m 600 /dev/stdin /etc/edge-agent/mqtt-password
mosquitto_passwd -b -c /etc/mosquitto/passwords agent "$1"
chown mosquitto /etc/mosquitto/passwords
systemctl daemon-reload
systemctl restart mosquitto
"""


class Lane:
    """The machine, and agents on it: instances of the template unit."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def settings(self, name: str, more: Mapping[str, Any] = {}, camera: str = "test://one?fps=10") -> None:
        """Write an instance's env file, in place."""
        given = {
            "NODE": name,
            "CAMERAS__DOOR__URI": camera,
            "MODEL__BACKEND": "scripted",
            "MODEL__MODEL": "scripted",
            "CROPS__ENABLED": "false",
            "MQTT__HOST": "127.0.0.1",
            "MQTT__USERNAME": "agent",
            **more,
        }
        text = "".join(f'EDGE_AGENT_{key}="{value}"\n' for key, value in given.items())
        self.machine.write(f"/etc/edge-agent/{name}.env", text)

    def drop_in(self, name: str, text: str) -> None:
        """Change one instance's unit."""
        self.machine.write(f"/etc/systemd/system/{unit(name)}.d/lane.conf", text)
        self.machine.run("systemctl", "daemon-reload")

    def start(self, name: str, more: Mapping[str, Any] = {}, camera: str = "test://one?fps=10") -> None:
        """Write the settings and start; returns when it is ready."""
        self.settings(name, more, camera)
        self.machine.run("systemctl", "start", unit(name))

    def pid(self, name: str) -> str:
        """Of the agent's process."""
        return self.machine.show(unit(name), "MainPID")

    def restarts(self, name: str) -> int:
        """How often systemd has restarted it."""
        return int(self.machine.show(unit(name), "NRestarts"))

    def status(self, name: str) -> str:
        """Its status."""
        return self.machine.show(unit(name), "StatusText")

    def wait_for_log(self, name: str, text: str, times: int = 1) -> None:
        """Wait until the journal contains `text` so many times."""
        machine = self.machine
        machine.eventually(lambda: machine.journal(unit(name)).count(text) >= times, f"{name} logs {text!r}")

    def retained(self, topic: str) -> str:
        """The newest message of a topic."""
        login = ("-h", "127.0.0.1", "-u", "agent", "-P", PASSWORD)
        return self.machine.run("mosquitto_sub", *login, "-t", topic, "-C", "1", "-W", "30")


def unit(name: str) -> str:
    """An instance's unit."""
    return f"edge-agent@{name}.service"


@pytest.fixture(scope="session")
def lane() -> Iterator[Lane]:
    """The machine."""
    reason = why_not()
    if reason and ROOT.name:
        # Called by scripts/systemd-lane, which has made sure of everything.
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    with Machine() as machine:
        machine.write("/etc/mosquitto/conf.d/lane.conf", BROKER)
        machine.run("sh", "-c", INSTALL, "sh", PASSWORD, text=f"{PASSWORD}\n")
        yield Lane(machine)
