"""Adapts the levels of a dim or hazy image to the network, which learned from well exposed images.

The 1st and 99.5th percentile, lo and hi, of about 8,000 evenly spread pixels are moved 128 gray levels apart:

    out = (gray - lo) * 128 / (hi - lo) + min(lo, 96)        gray levels, where hi - lo < 128

An image whose percentiles are farther apart passes as it is. The gain ends at 64. It amplifies noise as well, so the
image is also smoothed while it is resized (`Image.smooth`).

Measured with CenterFace on 78 images dimmed to 1/32 (20 electrons per gray level, read noise of 1 level): recall .01 as
they are, .70 with these levels, .90 with smoothing as well; a distance of 255 instead of 128 finds less.
"""

import math
from dataclasses import replace

import numpy as np

from edge_agent.core.frame import Image, Levels

SPAN = 128.0
"""Gray levels between the percentiles of an adapted image."""

_LOW, _HIGH = 0.01, 0.995
_MIN_SPAN = SPAN / 64.0
_HIGHEST_BASE = 96.0  # leaves room for highlights
_SAMPLED_PX = 8192


def adapted(image: Image) -> Image:
    """The image with adapted levels, or `image` itself when it needs none; pixels are neither changed nor copied."""
    plane = image.pixels if image.pixels.ndim == 2 else image.pixels[:, :, 1]
    step = max(1, math.isqrt(plane.size // _SAMPLED_PX))
    values = plane[::step, ::step]
    if image.mask is not None:
        values = values[~image.mask[::step, ::step]]
        if not values.size:
            return image
    ordered = np.sort(values, axis=None, kind="stable")  # numpy's radix sort, in one pass
    levels = image.levels
    low, high = ((float(ordered[int(at * len(ordered))]) - levels.offset) * levels.gain for at in (_LOW, _HIGH))
    if high == low or high - low >= SPAN:
        return image
    gain = SPAN / max(high - low, _MIN_SPAN)
    base = min(max(low, 0.0), _HIGHEST_BASE)
    offset = levels.offset + (low - base / gain) / levels.gain
    return replace(image, levels=Levels(offset, levels.gain * gain), smooth=True)
