"""Runs many frames through the real agent; checks that memory, files and threads stay bounded and reports are true.

    scripts/soak --frames 1000000 --plot soak.png
    scripts/soak --calm --frames 324000

With faults (`soak.faulty`): three synthetic cameras at several times real speed become dark, covered, frozen and lost
at random, while the broker is killed or slow, outbox and disk are full, and valid and invalid settings are reloaded.
With --calm: a video file, a folder of images and a scene, at full speed. Uses the scripted engine and one mosquitto.
Prints a table; the exit code is 1 when a resource grew, a frame or event was lost without a count, or a report was
false.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import cv2
import numpy as np

from scripts.lib.soak import faulty
from scripts.lib.soak.ledger import sample
from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually
from tests.fakes.images import write_video

CAMERAS = ("file", "folder", "scene")
SETTLED = 0.25
"""Part of the run after which caches and pools are full; nothing may grow from there on."""
RSS_GROWTH_MB = 6.0


def room_image(seed: int, face: bool) -> np.ndarray:
    """Return a live room as (240, 320) uint8, with or without a marker that the scripted engine detects."""
    rng = np.random.default_rng(seed)
    room = 60 + 20 * np.sin(np.add.outer(np.arange(240) / 17, np.arange(320) / 23)) + rng.normal(0, 2, (240, 320))
    room = room.clip(0, 255).astype(np.uint8)
    if face:
        cv2.ellipse(room, (160, 120), (40, 50), 0, 0, 360, 235, -1)
    return room


def settings(folder: Path, port: int) -> Dict[str, Any]:
    """Return settings for a file that always shows a face, a folder that never does, and a scene with visits."""
    write_video(folder / "clip.mkv", [room_image(i, True) for i in range(50)], fps=25)
    (folder / "images").mkdir()
    for index in range(20):
        cv2.imwrite(str(folder / "images" / f"{index}.png"), room_image(index, False))
    return {
        "CAMERAS__FILE__URI": f"{folder / 'clip.mkv'}?loop=1&pace=fast",
        "CAMERAS__FOLDER__URI": f"{folder / 'images'}?loop=1&pace=fast",
        "CAMERAS__SCENE__URI": "test://one?size=320x240&pace=fast",
        "MQTT__PORT": port,
        "HEALTH__INTERVAL_S": 1,
        "PRESENCE__DELAY_OFF_S": 0.05,
        "TRACKER__MAX_LOST_S": 0.02,
    }


def peak_rss_mb(pid: int) -> float:
    """Return the kernel's count of the peak resident memory of a process."""
    status = (Path("/proc") / str(pid) / "status").read_text("ascii")
    return int(status.split("VmHWM:", 1)[1].split()[0]) * 1024 / 1e6


def captured(health: Optional[bytes]) -> int:
    """Return the number of frames captured so far, of all cameras."""
    cameras = json.loads(health or b"{}").get("cameras", {})
    return sum(camera["counters"]["frames"] for camera in cameras.values())


def run(frames: int, timeout_s: float) -> Dict[str, Any]:
    """Run until so many frames came in, stop, and collect the figures to check."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Broker(folder) as broker, Listener(broker, "edge-agent/n/#") as listener:
            with AgentProcess({**settings(folder, broker.port), "LOG_LEVEL": "warning"}) as agent:
                rows = watch(listener, agent.process.pid, frames, timeout_s)
                truth = {camera: listener.last(f"edge-agent/n/{camera}/presence") for camera in CAMERAS}
                stop_s = agent.stop()
                code = agent.process.returncode
            eventually(lambda: listener.last("edge-agent/n/availability") == b"offline")
            health = json.loads(listener.last("edge-agent/n/health"))
            seqs = {camera: sequence(listener.payloads(f"edge-agent/n/{camera}/events")) for camera in CAMERAS}
    counters = {camera: health["cameras"][camera]["counters"] for camera in CAMERAS}
    return judge({
        "rows": rows, "stop_s": stop_s, "exit_code": code, "counters": counters, "events": seqs, "log": agent.log,
        "truth": {camera: (value or b"").decode() for camera, value in truth.items()}, "outbox": health["outbox"],
    })  # fmt: skip


def watch(listener: Listener, pid: int, frames: int, timeout_s: float) -> List[Dict[str, float]]:
    """Return one sample per second until enough frames came in."""
    rows: List[Dict[str, float]] = []
    started = time.monotonic()
    while True:
        time.sleep(1.0)
        done = captured(listener.last("edge-agent/n/health"))
        rows.append({"t_s": round(time.monotonic() - started, 1), "frames": done, **sample(pid)})
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{done}/{frames} frames, {rows[-1]['rss_mb']:.1f} MB ")
        if done >= frames:
            return rows
        if time.monotonic() - started > timeout_s:
            raise SystemExit(f"only {done} of {frames} frames in {timeout_s:.0f} s")


def sequence(payloads: List[bytes]) -> Dict[str, int]:
    """Count the events, and the `seq` numbers that are missing or out of order."""
    seqs = [json.loads(payload)["seq"] for payload in payloads]
    return {"count": len(seqs), "wrong": sum(b != a + 1 for a, b in zip(seqs, seqs[1:]))}


def judge(result: Dict[str, Any]) -> Dict[str, Any]:
    """Return the result with `faults`, a line for every condition that does not hold."""
    rows = result["rows"][int(len(result["rows"]) * SETTLED) :]
    growth = rows[-1]["rss_mb"] - rows[0]["rss_mb"]
    faults = [
        f"{name} grew from {rows[0][name]} to {rows[-1][name]}"
        for name in ("fds", "threads")
        if rows[-1][name] > rows[0][name]
    ]
    if growth > RSS_GROWTH_MB:
        faults.append(f"memory grew by {growth:.1f} MB after settling")
    for camera, counters in result["counters"].items():
        dropped = sum(count for name, count in counters.items() if name.startswith("dropped_"))
        if counters["frames"] != counters["inferred"] + counters["idle"] + dropped:
            faults.append(
                f"{camera}: {counters['frames']} frames, {counters['inferred']} inferred, {counters['idle']} idle, "
                f"{dropped} dropped"
            )
        if result["events"][camera]["wrong"]:
            faults.append(f"{camera}: events missing or out of order: {result['events'][camera]}")
    if result["truth"]["file"] != "ON" or result["truth"]["folder"] != "OFF":
        faults.append(f"retained presence: {result['truth']}")
    if result["stop_s"] >= 5 or result["exit_code"] != 0:
        faults.append(f"stop took {result['stop_s']:.1f} s, exit code {result['exit_code']}")
    return {**result, "growth_mb": round(growth, 2), "faults": faults}


def table(result: Dict[str, Any]) -> str:
    """Return the result as Markdown tables."""
    first, last = result["rows"][int(len(result["rows"]) * SETTLED)], result["rows"][-1]
    lines = [
        "| camera | frames | inferred | idle | dropped, counted | events | presence |",
        "|---|---|---|---|---|---|---|",
    ]
    for camera, counters in result["counters"].items():
        dropped = sum(count for name, count in counters.items() if name.startswith("dropped_"))
        lines.append(
            f"| {camera} | {counters['frames']} | {counters['inferred']} | {counters['idle']} | {dropped} | "
            f"{result['events'][camera]['count']} | {result['truth'][camera]} |"
        )
    lines += [
        "",
        "| | settled | end |",
        "|---|---|---|",
        *(f"| {name} | {first[name]:g} | {last[name]:g} |" for name in ("frames", "rss_mb", "fds", "threads", "cpu_s")),
        "",
        f"{last['frames'] / last['t_s']:.0f} frames/s, stopped in {result['stop_s']:.1f} s; "
        + ("everything bounded and counted" if not result["faults"] else "FAULTS: " + "; ".join(result["faults"])),
    ]
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=1_000_000, help="frames in all (default 1000000)")
    parser.add_argument("--timeout", type=float, default=1800.0, metavar="SECONDS")
    parser.add_argument("--calm", action="store_true", help="no faults; at full speed")
    parser.add_argument("--fps", type=float, default=400.0, help="frame rate of each of the three cameras, with faults")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random moments")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="plot the cost of the process over time, with faults")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")
    args = parser.parse_args()
    if args.calm:
        result = run(args.frames, args.timeout)
        text = table(result)
    else:
        result = faulty.run_faulty(args.frames, args.timeout, args.fps, args.seed, args.plot)
        text = faulty.table(result)
    print(json.dumps(result) if args.json else text)
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
