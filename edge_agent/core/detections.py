"""One frame's detections as `C/detections` carries them, in the words of whoever listens.

"native" is ours. "deepstream-minimal" is what Gst-nvmsgconv sends with payload-type 1 (schema version 4.0): boxes in
px, one pipe-separated string per object: id (-1 when it is not tracked), left, top, right, bottom, class, then "#" and
what is known of a face. "axis" is Axis' Analytics Data Format, the frame of
com.axis.analytics_scene_description.v0.beta: boxes normalised, fields that are not known left out.
"""

from typing import Any, Callable, Dict, List, Literal, Mapping

import numpy as np

from edge_agent.core.messages import DETECTIONS_SCHEMA, timestamp
from edge_agent.core.types import Detections, FrameInfo, as_boxes

DetectionsProfile = Literal["off", "native", "deepstream-minimal", "axis"]

_FACE = "Face"
_UNKNOWN = ("", "0", "", "", "", "", "", "", "")
"""Gender, age, hair, cap, glasses, facial hair, name, a field that is always empty, eye colour: none of them known.

The empty one is DeepStream's: its converter writes two separators after the name. An unknown age is 0 there.
"""


def encode_detections(profile: DetectionsProfile, detections: Detections, info: FrameInfo, node: str) -> Dict[str, Any]:
    """One frame's faces.

    Args:
        profile: Not "off".
        detections: In px of the upright full frame, which `info` describes.
        info: Of the frame.
        node: The agent's id.
    """
    return _PROFILES[profile](detections, info, node)


def _native(detections: Detections, info: FrameInfo, node: str) -> Dict[str, Any]:
    return {
        "schema": DETECTIONS_SCHEMA,
        "node": node,
        "camera": info.camera,
        "ts": timestamp(info.moment.at),
        "frame": {"sequence": info.sequence, "width": info.width, "height": info.height},
        "score_kind": detections.score_kind,
        "detections": [
            {"box": vars(box), "score": round(float(score), 4)}
            for box, score in zip(as_boxes(detections, info.width, info.height), detections.confidence)
        ],
    }


def _deepstream_minimal(detections: Detections, info: FrameInfo, node: str) -> Dict[str, Any]:
    return {
        "version": "4.0",
        "id": str(info.sequence),
        "@timestamp": timestamp(info.moment.at)[:-4] + "Z",
        "sensorId": f"{node}/{info.camera}",
        "objects": [
            "|".join(["-1", *(f"{side:.2f}" for side in np.maximum(xyxy, 0.0)), _FACE, "#", *_UNKNOWN, f"{score:.4f}"])
            for xyxy, score in detections
        ],
    }


def _axis(detections: Detections, info: FrameInfo, node: str) -> Dict[str, Any]:
    at = timestamp(info.moment.at)
    observations: List[Mapping[str, Any]] = [
        {
            "bounding_box": vars(box),
            "class": {"type": _FACE, "score": round(min(1.0, float(score)), 4)},
            "timestamp": at,
        }
        for box, score in zip(as_boxes(detections, info.width, info.height), detections.confidence)
    ]
    return {"frame": {"timestamp": at, "observations": observations, "operations": []}}


_PROFILES: Mapping[str, Callable[[Detections, FrameInfo, str], Dict[str, Any]]] = {
    "native": _native,
    "deepstream-minimal": _deepstream_minimal,
    "axis": _axis,
}
