"""What the agent reports of itself beside health: its description, the metrics page, and the recovery record."""

import platform
from typing import Any, Dict, List, Mapping, Optional

from edge_agent import __version__
from edge_agent.app.inference import Inference
from edge_agent.app.state import State
from edge_agent.config.settings import Settings, fingerprint
from edge_agent.core.ports import Source
from edge_agent.core.protocol.messages import timestamp
from edge_agent.core.recovery import RestartBudget
from edge_agent.core.types import Moment
from edge_agent.host.identity import kernel_boot
from edge_agent.host.metrics import MetricsServer
from edge_agent.host.process import rss_bytes
from edge_agent.host.sensors import board_model, jetpack
from edge_agent.host.systemd import NvargusRestart
from edge_agent.runtime.stages import CaptureStage
from edge_agent.runtime.supervisor import RecoveryPolicy
from edge_agent.runtime.worker import Worker

RECOVERY_FILE = "recovery.json"
STOP_METRICS_S = 0.2
"""A slow reader may delay the end; the thread is then left behind, which loses nothing."""


def describe_agent(
    settings: Settings, started: Moment, inference: Inference, sources: Mapping[str, Source]
) -> Dict[str, Any]:
    """Return the payload of `B/info`; `engine` is None until it has been opened."""
    engine = inference.info
    return {
        "version": __version__,
        "started_at": timestamp(started.at),
        "board": board_model() or platform.machine(),
        "jetpack": jetpack(),
        "threshold": inference.threshold,
        "engine": engine and {**vars(engine), "detail": dict(engine.detail)},
        "capture_mode": {name: source.mode for name, source in sources.items()},
        "cameras": {name: {"label": params.label or name} for name, params in settings.cameras.items()},
        "settings_fingerprint": fingerprint(settings),
    }


def recovery_policy(
    settings: Settings, state: State, captures: Mapping[str, CaptureStage], supervised: bool, t: float
) -> RecoveryPolicy:
    """Return the policy that watches memory and cameras; `supervised`: a service manager restarts a stopped agent."""
    record = state.file(RECOVERY_FILE)
    csi = any(params.uri.lower().startswith(("csi:", "jetson:csi:")) for params in settings.cameras.values())
    return RecoveryPolicy(
        settings.recovery,
        RestartBudget(kernel_boot(), t, record.load(lambda value: value, None), record.save),
        captures,
        rss_bytes,
        NvargusRestart().restart_nvargus if csi else None,
        supervised,
        t,
    )


class MetricsEndpoint:
    """The Prometheus endpoint and its thread, where the settings enable it. The watchdog does not depend on it.

    Attributes:
        worker: Serves it; None where it is disabled.

    Raises:
        MissingPackage: It is enabled, and prometheus-client is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self._server: Optional[MetricsServer] = None
        self.worker: Optional[Worker] = None
        if settings.metrics.enabled:
            server = self._server = MetricsServer(settings.metrics, settings.node)
            self.worker = Worker("metrics", self._step, teardown=server.close, stop_within_s=STOP_METRICS_S)

    @property
    def faults(self) -> List[str]:
        """Why it cannot be read, for health."""
        if self._server is None or self.worker is None:
            return []
        defect = f"metrics: {self.worker.error}" if self.worker.error is not None else ""
        return [fault for fault in (self._server.fault, defect) if fault]

    def show(self, health: Mapping[str, Any]) -> None:
        """Serve this health payload from now on."""
        if self._server is not None:
            self._server.update(health)

    def _step(self) -> None:
        if self._server is not None and self.worker is not None:
            self.worker.wait(self._server.step())
