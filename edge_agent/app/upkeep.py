"""The composition root's share that looks after the process: memory, cameras of which none works, and its metrics."""

from typing import Any, List, Mapping, Optional

from edge_agent.app.state import State
from edge_agent.config.settings import Settings
from edge_agent.core.recovery import Steps
from edge_agent.host.identity import kernel_boot
from edge_agent.host.metrics import MetricsServer
from edge_agent.host.process import rss_bytes
from edge_agent.host.requests import Requests
from edge_agent.runtime.stages import CaptureStage
from edge_agent.runtime.upkeep import Upkeep
from edge_agent.runtime.worker import Worker

STEPS_NAME = "recovery.json"
STOP_METRICS_S = 0.2
"""A reader may hold it up longer; it is then left behind, for nothing is lost with it."""


def upkeep_of(
    settings: Settings, state: State, captures: Mapping[str, CaptureStage], supervised: bool, t: float
) -> Upkeep:
    """The guard over memory and cameras; `supervised` tells whether somebody would start the agent anew."""
    kept = state.memory(STEPS_NAME)
    csi = any(params.uri.lower().startswith(("csi:", "jetson:csi:")) for params in settings.cameras.values())
    return Upkeep(
        settings.recovery,
        Steps(kernel_boot(), t, kept.load(lambda value: value, None), kept.save),
        captures,
        rss_bytes,
        Requests().restart_nvargus if csi else None,
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
