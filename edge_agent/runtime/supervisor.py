"""Watches the workers until there is a reason to stop. Starting and stopping them is their own (see `worker`)."""

import logging
import threading
from typing import Mapping, Optional, Sequence

from edge_agent.errors import EdgeAgentError
from edge_agent.runtime.stages import CaptureStage
from edge_agent.runtime.worker import Worker

log = logging.getLogger(__name__)

LOOK_S = 0.5


class Supervisor:
    """Looks at all workers twice a second, and at once when something asks for it.

    Args:
        captures: The capture stages, to see when every source has ended.
    """

    def __init__(self, captures: Mapping[str, CaptureStage]) -> None:
        self._captures = captures
        self._wake = threading.Event()
        self._stop = False

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def request_stop(self) -> None:
        """Ask for an ordered stop. Safe in a signal handler."""
        self._stop = True
        self._wake.set()

    def watch(self, workers: Sequence[Worker]) -> None:
        """Return when a stop was asked for, a worker has failed, or every source has ended."""
        while not self._stop:
            self._wake.wait(LOOK_S)
            self._wake.clear()
            if failed(workers) is not None:
                return
            if self._captures and all(stage.ended for stage in self._captures.values()):
                log.info("every source has ended")
                return


def failed(workers: Sequence[Worker]) -> Optional[Worker]:
    """The first worker that ended by an error, if any."""
    return next((worker for worker in workers if worker.error is not None), None)


def exit_code(workers: Sequence[Worker]) -> int:
    """0 after an ordered stop; the error's own code, or 1, after a failure or a worker that would not stop."""
    worker = failed(workers)
    if worker is not None:
        return worker.error.exit_code if isinstance(worker.error, EdgeAgentError) else 1
    return 1 if any(worker.stuck for worker in workers) else 0
