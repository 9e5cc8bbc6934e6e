"""`edge-agent model calibrate`: quantises a model to INT8 with the user's own images, for TensorRT and the CPU."""

import argparse
import hashlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple

import numpy as np

from edge_agent.commands.arguments import add_command, add_env_file, progress
from edge_agent.commands.recordings import gather
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.detection.detector import DetectionParams, FaceDetector
from edge_agent.core.detection.evaluation import Evaluation, GroundTruth
from edge_agent.core.frame import Image
from edge_agent.core.types import Array, Detections
from edge_agent.errors import InputError

if TYPE_CHECKING:
    from edge_agent.core.ports import Engine
    from edge_agent.inference import EngineParams

LEAST_FRAMES = 16
_MARGIN = 0.1  # score; a face this near the threshold is not certain for the float network either


def add_parser(actions: Any) -> None:
    """Declare the action."""
    parser = add_command(actions, "calibrate", "make INT8 versions of a model from your own images")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--source", metavar="SRC", help="camera, stream, video, or folder of images")
    source.add_argument(
        "--camera",
        metavar="NAME",
        help="camera of the settings, with its rotation, masks, region and model",
    )
    add_env_file(parser)
    parser.add_argument("--frames", type=int, default=128, metavar="N", help="images to take (default 128)")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="read a live source for so long")
    parser.add_argument("--model", metavar="NAME", help="name from 'list', .onnx or .uff; default centerface")
    parser.add_argument("--for", dest="target", choices=("all", "tensorrt", "cpu"), default="all", help="default all")
    parser.add_argument("--class-name", metavar="CLASS", help="the face class of a model with several classes")
    parser.add_argument("--labels-file", metavar="FILE", help="class names; default: labels.txt beside the model")
    parser.add_argument("--key", help="key of an .etlt; default: NVIDIA's tlt_encode")
    parser.add_argument("--long-side", type=int, metavar="PX", help="longer side of CenterFace's input; default 384")
    parser.add_argument("--models-dir", metavar="DIR", help="folder of models; default: the agent's")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, directory: Path) -> int:
    """Write the INT8 files and print how they compare with the float network."""
    from edge_agent.inference.calibration.measure import measure
    from edge_agent.inference.trt.network import read_network

    if args.frames < LEAST_FRAMES:
        raise InputError(f"--frames {args.frames}: expected {LEAST_FRAMES} or more")
    if not args.seconds > 0:
        raise InputError(f"--seconds {args.seconds:g}: expected a number above 0")
    camera, params = _settings(args)
    network = read_network(
        params.model,
        Path(params.models_dir or directory),
        params.class_name,
        params.long_side,
        labels_file=params.labels_file,
        key=params.key,
        allow_encrypted=False,
    )
    on_cpu = network.path.with_suffix(".onnx")  # the converted file, for an .etlt
    for_cpu = args.target != "tensorrt" and on_cpu.is_file()
    if args.target == "cpu" and not for_cpu:
        raise InputError(f"model {network.name} does not run on a CPU as it is", "convert it: edge-agent model convert")
    uri = args.source if camera is None else camera.uri
    images = gather(uri, args.frames, args.seconds, LEAST_FRAMES, camera)
    # The images of the comparison must not be those of the calibration.
    fit, test = (images[::2], images[1::2]) if for_cpu else (images, [])
    amplitudes = measure(network, progress(fit, "calibrating"))
    report: Dict[str, Any] = {"model": network.name, "pictures": len(fit), "tensors": len(amplitudes)}
    if args.target != "cpu":
        report.update(_for_tensorrt(network, amplitudes))
    if for_cpu:
        report.update(_for_cpu(network, on_cpu, amplitudes, test))
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        for key, value in report.items():
            print(f"{key:19} {value}")
    return 0


def _settings(args: argparse.Namespace) -> Tuple[Optional[CameraParams], "EngineParams"]:
    """The named camera (None without `--camera`) and the model's parameters; arguments override the settings."""
    from edge_agent.commands.arguments import with_arguments
    from edge_agent.config.settings import load_settings
    from edge_agent.inference import EngineParams

    if args.camera is None:
        return None, with_arguments(EngineParams(), args)
    settings = load_settings(os.environ, args.env_file)
    if args.camera not in settings.cameras:
        known = ", ".join(settings.cameras) or "none"
        raise InputError(f"--camera {args.camera}: the settings have no such camera", f"expected one of: {known}")
    return settings.cameras[args.camera], with_arguments(settings.model, args)


def _for_tensorrt(network: Any, amplitudes: Any) -> Dict[str, Any]:
    """Write the calibration cache for TensorRT up to 10, and the INT8 and FP16 files for TensorRT 11."""
    from edge_agent.inference.calibration.cpu_int8 import write_beside
    from edge_agent.inference.calibration.measure import reached
    from edge_agent.inference.trt.network import local_calibration
    from edge_agent.inference.trt.precision import to_fp16, to_int8
    from edge_agent.models.calibration_cache import encode_calibration, read_calibration

    cache = local_calibration(network.path)
    write_beside(cache, encode_calibration(reached(network, amplitudes)))
    made = to_int8(network, read_calibration(cache))
    files = {suffix: network.path.with_suffix(f".{suffix}.onnx") for suffix in ("qdq", "fp16")}
    write_beside(files["qdq"], made.data)
    write_beside(files["fp16"], to_fp16(network).data)
    return {
        "calibration": str(cache),
        "qdq": str(files["qdq"]),
        "int8_layers": f"{made.int8_layers} of {made.layers}",
        "fp16": str(files["fp16"]),
    }


def _for_cpu(network: Any, path: Path, amplitudes: Any, images: List[Image]) -> Dict[str, Any]:
    """Write the INT8 file for the CPU, and compare it with the float network to decide whether it is used."""
    from edge_agent.app.factories import onnx_engine_of
    from edge_agent.inference.calibration.cpu_int8 import Int8Trial, cpu_name, int8_file, store_trial, write_beside
    from edge_agent.inference.calibration.measure import make_int8
    from edge_agent.inference.ort import runtime_version

    data = make_int8(network, amplitudes)
    if data is None:
        return {"cpu_int8": "none: no layer of this model gains by it"}
    target = int8_file(path)
    write_beside(target, data)
    original = onnx_engine_of(path, network.contract)
    quantised = onnx_engine_of(target, network.contract)
    try:
        trial = _Trial(original, quantised)
        for image in progress(images, "comparing"):
            trial.add(image)
    finally:
        original.close()
        quantised.close()
    verdict = Int8Trial(
        model_sha256=original.info.model_sha256,
        int8_sha256=hashlib.sha256(data).hexdigest(),
        cpu=cpu_name(),
        onnxruntime=runtime_version(),
        pictures=len(images),
        **trial.figures(),
    )
    store_trial(path, verdict)
    return {
        "cpu_int8": str(target),
        "judged_on": f"{verdict.pictures} other images, {verdict.faces} faces of the float network",
        "precision": round(verdict.precision, 4),
        "recall": round(verdict.recall, 4),
        "ms_per_picture": f"{verdict.float_ms:g} in fp32, {verdict.int8_ms:g} in int8",
        "used_on_this_cpu": f"no: {verdict.objection}" if verdict.objection else "yes",
    }


class _Trial:
    """Compares INT8 with the float network, whose certain faces are the ground truth; uncertain ones are ignored."""

    def __init__(self, original: "Engine", quantised: "Engine") -> None:
        self._original, self._quantised = original, quantised
        params = DetectionParams()
        self._decoder = FaceDetector(original, params)
        threshold = self._decoder.threshold
        self._certain_score = threshold + _MARGIN
        self._wide = FaceDetector(original, replace(params, pre_cluster_threshold=max(0.02, threshold - _MARGIN)))
        self._tally = Evaluation()
        self._times_s: Dict[str, List[float]] = {"float": [], "int8": []}

    def add(self, image: Image) -> None:
        """Run both networks on one image."""
        height, width = image.pixels.shape[:2]
        wide = self._wide.decode(self._timed("float", self._original, image), (width, height))
        found = self._decoder.decode(self._timed("int8", self._quantised, image), (width, height))
        self._tally.add(found, _truth(wide, self._certain_score), height)

    def figures(self) -> Dict[str, Any]:
        """The comparison's fields of `Int8Trial`."""
        p50 = {kind: round(1000.0 * float(np.median(times)), 2) for kind, times in self._times_s.items()}
        return {
            "faces": self._tally.faces,
            "precision": self._tally.precision or 0.0,
            "recall": self._tally.recall or 0.0,
            "float_ms": p50["float"],
            "int8_ms": p50["int8"],
        }

    def _timed(self, kind: str, engine: "Engine", image: Image) -> Mapping[str, Array]:
        engine.infer(image)
        started = time.perf_counter()
        outputs = engine.infer(image)
        self._times_s[kind].append(time.perf_counter() - started)
        return outputs


def _truth(found: Detections, certain_score: float) -> GroundTruth:
    certain = found.confidence >= certain_score
    return GroundTruth("", found.xyxy[certain], found.xyxy[~certain])
