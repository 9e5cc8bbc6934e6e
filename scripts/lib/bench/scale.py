"""Measures the cost of more cameras in one process, of one process per camera, and of more agents on a broker.

    scripts/bench-scale --output DIR

A benchmark, not a test: real agents with the CPU detector, one image of a face as each camera, so that the agent is
measured and not the source of images. Arms are interleaved; figures are medians of the rounds. The exit code is 1 when
a goal is missed. Latency is the agent's figure, from the camera's time stamp to the result. The fleet is
`publish.fleet`.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import edge_agent
from scripts.lib.bench.curves import Panel, svg
from scripts.lib.bench.publish import fleet
from scripts.lib.soak.run import peak_rss_mb, room_image, sample
from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually
from tests.fakes.images import write_video

IMAGE = Path(edge_agent.__file__).parent / "assets" / "astronaut.jpg"
RATIO, WITH_OPENCV_MB, WITHOUT_OPENCV_MB = 1.1, 130.0, 95.0
WARM_UP_FRAMES = 5
TOGETHER, APART = "one process", "a process each"


@dataclass(frozen=True)
class Arm:
    """One way to run cameras.

    Attributes:
        name: In the table.
        source: "picture" (512x512, decoded once), "scene" (640x480, drawn for each frame) or "video" (640x480 MJPEG
            in Matroska, by PyAV).
        python: The interpreter, which decides the installed packages.
        together: All cameras in one process.
    """

    name: str
    source: str
    python: str = sys.executable
    together: bool = True


@dataclass(frozen=True)
class Cost:
    """Cost of all processes of one arm together. PSS counts shared pages once."""

    peak_rss_mb: float
    pss_mb: float
    cpu_ms_per_frame: float
    frames: int
    dropped: int
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Load:
    """Load of one mosquitto, with QoS 1 in and out to one subscriber."""

    agents: int
    events_per_s: float
    lost: int
    ack_p50_ms: float
    ack_p99_ms: float
    broker_cpu_us_per_event: float
    broker_core_percent: float
    broker_peak_mb: float


def uri(source: str, folder: Path, fps: float) -> str:
    """Return the camera URI of a source; makes the video when it is missing."""
    if source == "picture":
        return f"{IMAGE}?fps={fps:g}"
    if source == "scene":
        return f"test://one?size=640x480&fps={fps:g}"
    clip = folder / "clip.mkv"
    if not clip.exists():
        room = room_image(1, True).repeat(2, 0).repeat(2, 1)
        write_video(clip, [room] * 30, fps=round(fps))
    return f"{clip}?loop=1"


def measure(arm: Arm, cameras: int, fps: float, seconds: float, model: str) -> Cost:
    """Run so many cameras for so long; return their cost."""
    groups = [range(cameras)] if arm.together else [range(number, number + 1) for number in range(cameras)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(Broker(folder))
        listener = stack.enter_context(Listener(broker, "edge-agent/+/health"))
        agents = []
        for place, group in enumerate(groups):
            settings = {f"CAMERAS__C{number}__URI": uri(arm.source, folder, fps) for number in group}
            settings.update({
                "NODE": f"n{place}", "MQTT__PORT": broker.port, "LOG_LEVEL": "warning", "HEALTH__INTERVAL_S": 1,
                "MODEL__MODEL": model,
            })  # fmt: skip
            agents.append(stack.enter_context(AgentProcess(settings, scripted=False, python=arm.python)))
        eventually(lambda: min(inferred(listener, cameras), default=0) >= WARM_UP_FRAMES, "frames of every camera", 60)
        pids = [agent.process.pid for agent in agents]
        frames, cpu_s = reading(listener, cameras, pids)
        time.sleep(seconds)
        later, later_cpu_s = reading(listener, cameras, pids)
        reports = list(healths(listener).values())
        latencies = [camera["latency_ms"] for health in reports for camera in health["cameras"].values()]
        return Cost(
            sum(peak_rss_mb(pid) for pid in pids),
            sum(pss_mb(pid) for pid in pids),
            1000.0 * (later_cpu_s - cpu_s) / (later - frames),
            later,
            sum(
                count
                for health in reports
                for camera in health["cameras"].values()
                for name, count in camera["counters"].items()
                if name.startswith("dropped_")
            ),
            max(latency["p50"] for latency in latencies),
            max(latency["p95"] for latency in latencies),
        )


def healths(listener: Listener) -> Dict[str, Any]:
    """Return the newest health message of each node, by topic."""
    return {heard.topic: json.loads(heard.payload) for heard in list(listener.heard)}


def inferred(listener: Listener, cameras: int) -> List[int]:
    """Return inferred frames by camera; empty before every camera is reported."""
    counts = [
        camera["counters"]["inferred"] for health in healths(listener).values() for camera in health["cameras"].values()
    ]
    return counts if len(counts) == cameras else []


def reading(listener: Listener, cameras: int, pids: Sequence[int]) -> Tuple[int, float]:
    """Return frames and processor seconds, just after every agent has published its health."""
    before = len(listener.heard)
    eventually(lambda: len({heard.topic for heard in listener.heard[before:]}) == len(pids), "health of all")
    return sum(inferred(listener, cameras)), sum(sample(pid)["cpu_s"] for pid in pids)


def pss_mb(pid: int) -> float:
    """Return resident memory now; pages shared by n processes count as 1/n."""
    rollup = (Path("/proc") / str(pid) / "smaps_rollup").read_text("ascii")
    return int(rollup.split("\nPss:", 1)[1].split()[0]) * 1024 / 1e6


def median(costs: Sequence[Cost]) -> Cost:
    """Return the median of each figure."""
    columns = [asdict(cost) for cost in costs]
    return Cost(**{name: round(statistics.median(column[name] for column in columns), 2) for name in columns[0]})


def load(agents: int, seconds: float) -> Load:
    """Measure the broker with so many agents at four events a second each."""
    done = fleet(agents, seconds)
    return Load(
        agents,
        round(done.heard / seconds),
        done.sent - done.heard,
        round(done.acknowledged_ms.p50, 2),
        round(done.acknowledged_ms.p99, 2),
        round(1e6 * done.broker_cpu_s / max(1, done.heard), 1),
        round(100.0 * done.broker_cpu_s / seconds, 1),
        round(done.broker_peak_mb, 1),
    )


def tables(costs: Dict[Tuple[str, int], Cost], loads: Sequence[Load]) -> str:
    """Return the result as Markdown tables."""
    lines = ["| cameras | peak RSS MB | PSS MB | CPU ms/frame | frames | dropped | p50 ms | p95 ms |", "|---" * 8 + "|"]
    for (name, cameras), cost in costs.items():
        lines.append(f"| {cameras}, {name} | " + " | ".join(f"{value:g}" for value in asdict(cost).values()) + " |")
    lines += [
        "",
        "| agents | events/s | lost | ack p50 ms | ack p99 ms | broker us/event | broker % of a core | peak MB |",
    ]
    lines += ["|---" * 8 + "|", *("| " + " | ".join(f"{v:g}" for v in asdict(row).values()) + " |" for row in loads)]
    return "\n".join(lines)


def panels(costs: Dict[Tuple[str, int], Cost], loads: Sequence[Load]) -> List[Panel]:
    """Return the plots of the SVG file."""

    def curves(field: str) -> Dict[str, List[Tuple[float, float]]]:
        return {
            arm: [(n, getattr(cost, field)) for (name, n), cost in costs.items() if name == arm]
            for arm in (TOGETHER, APART)
        }

    def of(field: str) -> List[Tuple[float, float]]:
        return [(row.agents, getattr(row, field)) for row in loads]

    return [
        Panel("Memory, MB (PSS: shared pages count once)", "cameras", curves("pss_mb")),
        Panel("CPU per inferred frame, ms", "cameras", curves("cpu_ms_per_frame")),
        Panel("Camera to result, p50, ms", "cameras", curves("p50_ms")),
        Panel("Broker, % of a core (4 events/s an agent)", "agents", {"broker": of("broker_core_percent")}),
    ]


def goals(costs: Dict[Tuple[str, int], Cost], most: int, lean: bool, loads: Sequence[Load]) -> Dict[str, bool]:
    """Return each goal as a sentence, and whether it is met."""
    ratio = costs[TOGETHER, most].peak_rss_mb / costs[TOGETHER, 1].peak_rss_mb
    with_mb = costs[TOGETHER, 1].peak_rss_mb
    lost = sum(row.lost for row in loads)
    found = {
        f"peak RSS of {most} cameras by that of one: {ratio:.3f}, goal {RATIO:g}": ratio <= RATIO,
        f"peak RSS with OpenCV: {with_mb:.0f} MB, goal {WITH_OPENCV_MB:g}": with_mb <= WITH_OPENCV_MB,
        f"events that one broker lost: {lost}, goal 0": lost == 0,
    }
    if lean:
        without_mb = costs["scene, without OpenCV", 1].peak_rss_mb
        found[f"peak RSS without OpenCV: {without_mb:.0f} MB, goal {WITHOUT_OPENCV_MB:g}"] = (
            without_mb <= WITHOUT_OPENCV_MB
        )
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench-scale", description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--agents", type=int, nargs="*", default=[50, 100, 200, 350, 500])
    parser.add_argument("--fps", type=float, default=4.0, help="frame rate of each camera")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="centerface", help="a model's name or an .onnx file")
    parser.add_argument(
        "--lean", default="", metavar="PYTHON", help="an interpreter without OpenCV, measured as further arms"
    )
    parser.add_argument("--output", type=Path, help="folder for scaling.json and scaling.svg")
    args = parser.parse_args()
    few, most = 1, max(args.cameras)
    arms = [(Arm(TOGETHER, "picture"), n) for n in sorted({few, *args.cameras})]
    arms += [(Arm(APART, "picture", together=False), n) for n in sorted({few, *args.cameras})]
    arms += [(Arm(source, source), n) for source in ("scene", "video") for n in (few, most)]
    if args.lean:
        arms += [(Arm("scene, without OpenCV", "scene", args.lean), n) for n in (few, most)]
    rounds: Dict[Tuple[str, int], List[Cost]] = {(arm.name, n): [] for arm, n in arms}
    for number in range(args.rounds):
        for arm, n in arms:
            print(f"round {number + 1}: {n}, {arm.name}", file=sys.stderr)
            rounds[arm.name, n].append(measure(arm, n, args.fps, args.seconds, args.model))
    costs = {key: median(found) for key, found in rounds.items()}
    loads = [load(agents, args.seconds) for agents in args.agents]
    reached = goals(costs, most, bool(args.lean), loads)
    print(tables(costs, loads) + "\n")
    for line, met in reached.items():
        print(f"{line}: {'met' if met else 'MISSED'}")
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        machine = {"date": date.today().isoformat(), "machine": platform.machine(), "python": sys.version.split()[0]}
        document = {
            **machine, "settings": {**vars(args), "lean": bool(args.lean), "output": None},
            "cameras": [{"arm": name, "cameras": n, **asdict(cost)} for (name, n), cost in costs.items()],
            "broker": [asdict(row) for row in loads], "goals": reached,
        }  # fmt: skip
        (args.output / "scaling.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        (args.output / "scaling.svg").write_text(svg(panels(costs, loads)), "utf-8")
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
