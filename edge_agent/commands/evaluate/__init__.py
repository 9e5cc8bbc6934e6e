"""`edge-agent evaluate`: measures precision and recall of the detector on labelled images."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from edge_agent.commands.arguments import add_command, progress
from edge_agent.commands.evaluate.dataset import Miss, read_image, read_labels
from edge_agent.core.detection.detector import DetectionParams, FaceDetector
from edge_agent.core.detection.evaluation import Evaluation, GroundTruth, Match
from edge_agent.core.frame import Image
from edge_agent.core.types import Array
from edge_agent.errors import InputError

CURVE_THRESHOLD = 0.02
"""Lowest score on the curve; detections below it are noise."""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = add_command(subparsers, "evaluate", "measure the detector on labelled images")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    parser.add_argument(
        "--labels", type=Path, required=True, metavar="FILE", help="COCO JSON, or a folder of KITTI .txt"
    )
    parser.add_argument("--format", choices=("auto", "coco", "kitti"), default="auto", help="layout of the labels")
    parser.add_argument(
        "--iou", type=float, default=0.5, help="a face is found by an overlap (IoU) greater than this (default 0.5)"
    )
    parser.add_argument("--model", default="centerface", help="registry name or .onnx file (default centerface)")
    parser.add_argument("--class-name", metavar="CLASS", help="the face class of a model with several classes")
    parser.add_argument("--labels-file", metavar="FILE", help="class names (default labels.txt beside the model)")
    parser.add_argument("--backend", default="auto", help="auto, onnxruntime, tensorrt (default auto)")
    parser.add_argument("--precision", choices=("auto", "int8", "fp16", "fp32"), default="auto", help="default auto")
    parser.add_argument("--threads", type=int, default=1, help="threads of the network (default 1)")
    parser.add_argument("--threshold", type=float, help="score that counts as a face (default: the model's own)")
    parser.add_argument("--as-captured", action="store_true", help="do not adapt the levels of dim images")
    parser.add_argument("--color", action="store_true", help="feed colour; gray is the default, as from an IR camera")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure to this file")
    parser.add_argument(
        "--plot", type=Path, metavar="DIR", help="folder for the curves and a contact sheet of mistakes"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table, and write the files that were asked for; returns 0."""
    _check_arguments(args)
    truths = read_labels(args.labels, args.format)
    images = _find_images(args.images, truths)
    figures, curve, misses = _evaluate(args, images)
    print(_table(figures))
    if args.json:
        _write(args.json, json.dumps(figures, indent=2))
    if args.plot:
        from edge_agent.commands.evaluate.plot import contact_sheet, plot_curves

        args.plot.mkdir(parents=True, exist_ok=True)
        plot_curves(curve, figures, args.plot / "precision-recall.png")
        contact_sheet(misses, args.plot / "mistakes.jpg")
        print(f"written to {args.plot}: precision-recall.png, mistakes.jpg ({len(misses)} mistakes)")
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if not args.images.is_dir():
        raise InputError(f"--images {args.images}: no such folder")
    if not 0 < args.iou < 1:
        raise InputError(f"--iou {args.iou:g}: expected a number above 0 and below 1")
    if not 1 <= args.threads <= 64:
        raise InputError(f"--threads {args.threads}: expected a number from 1 to 64")
    if args.threshold is not None and not 0 < args.threshold <= 1:
        raise InputError(f"--threshold {args.threshold:g}: expected a number above 0 and at most 1")


def _find_images(folder: Path, truths: List[GroundTruth]) -> List[Tuple[Path, GroundTruth]]:
    """Pair labels with image files; a label without a file is an error, because the figures would be wrong."""
    by_name = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    if not by_name:
        raise InputError(f"--images {folder}: this folder holds no file")
    by_stem = {Path(name).with_suffix("").as_posix(): path for name, path in by_name.items()}
    found = [(by_name.get(truth.name) or by_stem.get(truth.name), truth) for truth in truths]
    missing = [truth.name for path, truth in found if path is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(truths)} labelled images are not in {folder}, e.g. {missing[0]}",
            "file_name in the labels is relative to --images",
        )
    return [(path, truth) for path, truth in found if path is not None]


def _evaluate(
    args: argparse.Namespace, images: List[Tuple[Path, GroundTruth]]
) -> Tuple[Dict[str, Any], Tuple[Array, Array, Array], List[Miss]]:
    from edge_agent.app.factories import engine_of
    from edge_agent.inference import EngineParams

    params = EngineParams(
        model=args.model,
        backend=args.backend,
        threads=args.threads,
        precision=args.precision,
        class_name=args.class_name,
        labels_file=args.labels_file,
        models_dir=os.environ.get("EDGE_AGENT_MODEL__MODELS_DIR"),
    )
    engine = engine_of(params, os.environ)
    detector = FaceDetector(
        engine, DetectionParams(pre_cluster_threshold=args.threshold, adapt_levels=not args.as_captured)
    )
    wide = FaceDetector(engine, DetectionParams(pre_cluster_threshold=CURVE_THRESHOLD))
    tally, curve = Evaluation(args.iou), Evaluation(args.iou)
    durations_s: List[float] = []
    misses: List[Miss] = []
    try:
        for path, truth in progress(images, "evaluating"):
            pixels = read_image(path, args.color)
            started = time.perf_counter()
            outputs = detector.outputs(Image(pixels))
            size = (pixels.shape[1], pixels.shape[0])
            found = detector.decode(outputs, size)
            durations_s.append(time.perf_counter() - started)
            misses += _misses(path, truth, tally.add(found, truth, pixels.shape[0]))
            curve.add(wide.decode(outputs, size), truth, pixels.shape[0])
        info = engine.info
    finally:
        engine.close()
    durations_s.sort()
    figures: Dict[str, Any] = {
        "model": info.model,
        "model_sha256": info.model_sha256,
        "backend": info.backend,
        "precision_in_use": info.precision,
        "threshold": detector.threshold,
        "iou": args.iou,
        "pictures": tally.images,
        "faces": tally.faces,
        "found": tally.hits,
        "false_alarms": tally.false_alarms,
        "precision": _rounded(tally.precision),
        "recall": _rounded(tally.recall),
        "accuracy": _rounded(tally.accuracy),
        "average_precision": _rounded(curve.average_precision()),
        "recall_by_size": [{"size": n, "found": f, "faces": t} for n, f, t in tally.recall_by_size()],
        "ms_per_picture": {"p50": _ms(durations_s, 0.5), "p95": _ms(durations_s, 0.95)},
        "threads": args.threads,
    }
    return figures, curve.curve(), misses


def _misses(path: Path, truth: GroundTruth, verdict: Match) -> List[Miss]:
    missed = [Miss(path, truth.faces[index], "missed") for index in verdict.missed]
    return missed + [Miss(path, box, "false alarm") for box in verdict.false_alarms]


def _table(figures: Dict[str, Any]) -> str:
    ms = figures["ms_per_picture"]
    shares = " | ".join(_shown(figures[key]) for key in ("precision", "recall", "accuracy", "average_precision"))
    lines = [
        f"{figures['model']} ({figures['backend']}, {figures['precision_in_use']}), "
        f"threshold {figures['threshold']:g}, IoU {figures['iou']:g}, {figures['threads']} thread(s)",
        f"{figures['pictures']} images, {figures['faces']} faces: {figures['found']} found, "
        f"{figures['false_alarms']} false alarms",
        "",
        "| precision | recall | accuracy TP/(TP+FP+FN) | average precision | ms per image p50 / p95 |",
        "|---|---|---|---|---|",
        f"| {shares} | {ms['p50']} / {ms['p95']} |",
        "",
        "| face height / image height | found | faces | recall |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['size']} | {row['found']} | {row['faces']} | {row['found'] / row['faces']:.3f} |"
        for row in figures["recall_by_size"]
    ]
    return "\n".join(lines)


def _shown(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.4f}"


def _rounded(value: Optional[float]) -> Optional[float]:
    return None if value is None else round(value, 4)


def _ms(sorted_s: List[float], share: float) -> float:
    return round(1000.0 * sorted_s[min(len(sorted_s) - 1, int(len(sorted_s) * share))], 2) if sorted_s else 0.0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", "choose a folder that can be written") from error
