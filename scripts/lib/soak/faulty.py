"""The soak with faults: three cameras that lose sight, and faults of broker, outbox, disk and settings, at random."""

import contextlib
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from scripts.lib.soak.faults import BLINDNESS, MAX_BYTES, SIGHT, Trouble, as_query, blind_windows
from scripts.lib.soak.ledger import Ledger, sample, slope
from scripts.lib.soak.plot import plot
from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, eventually
from tests.fakes.proxy import RecordingProxy

BASE = "edge-agent/n"
CAMERAS = ("a", "b", "c")
POLL_S = 0.25
QUIET_S = 6.0
"""Time without faults at the beginning and the end; the process must cost the same in both."""
SETTLED = 0.25
RSS_GROWTH_MB = 6.0
DB_BYTES = 8_000_000
"""SQLite's journal grows to its checkpoint of 1000 pages, whatever the bound of the outbox."""
PLACES = [(x, y) for x in (0.2, 0.5, 0.8) for y in (0.27, 0.73)]
SCENE = {
    "period_s": 1.0,
    "appearances": [{"start_s": 0.1, "end_s": 0.5, "from": place, "size": 0.3} for place in PLACES],
}
PANELS = ("rss_mb", "fds", "threads", "db_kb", "pending", "fps")


def run_faulty(
    frames: int, timeout_s: float, fps: float, seed: int, plot_path: Optional[Path] = None, quiet_s: float = QUIET_S
) -> Dict[str, Any]:
    """Run until so many frames came in, repair all faults, stop, and collect the figures to check.

    Args:
        frames: Of all cameras.
        timeout_s: At most so long.
        fps: Of each camera; the speed-up against a real one.
        seed: Of the random moments.
        plot_path: PNG to draw.
        quiet_s: Before the first fault and after the last.
    """
    chance = random.Random(seed)
    windows = {camera: blind_windows(chance, timeout_s) for camera in CAMERAS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scene.json").write_text(json.dumps(SCENE))
        # In the file, because the environment takes precedence over it.
        (folder / "agent.env").write_text("EDGE_AGENT_PRESENCE__DELAY_OFF_S=0.05\n")
        (folder / "state").mkdir()
        cameras = {
            f"CAMERAS__{camera.upper()}__URI": f"test://one?script={folder}/scene.json&size=160x120&fps={fps:g}"
            f"&seed={number}{as_query(windows[camera])}"
            for number, camera in enumerate(CAMERAS)
        }
        with Broker(folder) as broker:
            proxy = RecordingProxy(broker.port)
            settings = {
                **cameras, **{f"ILLUMINATION__{name}": value for name, value in SIGHT.items()},
                "ENV_FILE": folder / "agent.env", "MQTT__PORT": proxy.port, "MQTT__RETRY_MAX_S": 0.5,
                "MQTT__ACK_TIMEOUT_S": 5, "MQTT__CONNECT_TIMEOUT_S": 1, "HEALTH__INTERVAL_S": 1,
                "TRACKER__MAX_LOST_S": 0.1,
                "OUTBOX__MAX_BYTES": MAX_BYTES, "OUTBOX__MAX_CROP_BYTES": MAX_BYTES // 3, "OUTBOX__MIN_FREE_BYTES": 0,
            }  # fmt: skip
            ledger = Ledger(BASE, CAMERAS, fps)
            with AgentProcess(settings, folder / "state") as agent:
                trouble = Trouble(chance, agent, broker, proxy, folder / "agent.env")
                rows, scene_s = _watch(agent, proxy, ledger, trouble, folder / "state", frames, timeout_s, quiet_s)
                stop_s = agent.stop()
                code = agent.process.returncode
            eventually(lambda: _all_in(proxy, ledger), "the agent reports that it is offline")
            proxy.close()
    if plot_path is not None:
        plot(rows, PANELS, trouble.struck.spans, plot_path)
    seen = {camera: [w for w in windows[camera] if w.end_s < scene_s - 1.0] for camera in CAMERAS}
    result = {
        "rows": rows, "stop_s": stop_s, "exit_code": code, "struck": trouble.struck.counts, "log": agent.log,
        "health": ledger.health(), "accounts": {camera: ledger.account(camera)._asdict() for camera in CAMERAS},
        "blind": {kind: sum(w.kind == kind for many in seen.values() for w in many) for kind in BLINDNESS},
        "reported_blind": {kind: _reported(agent.log, sight) for kind, sight in BLINDNESS.items()},
        "untrue": [fault for camera in CAMERAS for fault in ledger.false_off(camera, seen[camera])],
    }  # fmt: skip
    return {**result, "faults": judge(result)}


def _watch(
    agent: AgentProcess,
    proxy: RecordingProxy,
    ledger: Ledger,
    trouble: Trouble,
    state: Path,
    frames: int,
    timeout_s: float,
    quiet_s: float,
) -> Tuple[List[Dict[str, float]], float]:
    """Take a sample and a fault step each quarter of a second; return the samples and the scenes' end time."""
    rows: List[Dict[str, float]] = []
    began_t, first_s, done_s = time.monotonic(), 0.0, 0.0
    while True:
        time.sleep(POLL_S)
        t_s = time.monotonic() - began_t
        ledger.take(proxy.record)
        health = ledger.health()
        done = sum(camera["counters"]["frames"] for camera in health.get("cameras", {}).values())
        rows.append({
            "t_s": round(t_s, 2), "frames": done, "pending": health.get("outbox", {}).get("pending", 0),
            "db_kb": _files_kb(state), "quiet": float(not first_s or t_s < first_s + quiet_s),
            "fps": sum(camera["fps_in"] for camera in health.get("cameras", {}).values()),
            **sample(agent.process.pid),
        })  # fmt: skip
        first_s = first_s or (t_s if done else 0.0)
        if agent.process.poll() is not None:
            raise SystemExit(f"the agent has ended\n{agent.log[-3000:]}")
        if done_s:
            if t_s > done_s + quiet_s:
                return rows, t_s - first_s
        elif done >= frames or t_s > timeout_s:
            trouble.end(t_s)
            done_s = t_s
        elif first_s and t_s > first_s + quiet_s:
            trouble.step(t_s)


def _files_kb(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total / 1e3


def _all_in(proxy: RecordingProxy, ledger: Ledger) -> bool:
    ledger.take(proxy.record)
    return ledger.last.get(f"{BASE}/availability") == b"offline"


def _reported(log: str, sight: str) -> int:
    """Count the log's reports that a camera has lost its sight in that way."""
    return log.count("device failed" if sight == "lost" else f"sight is {sight}")


def settled_part(rows: List[Dict[str, float]]) -> List[Dict[str, float]]:
    """Return the samples from which on nothing may grow: the later part of those since the first frame."""
    running = [row for row in rows if row["frames"]] or rows
    return running[int(len(running) * SETTLED) :]


def judge(result: Dict[str, Any]) -> List[str]:
    """Return a line for every condition that does not hold."""
    rows, faults = result["rows"], list(result["untrue"])
    settled = settled_part(rows)
    quiet = [row for row in rows if row["quiet"]]
    for name in ("fds", "threads"):
        first = max(row[name] for row in quiet)
        if rows[-1][name] > first:
            faults.append(f"{name}: {rows[-1][name]:g} at the end, {first:g} at first")
    quarter = max(1, len(settled) // 4)
    rss_mb = [row["rss_mb"] for row in settled]
    growth = statistics.median(rss_mb[-quarter:]) - statistics.median(rss_mb[:quarter])
    if growth > RSS_GROWTH_MB:
        faults.append(f"memory grew by {growth:.1f} MB after settling")
    if max(row["db_kb"] for row in rows) * 1e3 > DB_BYTES:
        faults.append(f"the outbox's files took {max(row['db_kb'] for row in rows):.0f} kB")
    for camera, account in result["accounts"].items():
        if account["holes"] or account["disordered"] or not account["events"]:
            faults.append(f"{camera}: events do not add up: {account}")
        counters = result["health"]["cameras"][camera]["counters"]
        dropped = sum(count for name, count in counters.items() if name.startswith("dropped_"))
        if counters["frames"] != counters["inferred"] + dropped:
            faults.append(f"{camera}: {counters['frames']} frames, {counters['inferred']} inferred, {dropped} dropped")
    for kind, count in result["blind"].items():
        if result["reported_blind"][kind] < count:
            faults.append(f"{kind}: {count} windows, of which {result['reported_blind'][kind]} were noticed")
    for line, name in (("settings read again", "reload-valid"), ("settings refused", "reload-invalid")):
        if result["log"].count(line) < result["struck"].get(name, 0):
            faults.append(f"{name}: {result['struck'][name]} times, '{line}' {result['log'].count(line)} times")
    if result["stop_s"] >= 5 or result["exit_code"] != 0:
        faults.append(f"stop took {result['stop_s']:.1f} s, exit code {result['exit_code']}")
    return faults


def table(result: Dict[str, Any]) -> str:
    """Return the result as Markdown tables."""
    rows = result["rows"]
    settled = settled_part(rows)
    lines = ["| camera | frames | inferred | events | gaps announced (events) | duplicates | holes | out of order |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for camera, account in result["accounts"].items():
        counters = result["health"]["cameras"][camera]["counters"]
        lines.append(
            f"| {camera} | {counters['frames']} | {counters['inferred']} | {account['events']} | {account['gaps']} "
            f"({account['covered']}) | {account['duplicates']} | {account['holes']} | {account['disordered']} |"
        )
    lines += ["", "| fault | times |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in sorted(result["struck"].items())]
    lines += [f"| camera {kind} | {count} |" for kind, count in sorted(result["blind"].items())]
    lines += ["", "| | settled | most | end |", "|---|---|---|---|"]
    for name in ("rss_mb", "fds", "threads", "db_kb", "pending"):
        lines.append(f"| {name} | {settled[0][name]:g} | {max(row[name] for row in rows):g} | {rows[-1][name]:g} |")
    per_100k = slope([row["frames"] for row in settled], [row["rss_mb"] for row in settled]) * 1e5
    last = rows[-1]
    lines += [
        "",
        f"{last['frames']:g} frames in {last['t_s']:.0f} s, {last['frames'] / last['t_s']:.0f}/s, "
        f"{last['cpu_s']:.0f} s of CPU; memory {per_100k:+.3f} MB per 100,000 frames; "
        f"stopped in {result['stop_s']:.1f} s; "
        + ("everything bounded, counted and true" if not result["faults"] else f"{len(result['faults'])} FAULTS"),
    ]
    return "\n".join([*lines, *result["faults"][:20]])
