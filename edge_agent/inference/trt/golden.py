"""The proof that an engine computes its model: a picture of a face, and what ONNX Runtime makes of it on the CPU."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Callable, Dict, Mapping, Optional

import numpy as np

from edge_agent.core.types import Array
from edge_agent.errors import EngineError
from edge_agent.inference.golden import golden_picture
from edge_agent.inference.ort import answer_once
from edge_agent.inference.preprocess import Preprocessor
from edge_agent.inference.trt.cache import EngineCache
from edge_agent.inference.trt.source import Network

# Of the difference's norm to the reference's: far above rounding, far below a wrong weight, scale or colour order.
# CenterFace quantised by ONNX Runtime with one scale per tensor, which is coarser than TensorRT's, differs by 0.21.
TOLERANCES = {"fp32": 0.02, "fp16": 0.05, "int8": 0.35}
# Outputs whose root mean square is smaller count as this large, in their own units: an offset is a part of a cell.
_LEAST_RMS = {"cov": 0.01, "heatmap": 0.01, "bbox": 0.1, "scale": 0.1, "offset": 0.25}


def reference(network: Network, cache: EngineCache, tell: Callable[[str], None]) -> Dict[str, Array]:
    """What the network should answer to the golden picture, by role, without the batch axis; made once and kept.

    Raises:
        MissingPackage: It must be made, and onnxruntime is not installed.
        ModelError: ONNX Runtime cannot run the model.
        InputError: The cache cannot be read or written.
    """
    picture = golden_picture()
    about = repr((network.contract, picture.pixels.tobytes())).encode()
    digest = hashlib.sha256(hashlib.sha256(network.onnx).digest() + about).hexdigest()
    path = cache.directory / f"{Path(network.name).stem}-{digest[:16]}.reference.npz"
    kept = _kept(path, network)
    if kept is not None:
        return kept
    tell(f"computing the reference for model {network.name} with ONNX Runtime")
    feed = Preprocessor(network.contract, opencv=False)(picture)
    found = answer_once(network.onnx, f"model {network.name}", {network.binding.input: feed})
    wanted = {role: found[name][0] for role, name in network.binding.outputs.items()}
    file = io.BytesIO()
    np.savez(file, **wanted)
    cache.write(path, file.getvalue())
    return wanted


def errors(answers: Mapping[str, Array], wanted: Mapping[str, Array]) -> Dict[str, float]:
    """By role, the difference's norm as a share of the reference's; infinity where shapes differ."""
    found = {}
    for role, value in wanted.items():
        answer = answers.get(role)
        if answer is None or answer.shape != value.shape:
            found[role] = float("inf")
            continue
        scale = max(float(np.linalg.norm(value)), _LEAST_RMS[role] * value.size**0.5)
        found[role] = float(np.linalg.norm(answer - value)) / scale
    return found


def require_same(answers: Mapping[str, Array], wanted: Mapping[str, Array], precision: str) -> Dict[str, float]:
    """The errors by role.

    Raises:
        EngineError: One is larger than the precision explains.
    """
    found = errors(answers, wanted)
    limit = TOLERANCES[precision]
    wrong = [f"{role} by {error:.0%}" for role, error in found.items() if not error <= limit]
    if wrong:
        raise EngineError(
            f"the engine answers wrongly: on the golden picture it misses the reference in {', '.join(wrong)}",
            f"{precision} explains {limit:.0%}",
        )
    return found


def require_plausible(answers: Mapping[str, Array]) -> None:
    """All that can be said of a sealed DetectNet_v2: its coverage is a share, and not the same everywhere.

    Raises:
        EngineError: It is not.
    """
    cov = answers["cov"]
    if not (cov.min() >= -0.01 and cov.max() <= 1.01 and np.ptp(cov) > 0.0):
        raise EngineError(
            f"the engine answers wrongly: on the golden picture its coverage is {cov.min():.3g} to {cov.max():.3g}",
            "expected shares from 0 to 1 that differ; is the model whole, and its size and key right?",
        )


def _kept(path: Path, network: Network) -> Optional[Dict[str, Array]]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            kept = {role: np.asarray(file[role]) for role in network.binding.outputs}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # it is made again
    return kept
