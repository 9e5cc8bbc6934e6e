"""The package's scripts: every unit is included, wheels are verified, shellcheck passes."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Sequence

import pytest

from tests.system.deb.trees import MIGRATION, make_tree

SOURCE = Path(__file__).resolve().parents[3]
SCRIPTS = (
    *(SOURCE / "scripts" / name for name in ("build-deb", "deb-lane", "install", "wheelhouse")),
    *(SOURCE / "scripts" / "package" / name for name in ("edge-agent-rollback", "lay-out", "versions")),
    *(SOURCE / "scripts" / "package" / "deb" / name for name in ("postinst", "postrm", "prerm")),
)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck: apt-get install shellcheck")
def test_shellcheck_reports_nothing():
    done = subprocess.run(["shellcheck", *SCRIPTS], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


def test_every_unit_is_installed_and_the_settings_are_private(tmp_path):
    subprocess.run([SOURCE / "scripts" / "package" / "lay-out", tmp_path], check=True)
    units = {path.name for pattern in ("*.service", "*.path") for path in (SOURCE / "systemd").glob(pattern)}
    assert {path.name for path in (tmp_path / "lib/systemd/system").iterdir()} == units
    settings = tmp_path / "etc/edge-agent/edge-agent.env"
    assert settings.stat().st_mode & 0o777 == 0o640
    lines = settings.read_text("utf-8").splitlines()
    assert all(line.startswith("#") or not line for line in lines), "no camera is watched by default"
    names = {line[1:].partition("=")[0] for line in lines if line.startswith("#EDGE_AGENT_")}
    known = (SOURCE / "config" / "edge-agent.env.example").read_text("utf-8")
    assert names and all(f"{name}=" in known for name in names)


def test_the_lane_can_make_a_later_version_of_this_checkout(tmp_path):
    make_tree(tmp_path, "0.2.0")
    script = (
        "import sys; from edge_agent import __version__; from edge_agent.outbox.database import MIGRATIONS;"
        "sys.stdout.write(__version__ + MIGRATIONS[-1])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == f"0.2.0{MIGRATION}"


def wheel(folder: Path, name: str, version: str, requires: Sequence[str] = (), extras: Sequence[str] = ()) -> None:
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {line}" for line in requires]
        archive.writestr(f"{name}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")


def prove(folder: Path, machine: str, requirement: str) -> str:
    command = [sys.executable, SOURCE / "scripts" / "package" / "prove", folder, machine, requirement]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_wheels_are_verified_for_the_other_machine(tmp_path):
    wheel(tmp_path, "agent", "1.0", ["a>=2", "b; extra == 'more'", "c; platform_machine == 'aarch64'"], ["more"])
    wheel(tmp_path, "a", "2.1")
    assert prove(tmp_path, "x86_64", "agent==1.0") == ""
    assert "c; platform_machine" in prove(tmp_path, "aarch64", "agent==1.0"), "only there"
    assert "b" in prove(tmp_path, "x86_64", "agent[more]==1.0")
    wheel(tmp_path, "b", "1.0", ["a<2"])
    assert "a 2.1 does not meet a<2" in prove(tmp_path, "x86_64", "agent[more]==1.0")
    assert "b: nothing requires it" in prove(tmp_path, "x86_64", "agent==1.0")
    assert "knows no" in prove(tmp_path, "x86_64", "agent[no-such]==1.0"), "as a stranger's package of our name"
    wheel(tmp_path, "a", "2.2")
    assert "two versions" in prove(tmp_path, "x86_64", "agent==1.0")
