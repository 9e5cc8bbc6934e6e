"""`edge-agent bench`: measures the inference engine's speed on this machine."""

import argparse
import json
import os
import re
import sys
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

from edge_agent.commands.arguments import add_command, add_env_file
from edge_agent.errors import InputError

if TYPE_CHECKING:
    from edge_agent.commands.bench_inference import Result, Timing
    from edge_agent.core.types import EngineInfo
    from edge_agent.inference import EngineParams

_ABOUT = (
    "whole: from a gray image in memory to raw outputs in memory; no camera, no decoding of boxes, no MQTT",
    "network: the same without preprocessing; comparable to trtexec's latency without its copy to the GPU",
    "one image at a time: trtexec's throughput is higher, because it keeps several in flight",
)
_REMOTE = "TensorRT runs in a worker process: network includes the copy to the GPU and the exchange with the worker"


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = add_command(subparsers, "bench", "measure how fast the engine is on this machine")
    parser.add_argument(
        "--inference-only", action="store_true", required=True, help="the engine alone, without a camera"
    )
    parser.add_argument("--model", metavar="NAME", help="name from 'model list', or a file (default: the settings)")
    parser.add_argument("--precision", choices=("auto", "int8", "fp16", "fp32"), help="default: the settings")
    parser.add_argument("--backend", choices=("auto", "onnxruntime", "tensorrt"), help="default: the settings")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU cores for onnxruntime (default: the settings)")
    parser.add_argument("--batch", type=int, choices=(1,), default=1, help="images per inference, always 1")
    parser.add_argument("--size", default="1280x800", metavar="WxH", help="size of the images (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="duration (default %(default)g)")
    add_env_file(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Measure and print the result; returns 0."""
    from edge_agent.app.factories import engine_of
    from edge_agent.commands.bench_inference import measure

    size = _size(args.size)
    if not 0.1 <= args.seconds <= 3600:
        raise InputError(f"--seconds {args.seconds:g}", "expected 0.1 to 3600")
    params = _params(args)
    started = time.monotonic()
    engine = engine_of(params, os.environ, lambda line: print(line, file=sys.stderr))
    opened_s = time.monotonic() - started
    try:
        result = measure(engine, size, args.seconds)
    finally:
        engine.close()
    if args.json:
        print(json.dumps(_report(engine.info, result, args, opened_s), indent=2))
    else:
        print("\n".join(_table(engine.info, result, args, opened_s)))
    return 0


def _params(args: argparse.Namespace) -> "EngineParams":
    from edge_agent.config.settings import load_settings

    overrides = {name: getattr(args, name) for name in ("model", "precision", "backend", "threads")}
    if overrides["threads"] is not None and not 1 <= overrides["threads"] <= 64:
        raise InputError(f"--threads {overrides['threads']}", "expected 1 to 64")
    settings = load_settings(os.environ, args.env_file)
    return replace(settings.model, **{name: value for name, value in overrides.items() if value is not None})


def _size(text: str) -> Tuple[int, int]:
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if not match:
        raise InputError(f"--size {text}", "expected WIDTHxHEIGHT in px, as 1280x800")
    return int(match[1]), int(match[2])


def _report(info: "EngineInfo", result: "Result", args: argparse.Namespace, opened_s: float) -> Dict[str, Any]:
    return {
        "engine": asdict(info),
        "picture": args.size,
        "batch": args.batch,
        "opened_s": round(opened_s, 3),
        "whole": _rounded(result.whole),
        "network": None if result.network is None else _rounded(result.network),
        "preprocess_p50_ms": None if result.preprocess_ms is None else round(result.preprocess_ms, 4),
    }


def _rounded(timing: "Timing") -> Dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(timing).items()}


def _table(info: "EngineInfo", result: "Result", args: argparse.Namespace, opened_s: float) -> List[str]:
    detail = ", ".join(f"{key} {value}" for key, value in info.detail.items())
    rows = [("", "p50 ms", "p90 ms", "p99 ms", "max ms", "per s", "CPU ms"), _row("whole", result.whole)]
    if result.network is not None:
        rows.append(_row("network", result.network))
    lines = [
        f"engine    {info.backend}, {info.model}, {info.precision}" + (f" ({detail})" if detail else ""),
        f"images    {result.whole.count} of {args.size} gray, batch {args.batch}; engine opened in {opened_s:.1f} s",
        *("".join(cell.ljust(10) if not at else cell.rjust(9) for at, cell in enumerate(row)) for row in rows),
    ]
    if result.preprocess_ms is not None:
        lines.append(f"preprocessing: {result.preprocess_ms:.3f} ms, the median of the differences")
    return [*lines, *_ABOUT, *([_REMOTE] if "worker" in info.detail else [])]


def _row(name: str, timing: "Timing") -> Tuple[str, ...]:
    times = (timing.p50_ms, timing.p90_ms, timing.p99_ms, timing.max_ms)
    return (name, *(f"{value:.3f}" for value in times), f"{timing.per_s:.1f}", f"{timing.cpu_ms:.3f}")
