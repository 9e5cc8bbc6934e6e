"""Opens a network as a verified TensorRT engine: from the cache, or built now.

`EngineLoader` selects the precision, takes the plan from the cache or builds it, loads it, and compares its outputs for
the golden image with a reference that ONNX Runtime computes. An engine that differs by more than its precision explains
is never used.
"""

import hashlib
import io
import threading
import time
import zipfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, Iterator, Literal, Mapping, Optional, Tuple

import numpy as np

from edge_agent.core.types import Array, EngineInfo
from edge_agent.errors import EngineError, ModelError
from edge_agent.inference.ort import run_once
from edge_agent.inference.preprocess import Preprocessor, golden_image
from edge_agent.inference.trt.backend import ReplaceableEngine, TensorRtBackend
from edge_agent.inference.trt.build import BuildParams
from edge_agent.inference.trt.cache import EngineCache, EngineKey, Manifest, describe
from edge_agent.inference.trt.find import open_backend
from edge_agent.inference.trt.network import Network
from edge_agent.inference.trt.precision import (
    PrecisionChoice,
    built_precision,
    choose_precision,
    require_precision,
    to_fp16,
    to_int8,
)
from edge_agent.inference.trt.tao_converter import PROGRAM, convert
from edge_agent.models.calibration_cache import read_calibration, with_header

Report = Callable[[str], None]
Precision = Literal["auto", "int8", "fp16", "fp32"]

_REPORT_INTERVAL_S = 15.0

# Norm of the difference as a share of the reference's norm: far above rounding errors, far below a wrong weight, scale
# or colour order. CenterFace quantised by ONNX Runtime with one scale per tensor, coarser than TensorRT's, has 0.21.
TOLERANCES = {"fp32": 0.02, "fp16": 0.05, "int8": 0.35}
# A smaller root mean square of an output counts as this one, in the output's units: an offset is a part of a cell.
_LEAST_RMS = {"cov": 0.01, "heatmap": 0.01, "bbox": 0.1, "scale": 0.1, "offset": 0.25}


@dataclass(frozen=True)
class BuildOptions:
    """The user's choices.

    Attributes:
        precision: Precision of the layers; "auto" takes the fastest that the GPU and the model's files permit.
        workspace_mb: Scratch memory that layers may use.
        dla_core: Deep learning accelerator, or None for the GPU.
        interpolation: How images are shrunk.
        rebuild: True builds even if the cache has an engine.
    """

    precision: Precision = "auto"
    workspace_mb: int = 256
    dla_core: Optional[int] = None
    interpolation: str = "linear"
    rebuild: bool = False


@dataclass(frozen=True)
class OpenedEngine:
    """A verified engine and its origin.

    Attributes:
        engine: Close it in the thread that opened it; this closes the GPU too.
        manifest: Facts of the engine.
        path: Path of its plan in the cache.
        built: False when the plan was in the cache.
        errors: By role, the difference of its output from the reference for the golden image, as a share.
    """

    engine: ReplaceableEngine
    manifest: Manifest
    path: Path
    built: bool
    errors: Mapping[str, float]


@dataclass(frozen=True)
class _Job:
    """Everything that building and verifying one engine need."""

    network: Network
    options: BuildOptions
    choice: PrecisionChoice
    params: BuildParams
    path: Path
    reference: Mapping[str, Array]


def open_network(
    network: Network,
    options: BuildOptions,
    directory: Path,
    environ: Mapping[str, str],
    report: Report,
    python: Optional[str] = None,
) -> OpenedEngine:
    """A verified engine on this machine's GPU. Call it in the thread that will use and close it.

    Args:
        network: The network to run.
        options: The user's choices.
        directory: The agent's cache folder.
        environ: Names the folder of the CUDA compiler.
        report: Takes lines of progress, from any thread.
        python: Interpreter of a worker process, as for `open_backend`.

    Raises:
        MissingPackage: tensorrt or pycuda is not installed.
        ModelError, EngineError, InputError: As `EngineLoader.open`; or no GPU answers.
    """
    backend = open_backend(python, environ)
    with ExitStack() as on_failure:
        on_failure.callback(backend.close)
        opened = EngineLoader(backend, directory, report).open(network, options)
        on_failure.pop_all()
    return opened


class EngineLoader:
    """Builds, caches, loads and verifies engines on one GPU.

    Args:
        backend: TensorRT and the GPU. The opened engine closes it; when `open` fails, the caller does.
        directory: The agent's cache folder.
        report: Takes lines of progress, from any thread.
    """

    def __init__(self, backend: TensorRtBackend, directory: Path, report: Report) -> None:
        self._backend, self._directory, self._report = backend, directory, report
        self._cache = EngineCache(directory / "engines")

    def open(self, network: Network, options: BuildOptions) -> OpenedEngine:
        """A verified engine.

        A cached engine that does not load, or whose outputs are wrong, is built again, once. Everything else that can
        fail is checked before the build, which takes minutes.

        Raises:
            ModelError: The request cannot be met, or TensorRT cannot build the model.
            EngineError: CUDA failed, or the outputs of an engine built now are wrong.
            InputError: The cache cannot be used.
            MissingPackage: A package or the CUDA compiler is missing.
        """
        backend = self._backend
        version = f"TensorRT {backend.version} on {backend.gpu} (sm_{backend.sm})"
        self._report(f"{version}, driver for CUDA {backend.cuda_version}")
        choice, params = self._decide(network, options)
        self._report(f"precision {choice.precision}: {choice.why}")
        reference = {} if network.encrypted is not None else load_reference(network, self._cache, self._report)
        if params.fixed and network.encrypted is None and network.precision == "fp32":
            network = self._converted(network, params)
        key = self._key(network, params)
        path = self._cache.path(network.name, key)
        backend.prepare(network, options.interpolation, self._directory)
        job = _Job(network, options, choice, params, path, reference)
        reason = "a rebuild was requested"
        if not options.rebuild:
            plan, manifest, reason = self._cache.load(path)
            if plan is not None and manifest is not None:
                self._report(f"engine from the cache: {path}")
                try:
                    return self._verify(job, plan, manifest, built=False)
                except EngineError as error:
                    reason = str(error)
        self._report(f"building engine {path}: {reason}")
        self._cache.require_writable()
        plan, manifest = self._build(job)
        opened = self._verify(job, plan, manifest, built=True)
        self._cache.store(path, key, plan, opened.manifest)
        for removed in self._cache.prune(network.name):
            self._report(f"removed from the cache because long unused: {removed}")
        return opened

    def _decide(self, network: Network, options: BuildOptions) -> Tuple[PrecisionChoice, BuildParams]:
        can = self._backend.capabilities()
        stored = network.precision
        calibration = None
        if network.calibration is not None:
            if stored != "fp32" or options.precision in ("fp16", "fp32") or not can.int8:
                self._report(f"calibration {network.calibration} is not used")
            else:
                calibration = read_calibration(network.calibration)
        choice = choose_precision(options.precision, can, stored, calibration is not None)
        params = BuildParams(choice.precision, calibration, options.workspace_mb << 20, options.dla_core, can.fixed)
        return choice, params

    def _converted(self, network: Network, params: BuildParams) -> Network:
        """The float network, converted to the chosen precision for a strongly typed TensorRT."""
        if params.precision == "fp32":
            return network
        made = to_fp16(network) if params.calibration is None else to_int8(network, params.calibration)
        share = f": {made.int8_layers} of {made.layers} layers" if made.int8_layers else ""
        self._report(f"model {network.name} is converted to {params.precision} for this TensorRT{share}")
        return replace(network, onnx=made.data)

    def _key(self, network: Network, params: BuildParams) -> EngineKey:
        return EngineKey(
            model_sha256=hashlib.sha256(network.onnx).hexdigest() if params.fixed else network.sha256,
            calibration_sha256=params.calibration.sha256 if params.calibration is not None else None,
            precision=params.precision,
            shapes=network.shapes,
            workspace_bytes=params.workspace_bytes,
            dla_core=params.dla_core,
            tensorrt=self._backend.version,
            gpu=self._backend.gpu,
            sm=self._backend.sm,
            multiprocessors=self._backend.multiprocessors,
            driver=self._backend.cuda_version,
        )

    def _build(self, job: _Job) -> Tuple[bytes, Manifest]:
        self._report(f"building model {job.network.name}, which takes minutes")
        started = time.monotonic()
        with progress_reports(self._report, "still building"):
            plan = self._plan(job.network, job.params)
        build_s = round(time.monotonic() - started, 1)
        self._report(f"built in {build_s} s, {len(plan) / 1e6:.1f} MB")
        digest = hashlib.sha256(plan).hexdigest()
        choice = job.choice
        return plan, Manifest(digest, len(plan), job.options.precision, choice.precision, choice.why, {}, build_s)

    def _plan(self, network: Network, params: BuildParams) -> bytes:
        encrypted = network.encrypted
        if encrypted is None:
            return self._backend.build(network, params)
        if self._backend.worker is not None:
            raise ModelError(
                f"model {network.name}: {self._backend.worker} cannot run an engine of {PROGRAM}, which has an "
                "implicit batch",
                f"on another machine: edge-agent model convert; {encrypted.etlt.with_suffix('.onnx')} is then found",
            )
        self._report(f"by NVIDIA's {encrypted.program}")
        cache = with_header(params.calibration, self._backend.version) if params.calibration is not None else None
        return convert(
            encrypted,
            network.binding,
            network.contract,
            params.precision,
            cache,
            params.workspace_bytes,
            params.dla_core,
        )

    def _verify(self, job: _Job, plan: bytes, manifest: Manifest, built: bool) -> OpenedEngine:
        """Load a plan and compare its outputs for the golden image with the reference."""
        network, params = job.network, job.params
        engine = self._backend.load(plan, network, params, self._info(network, manifest, params))
        try:
            if built:
                layers = engine.layers()
                manifest = replace(manifest, layers=layers, precision=built_precision(layers, params.precision))
                engine.info = self._info(network, manifest, params)
            require_precision(job.options.precision, params.precision, manifest.layers, network.name)
            outputs = engine.infer(golden_image())
            if network.encrypted is not None:
                require_plausible(outputs)
            errors = require_equal(outputs, job.reference, manifest.precision)
        except EngineError:
            engine.free()
            raise
        shares = ", ".join(f"{role} {share:.2%}" for role, share in errors.items())
        verified = f"verified with the golden image: differs from the reference by {shares}"
        self._report(verified if errors else "ran on the golden image; an encrypted model has no reference")
        return OpenedEngine(engine, manifest, job.path, built, errors)

    def _info(self, network: Network, manifest: Manifest, params: BuildParams) -> EngineInfo:
        detail = {
            "version": self._backend.version,
            "gpu": self._backend.gpu,
            "worker": self._backend.worker,
            "layers": describe(manifest.layers),
            "dla_core": params.dla_core,
        }
        return EngineInfo(
            backend="tensorrt",
            precision=manifest.precision,
            model=network.name,
            model_sha256=network.sha256,
            calibration_sha256=params.calibration.sha256 if params.calibration is not None else None,
            detail={key: value for key, value in detail.items() if value is not None},
        )


@contextmanager
def progress_reports(report: Report, text: str, every_s: float = _REPORT_INTERVAL_S) -> Iterator[None]:
    """Report `text` and the elapsed time at intervals while the block runs; the block must release Python's lock."""
    done = threading.Event()
    started = time.monotonic()

    def repeat() -> None:
        while not done.wait(every_s):
            report(f"{text}, {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=repeat, name="trt-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(every_s)


def load_reference(network: Network, cache: EngineCache, report: Report) -> Dict[str, Array]:
    """The network's correct outputs for the golden image, by role, without the batch axis; computed once and cached.

    Raises:
        MissingPackage: It must be computed, and onnxruntime is not installed.
        ModelError: ONNX Runtime cannot run the model.
        InputError: The cache cannot be read or written.
    """
    image = golden_image()
    inputs = repr((network.contract, image.pixels.tobytes())).encode()
    digest = hashlib.sha256(hashlib.sha256(network.onnx).digest() + inputs).hexdigest()
    path = cache.directory / f"{Path(network.name).stem}-{digest[:16]}.reference.npz"
    cached = _read_reference(path, network)
    if cached is not None:
        return cached
    report(f"computing the reference for model {network.name} with ONNX Runtime")
    feed = Preprocessor(network.contract, opencv=False)(image)
    outputs = run_once(network.onnx, f"model {network.name}", {network.binding.input: feed})
    reference = {role: outputs[name][0] for role, name in network.binding.outputs.items()}
    file = io.BytesIO()
    np.savez(file, **reference)
    cache.write(path, file.getvalue())
    return reference


def _read_reference(path: Path, network: Network) -> Optional[Dict[str, Array]]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {role: np.asarray(file[role]) for role in network.binding.outputs}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # it is computed again


def relative_errors(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> Dict[str, float]:
    """By role, the norm of the difference as a share of the reference's norm; infinity where shapes differ."""
    errors = {}
    for role, expected in reference.items():
        output = outputs.get(role)
        if output is None or output.shape != expected.shape:
            errors[role] = float("inf")
            continue
        scale = max(float(np.linalg.norm(expected)), _LEAST_RMS[role] * expected.size**0.5)
        errors[role] = float(np.linalg.norm(output - expected)) / scale
    return errors


def require_equal(outputs: Mapping[str, Array], reference: Mapping[str, Array], precision: str) -> Dict[str, float]:
    """The relative errors by role.

    Raises:
        EngineError: One of them is larger than the precision explains.
    """
    errors = relative_errors(outputs, reference)
    limit = TOLERANCES[precision]
    wrong = [f"{role} by {error:.0%}" for role, error in errors.items() if not error <= limit]
    if wrong:
        raise EngineError(
            f"the engine answers wrongly: on the golden image it differs from the reference in {', '.join(wrong)}",
            f"{precision} explains {limit:.0%}",
        )
    return errors


def require_plausible(outputs: Mapping[str, Array]) -> None:
    """Check an encrypted DetectNet_v2, which has no reference: its coverage is a share, and not constant.

    Raises:
        EngineError: The coverage is implausible.
    """
    cov = outputs["cov"]
    if not (cov.min() >= -0.01 and cov.max() <= 1.01 and np.ptp(cov) > 0.0):
        raise EngineError(
            f"the engine answers wrongly: on the golden image its coverage is {cov.min():.3g} to {cov.max():.3g}",
            "expected shares from 0 to 1 that differ; is the model complete, and are its size and key right?",
        )
