"""Images that differ like a camera's frames: a window that moves over the one photograph that is shipped."""

from typing import List

import numpy as np

from edge_agent.core.frame import Image
from edge_agent.inference.preprocess import golden_image


def wandering(count: int) -> List[Image]:
    """(192, 256) gray: the face moved, mirrored, near and far, light and dark, with noise; always the same."""
    rng = np.random.default_rng(11)
    face = golden_image().pixels
    found = []
    for index in range(count):
        zoom = (1.0, 0.8, 1.25)[index % 3]
        rows = np.clip((np.arange(192) - 96) * zoom + 96 + rng.integers(-40, 40), 0, 191).astype(int)
        columns = np.clip((np.arange(256) - 128) * zoom + 128 + rng.integers(-60, 60), 0, 255).astype(int)
        view = face[rows][:, columns[::-1] if index % 2 else columns]
        noisy = view * rng.uniform(0.6, 1.2) + rng.normal(0, 3, view.shape)
        found.append(Image(np.clip(noisy, 0, 255).astype(np.uint8)))
    return found
