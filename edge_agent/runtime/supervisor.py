"""Starts the stages, watches that they progress, and stops them in order."""

import logging
import threading
import time
from typing import Mapping, Optional, Sequence

from edge_agent.errors import EdgeAgentError
from edge_agent.runtime.stages import CaptureStage
from edge_agent.runtime.worker import Worker

log = logging.getLogger(__name__)

LOOK_S = 0.5
STOP_CAPTURE_S = 1.0
STOP_INFER_S = 1.5
STOP_PUBLISH_S = 2.0
"""Together under the five seconds that a stop may take."""


class Supervisor:
    """Owns the worker threads.

    Args:
        capture: One worker per camera.
        stages: The same cameras' stages, to see when all have ended.
        infer: The worker that makes and owns the engine.
        publish: The worker that owns outbox and broker client.
        wake: Set by anything that wants attention, such as a signal or a worker's end.
    """

    def __init__(
        self,
        capture: Sequence[Worker],
        stages: Mapping[str, CaptureStage],
        infer: Worker,
        publish: Worker,
        wake: threading.Event,
    ) -> None:
        self._capture, self._stages = capture, stages
        self._infer, self._publish = infer, publish
        self._wake = wake
        self._stopping = threading.Event()

    def request_stop(self) -> None:
        """Ask for an ordered stop. Safe in a signal handler."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> int:
        """Until a stop is asked for, all sources have ended, or a stage has failed.

        Returns:
            The process's exit code.
        """
        for worker in (self._publish, self._infer, *self._capture):
            worker.start()
        try:
            while not self._stopping.is_set():
                self._wake.wait(LOOK_S)
                self._wake.clear()
                if self._failed() is not None:
                    break
                if self._stages and all(stage.ended for stage in self._stages.values()):
                    log.info("every source has ended")
                    break
        finally:
            clean = self._stop()
        failed = self._failed()
        if failed is not None:
            return failed.error.exit_code if isinstance(failed.error, EdgeAgentError) else 1
        return 0 if clean else 1

    def _failed(self) -> Optional[Worker]:
        return next((w for w in (self._infer, self._publish, *self._capture) if w.error is not None), None)

    def _stop(self) -> bool:
        started = time.monotonic()
        for worker in self._capture:
            worker.stop()
        deadline = time.monotonic() + STOP_CAPTURE_S
        stuck = [w.name for w in self._capture if not w.join(deadline - time.monotonic())]
        self._infer.stop()
        if not self._infer.join(STOP_INFER_S):
            stuck.append(self._infer.name)
        self._publish.stop()
        if not self._publish.join(STOP_PUBLISH_S):
            stuck.append(self._publish.name)
        if stuck:
            log.error("did not stop in time: %s", ", ".join(stuck))
        log.info("stopped in %.1f s", time.monotonic() - started)
        return not stuck
