"""The unit files as such: systemd understands every line, little is exposed, every line is explained."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Iterator, Tuple

import pytest

UNITS = Path(__file__).resolve().parents[3] / "systemd"
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="needs systemd-analyze: apt-get install systemd")
PROGRAMS = ("opt/edge-agent/current/bin/edge-agent", "usr/lib/edge-agent/recovery", "bin/sh")
TARGETS = ("sysinit", "basic", "shutdown", "multi-user", "network-online", "time-sync", "paths")
STARTED = (
    "edge-agent.service", "edge-agent@cam0.service", "edge-agent-reload.path", "edge-agent-reload@cam0.path",
    "edge-agent-failed@edge-agent.service.service", "edge-agent-nvargus.path",
)  # fmt: skip
LEAST_SYSTEMD = {"jetpack7": 254}


def version() -> int:
    assert ANALYZE is not None
    shown = subprocess.run([ANALYZE, "--version"], capture_output=True, text=True, check=True).stdout
    return int(shown.split()[1])


def lines(path: Path) -> Iterator[Tuple[str, str]]:
    for line in path.read_text("utf-8").splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            yield name, value


@pytest.fixture
def root(tmp_path):
    """A root folder with the units and all that they name, but nothing of this machine."""
    folder = tmp_path / "etc" / "systemd" / "system"
    folder.mkdir(parents=True)
    for pattern in ("*.service", "*.path"):
        for unit in UNITS.glob(pattern):
            shutil.copy(unit, folder)
    for target in TARGETS:
        (folder / f"{target}.target").write_text(f"[Unit]\nDescription={target}\n")
    for program in PROGRAMS:
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", tmp_path / program)
    return tmp_path


def verify(root: Path, *units: str) -> str:
    """What systemd has to say; its exit code alone does not tell of unknown keys."""
    done = subprocess.run([ANALYZE, "verify", f"--root={root}", *units], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr + (f"exit code {done.returncode}" if done.returncode else "")


@needs_systemd
def test_systemd_understands_every_unit(root):
    if version() < 250:
        pytest.skip("systemd-analyze verify --root needs systemd 250")
    assert verify(root, *STARTED) == ""


@needs_systemd
def test_verify_would_tell(root):
    unit = root / "etc" / "systemd" / "system" / "edge-agent.service"
    unit.write_text(unit.read_text().replace("RestrictRealtime=", "RestrictRealTime="))
    assert "RestrictRealTime" in verify(root, "edge-agent.service")


@needs_systemd
@pytest.mark.parametrize("name", sorted(path.stem for path in (UNITS / "drop-ins").glob("*.conf")))
def test_systemd_understands_every_drop_in(root, name):
    least = LEAST_SYSTEMD.get(name, 250)
    if version() < least:
        pytest.skip(f"{name} is for systemd {least} and newer, this is {version()}: SUITE=trixie scripts/systemd-lane")
    folder = root / "etc" / "systemd" / "system" / "edge-agent@.service.d"
    folder.mkdir()
    shutil.copy(UNITS / "drop-ins" / f"{name}.conf", folder)
    assert verify(root, "edge-agent@cam0.service") == ""


@needs_systemd
@pytest.mark.parametrize("name", ["edge-agent.service", "edge-agent@.service"])
def test_little_is_exposed(name):
    command = [ANALYZE, "security", "--offline=true", "--threshold=25", str(UNITS / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1:] + done.stderr.splitlines()


def test_the_template_differs_from_the_single_unit_only_in_its_instance():
    single, template = (UNITS / "edge-agent.service").read_text(), (UNITS / "edge-agent@.service").read_text()
    assert single != template
    folders = re.compile(r"(?<=Directory=edge-agent)/%i")
    assert (
        folders.sub("", template)
        .replace(" (%i)", "")
        .replace("-reload@%i", "-reload")
        .replace("/etc/edge-agent/%i.env", "/etc/edge-agent/edge-agent.env")
        == single
    )


def test_every_line_of_the_service_is_explained():
    told = (UNITS / "README.md").read_text("utf-8")
    section = told[told.index("## Every line") : told.index("Left out on purpose")]
    plain = {"Description", "Documentation", "Wants", "After", "ExecStart", "WantedBy"}
    missing = {name for name, _ in lines(UNITS / "edge-agent.service")} - plain
    assert {name for name in missing if f"`{name}=" not in section} == set()


def test_the_base_unit_stays_within_what_old_systemd_must_not_misread():
    """`notify-reload` before 253 means no start gate at all; ProtectClock closes the cameras' devices."""
    given = dict(lines(UNITS / "edge-agent@.service"))
    assert given["Type"] == "notify"
    assert not {"EnvironmentFile", "ProtectClock", "PrivateDevices", "MemoryDenyWriteExecute", "ProcSubset"} & set(
        given
    )
