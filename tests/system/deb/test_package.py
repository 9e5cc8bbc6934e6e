"""The package on a clean machine: installation, upgrades, rollback, removal, and faults."""

from typing import List

from tests.system.deb.conftest import INSTALL_S, PYTHON, Site

# Caches of Python's and of others' making, logs, dpkg's own state; and the user, which is no file.
NOT_OURS = (
    r"^/(proc|sys|dev|run|srv|tmp)(/|$)|^/var/(log|tmp|lib/(dpkg|systemd/(timers|timesync|catalog|random-seed)))(/|$)"
    r"|__pycache__|^/etc/(group|gshadow|passwd|shadow|subuid|subgid|\.pwd\.lock)-?$"
)


def files(site: Site) -> List[str]:
    """Files of the machine that a purge could leave behind."""
    script = f"find / -xdev | grep -vE '{NOT_OURS}' | sort"
    return site.machine.run("sh", "-c", script).splitlines()


def test_it_installs_starts_publishes_and_purges_without_a_trace(site: Site):
    machine = site.machine
    before = files(site)
    output = machine.run("sh", "-c", "dpkg -i /srv/whole.deb 2>&1", deadline_s=INSTALL_S)
    assert "name a camera" in output
    assert machine.show("edge-agent", "ActiveState") == "inactive", "no camera is named"
    assert machine.run("systemctl", "is-enabled", "edge-agent") == "enabled"
    assert machine.run("systemctl", "is-system-running") == "running"
    assert machine.run("stat", "-c", "%U:%G %a", "/etc/edge-agent/edge-agent.env") == "root:edge-agent 640"
    assert machine.run("stat", "-c", "%U:%G %a", "/etc/edge-agent") == "root:edge-agent 750"
    python = ("env", "HOME=/dev/null", "/opt/edge-agent/current/bin/python3")
    assert machine.code(*python, "-c", "import cv2, onnxruntime, av, systemd.journal") == 0, "ours, and the system's"

    site.configure({"METRICS__ENABLED": "true"})
    machine.run("systemctl", "start", "mosquitto")
    assert machine.run("edge-agent", "check", "--env-file", "/etc/edge-agent/edge-agent.env")
    machine.run("systemctl", "start", "edge-agent")
    sub = ("mosquitto_sub", "-h", "127.0.0.1", "-C", "1", "-W", "30", "-t")
    assert machine.run(*sub, "edge-agent/attic/door/events")
    assert machine.run(*sub, "edge-agent/attic/availability") == "online"
    scrape = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9746/metrics', timeout=10).read().decode())"
    assert "edge_agent_camera_frames_total" in machine.run(*python, "-c", scrape)
    site.configure()

    machine.run("systemctl", "enable", "edge-agent-nvargus.path", "edge-agent@yard")
    pid = site.pid()
    site.dpkg("-r", "edge-agent")
    assert machine.code("test", "-e", f"/proc/{pid}") == 1, "stopped"
    assert machine.code("test", "-s", "/var/lib/edge-agent/outbox.db") == 0, "what waits to be sent stays"
    assert machine.code("test", "-s", "/etc/edge-agent/edge-agent.env") == 0
    assert machine.code("test", "-e", "/opt/edge-agent") == 1
    site.dpkg("-i", "/srv/first.deb")
    assert machine.show("edge-agent", "ActiveState") == "active", "configured, so a new installation starts it"

    site.dpkg("-P", "edge-agent")
    machine.run("systemctl", "stop", "mosquitto")
    left = set(files(site)) - set(before)
    assert left <= {"/var/lib/mosquitto/mosquitto.db"}, sorted(left)
    assert machine.run("id", "-un", "edge-agent") == "edge-agent", "kept, so that nobody else gets its number"
    assert machine.run("systemctl", "list-units", "--all", "--no-legend", "edge-agent*") == ""


def test_upgrades_and_rollbacks_keep_every_event_and_the_settings(site: Site):
    machine = site.machine
    site.set_up()
    site.configure({"PRESENCE__DELAY_OFF_S": 1}, mode=0o660)
    env = machine.run("cat", "/etc/edge-agent/edge-agent.env")
    machine.eventually(lambda: len(site.waiting()) >= 3, "events wait for the broker")
    kept = site.waiting()
    first = site.pid()

    site.dpkg("-i", "/srv/second.deb")
    assert site.version() == "0.2.0" and site.pid() not in ("0", first)
    assert site.versions() == ["0.1.0 previous", "0.2.0 current"]
    assert machine.run("cat", "/etc/edge-agent/edge-agent.env") == env
    assert machine.run("stat", "-c", "%a", "/etc/edge-agent/edge-agent.env") == "660"
    assert kept <= site.waiting()
    machine.eventually(lambda: len(site.waiting()) >= len(kept) + 3, "it works on")
    kept = site.waiting()

    machine.run("edge-agent-rollback")
    assert site.version() == "0.1.0" and machine.show("edge-agent", "ActiveState") == "active"
    assert site.versions() == ["0.1.0 current", "0.2.0 previous"]
    assert kept <= site.waiting(), "what the newer one wrote"
    machine.eventually(lambda: len(site.waiting()) >= len(kept) + 3, "it works on")
    assert machine.run("sh", "-c", "ls /var/lib/edge-agent | grep -c corrupt", check=False) == "0"
    kept = site.waiting()

    machine.run("edge-agent-rollback")
    assert site.version() == "0.2.0", "and forward again"
    site.dpkg("-i", "/srv/third.deb")
    assert site.versions() == ["0.2.0 previous", "0.3.0 current"], "two upgrades in a row"
    site.dpkg("-i", "/srv/second.deb")
    assert site.version() == "0.2.0", "and dpkg may go back, too"
    site.published(kept)


def test_after_a_failed_upgrade_the_old_version_keeps_running(site: Site):
    machine = site.machine
    machine.run("mkdir", "-p", "/opt/edge-agent")
    machine.run("mount", "-t", "tmpfs", "-o", "size=1g,mode=755", "tmpfs", "/opt/edge-agent")
    site.set_up()
    pid = site.pid()

    def undisturbed() -> bool:
        return site.pid() == pid != "0" and site.version() == "0.1.0" and site.versions() == ["0.1.0 current"]

    machine.run("mount", "-o", "remount,size=100m", "/opt/edge-agent")
    assert "no space" in site.refused("dpkg", "-i", "/srv/second.deb") and undisturbed()
    inodes = int(machine.run("sh", "-c", "df --output=iused /opt/edge-agent | tail -1"))
    machine.run("mount", "-o", f"remount,size=1g,nr_inodes={inodes + 500}", "/opt/edge-agent")
    output = site.refused("dpkg", "--configure", "edge-agent")
    assert "No space left on device" in output and "could not be made" in output and undisturbed()
    machine.run("mount", "-o", "remount,nr_inodes=0", "/opt/edge-agent")

    modules = f"/usr/lib/python{PYTHON}/venv"
    machine.run("mv", modules, "/root/venv")
    output = site.refused("dpkg", "--configure", "edge-agent")
    assert "apt-get install python3-venv" in output and "Traceback" not in output and undisturbed()
    machine.run("mv", "/root/venv", modules)

    site.configure({"PRESENCE__DELAY_OF_S": 3})
    output = site.refused("dpkg", "--configure", "edge-agent")
    assert "PRESENCE__DELAY_OFF_S" in output and "stays in force" in output
    assert site.pid() == pid and site.version() == "0.1.0"
    site.configure()

    machine.run("rm", "-rf", *machine.run("sh", "-c", "ls -d /opt/edge-agent/versions/0.2.0-*").split())
    machine.run("systemd-run", "-q", "--unit=upgrade", "dpkg", "--configure", "edge-agent")
    machine.eventually(
        lambda: (
            machine.code("sh", "-c", f"ls -d /opt/edge-agent/versions/0.2.0-*/lib/python{PYTHON}/site-packages/*") == 0
        ),
        "in the middle",
    )
    machine.run("systemctl", "kill", "-s", "KILL", "upgrade")
    machine.eventually(lambda: machine.show("upgrade", "ActiveState") in ("failed", "inactive"), "killed")
    assert undisturbed()

    site.dpkg("--configure", "-a")
    assert site.version() == "0.2.0" and site.pid() not in ("0", pid)
    assert site.versions() == ["0.1.0 previous", "0.2.0 current"]


def test_without_dpkg_the_script_does_the_same(site: Site):
    machine = site.machine
    before = files(site)
    install = "/srv/tree-first/scripts/install"

    def script(*arguments: str) -> str:
        return machine.run("sh", "-c", '"$@" 2>&1', "sh", install, *arguments, deadline_s=INSTALL_S)

    assert "can be installed" in script("--check", "--wheelhouse", "/srv/wheels")
    assert set(files(site)) == set(before), "it changed nothing"
    assert "no earlier version" in site.refused(install, "--rollback")
    assert "name a camera" in script("--wheelhouse", "/srv/wheels")
    site.configure()
    machine.run("systemctl", "start", "edge-agent")
    machine.eventually(lambda: len(site.waiting()) >= 3, "events wait for the broker")
    kept, pid = site.waiting(), site.pid()
    script("--wheelhouse", "/srv/wheels-newer")
    assert site.version() == "0.2.0" and site.pid() not in ("0", pid) and kept <= site.waiting()
    script("--rollback")
    assert site.version() == "0.1.0" and kept <= site.waiting()
    site.published(kept)
    script("--uninstall")
    assert machine.code("test", "-s", "/var/lib/edge-agent/outbox.db") == 0
    assert machine.code("test", "-e", "/opt/edge-agent") == 1
    script("--purge")
    machine.run("systemctl", "stop", "mosquitto")
    left = set(files(site)) - set(before)
    assert left <= {"/var/lib/mosquitto/mosquitto.db"}, sorted(left)

    site.configure()
    site.dpkg("--force-confold", "-i", "/srv/first.deb")
    assert "as a package" in site.refused(install, "--wheelhouse", "/srv/wheels")
