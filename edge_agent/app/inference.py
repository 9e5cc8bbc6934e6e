"""Composes what the infer thread owns: the engine, the detector and one pipeline per camera."""

import logging
import threading
from typing import Callable, Mapping, Optional

from edge_agent.app.factories import command_rules_of, engine_of, pipeline_params_of
from edge_agent.config.settings import Settings
from edge_agent.core.camera.transform import needs_cpu
from edge_agent.core.detection.detector import FaceDetector
from edge_agent.core.frame import Image
from edge_agent.core.ports import Clock, Detector, Engine
from edge_agent.core.presence.pipeline import FacePipeline
from edge_agent.core.protocol.commands import CommandRules
from edge_agent.core.protocol.overrides import Overrides
from edge_agent.core.types import Detections, EngineInfo
from edge_agent.host.identity import uuid7
from edge_agent.host.process import trim
from edge_agent.runtime.pool_proxy import PoolProxy

log = logging.getLogger(__name__)

BUFFERS_RETURNED_S = 0.8
"""Less than the second that the infer thread has to end; cameras normally have stopped before."""


class AbandonableDetector:
    """A detector that a thread can be abandoned in, so that another may use the pipelines while the engine computes.

    Args:
        detector: Does the work.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._lock = threading.Lock()
        self._inside = self._abandoned = False

    def detect(self, image: Image) -> Detections:
        """Faces in px of `image`.

        Raises:
            EngineError: The engine failed.
            SystemExit: The call was abandoned; it ends the thread, which must not touch the pipelines any more.
        """
        with self._lock:
            self._inside = True
        try:
            return self._detector.detect(image)
        finally:
            with self._lock:
                self._inside = False
                if self._abandoned:
                    raise SystemExit

    def abandon(self) -> bool:
        """Let the call under way never return. Returns False when there is none. From any thread."""
        with self._lock:
            self._abandoned = self._inside
            return self._abandoned


class Inference:
    """The engine, the detector and the pipelines. Only `info` and `threshold` may be read by other threads.

    Args:
        settings: Validated settings.
        environ: For the folder of fetched models.
        clock: Monotonic and wall clock.
        pool: Opened with the engine, closed before it.
        report: Takes lines of progress while the engine opens.

    Attributes:
        info: Facts of the engine; None until it is open.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        clock: Clock,
        pool: PoolProxy,
        report: Callable[[str], None],
    ) -> None:
        self.info: Optional[EngineInfo] = None
        self._settings, self._environ, self._clock = settings, environ, clock
        self._pool, self._report = pool, report
        self._detector: Optional[FaceDetector] = None
        self._abandonable: Optional[AbandonableDetector] = None
        self._engine: Optional[Engine] = None
        self._pipelines: Mapping[str, FacePipeline] = {}

    @property
    def threshold(self) -> Optional[float]:
        """The current detection threshold; the setting's, until the engine is open. From any thread."""
        detector = self._detector
        return self._settings.detection.pre_cluster_threshold if detector is None else round(detector.threshold, 4)

    def open(self, overrides: Overrides, rules: CommandRules) -> Mapping[str, FacePipeline]:
        """Load the model and create one pipeline per camera, with the switches that commands have set.

        Raises:
            ModelError: The model is missing, damaged or of another contract.
            MissingPackage: The backend is not installed.
        """
        settings = self._settings
        self._engine = engine_of(settings.model, self._environ, self._report)
        trim()  # loading allocates the model's size several times
        self._pool.open(self._engine.pool)
        self._log_copied_cameras()
        self.info = self._engine.info
        detector = self._detector = FaceDetector(self._engine, settings.detection, settings.tracker)
        detector.set_threshold(overrides.threshold)
        self._abandonable = AbandonableDetector(detector)
        pipelines = self._pipelines = {
            name: FacePipeline(
                name,
                params,
                self._abandonable,
                uuid7,
                self._clock,
                pipeline_params_of(settings),
            )
            for name, params in settings.cameras.items()
        }
        for name, pipeline in pipelines.items():
            # Before the first frame, this publishes nothing.
            pipeline.set_enabled(overrides.is_on(name, "detection", rules), self._clock())
            pipeline.set_crops(overrides.is_on(name, "crops", rules))
        return pipelines

    def _log_copied_cameras(self) -> None:
        transformed = [name for name, params in self._settings.cameras.items() if needs_cpu(params)]
        if transformed and self._engine is not None and self._engine.pool is not None:
            names = ", ".join(transformed)
            log.info("%s: the CPU applies rotate, flip and masks, so frames are copied for the GPU", names)

    def configure(self, settings: Settings) -> None:
        """Apply changed *live* settings from the next frame on; a threshold set by a command overrides the setting.

        The override is read from the detector, because a command may have changed it after the reload was requested.
        """
        if self._detector is None:
            return
        override = Overrides(threshold=self._detector.override).bounded(command_rules_of(settings)).threshold
        self._detector.configure(settings.detection, settings.tracker)
        self._detector.set_threshold(override)
        for name, pipeline in self._pipelines.items():
            pipeline.configure(settings.cameras[name], pipeline_params_of(settings))

    def set_threshold(self, value: Optional[float]) -> None:
        """Change the detection threshold of all cameras, which share one detector; None restores the setting.

        Raises:
            ValueError: Not in 0 < value <= 1.
        """
        if self._detector is None:
            return
        self._detector.set_threshold(value)
        for pipeline in self._pipelines.values():
            pipeline.end_idle()

    def abandon(self) -> bool:
        """Leave the infer thread in the engine's call that is under way, if there is one. From any thread.

        Returns:
            True when the pipelines may be used by the caller: that thread touches them no more.
        """
        return self._abandonable is not None and self._abandonable.abandon()

    def close(self) -> None:
        """Free the engine after the cameras have returned its memory. Idempotent."""
        if not self._pool.close(BUFFERS_RETURNED_S):
            log.error("a camera still holds GPU memory, which is freed with the process")
        elif self._engine is not None:
            self._engine.close()
