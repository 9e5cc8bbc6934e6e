"""Face detector: engine, decoding, clustering, and the mapping of boxes back to px of the image."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Callable, Dict, Mapping, NamedTuple, Optional, Tuple

import numpy as np

from edge_agent.core.detection import centerface, gridbox
from edge_agent.core.detection.clustering import SCORE_KIND, ClusterParams, cluster
from edge_agent.core.detection.evidence import EvidenceParams, clear_score, grades
from edge_agent.core.detection.geometry import Placement, Size, iou
from edge_agent.core.detection.levels import adapted
from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.frame import Image
from edge_agent.core.params import param
from edge_agent.core.ports import Engine
from edge_agent.core.types import WEAK, Array, Detections
from edge_agent.errors import ModelError


class _Model(NamedTuple):
    """A kind of model: decoder of its outputs, recommended thresholds, and which scores meet a threshold."""

    decode: Callable[[Mapping[str, Array], ModelContract, float], Tuple[Array, Array]]
    pre_cluster_threshold: float
    nms_iou_threshold: float
    meets: Callable[[Array, float], Array]


_MODELS: Dict[str, _Model] = {
    "gridbox": _Model(gridbox.decode, gridbox.PRE_CLUSTER_THRESHOLD, gridbox.NMS_IOU_THRESHOLD, np.greater_equal),
    "centerface": _Model(centerface.decode, centerface.PRE_CLUSTER_THRESHOLD, centerface.NMS_IOU_THRESHOLD, np.greater),
}


def model_defaults(contract: ModelContract) -> Dict[str, float]:
    """Recommended thresholds of a kind of model, by the names in `DetectionParams`.

    Raises:
        ModelError: No decoder for this kind of model.
    """
    model = _model_of(contract)
    return {"pre_cluster_threshold": model.pre_cluster_threshold, "nms_iou_threshold": model.nms_iou_threshold}


def _model_of(contract: ModelContract) -> _Model:
    model = _MODELS.get(contract.kind)
    if model is None:
        raise ModelError(f"model kind {contract.kind!r} is unknown", f"expected one of {', '.join(_MODELS)}")
    return model


@dataclass(frozen=True)
class DetectionParams(ClusterParams):
    """What counts as a face. Names are DeepStream's; unset selects the model's default."""

    pre_cluster_threshold: Optional[float] = param(
        None,
        "Score from which a grid cell is a candidate; raise it against false alarms, lower it when faces are "
        "missed; the model's default when unset (0.4 FaceDetectIR, 0.35 CenterFace)",
        gt=0,
        le=1,
    )
    adapt_levels: bool = param(
        True,
        "Brighten dim and hazy images for the network, by each image's own darkest and brightest parts; crops stay as "
        "captured. Off: the network gets the captured levels, and misses faces in poor light",
    )
    # DeepStream's detected-min-w and detected-min-h: 4 in NVIDIA's commented DBSCAN settings, off as shipped.
    min_width_px: int = param(0, "Faces narrower than this many source px are ignored", ge=0, le=8192)
    min_height_px: int = param(0, "Faces lower than this many source px are ignored", ge=0, le=8192)


class Decoder:
    """Converts raw outputs of one model to faces. Used by one thread.

    Args:
        contract: Contract of the model.
        params: What counts as a face.
        evidence: Also return what only continues a track, and grade all detections; None returns faces only, ungraded.

    Raises:
        ModelError: No decoder for this kind of model.
    """

    def __init__(
        self, contract: ModelContract, params: DetectionParams, evidence: Optional[EvidenceParams] = None
    ) -> None:
        self.contract = contract
        self._model = _model_of(contract)
        self._place: Callable[[Size], Placement] = lru_cache(maxsize=16)(contract.place)
        self.configure(params, evidence)

    def configure(self, params: DetectionParams, evidence: Optional[EvidenceParams] = None) -> None:
        """Apply other parameters from the next image on; this resets `set_threshold`."""
        self.params = params
        self._evidence = evidence
        self._clustering: ClusterParams = params
        if params.nms_iou_threshold is None:
            self._clustering = replace(params, nms_iou_threshold=self._model.nms_iou_threshold)
        self._relaxed = self._clustering
        if evidence is not None:
            self._relaxed = replace(
                self._clustering,
                post_cluster_threshold=params.post_cluster_threshold * evidence.continue_ratio,
                dbscan_min_score=params.dbscan_min_score * evidence.continue_ratio,
            )
        self._only_scores_relax = self._relaxed == self._clustering
        self._same_face_iou = 1.0 - params.eps
        if params.cluster_mode != "dbscan" and self._clustering.nms_iou_threshold is not None:
            self._same_face_iou = self._clustering.nms_iou_threshold
        self._min_size = np.array([params.min_width_px, params.min_height_px], np.float32)
        self.set_threshold(None)

    @property
    def override(self) -> Optional[float]:
        """The value of `set_threshold`; None when the setting or the model's default applies."""
        return self._override

    @property
    def threshold(self) -> float:
        """The pre-cluster threshold in use, 0..1."""
        return self._threshold

    def set_threshold(self, value: Optional[float]) -> None:
        """Change the pre-cluster threshold from the next image on; None restores the setting or the model's default.

        Raises:
            ValueError: Not in 0 < value <= 1.
        """
        override = value
        if value is None:
            value = self.params.pre_cluster_threshold
        if value is None:
            value = self._model.pre_cluster_threshold
        if not 0 < value <= 1:
            raise ValueError(f"threshold: expected a number above 0 and at most 1, got {value}")
        self._threshold = self._lowest = float(value)
        self._override = override
        if self._evidence is not None:
            self._lowest = self._threshold * self._evidence.continue_ratio
            start = max(self._threshold, self.params.post_cluster_threshold)
            self._clear = clear_score(start, SCORE_KIND, self._evidence)

    def decode(self, outputs: Mapping[str, Array], source: Size) -> Detections:
        """Faces in px of the image that `outputs` belong to, clipped to it, best first (weak ones may come last).

        Args:
            outputs: Outputs of the engine by role, without the batch axis.
            source: (width, height) of the image, px.

        Raises:
            ModelError: The outputs do not have the contract's shapes.
        """
        xyxy, confidence = self._model.decode(outputs, self.contract, self._lowest)
        if not len(xyxy):
            return Detections.empty(SCORE_KIND)
        evidence: Optional[Array] = None
        if self._evidence is None:
            xyxy, confidence = cluster(xyxy, confidence, self._clustering)
        elif self.params.cluster_mode in ("nms", "none"):
            xyxy, confidence, evidence = self._graded(xyxy, confidence)
        else:
            xyxy, confidence, evidence = self._graded_groups(xyxy, confidence)
        xyxy = self._place(source).to_source(xyxy)
        np.maximum(xyxy, 0, out=xyxy)
        np.minimum(xyxy, np.array(source + source, np.float32), out=xyxy)
        sides = xyxy[:, 2:] - xyxy[:, :2]
        # A box that lies in the letterbox padding is empty once clipped.
        kept = (sides > 0) & (sides >= self._min_size)
        if not kept.all():
            kept = kept.all(axis=1)
            xyxy, confidence = xyxy[kept], confidence[kept]
            evidence = None if evidence is None else evidence[kept]
        return Detections(xyxy, confidence, SCORE_KIND, evidence)

    def _graded(self, xyxy: Array, confidence: Array) -> Tuple[Array, Array, Optional[Array]]:
        """Boxes, scores and evidence: in these modes a candidate cannot change what becomes of a better one."""
        xyxy, confidence = cluster(xyxy, confidence, self._relaxed)
        if not len(confidence) or confidence[-1] > self._clear:
            return xyxy, confidence, None
        starts = self._model.meets(confidence, self._threshold)
        post = self.params.post_cluster_threshold
        if post > 0 and self.params.cluster_mode != "none":
            starts = starts & (confidence > np.float32(post))
        return xyxy, confidence, grades(confidence, starts, self._clear)

    def _graded_groups(self, xyxy: Array, confidence: Array) -> Tuple[Array, Array, Optional[Array]]:
        """Boxes, scores and evidence: faces are grouped without weak candidates, which would change a group.

        What the relaxed parameters find beside the faces is weak.
        """
        if self._only_scores_relax and confidence.min() > self._threshold:
            faces, scores = cluster(xyxy, confidence, self._clustering)
            if not len(scores) or scores[-1] >= self._clear:
                return faces, scores, None
            return faces, scores, grades(scores, np.ones(len(scores), bool), self._clear)
        strong = self._model.meets(confidence, self._threshold)
        faces, scores = cluster(xyxy[strong], confidence[strong], self._clustering)
        evidence = grades(scores, np.ones(len(scores), bool), self._clear)
        more, more_scores = cluster(xyxy, confidence, self._relaxed)
        beside = (iou(more, faces) <= self._same_face_iou).all(axis=1)
        more, more_scores = more[beside], more_scores[beside]
        evidence = np.concatenate([evidence, np.full(len(more), WEAK, np.uint8)])
        best = slice(self.params.top_k)
        return np.concatenate([faces, more])[best], np.concatenate([scores, more_scores])[best], evidence[best]


class FaceDetector(Decoder):
    """A decoder with its engine. Used by the thread that owns the engine.

    Args:
        engine: Preprocessing and network; the caller closes it.
        params: What counts as a face.
        evidence: As of `Decoder`.

    Raises:
        ModelError: No decoder for the engine's kind of model.
    """

    def __init__(self, engine: Engine, params: DetectionParams, evidence: Optional[EvidenceParams] = None) -> None:
        super().__init__(engine.contract, params, evidence)
        self.engine = engine

    def detect(self, image: Image) -> Detections:
        """Faces in px of `image`, clipped to it, best first.

        Raises:
            EngineError: The engine failed.
            ModelError: Its outputs do not have the contract's shapes.
        """
        height, width = image.pixels.shape[:2]
        return self.decode(self.outputs(image), (width, height))

    def outputs(self, image: Image) -> Mapping[str, Array]:
        """Outputs of the network by role, for `decode`; valid until the next call.

        Raises:
            EngineError: The engine failed.
        """
        # The scripted engine knows its markers by their brightness at the sensor.
        adapt = self.params.adapt_levels and self.engine.info.backend != "scripted"
        return self.engine.infer(adapted(image) if adapt else image)
