"""A small machine: a real systemd as process 1 of its own namespaces, on a Debian root folder that stays unchanged.

Made by `scripts/systemd-lane`, which sets LANE_ROOT. What it has not: devices, udev, memory limits.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, List, Optional

SOURCE = Path(__file__).resolve().parents[2]
ROOT = Path(os.environ.get("LANE_ROOT", ""))
DEADLINE_S = 60.0
NODES = ("null", "zero", "full", "random", "urandom", "tty")
# Namespaces that the machine has for itself, as nsenter(1) and unshare(1) call them.
OWN = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")

# Runs as the first process of the new namespaces; `$1` the root folder, `$2` a scratch folder, `$3` a folder of this
# host that appears at `$4`, read-only.
BOOT = f"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
cd "$2/root"
case "$4" in opt/edge-agent/*) ;; *) rm -rf opt/edge-agent ;; esac
mkdir -p "$4"
mount --bind "$3" "$4"
mount -o remount,bind,ro "$4"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for node in {" ".join(NODES)}; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for end in 0:stdin 1:stdout 2:stderr; do ln -s /proc/self/fd/${{end%:*}} dev/${{end#*:}}; done
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
umount -l sys/fs/cgroup 2>/dev/null || true
mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 cgroup2 sys/fs/cgroup
: >etc/fstab
: >etc/machine-id
ln -sf /dev/null etc/systemd/system/systemd-modules-load.service
pivot_root . mnt
umount -l /mnt
# systemd leaves this to the container's manager, and passes empty credentials without it.
mount --make-rshared /
exec env -i container=lane PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=multi-user.target
"""


def why_not() -> str:
    """Missing requirements of these tests; empty when the machine can be created."""
    if not ROOT.name or not ROOT.is_dir():
        return "needs a Debian root folder: scripts/systemd-lane makes one and runs these tests"
    return why_not_here()


def why_not_here() -> str:
    """Requirements that this host does not meet, apart from the root folder; empty when all are met."""
    if os.geteuid() != 0:
        return "needs root: sudo scripts/systemd-lane"
    missing = [tool for tool in ("unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install util-linux"
    command = ["unshare", *OWN, "--fork", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    if tried.returncode:
        return f"needs namespaces and mounts, which this machine does not allow: {tried.stderr.strip()}"
    return "" if _cgroup_root() else "needs the unified cgroup hierarchy (cgroup2), mounted and writable"


class Machine:
    """A context manager: boots on entry, is removed on exit.

    Args:
        shared: A folder of this host that the machine sees.
        at: Where it sees it, without the leading slash; outside of opt/edge-agent, the machine has no agent at all.
    """

    def __init__(self, shared: Path = SOURCE, at: str = "opt/edge-agent/source") -> None:
        self._shared, self._at = shared, at
        self._scratch = tempfile.TemporaryDirectory(prefix="edge-agent-lane-")
        base = _cgroup_root()
        assert base is not None
        self._cgroup = base / Path(self._scratch.name).name
        self._boot: Optional[subprocess.Popen[bytes]] = None
        self._pid = 0

    def __enter__(self) -> "Machine":
        self._cgroup.mkdir()
        # Of its own cgroup first, so that this is the root of the new cgroup namespace.
        script = 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"'
        with Path(self._scratch.name).with_suffix(".log").open("wb") as log:
            self._boot = subprocess.Popen(
                ["sh", "-c", script, "sh", str(self._cgroup), "unshare", *OWN, "--fork", "--kill-child",
                 "--propagation", "private", "sh", "-c", BOOT, "sh",
                 str(ROOT), self._scratch.name, str(self._shared), self._at],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            self.eventually(self._running, "systemd has started")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, *command: str, check: bool = True, text: str = "", deadline_s: float = DEADLINE_S) -> str:
        """Run a command inside; returns its output. Fails on another exit code than 0 unless `check` is False."""
        done = self._run(command, text, deadline_s)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return str(done.stdout).strip()

    def code(self, *command: str) -> int:
        """Run a command inside; returns its exit code."""
        return int(self._run(command, "").returncode)

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        """Write a file inside, in place (the same inode, as an editor that does not rename)."""
        script = 'mkdir -p "${1%/*}" && cat >"$1" && chmod "$2" "$1"'
        self.run("sh", "-c", script, "sh", path, f"{mode:o}", text=content)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "-p", name, "--value", unit)

    def journal(self, unit: str) -> str:
        """Journal lines of a unit and of systemd about it."""
        return self.run("journalctl", "-u", unit, "--no-pager", "-o", "cat")

    def eventually(self, true: Any, what: str, deadline_s: float = DEADLINE_S) -> None:
        """Poll until `true()`."""
        until = time.monotonic() + deadline_s
        while not true():
            assert self._boot is None or self._boot.poll() is None, f"the machine has died: {self._log()}"
            assert time.monotonic() < until, f"did not happen within {deadline_s:g} s: {what}; {self._log()}"
            time.sleep(0.1)

    def _run(self, command: Any, text: str, deadline_s: float = DEADLINE_S) -> "subprocess.CompletedProcess[str]":
        entered = ["nsenter", "-t", str(self._pid), *OWN, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *command]
        return subprocess.run(entered, input=text, capture_output=True, text=True, check=False, timeout=deadline_s)

    def _running(self) -> bool:
        if not self._pid:
            self._pid = _child(self._boot.pid) if self._boot else 0
        if not self._pid or Path(f"/proc/{self._pid}/exe").resolve().name != "systemd":
            return False
        state = self.run("systemctl", "is-system-running", check=False)
        assert state != "degraded", self.run("systemctl", "--failed", "--no-legend", check=False)
        return state == "running"

    def _end(self) -> None:
        if self._boot is not None:
            # unshare takes its child, process 1, with it, and the kernel all others.
            self._boot.send_signal(signal.SIGKILL)
            self._boot.wait(DEADLINE_S)
        until = time.monotonic() + DEADLINE_S
        while self._cgroup.exists() and time.monotonic() < until:
            for folder in sorted(self._cgroup.rglob("*"), reverse=True):
                if folder.is_dir():
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            with contextlib.suppress(OSError):
                self._cgroup.rmdir()
            time.sleep(0.05)
        Path(self._scratch.name).with_suffix(".log").unlink()
        self._scratch.cleanup()

    def _log(self) -> str:
        return Path(self._scratch.name).with_suffix(".log").read_text("utf-8", "replace")[-2000:]


def _cgroup_root() -> Optional[Path]:
    for place in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (place / "cgroup.procs").exists() and (place / "cgroup.controllers").exists() and os.access(place, os.W_OK):
            return place
    return None


def _child(pid: int) -> int:
    """The newest child's process id, 0 while there is none."""
    found: List[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return max(found, default=0)


if __name__ == "__main__":
    print(why_not_here())
