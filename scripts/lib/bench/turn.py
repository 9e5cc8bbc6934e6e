"""Runs one arm once: a camera, a subscriber, the command, and measurements from outside."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from scripts.lib.bench.arms import Arm, Place
from scripts.lib.bench.process import Usage, usage
from scripts.lib.bench.scores import Heard, Onset, Sample

START_DEADLINE_S = 30.0
SETTLE_S = 1.0
EMPTY_S = 4.0
"""Time after which an agent without faces idles: the end of the visit, and `IDLE__AFTER_S`."""
TAIL_S = 2.5
"""Time to wait for late events."""


class ArmFailed(Exception):
    """An arm ended, or published no event."""


class Turn(NamedTuple):
    """Measurements of one arm in one round. All times are of this machine's monotonic clock, taken here.

    Attributes:
        first_event_s: Time from launch to first event; None without events.
        frames: Images that the camera has made.
        camera_dropped: Those that the arm did not read in time.
    """

    arm: str
    onsets: Tuple[Onset, ...]
    events: Tuple[Heard, ...]
    samples: Tuple[Sample, ...]
    infer_ms: Tuple[float, ...]
    first_event_s: Optional[float]
    peak_rss_bytes: int
    frames: int
    camera_dropped: int


class CameraProcess:
    """The camera's process; `marks` are the times at which the scene changed."""

    def __init__(self, fps: float, onsets: int, seed: int) -> None:
        orders = json.dumps({"fps": fps, "onsets": onsets, "seed": seed, "tail_s": TAIL_S})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scripts.lib.bench.camera", orders],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.marks: List[Tuple[float, Optional[int]]] = []
        self.port, self.frames, self.dropped = 0, 0, 0
        self._ready, self._over = threading.Event(), threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(START_DEADLINE_S):
            raise SystemExit("the camera did not start")

    def go(self) -> None:
        """Start the schedule."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def wait(self) -> None:
        """Wait until the schedule is over."""
        self._over.wait()

    def end(self) -> None:
        """Stop playing."""
        assert self._process.stdin
        self._process.stdin.close()
        self._reader.join()
        self._process.wait()

    def onsets(self) -> List[Onset]:
        """Return the visits of the schedule, without the first face."""
        ends = [*self.marks[1:], (float("inf"), None)]
        return [Onset(t, until[0], slot) for (t, slot), until in zip(self.marks, ends) if slot is not None]

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            report: Dict[str, Any] = json.loads(line)
            if "port" in report:
                self.port = report["port"]
                self._ready.set()
            elif "slot" in report:
                self.marks.append((report["t"], report["slot"]))
            else:
                self.frames, self.dropped = report["frames"], report["dropped"]
                self._over.set()
        self._process.stdout.close()
        self._over.set()


class Ear:
    """The subscriber; takes the time of every message before parsing it."""

    def __init__(self, arm: Arm, port: int, topic: str) -> None:
        self.events: List[Heard] = []
        self.samples: List[Sample] = []
        self.infer_ms: List[float] = []
        self.first = threading.Event()
        self.pid: Optional[int] = None
        self.peak = 0
        self._arm = arm
        self._ready = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe([(topic, 1), (f"{topic}/#", 1)])
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        if not self._ready.wait(START_DEADLINE_S):
            raise SystemExit("the subscriber could not subscribe")

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, client: Client, data: Any, message: Any) -> None:
        t = time.monotonic()
        parsed = self._arm.parse(message.topic, message.payload)
        if parsed.onset:
            self.events.append(Heard(t, parsed.slot))
            self.first.set()
        if parsed.counts and self.pid:
            used = self.read_usage()
            self.samples.append(Sample(time.monotonic(), used.cpu_s, *parsed.counts))
            self.infer_ms += parsed.infer_ms

    def read_usage(self) -> Usage:
        """Read the usage of the arm's processes."""
        used = usage(self.pid or os.getpid())
        self.peak = max(self.peak, used.peak_rss_bytes)
        return used


def take_turn(arm: Arm, port: int, fps: float, onsets: int, seed: int) -> Turn:
    """Run an arm once: from its launch, with a face there from the beginning, to the end of the schedule.

    Args:
        arm: What to run.
        port: Of the broker.
        fps: Of the camera, unless the arm has its own.
        onsets: How many faces come.
        seed: Of the schedule; the same for all arms of one round.
    """
    topic = f"bench/{os.getpid()}-{time.monotonic_ns()}"
    camera = CameraProcess(arm.fps or fps, onsets if arm.visits else 0, seed)
    with tempfile.TemporaryDirectory() as state:
        ear = Ear(arm, port, topic)
        line, environ = arm.launch(Place(f"http://127.0.0.1:{camera.port}/", port, topic, Path(state)))
        launched_t = time.monotonic()
        with (Path(state) / "stderr").open("wb") as log:
            process = subprocess.Popen(line, env=dict(environ), start_new_session=True, stdout=log, stderr=log)
        ear.pid = process.pid
        first_s = None
        try:
            if arm.visits:
                while (
                    not ear.first.wait(0.1)
                    and process.poll() is None
                    and time.monotonic() < launched_t + START_DEADLINE_S
                ):
                    pass
                if not ear.first.is_set():
                    raise _failed(arm, state, f"no event within {time.monotonic() - launched_t:.0f} s of its launch")
                first_s = ear.events[0].t - launched_t
                time.sleep(SETTLE_S)
                began_t = time.monotonic()
                camera.go()
                camera.wait()
            else:
                time.sleep(2.0 + SETTLE_S)
                if arm.nobody:
                    camera.go()
                    time.sleep(EMPTY_S)
                began_t = time.monotonic()
                time.sleep(arm.seconds)
            if process.poll() is not None:
                raise _failed(arm, state, f"ended unexpectedly with {process.returncode}")
            ear.read_usage()
        finally:
            _end(process)
            camera.end()
            ear.close()
    return Turn(
        arm.name, tuple(camera.onsets()), tuple(event for event in ear.events if event.t >= began_t),
        tuple(sample for sample in ear.samples if sample.t >= began_t), tuple(ear.infer_ms), first_s, ear.peak,
        camera.frames, camera.dropped,
    )  # fmt: skip


def _failed(arm: Arm, state: str, what: str) -> ArmFailed:
    last = (Path(state) / "stderr").read_text("utf-8", "replace").strip().splitlines()[-3:]
    return ArmFailed(f"{arm.name}: {what}; its last lines: {' | '.join(last) or 'nothing'}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(5.0)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return
