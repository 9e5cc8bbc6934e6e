"""Meaning of a model's tensors: the contract between an engine and the decoder of its outputs.

An engine returns outputs by role, without the batch axis, float32:

- "gridbox": `cov` (C, gh, gw) coverage after sigmoid; `bbox` (4*C, gh, gw) distances left, top, right, bottom in
  units of `box_scale` network px.
- "centerface": `heatmap` (1, gh, gw); `scale` (2, gh, gw); `offset` (2, gh, gw); landmarks are ignored.
"""

from dataclasses import dataclass
from typing import Tuple

from edge_agent.core.detection.geometry import Placement, Size, fitted_size, letterbox, stretch


@dataclass(frozen=True)
class ModelContract:
    """Properties of a model that preprocessing and decoding need, independent of the backend.

    Attributes:
        kind: "gridbox" (DetectNet_v2) or "centerface".
        net: Input (width, height), px.
        any_size: True when the model takes any input size: `long_side` and `multiple` apply instead of `net`.
        channels: 3 (gray is replicated) or 1.
        gain: Factor of 8-bit values: 1/255 for FaceDetectIR, 1 for CenterFace.
        stride: Network px per grid cell, (x, y).
        labels: Class names; DetectNet_v2 has one coverage plane per class.
        target: Index of the class "face".
        box_scale: DetectNet_v2's bbox scale (objective_set bbox scale), 35 for FaceDetectIR.
        box_offset: DetectNet_v2's offset, in *pixels*: 0.5.
        long_side: For models that take any size: the longer side of the input, px.
        multiple: For models that take any size: both sides are multiples of it.
    """

    kind: str
    net: Tuple[int, int] = (384, 240)
    any_size: bool = False
    channels: int = 3
    gain: float = 1.0 / 255.0
    stride: Tuple[float, float] = (16.0, 16.0)
    labels: Tuple[str, ...] = ("face",)
    target: int = 0
    box_scale: float = 35.0
    box_offset: float = 0.5
    long_side: int = 384
    multiple: int = 32

    def place(self, source: Size) -> Placement:
        """Placement of an image of `source` (width, height) px in this model's input."""
        if self.any_size:
            return letterbox(source, fitted_size(source, self.long_side, self.multiple))
        return stretch(source, self.net)


FACEDETECTIR = ModelContract("gridbox")
CENTERFACE = ModelContract("centerface", any_size=True, gain=1.0, stride=(4.0, 4.0))
