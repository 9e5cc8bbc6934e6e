"""Measures the CPU of an empty, still scene: one agent at full and at idle rate, CenterFace, 640x480 at 30 fps.

    scripts/bench-idle --rounds 3

A benchmark, not a test. Arms are interleaved; CPU is of the agent's process (user and system), without broker and
subscriber. The third arm almost never infers: its cost is capture, drawing the scene, the light statistics and the
search for changes, which an idle agent continues at the camera's rate.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually

SETTLED_S = 5.0
GOAL = 0.25
FULL, IDLE, NONE = "every frame", "idle rate (default)", "no inference"
ARMS: Dict[str, Dict[str, str]] = {FULL: {"IDLE__FPS": "0"}, IDLE: {}, NONE: {"IDLE__FPS": "0.001"}}


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost(broker: Broker, node: str, settings: Dict[str, str], source: str, seconds: float) -> float:
    """Return CPU seconds per second, measured after the scene has been empty for a while."""
    base = {"NODE": node, "CAMERAS__A__URI": source, "MQTT__PORT": broker.port, "LOG_LEVEL": "warning"}
    with Listener(broker, f"edge-agent/{node}/#") as listener:
        with AgentProcess({**base, **settings}, scripted=False) as agent:
            eventually(lambda: listener.last(f"edge-agent/{node}/a/presence") == b"OFF", "presence OFF")
            time.sleep(SETTLED_S)
            began_s, began_t = cpu_s(agent.process.pid), time.monotonic()
            time.sleep(seconds)
            return (cpu_s(agent.process.pid) - began_s) / (time.monotonic() - began_t)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench-idle", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured per arm and round")
    parser.add_argument("--source", default="test://empty?fps=30", help="URI of a scene that stays empty")
    args = parser.parse_args()
    shares: Dict[str, List[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder, Broker(Path(folder)) as broker:
        for number in range(args.rounds):
            for index, (arm, settings) in enumerate(ARMS.items()):
                shares[arm].append(cost(broker, f"idle{number}{index}", settings, args.source, args.seconds))
    median = {arm: statistics.median(values) for arm, values in shares.items()}
    print(
        "| arm | CPU, % of a core, median (all rounds) | of full rate | the same without capture and light statistics |"
    )
    print("|---|---|---|---|")
    for arm, share in median.items():
        rounds = ", ".join(f"{100 * value:.1f}" for value in shares[arm])
        beyond = (share - median[NONE]) / (median[FULL] - median[NONE])
        print(f"| {arm} | {100 * share:.1f} ({rounds}) | {share / median[FULL]:.2f} | {beyond:.2f} |")
    ratio = median[IDLE] / median[FULL]
    print(f"goal: at most {GOAL:g} of full rate: {'met' if ratio <= GOAL else 'MISSED'} ({ratio:.2f})")
    return 0 if ratio <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
