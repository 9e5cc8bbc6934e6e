"""The fakes' attribute lists compared with NVIDIA's bindings, whose library holds every name as a string."""

import functools
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import FrozenSet, Tuple

import pytest

from tests.fakes.tensorrt import ATTRIBUTES

# Those of 8.2 and 8.4 came with JetPack only; they are the older half of 8.6's.
WHEELS = {
    "8.6": ("tensorrt-bindings==8.6.1", "3.10"),
    "10.3": ("tensorrt-cu12-bindings==10.3.0", "3.10"),
    "11.4": ("tensorrt-cu13-bindings==11.4.0.106", "3.10"),
}
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# Names that other classes of the same library have, too: their presence proves nothing.
SHARED = {"execute_async", "has_implicit_batch_dimension"}


@functools.lru_cache(maxsize=None)
def library(version: str) -> bytes:
    """The tensorrt.so of a version, from a cache of wheels outside the repository."""
    requirement, python = WHEELS[version]
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "edge-agent-tests" / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    stem = requirement.replace("-", "_").replace("==", "-")
    if not list(folder.glob(f"{stem}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--python-version", python, "--dest", str(folder)]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        done = subprocess.run([*command, requirement], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        if done.returncode:
            pytest.skip(f"needs {requirement}: a network for pip, or the wheel in {folder}, would enable it")
    (wheel,) = folder.glob(f"{stem}-*.whl")
    with zipfile.ZipFile(str(wheel)) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/tensorrt.so"))
        return archive.read(name)


def names(version: str) -> FrozenSet[str]:
    """Names of all attributes and classes that the fake of `version` has."""
    return frozenset(name for listed in ATTRIBUTES[version].values() for name in listed)


def occurs(name: str, data: bytes) -> bool:
    return name.encode() + b"\0" in data


@pytest.mark.parametrize("version", list(WHEELS))
def test_attributes_of_the_fake_exist_in_the_bindings(version: str) -> None:
    data = library(version)
    assert [name for name in sorted(names(version)) if not occurs(name, data)] == []


@pytest.mark.parametrize("version", list(WHEELS))
def test_attributes_that_the_fake_refuses_are_missing_in_the_bindings(version: str) -> None:
    data = library(version)
    denied = frozenset().union(*(names(other) for other in ATTRIBUTES)) - names(version) - SHARED
    assert denied
    assert [name for name in sorted(denied) if occurs(name, data)] == []


def test_generations_differ_in_the_attributes_that_the_adapters_check() -> None:
    """The attributes by which the adapters detect a generation."""
    asked: Tuple[str, ...] = ("UffParser", "FP16", "max_workspace_size", "num_bindings", "EXPLICIT_BATCH")
    assert [name for name in asked if occurs(name, library("8.6"))] == list(asked)
    assert [name for name in asked if occurs(name, library("10.3"))] == ["FP16", "EXPLICIT_BATCH"]
    assert [name for name in asked if occurs(name, library("11.4"))] == []
    for version in WHEELS:
        assert occurs("num_io_tensors", library(version)) and occurs("set_memory_pool_limit", library(version))
