"""The composition root: builds all parts of the agent and runs them. Leaving its `ExitStack` is the shutdown."""

import logging
import sys
import threading
import time
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, Optional

from edge_agent import __version__
from edge_agent.app.factories import command_rules_of, require_known_model, sources_of
from edge_agent.app.inference import Inference
from edge_agent.app.publishing import PublishContext, Publishing
from edge_agent.app.reporting import MetricsEndpoint, describe_agent, recovery_policy
from edge_agent.app.state import claim
from edge_agent.config.reload import Reloader
from edge_agent.config.settings import Settings
from edge_agent.core.camera.visibility import VisibilityMonitor
from edge_agent.core.ports import BufferPool, Source
from edge_agent.core.protocol.health import health_payload
from edge_agent.core.types import Outcome
from edge_agent.errors import ConfigError
from edge_agent.host import journal
from edge_agent.host.clock import SystemClock
from edge_agent.host.identity import state_dir
from edge_agent.host.process import Signals, exit_now, rss_bytes
from edge_agent.host.sensors import Sensors
from edge_agent.host.systemd import ServiceManager
from edge_agent.runtime.command_queue import CommandQueue
from edge_agent.runtime.frame_mailbox import FrameMailbox
from edge_agent.runtime.health import HealthCollector, HealthSources
from edge_agent.runtime.pool_proxy import PoolProxy
from edge_agent.runtime.publish_queue import PublishQueue
from edge_agent.runtime.stages import CaptureStage, InferStage, PublishStage
from edge_agent.runtime.supervisor import Supervisor, exit_code
from edge_agent.runtime.worker import Worker

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""Measured: hand-off p99 15.3 ms -> 1.2 ms while another Python thread is busy."""
RELOAD_WITHIN_S = 5.0
STOP_CAPTURES_S, STOP_INFER_S, STOP_PUBLISH_S = 1.0, 1.0, 2.8
"""Together less than the five seconds that a stop may take. The infer thread gets what the cameras leave."""


def run_agent(settings: Settings, environ: Mapping[str, str], read: Callable[[], Settings], signals: Signals) -> int:
    """Run until a signal, until every source has ended, or until a stage has failed.

    Args:
        settings: Checked.
        environ: The process's.
        read: Reads the settings again, at SIGHUP and at the command `reload`.
        signals: Caught since the process's start.

    Returns:
        The process's exit code.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    agent = Agent(settings, environ, read)
    signals.connect(agent.request_stop, agent.request_reload)
    if signals.stop_requested:
        log.info("stop requested before the start")
        return 0
    code = agent.run()
    if threading.active_count() > 1:  # in native code, which would abort the interpreter's end
        exit_now(code)
    return code


class Agent:
    """All parts, wired. Building it touches no camera, model or broker; `run` starts them.

    Args:
        settings: Checked.
        environ: For systemd's and the user's folders.
        read: Reads the settings again.
        make_sources: Makes every camera's source, given the buffers that the network reads in place.

    Raises:
        ConfigError: A camera's URI cannot be opened by any source, or the model is unknown.
        InputError: Another agent uses the state folder.
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
        self._command_queue = CommandQueue(self._publish_queue.put, lambda value: self._inference.set_threshold(value))
        self._pool = PoolProxy(self._command_queue)
        # Only TensorRT reads frames in place; with another backend no camera need wait for the engine.
        in_place = settings.model.backend in ("auto", "tensorrt")
        self._sources = make_sources(settings, self._pool if in_place else None)
        self._settings, self._clock = settings, SystemClock()
        self._started = self._clock()
        self._state = claim(state_dir(settings.state_dir, environ))
        manager = ServiceManager(environ)

        self._mailbox = FrameMailbox(settings.cameras)
        self._capture_workers: List[Worker] = []
        captures = {name: self._capture(name, source) for name, source in self._sources.items()}
        self._recovery = recovery_policy(settings, self._state, captures, manager.present, self._started.t)

        self._inference = Inference(settings, environ, self._clock, self._pool, self._report_progress)
        infer = self._infer_stage = InferStage(
            self._mailbox,
            settings.cameras,
            lambda: self._inference.open(self._publishing.overrides, command_rules_of(settings)),
            self._clock,
            self._hand_over,
            every_frame=settings.mqtt.detections != "off",
            command_queue=self._command_queue,
        )
        self._infer_worker = Worker(
            "infer", infer.step, infer.setup, partial(self._end_inference, infer), self._wake, STOP_INFER_S
        )

        self._publishing = Publishing(
            PublishContext(settings, environ, self._state, self._clock, self._started),
            self._publish_queue,
            self._command_queue,
            {
                "reload": lambda: self._reloader(),
                "restart": self._restart,
                "set_threshold": self._threshold_changed,
            },
            lambda: self._inference.threshold,
        )
        self._metrics = MetricsEndpoint(settings)
        self._health = HealthCollector(
            captures, self._mailbox, self._publish_queue, infer.capture_to_result, self._health_sources(), self._clock
        )
        self._publish_stage = PublishStage(
            self._publish_queue,
            self._publishing.publisher,
            self._report_health,
            self._describe,
            self._clock,
            settings.health.interval_s,
        )
        self._publish_worker = Worker(
            "publish", self._publish_stage.step, self._publishing.open, self._end_publishing, self._wake, STOP_PUBLISH_S
        )

        self._supervisor = Supervisor(
            captures, manager, self._health.status_line, self._reload, [self._publishing.client], self._recovery
        )
        self._reloader = Reloader(settings, read, self._apply, self._supervisor.request_stop)

    def run(self) -> int:
        """Start the workers from the broker's end, and wait; leaving the stack stops them in reverse order."""
        workers = (self._publish_worker, self._infer_worker, *self._capture_workers)
        started = "edge-agent %s: node %s, boot %d"
        log.info(started, __version__, self._settings.node, self._state.boot, extra={"EVENT": "started"})
        stopping_t = time.monotonic()
        with ExitStack() as stack:
            if self._metrics.worker is not None:
                stack.enter_context(self._metrics.worker)
            stack.enter_context(self._publish_worker)
            stack.callback(self._finish_for_infer)
            stack.enter_context(self._infer_worker)
            stack.callback(lambda: self._allow_infer(stopping_t))
            for worker in self._capture_workers:
                stack.enter_context(worker)
            stack.callback(self._stop_captures)
            self._supervisor.watch(workers)
            stopping_t = time.monotonic()
        log.info("stopped in %.1f s", time.monotonic() - stopping_t, extra={"EVENT": "stopped"})
        return exit_code(workers, self._publish_worker) or int(self._supervisor.restart_reason is not None)

    def request_stop(self) -> None:
        """Stop in order. Safe in a signal handler."""
        self._supervisor.request_stop()

    def request_reload(self) -> None:
        """Read the settings again. Safe in a signal handler."""
        self._supervisor.request_reload()

    def _capture(self, name: str, source: Source) -> CaptureStage:
        stage = CaptureStage(
            name,
            source,
            lambda: (
                VisibilityMonitor(
                    self._settings.illumination, source.kind, self._settings.cameras[name].dark_means
                ).observe
            ),
            self._mailbox,
            self._clock,
            lambda seconds: worker.wait(seconds),
            self._settings.cameras[name].stall_after_s,
        )
        worker = Worker(
            f"capture-{name}", stage.step, teardown=stage.close, on_exit=self._wake, deadline_s=stage.deadline_s
        )
        self._capture_workers.append(worker)
        return stage

    def _hand_over(self, outcome: Outcome) -> None:
        self._health.note(outcome)
        self._publish_queue.put_outcome(outcome)

    def _health_sources(self) -> HealthSources:
        publishing = self._publishing
        return HealthSources(
            outbox=publishing.outbox.status,
            link=publishing.publisher.link,
            commands=lambda: publishing.command_counters,
            machine=Sensors(),
            rss=rss_bytes,
            recovery=lambda: self._recovery.counts,
            faults=self._faults,
        )

    def _faults(self) -> List[str]:
        parts = (self._publishing, self._reloader, self._recovery, self._metrics, self._supervisor)
        return [fault for part in parts for fault in part.faults]

    def _report_health(self) -> Dict[str, Any]:
        """Build the health report's payload, and show it on the metrics page too."""
        payload = health_payload(self._health())
        self._metrics.show(payload)
        return payload

    def _describe(self) -> Dict[str, Any]:
        return describe_agent(self._settings, self._started, self._inference, self._sources)

    def _threshold_changed(self) -> Dict[str, Any]:
        return self._publishing.threshold_changed(self._settings)

    def _reload(self) -> None:
        """Reload in the publish thread, as the command `reload` does; returns when it is done."""
        done = threading.Event()

        def reload() -> None:
            with suppress(ConfigError):
                self._reloader()
            done.set()

        self._publish_queue.put(reload)
        done.wait(RELOAD_WITHIN_S)

    def _apply(self, settings: Settings) -> None:
        overrides = self._publishing.bounded_overrides(settings)
        if not self._command_queue.submit(partial(self._configure_inference, settings)):
            raise ConfigError(["the settings cannot be applied now: too many commands wait"], "try again")
        journal.set_level(settings.log_level)
        self._settings = settings
        self._publishing.configure(settings, overrides)
        self._publish_stage.health_interval_s = settings.health.interval_s

    def _configure_inference(self, settings: Settings) -> None:
        self._inference.configure(settings)
        self._publish_queue.put(self._threshold_changed)

    def _restart(self) -> Dict[str, Any]:
        log.warning("restart requested by a command: stopping for a restart", extra={"EVENT": "restart-needed"})
        self._supervisor.request_stop()
        return {}

    def _allow_infer(self, stopping_t: float) -> None:
        """Give the infer thread the time that the cameras did not need to stop."""
        left_s = STOP_CAPTURES_S - (time.monotonic() - stopping_t)
        self._infer_worker.stop_within_s = STOP_INFER_S + max(0.0, left_s)

    def _finish_for_infer(self) -> None:
        """End the visits when the infer thread cannot, because the engine takes longer than a stop may."""
        if self._infer_worker.stuck and self._inference.abandon():
            self._infer_stage.finish()

    def _end_inference(self, stage: InferStage) -> None:
        stage.finish()
        self._stop_captures()  # After a fault of the infer thread they still run, in memory that is about to be freed.
        self._inference.close()

    def _end_publishing(self) -> None:
        self._publish_stage.finish()
        self._publishing.close()

    def _stop_captures(self) -> None:
        # All at once: otherwise each would wait for the one before it.
        self._pool.dismiss()
        for worker in self._capture_workers:
            worker.stop()

    def _report_progress(self, line: str) -> None:
        log.info(line)
        self._supervisor.progress(line)

    def _wake(self) -> None:
        self._supervisor.wake()
