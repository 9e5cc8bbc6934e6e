"""The composition root: the only module that constructs adapters. Leaving its `ExitStack` is the shutdown."""

import logging
import os
import platform
import signal
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Dict, List, Mapping, Optional

from edge_agent import __version__
from edge_agent.capture import open_source
from edge_agent.config.derived import decided_by, rules_of, site_of, source_options
from edge_agent.config.reload import Reloader
from edge_agent.config.settings import Settings, fingerprint
from edge_agent.core.discovery import Site, decode_published, devices
from edge_agent.core.health import as_payload
from edge_agent.core.illumination import IlluminationMonitor
from edge_agent.core.messages import OFFLINE, Message, timestamp
from edge_agent.core.overrides import Overrides
from edge_agent.core.ports import Outbox
from edge_agent.core.requests import Guard
from edge_agent.core.strict_json import MAX_BYTES
from edge_agent.core.topics import Topics
from edge_agent.core.types import CameraReport, Outcome, Presence, Sight
from edge_agent.errors import ConfigError
from edge_agent.host import journal, jpeg
from edge_agent.host.clock import SystemClock
from edge_agent.host.identity import kernel_boot, machine_suffix, new_epoch, next_boot
from edge_agent.host.memory import Memory
from edge_agent.host.paths import state_dir
from edge_agent.host.process import board_model, rss_bytes
from edge_agent.host.systemd import ServiceManager
from edge_agent.host.thermal import processor_temperature_c
from edge_agent.inference.models import models_dir
from edge_agent.mqtt import announcer, commands
from edge_agent.mqtt.announcer import Announcer
from edge_agent.mqtt.client import MqttClient
from edge_agent.mqtt.commands import Commands
from edge_agent.mqtt.desk import Desk, DetectionsFeed
from edge_agent.mqtt.face_image import FaceImages
from edge_agent.mqtt.letters import Letters
from edge_agent.mqtt.login import with_credential
from edge_agent.mqtt.notices import Notice, Received
from edge_agent.mqtt.outbox import MemoryOutbox
from edge_agent.mqtt.outbox_file import OUTBOX_NAME, recorded_boot
from edge_agent.mqtt.outbox_sqlite import SqliteOutbox
from edge_agent.mqtt.publisher import Publisher
from edge_agent.pipelines import Inference
from edge_agent.runtime.control import Control
from edge_agent.runtime.inbox import Inbox
from edge_agent.runtime.slot import SlotBoard
from edge_agent.runtime.stages import CaptureStage, InferStage, PublishStage
from edge_agent.runtime.status import StatusLine
from edge_agent.runtime.supervisor import Supervisor, exit_code
from edge_agent.runtime.telemetry import Telemetry
from edge_agent.runtime.worker import Worker

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""Measured: hand-off p99 15.3 ms -> 1.2 ms while another Python thread is busy."""
RELOAD_WITHIN_S = 5.0
STOP_INFER_S, STOP_PUBLISH_S, CLOSE_PUBLISH_S, GOODBYE_S = 1.0, 2.8, 1.5, 0.3
"""With one second for the cameras, together under the five that a stop may take."""


def run_agent(settings: Settings, environ: Mapping[str, str], read: Callable[[], Settings]) -> int:
    """Run until a signal, until every source has ended, or until a stage has failed.

    Args:
        settings: Checked.
        environ: The process's.
        read: Reads the settings again, at SIGHUP and when a command asks for it.

    Returns:
        The process's exit code.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    agent = Agent(settings, environ, read)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, agent.on_signal)
    signal.signal(signal.SIGHUP, agent.on_hangup)
    return agent.run()


class Agent:
    """All parts, wired. Built without touching camera, model or broker; `run` starts them.

    Args:
        settings: Checked.
        environ: For systemd's and the user's folders.
        read: Reads the settings again.

    Raises:
        InputError: A camera's URI names nothing that can be opened.
        MissingPackage: A camera or the crops need a package that is not installed.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str], read: Callable[[], Settings]) -> None:
        self._settings, self._environ = settings, environ
        self._clock = SystemClock()
        self._started = self._clock()
        self._state_dir = state_dir(settings.state_dir, environ)
        self._boot = boot_counter(self._state_dir)
        self._rules = rules_of(settings)
        self._kept = Memory(self._state_dir / "overrides.json")
        self._overrides = self._kept.load(Overrides.from_json, Overrides()).bounded(self._rules)
        self._inbox = Inbox()
        self._control = Control(self._inbox.put_notice)
        self._asked_to_stop = False

        board = SlotBoard(settings.cameras)
        self._capture_workers: List[Worker] = []
        captures = {name: self._capture(name, board) for name in settings.cameras}
        self._status = StatusLine(captures, board, lambda: self._client.status().connected)
        self._supervisor = Supervisor(captures, ServiceManager(environ), self._status, self._reload_now)
        self._reloader = Reloader(settings, read, self._apply, self._supervisor.request_stop)

        self._inference = Inference(settings, models_dir(settings.model.models_dir, environ), self._clock)
        infer = InferStage(
            board,
            settings.cameras,
            lambda: self._inference.open(self._overrides, self._rules),
            self._clock,
            self._take,
            every_frame=settings.mqtt.detections != "off",
            control=self._control,
        )
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

    def on_hangup(self, number: int, frame: Optional[FrameType]) -> None:
        """Read the settings again."""
        self._supervisor.request_reload()

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
        outbox = self._outbox()
        client = self._client = MqttClient(
            with_credential(settings.mqtt, self._environ),
            settings.mqtt.client_id or f"edge-agent-{settings.node}-{machine_suffix()}",
            Message(topics.availability, OFFLINE, retain=True),
            self._notify,
        )
        letters = self._letters = Letters(
            topics,
            self._boot,
            settings.crops,
            jpeg.encoder() if settings.crops.enabled else None,
            settings.mqtt.max_packet_bytes,
        )
        publisher = self._publisher = Publisher(
            topics,
            outbox,
            client,
            self._clock,
            letters,
            [self._unseen(name) for name in settings.cameras],
            self._boot,
            decided_by(settings, self._inference.threshold),
            [*commands.filters(topics, self._rules), *announcer.filters(settings.home_assistant)],
        )
        desk = self._desk(topics, publisher, letters)
        telemetry = Telemetry(
            captures, board, self._inbox, infer.capture_to_result, outbox.status, client.status, rss_bytes, self._clock
        )
        stage = self._publish_stage = PublishStage(
            self._inbox,
            desk,
            lambda: {
                **as_payload(telemetry([*publisher.faults, *outbox.faults, *self._reloader.faults])),
                "commands": {**desk.commands_counters, "overflowed": self._inbox.lost_requests},
                "temperature_c": processor_temperature_c(),
            },
            self._info,
            self._clock,
            settings.health.interval_s,
        )

        def setup() -> None:
            outbox.open()
            client.start()

        def teardown() -> None:
            stage.finish()
            desk.finish()
            publisher.close(self._clock(), self._inbox.take, CLOSE_PUBLISH_S)
            client.close(GOODBYE_S)
            outbox.close()

        return Worker("publish", stage.step, setup, teardown, self._wake, STOP_PUBLISH_S)

    def _outbox(self) -> Outbox:
        params = self._settings.outbox
        if params.store == "memory":
            return MemoryOutbox(params.in_memory(), time.monotonic)
        return SqliteOutbox(params, self._state_dir, self._clock, kernel_boot(), self._boot)

    def _desk(self, topics: Topics, publisher: Publisher, letters: Letters) -> Desk:
        """Commands, discovery, images and detections, around the publisher."""
        settings = self._settings
        images = None
        if settings.crops.enabled and settings.crops.image:
            images = FaceImages(
                topics, settings.cameras, publisher, letters.jpeg, settings.crops.image_ttl_s, self._clock
            )
        profile = settings.mqtt.detections
        known = Memory(self._state_dir / "retained.json")
        self._guard = Guard(self._rules)
        self._commands = Commands(
            topics,
            self._guard,
            self._overrides,
            publisher,
            self._control.submit,
            lambda overrides: self._kept.save(overrides.to_json()),
            letters.jpeg,
            {
                "reload": lambda: self._reloader(),
                "restart": self._restart,
                "set_threshold": self._threshold_changed,
            },
            self._clock,
        )
        return Desk(
            publisher,
            self._commands,
            Announcer(
                settings.home_assistant,
                devices(topics, self._site()),
                __version__,
                publisher,
                known.load(decode_published, {}),
                known.save,
            ),
            images,
            None if profile == "off" else DetectionsFeed(topics, profile, publisher.stream),
            self._clock,
        )

    def _site(self) -> Site:
        board = board_model() or platform.machine()
        return site_of(self._settings, __version__, board, temperature=processor_temperature_c() is not None)

    def _take(self, outcome: Outcome) -> None:
        self._status.note(outcome)
        self._inbox.put_outcome(outcome)

    def _notify(self, notice: Notice) -> None:
        # What strangers send is cut to what can be judged, so that no number of messages fills the memory.
        if isinstance(notice, Received):
            self._inbox.put_request(replace(notice, payload=notice.payload[: MAX_BYTES + 1], properties=()))
        else:
            self._inbox.put_notice(notice)

    def _threshold_changed(self) -> Dict[str, Any]:
        self._publisher.decided_by(decided_by(self._settings, self._inference.threshold))
        return {"threshold": self._inference.threshold}

    def _reload_now(self) -> None:
        """As the command `reload`, and in the same thread; returns when it is done."""
        done = threading.Event()

        def work() -> None:
            with suppress(ConfigError):
                self._reloader()
            done.set()

        self._inbox.put_notice(work)
        done.wait(RELOAD_WITHIN_S)

    def _apply(self, settings: Settings) -> None:
        rules = rules_of(settings)
        overrides = self._commands.overrides.bounded(rules)
        if not self._control.submit(partial(self._configure, settings, overrides)):
            raise ConfigError(["the settings cannot be taken now: too many commands wait"], "try again")
        journal.set_level(settings.log_level)
        self._settings = settings
        self._guard.rules, self._commands.overrides = rules, overrides
        self._letters.crops = settings.crops
        self._publish_stage.health_interval_s = settings.health.interval_s

    def _configure(self, settings: Settings, overrides: Overrides) -> None:
        """In the infer thread."""
        self._inference.configure(settings, overrides)
        self._inbox.put_notice(self._threshold_changed)

    def _restart(self) -> Dict[str, Any]:
        log.warning("a command asks for a restart: stopping, so that systemd starts the agent anew")
        self._supervisor.request_stop()
        return {}

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

    def _info(self) -> Dict[str, Any]:
        """What the agent is; `engine` is None until it has been opened."""
        engine = self._inference.info
        return {
            "version": __version__,
            "started_at": timestamp(self._started.at),
            "board": board_model() or platform.machine(),
            "jetpack": None,
            "threshold": self._inference.threshold,
            "engine": engine and {**vars(engine), "detail": dict(engine.detail)},
            "capture": "cpu",
            "cameras": {name: {"label": params.label or name} for name, params in self._settings.cameras.items()},
            "settings_fingerprint": fingerprint(self._settings),
        }


def boot_counter(folder: Path) -> int:
    """This start's number; where it cannot be kept, one that is larger than all and so still unique."""
    known = recorded_boot(folder / OUTBOX_NAME)
    try:
        return next_boot(folder, known)
    except OSError as error:
        log.warning(
            "state folder %s: %s; make it writable or set EDGE_AGENT_STATE_DIR. Going on without",
            folder,
            error.strerror,
        )
        return max(known + 1, new_epoch())
