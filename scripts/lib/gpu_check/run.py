"""Proves the GPU path on a real CUDA machine: kernel, memory, contexts over threads, leaks, throughput, engines.

    scripts/gpu-check [--frames 100000] [--model centerface]

Needs numpy, pycuda and nvcc; engines also TensorRT, onnxruntime and a model. Exit code 0: nothing failed; 1: something
did; 3: there is no GPU to check.
"""

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from edge_agent.errors import EdgeAgentError, EngineError, MissingPackage
from edge_agent.inference.cuda.compiler import KernelCache, find_nvcc
from edge_agent.inference.cuda.context import CudaContext
from edge_agent.inference.cuda.driver import load_driver
from scripts.lib.gpu_check import checks
from scripts.lib.gpu_check.checks import FAIL, NOTE, OK, Bench, Row
from tests.fakes.views import wandering

if TYPE_CHECKING:
    from edge_agent.inference.trt.engine_loader import Precision
    from edge_agent.inference.trt.network import Network

NO_GPU = 3
ENGINE_S = 5.0
IMAGES = 32


def progress(line: str) -> None:
    """Print a line of progress."""
    print(f"  {line}", file=sys.stderr, flush=True)


def rows(bench: Bench, engines: Iterator[Row]) -> Iterator[Row]:
    """Run all checks; one that raises gives a failed row, and the others go on."""
    for name, found in (
        ("kernel", checks.kernel(bench)),
        ("buffer", checks.buffers(bench)),
        ("camera memory", checks.camera_memory(bench)),
        ("threads", checks.threads(bench)),
        ("leaks", checks.leaks(bench, progress)),
        ("throughput", checks.throughput(bench)),
        ("engine", engines),
    ):
        try:
            yield from found
        except EdgeAgentError as error:
            yield name, FAIL, str(error)


def engine(model: str, folder: Path) -> Iterator[Row]:
    """Build, prove and measure engines in every precision; a note where there is no TensorRT or no model."""
    from edge_agent.inference.trt.api import load_tensorrt
    from edge_agent.inference.trt.find import open_backend
    from edge_agent.inference.trt.network import read_network
    from edge_agent.models.registry import models_dir

    try:
        load_tensorrt()
        network = read_network(model, models_dir(None, os.environ), allow_encrypted=False)
    except EdgeAgentError as error:
        yield "engine", NOTE, f"not checked: {error}"
        return
    backend = open_backend(None, os.environ)
    can = backend.capabilities()
    backend.close()
    yield _proven(f"{model}, auto", network, "auto", folder)
    yield _proven(f"{model}, fp32", network, "fp32", folder)
    if network.precision != "fp32":
        return
    if can.fp16:
        yield _proven(f"{model}, fp16", network, "fp16", folder)
    if not can.int8:
        yield f"engine: {model}, int8", NOTE, f"{can.gpu} has no INT8"
        return
    calibrated, files = _calibrated(network, folder)
    yield _proven(f"{model}, int8, calibrated here", calibrated, "int8", folder)
    for kind, (path, precision) in files.items():
        yield _proven(f"{model}'s {kind} file", read_network(str(path), folder), precision, folder)


def _calibrated(network: "Network", folder: Path) -> Tuple["Network", Dict[str, Tuple[Path, "Precision"]]]:
    """Calibrate with synthetic images; returns the files that `model calibrate` also writes, by kind."""
    from edge_agent.inference.calibration.measure import measure, reached
    from edge_agent.inference.trt.precision import to_fp16, to_int8
    from edge_agent.models.calibration_cache import encode_calibration, read_calibration

    cache = folder / "calibration.txt"
    cache.write_bytes(encode_calibration(reached(network, measure(network, wandering(IMAGES)))))
    files: Dict[str, Tuple[Path, Precision]] = {
        "Q/DQ": (folder / "made.qdq.onnx", "int8"),
        "FP16": (folder / "made.fp16.onnx", "auto"),
    }
    files["Q/DQ"][0].write_bytes(to_int8(network, read_calibration(cache)).data)
    files["FP16"][0].write_bytes(to_fp16(network).data)
    return replace(network, calibration=cache), files


def _proven(name: str, network: "Network", precision: "Precision", folder: Path) -> Row:
    from edge_agent.commands.bench_inference import measure
    from edge_agent.inference.trt.engine_loader import BuildOptions, open_network

    try:
        opened = open_network(network, BuildOptions(precision), folder, os.environ, progress)
    except EdgeAgentError as error:
        return f"engine: {name}", FAIL, str(error)
    try:
        found = measure(opened.engine, (1280, 800), ENGINE_S)
    except EdgeAgentError as error:
        return f"engine: {name}", FAIL, str(error)
    finally:
        opened.engine.close()
    off = max(opened.errors.values())
    figure = f"{opened.manifest.precision}, off the reference by {off:.2%}; {found.whole.p50_ms:.3f} ms p50, "
    return f"engine: {name}", OK, f"{figure}{found.whole.p99_ms:.3f} p99, {found.whole.per_s:.0f}/s"


def report(found: Iterator[Row]) -> int:
    """Print each row when it is ready; return the exit code."""
    states: List[str] = []
    for name, state, figure in found:
        states.append(state)
        print(f"{state:4}  {name:38} {figure}", flush=True)
    failed = states.count(FAIL)
    print(f"{failed} of {len(states)} checks failed" if failed else f"nothing failed ({len(states)} checks)")
    return 1 if failed else 0


def main(words: Optional[Sequence[str]] = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/gpu-check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=100_000, metavar="N", help="frames in the search for leaks")
    parser.add_argument("--model", default="centerface", metavar="NAME", help="a model of the registry, or a file")
    args = parser.parse_args(words)
    if args.frames < 1:
        parser.error(f"--frames {args.frames}: expected 1 or more")
    try:
        driver = load_driver()
        context = CudaContext(driver)
        print(f"{context.name}, sm_{context.sm}, driver for CUDA {context.cuda_version}, "
              f"{'shares' if context.integrated else 'does not share'} the host's memory")  # fmt: skip
        context.close()
    except (MissingPackage, EngineError) as error:
        print(f"gpu-check: no GPU to check: {error}", file=sys.stderr)
        return NO_GPU
    with tempfile.TemporaryDirectory() as folder:  # so that the kernel is compiled and the engine built here
        kernels = KernelCache(Path(folder), lambda: find_nvcc(os.environ))
        bench = Bench(driver, kernels, args.frames, np.random.default_rng(7))
        return report(rows(bench, engine(args.model, Path(folder))))


if __name__ == "__main__":
    sys.exit(main())
