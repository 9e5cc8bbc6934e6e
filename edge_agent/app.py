"""The composition root: the only module that constructs adapters. Leaving its `ExitStack` is the shutdown."""

import logging
import os
import platform
import signal
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Dict, List, Mapping, Optional

from edge_agent import __version__
from edge_agent.capture import SourceOptions, open_source
from edge_agent.config.settings import Settings, fingerprint
from edge_agent.core.camera import CameraParams
from edge_agent.core.detector import FaceDetector
from edge_agent.core.health import as_payload
from edge_agent.core.illumination import IlluminationMonitor
from edge_agent.core.messages import OFFLINE, Message, timestamp
from edge_agent.core.pipeline import FacePipeline
from edge_agent.core.ports import Clock, Engine
from edge_agent.core.topics import Topics
from edge_agent.core.types import CameraReport, EngineInfo, Presence, Sight
from edge_agent.host import jpeg
from edge_agent.host.clock import SystemClock
from edge_agent.host.identity import machine_suffix, next_boot, uuid7
from edge_agent.host.paths import state_dir
from edge_agent.host.process import board_model, rss_bytes
from edge_agent.inference import open_engine
from edge_agent.inference.models import models_dir
from edge_agent.mqtt.client import MqttClient
from edge_agent.mqtt.letters import Letters
from edge_agent.mqtt.outbox import MemoryOutbox
from edge_agent.mqtt.publisher import Publisher
from edge_agent.runtime.inbox import Inbox
from edge_agent.runtime.slot import SlotBoard
from edge_agent.runtime.stages import CaptureStage, InferStage, PublishStage
from edge_agent.runtime.supervisor import Supervisor, exit_code
from edge_agent.runtime.telemetry import Telemetry
from edge_agent.runtime.worker import Worker

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""Measured: hand-off p99 15.3 ms -> 1.2 ms while another Python thread is busy."""
STOP_INFER_S, STOP_PUBLISH_S, CLOSE_PUBLISH_S, GOODBYE_S = 1.0, 2.8, 1.5, 0.3
"""With one second for the cameras, together under the five that a stop may take."""


def run_agent(settings: Settings, environ: Mapping[str, str]) -> int:
    """Run until a signal, until every source has ended, or until a stage has failed.

    Returns:
        The process's exit code.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    agent = Agent(settings, environ)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, agent.on_signal)
    return agent.run()


class Agent:
    """All parts, wired. Built without touching camera, model or broker; `run` starts them.

    Args:
        settings: Checked.
        environ: For systemd's and the user's folders.

    Raises:
        InputError: A camera's URI names nothing that can be opened.
        MissingPackage: A camera or the crops need a package that is not installed.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._clock = SystemClock()
        self._started = self._clock()
        self._boot = boot_counter(state_dir(settings.state_dir, environ))
        self._inbox = Inbox()
        self._asked_to_stop = False

        board = SlotBoard(settings.cameras)
        self._capture_workers: List[Worker] = []
        captures = {name: self._capture(name, board) for name in settings.cameras}
        self._supervisor = Supervisor(captures)

        self._inference = Inference(settings, models_dir(settings.model.models_dir, environ), self._clock)
        infer = InferStage(board, settings.cameras, self._inference.open, self._clock, self._inbox.put_outcome)
        self._infer_worker = Worker(
            "infer", infer.step, infer.setup, partial(self._end_inference, infer), self._wake, STOP_INFER_S
        )
        self._publish_worker = self._publish(captures, board, infer)

    def run(self) -> int:
        """Start the stages from the broker's end; leaving the stack stops them in mirrored order."""
        workers = (self._publish_worker, self._infer_worker, *self._capture_workers)
        log.info("edge-agent %s: node %s, boot %d", __version__, self._settings.node, self._boot)
        with ExitStack() as stack:
            for worker in workers:
                stack.enter_context(worker)
            stack.callback(self._stop_captures)
            self._supervisor.watch(workers)
            stopping_t = time.monotonic()
        log.info("stopped in %.1f s", time.monotonic() - stopping_t)
        return exit_code(workers)

    def on_signal(self, number: int, frame: Optional[FrameType]) -> None:
        """First: stop in order. Second: at once."""
        if self._asked_to_stop:
            os._exit(128 + number)
        self._asked_to_stop = True
        self._supervisor.request_stop()

    def _capture(self, name: str, board: SlotBoard) -> CaptureStage:
        params = self._settings.cameras[name]
        source = open_source(params.uri, source_options(params))
        stage = CaptureStage(
            name,
            source,
            lambda: IlluminationMonitor(self._settings.illumination, source.kind),
            board,
            self._clock,
            lambda seconds: worker.wait(seconds),
            params.stall_after_s,
        )
        worker = Worker(f"capture-{name}", stage.step, teardown=stage.close, on_exit=self._wake)
        self._capture_workers.append(worker)
        return stage

    def _publish(self, captures: Mapping[str, CaptureStage], board: SlotBoard, infer: InferStage) -> Worker:
        settings = self._settings
        topics = Topics(settings.mqtt.base, settings.node)
        outbox = MemoryOutbox(settings.outbox, time.monotonic)
        client = MqttClient(
            settings.mqtt,
            settings.mqtt.client_id or f"edge-agent-{settings.node}-{machine_suffix()}",
            Message(topics.availability, OFFLINE, retain=True),
            self._inbox.put_notice,
        )
        publisher = Publisher(
            topics,
            outbox,
            client,
            self._clock,
            Letters(
                topics,
                self._boot,
                settings.crops,
                jpeg.encoder() if settings.crops.enabled else None,
                settings.mqtt.max_packet_bytes,
            ),
            [self._unseen(name) for name in settings.cameras],
            self._boot,
            {name: self._decided_by(name) for name in settings.cameras},
        )
        telemetry = Telemetry(
            captures, board, self._inbox, infer.capture_to_result, outbox.status, client.status, rss_bytes, self._clock
        )
        stage = PublishStage(
            self._inbox,
            publisher,
            lambda: as_payload(telemetry(publisher.faults)),
            self._info,
            self._clock,
            settings.health.interval_s,
        )

        def teardown() -> None:
            stage.finish()
            publisher.close(self._clock(), self._inbox.take, CLOSE_PUBLISH_S)
            client.close(GOODBYE_S)
            outbox.close()

        return Worker("publish", stage.step, client.start, teardown, self._wake, STOP_PUBLISH_S)

    def _end_inference(self, stage: InferStage) -> None:
        stage.finish()
        self._inference.close()

    def _stop_captures(self) -> None:
        # All at once: else each would wait for the one before it.
        for worker in self._capture_workers:
            worker.stop()

    def _wake(self) -> None:
        self._supervisor.wake()

    def _unseen(self, camera: str) -> CameraReport:
        """What is true before the first frame; told at the first connect, so that nothing old stays ON."""
        zones = dict.fromkeys(self._settings.cameras[camera].zones, Presence.UNKNOWN)
        return CameraReport(camera, Presence.UNKNOWN, Sight.STARTING, self._started, zones=zones)

    def _decided_by(self, camera: str) -> Dict[str, Any]:
        """The parameters behind a camera's presence; published beside it."""
        params, presence = self._settings.cameras[camera], self._settings.presence
        return {
            "delay_on_s": presence.delay_on_s if params.delay_on_s is None else params.delay_on_s,
            "delay_off_s": presence.delay_off_s if params.delay_off_s is None else params.delay_off_s,
            "min_face_px": params.min_face_px,
            "min_score": params.min_score,
            "threshold": self._settings.detection.pre_cluster_threshold,
        }

    def _info(self) -> Dict[str, Any]:
        """What the agent is; `engine` is None until it has been opened."""
        engine = self._inference.info
        return {
            "version": __version__,
            "started_at": timestamp(self._started.at),
            "board": board_model() or platform.machine(),
            "jetpack": None,
            "engine": engine and {**vars(engine), "detail": dict(engine.detail)},
            "capture": "cpu",
            "cameras": {name: {"label": params.label or name} for name, params in self._settings.cameras.items()},
            "settings_fingerprint": fingerprint(self._settings),
        }


class Inference:
    """The engine and the pipelines on it. Everything but `info` belongs to the infer thread.

    Attributes:
        info: Of the engine, once it is open.
    """

    def __init__(self, settings: Settings, directory: Path, clock: Clock) -> None:
        self.info: Optional[EngineInfo] = None
        self._settings, self._directory, self._clock = settings, directory, clock
        self._engine: Optional[Engine] = None

    def open(self) -> Mapping[str, FacePipeline]:
        """Load the model and make one pipeline per camera; all share it.

        Raises:
            ModelError: The model is missing, damaged or of another contract.
            MissingPackage: The backend is not installed.
        """
        settings = self._settings
        self._engine = open_engine(settings.model, self._directory)
        self.info = self._engine.info
        detector = FaceDetector(self._engine, settings.detection)
        return {
            name: FacePipeline(
                name,
                params,
                detector,
                uuid7,
                self._clock,
                settings.tracker,
                settings.presence,
                settings.crops,
            )
            for name, params in settings.cameras.items()
        }

    def close(self) -> None:
        """Free the engine. Idempotent."""
        if self._engine is not None:
            self._engine.close()


def boot_counter(folder: Path) -> int:
    """This start's number; Unix seconds where it cannot be kept, which are larger and so still unique."""
    try:
        return next_boot(folder)
    except OSError as error:
        log.warning(
            "state folder %s: %s; make it writable or set EDGE_AGENT_STATE_DIR. Going on without",
            folder,
            error.strerror,
        )
        return int(time.time())


def source_options(params: CameraParams) -> SourceOptions:
    """What a source is asked for, out of a camera's settings."""
    return SourceOptions(
        params.width,
        params.height,
        params.fps,
        params.pixel_format,
        params.color,
        params.controls,
        params.stall_after_s,
    )
