"""Measures the time from starting the process to the first event at a subscriber, CPU detector and a real face.

    scripts/bench-start --rounds 10

A benchmark, not a test: prints the distribution; the goal is a median of half a second.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import List

import edge_agent
from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually

IMAGE = Path(edge_agent.__file__).parent / "assets" / "astronaut.jpg"
GOAL_S = 0.5


def once(broker: Broker, number: int) -> float:
    """Return the seconds of one start."""
    node = f"start{number}"
    settings = {"NODE": node, "CAMERAS__A__URI": f"{IMAGE}?fps=30", "MQTT__PORT": broker.port, "LOG_LEVEL": "warning"}
    with Listener(broker, f"edge-agent/{node}/a/events") as listener:
        started = time.monotonic()
        with AgentProcess(settings, scripted=False):
            eventually(lambda: listener.heard, "the first event")
            return time.monotonic() - started


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench-start", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its byte code
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder)) as broker:
        once(broker, 0)  # the first start reads files from disk
        seconds: List[float] = sorted(once(broker, number) for number in range(1, rounds + 1))
    median = statistics.median(seconds)
    print(f"start to first event, {rounds} rounds: median {median:.3f} s, min {seconds[0]:.3f}, max {seconds[-1]:.3f}")
    print(f"goal: median under {GOAL_S:g} s: {'met' if median < GOAL_S else 'MISSED'}")
    return 0 if median < GOAL_S else 1


if __name__ == "__main__":
    sys.exit(main())
