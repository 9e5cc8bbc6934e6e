"""Measures event latency and cost, beside the usual scripts for the same task.

    scripts/bench                       all arms, 3 rounds of 10 faces each: about 18 minutes
    scripts/bench --table FILE          the tables of a run, from its bench.json
    scripts/bench --arm "mine=./mine"   one more command (its environment: `arms.command`)

A benchmark, not a test. Arms take turns, so that other load affects all alike; ratios count, absolute times are
those of one machine on one day. The exit code is 1 when a limit is missed.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import cv2
import numpy as np

from scripts.lib.bench.arms import Arm, command, shipped
from scripts.lib.bench.network import files
from scripts.lib.bench.plot import draw
from scripts.lib.bench.report import as_json, lines, page, results
from scripts.lib.bench.scene import scene_jpegs
from scripts.lib.bench.turn import ArmFailed, Turn, take_turn
from tests.fakes.broker import Broker

PROMPT = "set_tcp_nodelay true\n"


def main() -> int:
    """The command line."""
    args = _arguments()
    if args.table:
        print("\n".join(page(json.loads(args.table.read_text()))))
        return 0
    # An installed program has its byte code.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    about = _about(args)
    with tempfile.TemporaryDirectory() as name, Broker(Path(name), PROMPT) as broker:
        print("making the network and its INT8 version", file=sys.stderr)
        gray = [cv2.imdecode(np.frombuffer(jpegs[0], np.uint8), 0) for jpegs in scene_jpegs().values()]
        made = files(Path(name), gray)
        arms = shipped(made, args.part_seconds, args.haar_python)
        arms = [arm for arm in arms if not args.only or arm.name in args.only]
        arms += [command(*line.split("=", 1)) for line in args.arm]
        turns, failed = _play(arms, broker.port, args)
    found = results(turns)
    judged = lines(found, args.fps)
    about["load_after"] = os.getloadavg()
    whole = {"about": about, "macs": made.macs, "failed": failed, **as_json(found, judged)}
    caption = [
        f"{about['date']}, {about['machine']}, load {about['load_before'][0]:.1f} before and "
        f"{about['load_after'][0]:.1f} after; 640x480 at {args.fps:g} fps as MJPEG over HTTP, loopback",
        about["command"],
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "bench.json").write_text(json.dumps(whole, indent=1) + "\n")
    (args.output / "bench.svg").write_text(draw(whole["arms"], caption))
    text = "\n".join(page(whole))
    (args.output / "bench.md").write_text(text + "\n")
    print(text)
    return int(any(line.verdict == "MISSED" for line in judged))


def _play(arms: List[Arm], port: int, args: argparse.Namespace) -> Any:
    """Return all turns, and the reason of each arm that was abandoned, by name."""
    turns: List[Turn] = []
    failed: Dict[str, str] = {}
    for number in range(args.rounds):
        # Each round begins with another arm, so that no arm always follows the same one.
        at = number * len(arms) // args.rounds
        for arm in (*arms[at:], *arms[:at]):
            if arm.name in failed:
                continue
            print(f"round {number + 1} of {args.rounds}: {arm.name}; load {os.getloadavg()[0]:.1f}", file=sys.stderr)
            try:
                turns.append(take_turn(arm, port, args.fps, args.onsets, number + 1))
            except ArmFailed as error:
                failed[arm.name] = str(error)
                print(error, file=sys.stderr)
    names = [arm.name for arm in arms]
    return sorted(turns, key=lambda turn: names.index(turn.arm)), failed


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--onsets", type=int, default=10, help="visits in a round, per arm (10)")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--part-seconds", type=float, default=8.0, help="length of parts that are measured alone (8)")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this arm; may be repeated")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME=COMMAND", help="one more command")
    parser.add_argument("--haar-python", default=sys.executable, metavar="FILE",
                        help="a Python with OpenCV 4 and paho-mqtt: OpenCV 5 has no Haar cascades")  # fmt: skip
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="measure nothing; print the tables of this bench.json"
    )
    parser.add_argument("--output", type=Path, default=Path("bench-output"))
    args = parser.parse_args()
    if args.rounds < 1 or args.onsets < 1 or any("=" not in line for line in args.arm):
        parser.error("expected rounds and onsets of 1 or more, and arms as NAME=COMMAND")
    return args


def _about(args: argparse.Namespace) -> Dict[str, Any]:
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())  # fmt: skip
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{len(os.sched_getaffinity(0))} x {cpu}, Python {platform.python_version()}",
        "command": shlex.join(["scripts/bench", *sys.argv[1:]]),
        "load_before": os.getloadavg(),
    }


if __name__ == "__main__":
    sys.exit(main())
