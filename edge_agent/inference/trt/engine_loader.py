"""From a network to a proven engine: out of the cache, or built now."""

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
from edge_agent.inference.ort import answer_once
from edge_agent.inference.preprocess import Preprocessor, golden_image
from edge_agent.inference.trt.backend import ReplaceableEngine, TensorRtBackend
from edge_agent.inference.trt.build import BuildParams
from edge_agent.inference.trt.cache import EngineCache, EngineKey, Manifest, describe
from edge_agent.inference.trt.find import find_backend
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
from edge_agent.models.calibration_cache import read_calibration, restamped

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
    picture = golden_image()
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
    """All that can be said of an encrypted DetectNet_v2: its coverage is a share, and not the same everywhere.

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


Tell = Callable[[str], None]
Precision = Literal["auto", "int8", "fp16", "fp32"]

_BEAT_S = 15.0


@dataclass(frozen=True)
class BuildOptions:
    """What the user may choose.

    Attributes:
        precision: What to compute in; "auto" takes the fastest that the GPU and the model's files allow.
        workspace_mb: Scratch memory that layers may use.
        dla_core: Deep learning accelerator, or None for the GPU.
        interpolation: How pictures shrink.
        rebuild: True builds even where the cache has an engine.
    """

    precision: Precision = "auto"
    workspace_mb: int = 256
    dla_core: Optional[int] = None
    interpolation: str = "linear"
    rebuild: bool = False


@dataclass(frozen=True)
class Opened:
    """A running engine and how it came about.

    Attributes:
        engine: Close it in the thread that opened it; the GPU goes with it.
        manifest: What is known of it.
        path: Its plan in the cache.
        built: False when it came out of the cache.
        errors: By role, how far its answer to the golden picture is from the reference, as a share.
    """

    engine: ReplaceableEngine
    manifest: Manifest
    path: Path
    built: bool
    errors: Mapping[str, float]


@dataclass(frozen=True)
class _Job:
    """One request, decided: all that building and proving need."""

    network: Network
    options: BuildOptions
    choice: PrecisionChoice
    params: BuildParams
    path: Path
    wanted: Mapping[str, Array]


class EngineLoader:
    """Builds, keeps, loads and proves engines on one GPU.

    Args:
        place: TensorRT and the GPU. The engine closes it; until there is one, the caller does.
        directory: The agent's cache folder.
        tell: Takes a line of progress, of any thread.
    """

    def __init__(self, place: TensorRtBackend, directory: Path, tell: Tell) -> None:
        self._place, self._directory, self._tell = place, directory, tell
        self._cache = EngineCache(directory / "engines")

    def open(self, network: Network, options: BuildOptions) -> Opened:
        """A proven engine.

        An engine of the cache that does not load, or answers wrongly, is built again, once. Whatever else can be
        missing is found out before the minutes that a build takes.

        Raises:
            ModelError: The request cannot be met, or TensorRT cannot build the model.
            EngineError: CUDA failed, or what was just built answers wrongly.
            InputError: The cache cannot be used.
            MissingPackage: A package or the CUDA compiler is missing.
        """
        place = self._place
        self._tell(f"TensorRT {place.version} on {place.gpu} (sm_{place.sm}), driver for CUDA {place.cuda_version}")
        choice, params = self._decide(network, options)
        self._tell(f"precision {choice.precision}: {choice.why}")
        wanted = {} if network.encrypted is not None else reference(network, self._cache, self._tell)
        if params.fixed and network.encrypted is None and network.precision == "fp32":
            network = self._typed(network, params)
        key = self._key(network, params)
        path = self._cache.path(network.name, key)
        place.prepare(network, options.interpolation, self._directory)
        job = _Job(network, options, choice, params, path, wanted)
        fault = "it was asked for anew"
        if not options.rebuild:
            plan, manifest, fault = self._cache.load(path)
            if plan is not None and manifest is not None:
                self._tell(f"engine of the cache: {path}")
                try:
                    return self._prove(job, plan, manifest, built=False)
                except EngineError as error:
                    fault = str(error)
        self._tell(f"building engine {path}: {fault}")
        self._cache.require_writable()
        plan, manifest = self._build(job)
        opened = self._prove(job, plan, manifest, built=True)
        self._cache.store(path, key, plan, opened.manifest)
        for old in self._cache.prune(network.name):
            self._tell(f"removed from the cache, as long unused: {old}")
        return opened

    def _decide(self, network: Network, options: BuildOptions) -> Tuple[PrecisionChoice, BuildParams]:
        can = self._place.capabilities()
        file = network.precision
        calibration = None
        if network.calibration is not None:
            if file != "fp32" or options.precision in ("fp16", "fp32") or not can.int8:
                self._tell(f"calibration {network.calibration} is not used")
            else:
                calibration = read_calibration(network.calibration)
        choice = choose_precision(options.precision, can, file, calibration is not None)
        params = BuildParams(choice.precision, calibration, options.workspace_mb << 20, options.dla_core, can.fixed)
        return choice, params

    def _typed(self, network: Network, params: BuildParams) -> Network:
        """The network stored in the precision that was chosen."""
        if params.precision == "fp32":
            return network
        made = to_fp16(network) if params.calibration is None else to_int8(network, params.calibration)
        share = f": {made.int8_layers} of {made.layers} layers" if made.int8_layers else ""
        self._tell(f"model {network.name} is stored in {params.precision} for this TensorRT{share}")
        return replace(network, onnx=made.data)

    def _key(self, network: Network, params: BuildParams) -> EngineKey:
        return EngineKey(
            model_sha256=hashlib.sha256(network.onnx).hexdigest() if params.fixed else network.sha256,
            calibration_sha256=params.calibration.sha256 if params.calibration is not None else None,
            precision=params.precision,
            shapes=network.shapes,
            workspace_bytes=params.workspace_bytes,
            dla_core=params.dla_core,
            tensorrt=self._place.version,
            gpu=self._place.gpu,
            sm=self._place.sm,
            multiprocessors=self._place.multiprocessors,
            driver=self._place.cuda_version,
        )

    def _build(self, job: _Job) -> Tuple[bytes, Manifest]:
        self._tell(f"building takes minutes: model {job.network.name}")
        started = time.monotonic()
        with heartbeat(self._tell, "still building"):
            plan = self._plan(job.network, job.params)
        build_s = round(time.monotonic() - started, 1)
        self._tell(f"built in {build_s} s, {len(plan) / 1e6:.1f} MB")
        digest = hashlib.sha256(plan).hexdigest()
        choice = job.choice
        return plan, Manifest(digest, len(plan), job.options.precision, choice.precision, choice.why, {}, build_s)

    def _plan(self, network: Network, params: BuildParams) -> bytes:
        encrypted = network.encrypted
        if encrypted is None:
            return self._place.build(network, params)
        if self._place.worker is not None:
            raise ModelError(
                f"model {network.name}: {self._place.worker} runs no engine of {PROGRAM}, which has an implicit batch",
                f"on another machine: edge-agent model convert; {encrypted.etlt.with_suffix('.onnx')} is then found",
            )
        self._tell(f"by NVIDIA's {encrypted.program}")
        cache = restamped(params.calibration, self._place.version) if params.calibration is not None else None
        return convert(
            encrypted,
            network.binding,
            network.contract,
            params.precision,
            cache,
            params.workspace_bytes,
            params.dla_core,
        )

    def _prove(self, job: _Job, plan: bytes, manifest: Manifest, built: bool) -> Opened:
        """Load it, and compare its answer to the golden picture with the reference."""
        network, params = job.network, job.params
        loaded = self._place.load(plan, network, params)
        if built:
            layers = loaded.layers()
            manifest = replace(manifest, layers=layers, precision=built_precision(layers, params.precision))
        engine = loaded.engine(self._info(network, manifest, params))
        try:
            require_precision(job.options.precision, params.precision, manifest.layers, network.name)
            answers = engine.infer(golden_image())
            if network.encrypted is not None:
                require_plausible(answers)
            found = require_same(answers, job.wanted, manifest.precision)
        except EngineError:
            engine.free()
            raise
        shares = ", ".join(f"{role} {share:.2%}" for role, share in found.items())
        told = f"proven with the golden picture: off the reference by {shares}"
        self._tell(
            told if found else "tried with the golden picture; an encrypted model has no reference to compare with"
        )
        return Opened(engine, manifest, job.path, built, found)

    def _info(self, network: Network, manifest: Manifest, params: BuildParams) -> EngineInfo:
        detail = {
            "version": self._place.version,
            "gpu": self._place.gpu,
            "worker": self._place.worker,
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


def open_network(
    network: Network,
    options: BuildOptions,
    directory: Path,
    environ: Mapping[str, str],
    tell: Tell,
    python: Optional[str] = None,
) -> Opened:
    """A proven engine on this machine's GPU; see `EngineLoader`. Call it in the thread that will use and close it.

    Args:
        network: What to run.
        options: How.
        directory: The agent's cache folder.
        environ: For finding the CUDA compiler.
        tell: Takes a line of progress, of any thread.
        python: See `trt.find.find_backend`.

    Raises:
        MissingPackage: tensorrt or pycuda is not installed.
        ModelError, EngineError, InputError: As `EngineLoader.open`; or no GPU answers.
    """
    place = find_backend(python, environ)
    with ExitStack() as failing:
        failing.callback(place.close)
        opened = EngineLoader(place, directory, tell).open(network, options)
        failing.pop_all()
    return opened


@contextmanager
def heartbeat(tell: Tell, what: str, every_s: float = _BEAT_S) -> Iterator[None]:
    """Say `what` now and then, while the block works with the interpreter's lock let go."""
    done = threading.Event()
    started = time.monotonic()

    def beat() -> None:
        while not done.wait(every_s):
            tell(f"{what}, {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=beat, name="trt-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(every_s)
