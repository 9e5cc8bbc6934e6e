"""The agent, wired. Leaving its `ExitStack` is the shutdown, in mirrored order."""

import logging
import platform
import sys
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional

from edge_agent import __version__
from edge_agent.app.factories import require_known_model, rules_of, sources_of
from edge_agent.app.inference import Inference
from edge_agent.app.publishing import Publishing
from edge_agent.app.state import State, claim
from edge_agent.config.reload import Reloader
from edge_agent.config.settings import Settings, fingerprint
from edge_agent.core.camera.visibility import VisibilityMonitor
from edge_agent.core.ports import BufferPool, Source
from edge_agent.core.protocol.messages import timestamp
from edge_agent.core.protocol.overrides import Overrides
from edge_agent.core.recovery import RestartBudget
from edge_agent.core.types import Outcome
from edge_agent.errors import ConfigError
from edge_agent.host import journal
from edge_agent.host.clock import SystemClock
from edge_agent.host.identity import kernel_boot, state_dir
from edge_agent.host.metrics import MetricsServer
from edge_agent.host.process import Signals, rss_bytes
from edge_agent.host.sensors import Sensors, board_model, jetpack
from edge_agent.host.systemd import NvargusRestart, ServiceManager
from edge_agent.models.registry import models_dir
from edge_agent.runtime.command_queue import CommandQueue
from edge_agent.runtime.frame_mailbox import FrameMailbox
from edge_agent.runtime.health import HealthCollector
from edge_agent.runtime.pool_proxy import PoolProxy
from edge_agent.runtime.publish_queue import PublishQueue
from edge_agent.runtime.stages import CaptureStage, InferStage, PublishStage
from edge_agent.runtime.supervisor import RecoveryPolicy, StatusLine, Supervisor, exit_code
from edge_agent.runtime.worker import Worker

STEPS_NAME = "recovery.json"
STOP_METRICS_S = 0.2
"""A reader may hold it up longer; it is then left behind, for nothing is lost with it."""


def upkeep_of(
    settings: Settings, state: State, captures: Mapping[str, CaptureStage], supervised: bool, t: float
) -> RecoveryPolicy:
    """The guard over memory and cameras; `supervised` tells whether somebody would start the agent anew."""
    kept = state.memory(STEPS_NAME)
    csi = any(params.uri.lower().startswith(("csi:", "jetson:csi:")) for params in settings.cameras.values())
    return RecoveryPolicy(
        settings.recovery,
        RestartBudget(kernel_boot(), t, kept.load(lambda value: value, None), kept.save),
        captures,
        rss_bytes,
        NvargusRestart().restart_nvargus if csi else None,
        supervised,
        t,
    )


class Metrics:
    """The endpoint and its thread, where the settings want it. Not watched: whoever reads it slowly harms nobody.

    Raises:
        MissingPackage: It is wanted, and prometheus-client is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self._server: Optional[MetricsServer] = None
        self.worker: Optional[Worker] = None
        if settings.metrics.enabled:
            server = self._server = MetricsServer(settings.metrics, settings.node)
            self.worker = Worker("metrics", self._step, teardown=server.close, stop_within_s=STOP_METRICS_S)

    @property
    def faults(self) -> List[str]:
        """Why it cannot be asked, in words, for health."""
        if self._server is None or self.worker is None:
            return []
        defect = f"metrics: {self.worker.error}" if self.worker.error is not None else ""
        return [fault for fault in (self._server.fault, defect) if fault]

    def show(self, health: Mapping[str, Any]) -> None:
        """From now on this is told."""
        if self._server is not None:
            self._server.show(health)

    def _step(self) -> None:
        if self._server is not None and self.worker is not None:
            self.worker.wait(self._server.step())


log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""Measured: hand-off p99 15.3 ms -> 1.2 ms while another Python thread is busy."""
RELOAD_WITHIN_S = 5.0
STOP_INFER_S, STOP_PUBLISH_S = 1.0, 2.8
"""With one second for the cameras, together under the five that a stop may take."""


def run_agent(settings: Settings, environ: Mapping[str, str], read: Callable[[], Settings], signals: Signals) -> int:
    """Run until a signal, until every source has ended, or until a stage has failed.

    Args:
        settings: Checked.
        environ: The process's.
        read: Reads the settings again, at SIGHUP and when a command asks for it.
        signals: Taken since the process's start.

    Returns:
        The process's exit code.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    agent = Agent(settings, environ, read)
    signals.connect(agent.request_stop, agent.request_reload)
    if signals.stop_asked:
        log.info("asked to stop before the start")
        return 0
    return agent.run()


class Agent:
    """All parts, wired. Built without touching camera, model or broker; `run` starts them.

    Args:
        settings: Checked.
        environ: For systemd's and the user's folders.
        read: Reads the settings again.
        make_sources: Every camera's source, with the memory of which the network reads pictures in place.

    Raises:
        ConfigError: A camera's URI names nothing that can be opened, or nobody knows the model.
        InputError: Another agent has the state folder.
        MissingPackage: A camera or the crops need a package that is not installed.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        read: Callable[[], Settings],
        make_sources: Callable[[Settings, Optional[BufferPool]], Mapping[str, Source]] = sources_of,
    ) -> None:
        require_known_model(settings)
        self._publish_queue = PublishQueue()
        self._command_queue = CommandQueue(
            self._publish_queue.put_notice, lambda value: self._inference.set_threshold(value)
        )
        self._pool = PoolProxy(self._command_queue)
        # Only TensorRT reads pictures in place; for others no camera needs to wait until the engine is open.
        self._sources = make_sources(settings, self._pool if settings.model.backend in ("auto", "tensorrt") else None)
        self._settings = settings
        self._clock = SystemClock()
        self._started = self._clock()
        state = claim(state_dir(settings.state_dir, environ))
        self._boot = state.boot
        kept = state.memory("overrides.json")
        rules = rules_of(settings)
        overrides = kept.load(Overrides.from_json, Overrides()).bounded(rules)

        mailbox = FrameMailbox(settings.cameras)
        self._capture_workers: List[Worker] = []
        captures = {name: self._capture(name, source, mailbox) for name, source in self._sources.items()}
        self._inference = Inference(
            settings, models_dir(settings.model.models_dir, environ), self._clock, self._pool, self._tell
        )
        self._publishing = Publishing(
            settings,
            environ,
            state,
            self._started,
            self._clock,
            self._publish_queue,
            self._command_queue,
            overrides,
            kept,
            {
                "reload": lambda: self._reloader(),
                "restart": self._restart,
                "set_threshold": self._threshold_changed,
            },
            lambda: self._inference.threshold,
        )
        self._status = StatusLine(captures, mailbox, lambda: self._publishing.client.status())
        manager = ServiceManager(environ)
        self._upkeep = upkeep_of(settings, state, captures, manager.present, self._started.t)
        self._metrics = Metrics(settings)
        self._supervisor = Supervisor(
            captures, manager, self._status, self._reload_now, [self._publishing.client], self._upkeep
        )
        self._reloader = Reloader(settings, read, self._apply, self._supervisor.request_stop)

        infer = InferStage(
            mailbox,
            settings.cameras,
            lambda: self._inference.open(overrides, rules),
            self._clock,
            self._take,
            every_frame=settings.mqtt.detections != "off",
            command_queue=self._command_queue,
        )
        self._infer_worker = Worker(
            "infer", infer.step, infer.setup, partial(self._end_inference, infer), self._wake, STOP_INFER_S
        )
        self._publish_worker = self._publish(captures, mailbox, infer)

    def run(self) -> int:
        """Start the stages from the broker's end; leaving the stack stops them in mirrored order."""
        workers = (self._publish_worker, self._infer_worker, *self._capture_workers)
        log.info(
            "edge-agent %s: node %s, boot %d", __version__, self._settings.node, self._boot, extra={"EVENT": "started"}
        )
        with ExitStack() as stack:
            for worker in (self._metrics.worker, *workers):
                if worker is not None:
                    stack.enter_context(worker)
            stack.callback(self._stop_captures)
            self._supervisor.watch(workers)
            stopping_t = time.monotonic()
        log.info("stopped in %.1f s", time.monotonic() - stopping_t, extra={"EVENT": "stopped"})
        return exit_code(workers) or int(self._supervisor.gave_up is not None)

    def request_stop(self) -> None:
        """Stop in order. Safe in a signal handler."""
        self._supervisor.request_stop()

    def request_reload(self) -> None:
        """Read the settings again. Safe in a signal handler."""
        self._supervisor.request_reload()

    def _capture(self, name: str, source: Source, mailbox: FrameMailbox) -> CaptureStage:
        stage = CaptureStage(
            name,
            source,
            lambda: VisibilityMonitor(self._settings.illumination, source.kind),
            mailbox,
            self._clock,
            lambda seconds: worker.wait(seconds),
            self._settings.cameras[name].stall_after_s,
        )
        worker = Worker(
            f"capture-{name}", stage.step, teardown=stage.close, on_exit=self._wake, on_overdue=stage.abandon
        )
        self._capture_workers.append(worker)
        return stage

    def _publish(self, captures: Mapping[str, CaptureStage], mailbox: FrameMailbox, infer: InferStage) -> Worker:
        publishing = self._publishing
        telemetry = HealthCollector(
            captures,
            mailbox,
            self._publish_queue,
            infer.capture_to_result,
            publishing.outbox.status,
            publishing.client.status,
            rss_bytes,
            Sensors(),
            lambda: self._upkeep.counts,
            self._clock,
        )

        def health() -> Dict[str, Any]:
            others = (publishing, self._reloader, self._upkeep, self._metrics, self._supervisor)
            payload = publishing.health(telemetry([fault for other in others for fault in other.faults]))
            self._metrics.show(payload)
            return payload

        stage = self._publish_stage = PublishStage(
            self._publish_queue,
            publishing.service,
            health,
            self._info,
            self._clock,
            self._settings.health.interval_s,
        )

        def teardown() -> None:
            stage.finish()
            publishing.close()

        return Worker("publish", stage.step, publishing.open, teardown, self._wake, STOP_PUBLISH_S)

    def _take(self, outcome: Outcome) -> None:
        self._status.note(outcome)
        self._publish_queue.put_outcome(outcome)

    def _threshold_changed(self) -> Dict[str, Any]:
        return self._publishing.threshold_changed(self._settings)

    def _reload_now(self) -> None:
        """As the command `reload`, and in the same thread; returns when it is done."""
        done = threading.Event()

        def work() -> None:
            with suppress(ConfigError):
                self._reloader()
            done.set()

        self._publish_queue.put_notice(work)
        done.wait(RELOAD_WITHIN_S)

    def _apply(self, settings: Settings) -> None:
        overrides = self._publishing.bounded_overrides(settings)
        if not self._command_queue.submit(partial(self._configure, settings)):
            raise ConfigError(["the settings cannot be taken now: too many commands wait"], "try again")
        journal.set_level(settings.log_level)
        self._settings = settings
        self._publishing.configure(settings, overrides)
        self._publish_stage.health_interval_s = settings.health.interval_s

    def _configure(self, settings: Settings) -> None:
        """In the infer thread."""
        self._inference.configure(settings)
        self._publish_queue.put_notice(self._threshold_changed)

    def _restart(self) -> Dict[str, Any]:
        log.warning(
            "a command asks for a restart: stopping, so that systemd starts the agent anew",
            extra={"EVENT": "restart-needed"},
        )
        self._supervisor.request_stop()
        return {}

    def _end_inference(self, stage: InferStage) -> None:
        stage.finish()
        self._stop_captures()  # after a fault of ours they still run, into memory that is about to go
        self._inference.close()

    def _stop_captures(self) -> None:
        # All at once: else each would wait for the one before it.
        self._pool.dismiss()
        for worker in self._capture_workers:
            worker.stop()

    def _tell(self, line: str) -> None:
        log.info(line)
        self._supervisor.progress(line)

    def _wake(self) -> None:
        self._supervisor.wake()

    def _info(self) -> Dict[str, Any]:
        """What the agent is; `engine` is None until it has been opened."""
        engine = self._inference.info
        return {
            "version": __version__,
            "started_at": timestamp(self._started.at),
            "board": board_model() or platform.machine(),
            "jetpack": jetpack(),
            "threshold": self._inference.threshold,
            "engine": engine and {**vars(engine), "detail": dict(engine.detail)},
            "capture_mode": {name: source.mode for name, source in self._sources.items()},
            "cameras": {name: {"label": params.label or name} for name, params in self._settings.cameras.items()},
            "settings_fingerprint": fingerprint(self._settings),
        }
