"""Inference engines and their settings; `open_engine` selects one and logs which and why."""

import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Literal, Optional, Tuple, Union

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.params import param
from edge_agent.core.ports import Engine
from edge_agent.errors import EngineError, MissingPackage, ModelError
from edge_agent.models.onnx.binding import ContractOf, Signature, derive_contract

if TYPE_CHECKING:
    from edge_agent.inference.trt.backend import TensorRtBackend

# ONNX Runtime 1.32 and later sends usage data to its vendor and stores a device identifier unless this is set before it
# is imported. Every module that imports it is in this package, so setting it here is early enough.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

_log = logging.getLogger(__name__)

Report = Callable[[str], None]


@dataclass(frozen=True)
class EngineParams:
    """The model that finds faces, and the backend that runs it."""

    model: str = param(
        "centerface",
        "Name of a model ('edge-agent model list'), or path of an .onnx, .uff or .etlt file; the latter two need, for "
        "ONNX Runtime, the .onnx that 'edge-agent model convert' makes of them, beside them",
        min_length=1,
        restart=True,
    )
    backend: Literal["auto", "onnxruntime", "tensorrt", "scripted"] = param(
        "auto",
        "Software that runs the network; a choice that is not available is an error, never replaced silently",
        restart=True,
    )
    threads: int = param(
        1,
        "CPU cores that work on one image; more shorten the latency and cost more CPU per frame",
        ge=1,
        le=64,
        restart=True,
    )
    long_side: int = param(
        384,
        "Longer side of CenterFace's input, px, a multiple of 32; larger finds smaller faces; time grows by its square",
        ge=64,
        le=4096,
        multiple_of=32,
        restart=True,
    )
    interpolation: Literal["linear", "area"] = param(
        "linear", "How images are shrunk: linear is fastest, area averages out the noise of large images", restart=True
    )
    class_name: Optional[str] = param(
        None,
        "Class that means a face, by name or number, for a model of several classes; 'face' when unset",
        restart=True,
    )
    labels_file: Optional[str] = param(
        None, "Path of the model's class names, one per line; labels.txt beside the model when unset", restart=True
    )
    key: Optional[str] = param(
        None,
        "Encryption key of an .etlt; NVIDIA's published tlt_encode when unset",
        restart=True,
        secret=True,
    )
    precision: Literal["auto", "int8", "fp16", "fp32"] = param(
        "auto",
        "Precision of the network. TensorRT: auto takes int8 if the GPU has it and a calibration exists, else fp16 if "
        "that is fast, else fp32. CPU: auto takes int8 if 'model calibrate' has shown it to be as good, and faster, "
        "else fp32. A precision that is not available is an error",
        restart=True,
    )
    calibration: Optional[str] = param(
        None,
        "Path of the model's INT8 calibration cache for TensorRT; when unset, the one that 'model calibrate' "
        "wrote, else the one fetched with the model",
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
        "Python interpreter whose TensorRT 8 is used, in a worker process; when unset, TensorRT of the agent's "
        "interpreter, else that of /usr/bin/python3.6 (JetPack 4)",
        min_length=1,
        restart=True,
    )
    models_dir: Optional[str] = param(
        None,
        "Folder of fetched models; when unset the service's state directory, else the user's data directory",
        restart=True,
    )


def open_engine(params: EngineParams, directory: Path, report: Report = _log.info) -> Engine:
    """The engine that `params` select. Call it in the thread that will use and close it.

    Args:
        params: The scripted engine takes its options from the model: "scripted?slow_s=0.05".
        directory: Folder of fetched models: `registry.models_dir(params.models_dir, os.environ)`.
        report: Takes lines of progress, from any thread, at least every 15 s while TensorRT builds (minutes, the first
            time).

    Raises:
        ModelError: The model is missing, damaged, of an unknown contract, or not for this backend.
        MissingPackage: The backend's package is not installed.
        EngineError: The GPU does not answer, or a newly built engine answers wrongly.
        InputError: TensorRT's engine cache cannot be used.
    """
    engine, reason = _open(params, directory, report)
    info = engine.info
    detail = "".join(f", {key} {value}" for key, value in info.detail.items())
    _log.info("engine: %s, model %s, %s%s (%s)", info.backend, info.model, info.precision, detail, reason)
    return engine


def _open(params: EngineParams, directory: Path, report: Report) -> Tuple[Engine, str]:
    """The engine, and why its backend was chosen. Each backend's packages are imported only when it is chosen."""
    if params.backend == "scripted":
        from edge_agent.inference.scripted import ScriptedEngine

        return ScriptedEngine(query=params.model.partition("?")[2]), "as asked"
    if params.backend == "onnxruntime":
        return _open_onnxruntime(params, directory), "as asked"

    from edge_agent.inference.trt.find import open_backend

    try:
        backend = open_backend(params.tensorrt_python, os.environ)  # before any fault of the model is reported
    except (MissingPackage, EngineError) as error:
        if params.backend == "tensorrt":
            raise
        reason = f"auto: not TensorRT, because {error.message}"
    else:
        reason = (
            "as asked" if params.backend == "tensorrt" else f"auto: TensorRT is installed, and {backend.gpu} answers"
        )
        return _open_tensorrt(params, directory, backend, report), reason
    return _open_onnxruntime(params, directory), reason


def _open_tensorrt(params: EngineParams, directory: Path, backend: "TensorRtBackend", report: Report) -> Engine:
    """The engine, which owns `backend` from then on; on failure, `backend` is closed."""
    from edge_agent.inference.cuda.compiler import cache_dir
    from edge_agent.inference.trt.engine_loader import BuildOptions, EngineLoader
    from edge_agent.inference.trt.network import read_network

    with ExitStack() as on_failure:
        on_failure.callback(backend.close)
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
        engine = EngineLoader(backend, cache_dir(os.environ), report).open(network, options).engine
        on_failure.pop_all()
    return engine


def _open_onnxruntime(params: EngineParams, directory: Path) -> Engine:
    from edge_agent.models import registry

    if params.model.endswith(registry.SUFFIXES):
        path = registry.as_onnx(Path(params.model))
        labels = registry.labels_of(path, params.labels_file)

        def contract_of(signature: Signature) -> ModelContract:
            return derive_contract(signature, str(path), labels, params.class_name, params.long_side)

        return _on_cpu(params, path, contract_of, path.name, registry.sha256_of(path))
    card = registry.card_of(params.model)
    path = registry.as_onnx(registry.locate(card, directory))
    contract = replace(card.contract, long_side=params.long_side)
    return _on_cpu(params, path, contract, card.name, card.files[0].sha256 or registry.sha256_of(path))


def _on_cpu(
    params: EngineParams, path: Path, contract: Union[ModelContract, ContractOf], name: str, sha256: str
) -> Engine:
    """The float model, or its INT8 version where that is proven."""
    from edge_agent.inference.calibration.cpu_int8 import int8_file, verified_int8
    from edge_agent.inference.ort import OrtEngine

    if params.precision in ("auto", "int8"):
        int8_sha256, objection = verified_int8(path, sha256)
        if int8_sha256:
            return OrtEngine(int8_file(path), contract, params.threads, params.interpolation, name, int8_sha256)
        level = logging.INFO if int8_file(path).exists() else logging.DEBUG
        _log.log(level, "model %s: not in INT8: %s", name, objection)
    else:
        objection = f"a CPU computes {params.precision} no faster than fp32"
    engine = OrtEngine(path, contract, params.threads, params.interpolation, name, sha256)
    if params.precision not in ("auto", engine.info.precision):
        engine.close()
        raise ModelError(
            f"model {name}: precision {params.precision} was asked for, but it is stored in {engine.info.precision}, "
            f"and of a version in {params.precision}: {objection}",
            "ask for precision auto",
        )
    return engine
