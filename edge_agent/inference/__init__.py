"""Engines: what finds faces in a picture. `open_engine` chooses one and says which and why."""

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, Literal, Optional, Tuple

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.params import param
from edge_agent.core.ports import Engine
from edge_agent.errors import EngineError, MissingPackage, ModelError

# Since 1.32 ONNX Runtime tells its maker of its use and keeps an identifier of the device, unless this is set before it
# loads; whoever loads it, `edge-agent check` too, comes by here.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

_log = logging.getLogger(__name__)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class EngineParams:
    """Which network finds faces, and by what it runs."""

    model: str = param(
        "centerface",
        "Name of a model ('edge-agent model list'), or path of an .onnx, .uff or .etlt file; the latter two need, for "
        "ONNX Runtime, the .onnx that 'edge-agent model convert' makes of them, beside them",
        min_length=1,
        restart=True,
    )
    backend: Literal["auto", "onnxruntime", "tensorrt", "scripted"] = param(
        "auto", "What runs the network; a choice that cannot be met is an error, never silently another", restart=True
    )
    threads: int = param(
        1,
        "CPU cores that work on one picture; more shorten the latency and cost more CPU per frame",
        ge=1,
        le=64,
        restart=True,
    )
    long_side: int = param(
        384,
        "Longer side of CenterFace's input, px, a multiple of 32; larger finds smaller faces, time grows by its square",
        ge=64,
        le=4096,
        multiple_of=32,
        restart=True,
    )
    interpolation: Literal["linear", "area"] = param(
        "linear", "How pictures shrink: linear is fastest, area averages the noise of large pictures away", restart=True
    )
    class_name: Optional[str] = param(
        None,
        "For a model of several classes: the one that means a face, by name or by number; 'face' when unset",
        restart=True,
    )
    labels_file: Optional[str] = param(
        None, "Path of the model's class names, one per line; labels.txt beside the model when unset", restart=True
    )
    key: Optional[str] = param(
        None,
        "What an .etlt is encrypted with; NVIDIA's published tlt_encode when unset",
        restart=True,
        secret=True,
    )
    precision: Literal["auto", "int8", "fp16", "fp32"] = param(
        "auto",
        "What to compute in. TensorRT: auto takes int8 where the GPU has it and a calibration exists, else fp16 where "
        "that is fast, else fp32. CPU: auto takes int8 where 'model calibrate' has shown it to be as good, and faster, "
        "else fp32. A precision that cannot be met is an error",
        restart=True,
    )
    calibration: Optional[str] = param(
        None,
        "Path of the model's INT8 calibration cache for TensorRT; when unset what 'model calibrate' made, else the "
        "fetched model's own",
        restart=True,
    )
    workspace_mb: int = param(
        256,
        "Scratch memory that TensorRT's layers may use, MB; too little excludes the fastest ones",
        ge=16,
        le=65536,
        restart=True,
    )
    dla_core: Optional[int] = param(
        None,
        "Deep learning accelerator (Xavier, Orin) that TensorRT uses; the GPU when unset",
        ge=0,
        le=7,
        restart=True,
    )
    tensorrt_python: Optional[str] = param(
        None,
        "Python interpreter whose TensorRT 8 is used, in a worker process; when unset, this one's TensorRT, else that "
        "of /usr/bin/python3.6 (JetPack 4)",
        min_length=1,
        restart=True,
    )
    models_dir: Optional[str] = param(
        None,
        "Folder of fetched models; when unset the service's state directory, else the user's data directory",
        restart=True,
    )


def open_engine(params: EngineParams, directory: Path, tell: Tell = _log.info) -> Engine:
    """The engine that `params` ask for.

    Args:
        params: What was asked. The scripted engine takes its options from the model: "scripted?slow_s=0.05".
        directory: Folder of fetched models: `models.models_dir(params.models_dir, os.environ)`.
        tell: Takes lines of progress, of any thread, at least every 15 s while TensorRT builds: minutes, at first.

    Raises:
        ModelError: The model is missing, damaged, of an unknown contract, or not for this backend.
        MissingPackage: The backend's package is not installed.
        EngineError: The GPU does not answer, or a newly built engine answers wrongly.
        InputError: TensorRT's engine cache cannot be used.
    """
    backend, why = _choose(params) if params.backend == "auto" else (params.backend, "as asked")
    engine = _BACKENDS[backend](params, directory, tell)
    info = engine.info
    detail = "".join(f", {key} {value}" for key, value in info.detail.items())
    _log.info("engine: %s, model %s, %s%s (%s)", info.backend, info.model, info.precision, detail, why)
    return engine


def _choose(params: EngineParams) -> Tuple[str, str]:
    """TensorRT where it is installed and a GPU answers; and why."""
    from edge_agent.inference.trt.find import find_backend

    try:
        place = find_backend(params.tensorrt_python, os.environ)
        gpu = place.gpu
        place.close()
    except (MissingPackage, EngineError) as error:
        return "onnxruntime", f"auto: not TensorRT, because {error.message}"
    return "tensorrt", f"auto: TensorRT is installed, and {gpu} answers"


def _open_onnxruntime(params: EngineParams, directory: Path, tell: Tell) -> Engine:
    from edge_agent.models import registry
    from edge_agent.models.onnx.binding import derive
    from edge_agent.models.onnx.file import read_onnx

    if params.model.endswith(registry.SUFFIXES):
        path = registry.as_onnx(Path(params.model))
        labels = registry.labels_of(path, params.labels_file)
        contract = derive(read_onnx(path), str(path), labels, params.class_name, params.long_side)
        return _on_cpu(params, path, contract, path.name, registry.sha256_of(path))
    card = registry.card_of(params.model)
    path = registry.as_onnx(registry.locate(card, directory))
    contract = replace(card.contract, long_side=params.long_side)
    return _on_cpu(params, path, contract, card.name, card.files[0].sha256 or registry.sha256_of(path))


def _on_cpu(params: EngineParams, path: Path, contract: ModelContract, name: str, sha256: str) -> Engine:
    """The float model, or its INT8 version where that is proven."""
    from edge_agent.inference.calibration.cpu_int8 import int8_file, proven_int8
    from edge_agent.inference.ort import OrtEngine

    if params.precision in ("auto", "int8"):
        int8_sha256, why_not = proven_int8(path, sha256)
        if int8_sha256:
            return OrtEngine(int8_file(path), contract, params.threads, params.interpolation, name, int8_sha256)
        level = logging.INFO if int8_file(path).exists() else logging.DEBUG
        _log.log(level, "model %s: not in INT8: %s", name, why_not)
    else:
        why_not = f"a CPU computes {params.precision} no faster than fp32"
    engine = OrtEngine(path, contract, params.threads, params.interpolation, name, sha256)
    if params.precision not in ("auto", engine.info.precision):
        engine.close()
        raise ModelError(
            f"model {name}: precision {params.precision} was asked for, but it is stored in {engine.info.precision}, "
            f"and of a version in {params.precision}: {why_not}",
            "ask for precision auto",
        )
    return engine


def _open_scripted(params: EngineParams, directory: Path, tell: Tell) -> Engine:
    from edge_agent.inference.scripted import ScriptedEngine

    return ScriptedEngine(query=params.model.partition("?")[2])


def _open_tensorrt(params: EngineParams, directory: Path, tell: Tell) -> Engine:
    from edge_agent.inference.cuda.compiler import cache_dir
    from edge_agent.inference.trt.engine_loader import BuildOptions, EngineLoader
    from edge_agent.inference.trt.find import find_backend
    from edge_agent.inference.trt.network import read_network

    with ExitStack() as failing:
        place = find_backend(params.tensorrt_python, os.environ)  # before whatever is wrong with the model
        failing.callback(place.close)
        network = read_network(
            params.model,
            directory,
            params.class_name,
            params.long_side,
            params.calibration,
            labels_file=params.labels_file,
            key=params.key,
        )
        options = BuildOptions(params.precision, params.workspace_mb, params.dla_core, params.interpolation)
        engine = EngineLoader(place, cache_dir(os.environ), tell).open(network, options).engine
        failing.pop_all()
    return engine


# Each loads its packages when it is chosen, not before.
_BACKENDS: Dict[str, Callable[[EngineParams, Path, Tell], Engine]] = {
    "onnxruntime": _open_onnxruntime,
    "scripted": _open_scripted,
    "tensorrt": _open_tensorrt,
}
