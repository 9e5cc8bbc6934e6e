"""Rendering of synthetic scenes, cheap and deterministic: the same index gives the same frame."""

import math
from pathlib import Path
from typing import Callable, Dict, NamedTuple, Optional, Tuple

import numpy as np

from edge_agent.capture.synthetic.scene import FACE_ASPECT, FacePosition, Scene, within
from edge_agent.core.types import Array

_SHIFTS = 32  # the noise is a window into one larger plane, shifted for each frame
_SIZE_STEP_PX = 4  # face heights are multiples of this, which limits the number of sprites
_KEPT_SPRITES = 64
_STROBE_SHIFT, _DARK_SHIFT = 4, 7  # remaining light: 1/16 between flashes, 1/128 in the dark


class Sprite(NamedTuple):
    """The image of a face.

    Attributes:
        pixels: (h, w) uint8.
        mask: (h, w) bool, True where the face covers the background; None for everywhere.
        anchor_x: The face's centre in px from the left.
        anchor_y: The face's centre in px from the top.
    """

    pixels: Array
    mask: Optional[Array]
    anchor_x: float
    anchor_y: float


FaceRenderer = Callable[[int], Sprite]


def marker(height_px: int) -> Sprite:
    """A bright ellipse of the given height, brightest in its centre."""
    width_px = max(1, round(height_px * FACE_ASPECT))
    y = (np.arange(height_px, dtype=np.float32)[:, None] + 0.5) / height_px * 2 - 1
    x = (np.arange(width_px, dtype=np.float32)[None, :] + 0.5) / width_px * 2 - 1
    radius2 = x * x + y * y
    return Sprite((235 - 25 * radius2).clip(0, 255).astype(np.uint8), radius2 <= 1.0, width_px / 2, height_px / 2)


class ImageFaceRenderer:
    """Renders faces from an image.

    Args:
        path: The image file.
        face: The face in the image: left, top, right, bottom, normalised. It is scaled to the wanted height.
        crop: The part of the image that is rendered, likewise; includes enough around the face for a detector.

    Raises:
        SourceError: The image cannot be read.
    """

    def __init__(self, path: Path, face: Tuple[float, ...], crop: Tuple[float, ...]) -> None:
        from edge_agent.capture.images import load_image

        pixels, levels = load_image(path)
        gray = levels.to_gray8(pixels)
        height, width = gray.shape
        self._face_px = max(1.0, (face[3] - face[1]) * height)
        self._pixels = gray[
            round(crop[1] * height) : round(crop[3] * height), round(crop[0] * width) : round(crop[2] * width)
        ]
        self._anchor = (
            (face[0] + face[2]) / 2 * width - round(crop[0] * width),
            (face[1] + face[3]) / 2 * height - round(crop[1] * height),
        )

    def __call__(self, height_px: int) -> Sprite:
        """The image, scaled so that its face is `height_px` tall."""
        import cv2

        scale = height_px / self._face_px
        rows, columns = (max(1, round(side * scale)) for side in self._pixels.shape)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        scaled = np.asarray(cv2.resize(self._pixels, (columns, rows), interpolation=how))
        return Sprite(scaled, None, self._anchor[0] * scale, self._anchor[1] * scale)


class Renderer:
    """Renders the frames of one scene.

    Args:
        scene: The scene.
        size: Width and height in px.
        fps: Frame rate; index / fps is the scene time in seconds.
        render_face: Renders a face of a given height.
        noise: Standard deviation of the sensor noise in gray levels.
        seed: Seed of background and noise.
    """

    def __init__(
        self,
        scene: Scene,
        size: Tuple[int, int],
        fps: float,
        render_face: FaceRenderer = marker,
        noise: float = 2.0,
        seed: int = 1,
    ) -> None:
        self._scene = scene
        self._width, self._height = size
        self._fps = fps
        self._render_face = render_face
        self._sprites: Dict[int, Sprite] = {}
        generator = np.random.default_rng(seed)
        self._reach = min(60, math.ceil(3 * noise))
        shape = (self._height + _SHIFTS, self._width + _SHIFTS)
        grain = (
            np.rint(generator.normal(0.0, noise, shape)).clip(-self._reach, self._reach) if noise else np.zeros(shape)
        )
        self._noise = grain.astype(np.int8).view(np.uint8)  # adding with wrap-around equals adding a signed number
        self._background = self._bounded(_room(self._width, self._height, generator))

    def draw(self, index: int) -> Array:
        """The frame of one index as a new (H, W) uint8 array."""
        disturbances = self._scene.disturbances
        t_s = index / self._fps
        frozen = within(disturbances.freeze, t_s)
        if frozen is not None:
            index = math.ceil(frozen[0] * self._fps)
            t_s = index / self._fps
        noise = self._noise_at(index)
        if within(disturbances.cover, t_s) is not None:
            return np.asarray(noise + np.uint8(60 + self._reach))
        frame = np.asarray(self._background + noise)
        for face in self._scene.faces(t_s):
            self._paste(frame, noise, face)
        if within(disturbances.dark, t_s) is not None:
            return np.asarray((frame >> _DARK_SHIFT) + (noise & 1))
        if disturbances.strobe is not None and index % sum(disturbances.strobe) >= disturbances.strobe[0]:
            return np.asarray((frame >> _STROBE_SHIFT) + (noise & 3))
        return frame

    def _noise_at(self, index: int) -> Array:
        """A window of the noise plane, different for consecutive frames: 7 and 11 are coprime to the shifts."""
        top, left = index * 7 % _SHIFTS, (index * 11 + index // _SHIFTS) % _SHIFTS
        return self._noise[top : top + self._height, left : left + self._width]

    def _bounded(self, pixels: Array) -> Array:
        """Limit the pixels so that noise cannot exceed 0..255."""
        return np.asarray(np.clip(pixels, self._reach, 255 - self._reach).astype(np.uint8))

    def _paste(self, frame: Array, noise: Array, face: FacePosition) -> None:
        sprite = self._sprite(face.size * self._height)
        left = round(face.x * self._width - sprite.anchor_x)
        top = round(face.y * self._height - sprite.anchor_y)
        rows, columns = sprite.pixels.shape
        x0, y0 = max(0, left), max(0, top)
        x1, y1 = min(self._width, left + columns), min(self._height, top + rows)
        if x0 >= x1 or y0 >= y1:
            return
        inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        noisy = sprite.pixels[inside] + noise[y0:y1, x0:x1]
        where = True if sprite.mask is None else sprite.mask[inside]
        np.copyto(frame[y0:y1, x0:x1], noisy, where=where)

    def _sprite(self, height_px: float) -> Sprite:
        wanted = max(_SIZE_STEP_PX, round(height_px / _SIZE_STEP_PX) * _SIZE_STEP_PX)
        sprite = self._sprites.get(wanted)
        if sprite is None:
            if len(self._sprites) >= _KEPT_SPRITES:
                self._sprites.clear()
            drawn = self._render_face(wanted)
            sprite = drawn._replace(pixels=self._bounded(drawn.pixels))
            self._sprites[wanted] = sprite
        return sprite


def _room(width: int, height: int, generator: np.random.Generator) -> Array:
    """(H, W) float32, 35..125: a wall that darkens to one side, with texture and rectangles as furniture."""
    x = np.linspace(0.0, 1.0, width, dtype=np.float32)[None, :]
    y = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None]
    room = 90.0 - 30.0 * x - 10.0 * y
    plaster = generator.uniform(-9.0, 9.0, (height // 8 + 1, width // 8 + 1))
    room = room + np.kron(plaster, np.ones((8, 8)))[:height, :width]
    for _ in range(6):
        x0, y0 = int(generator.uniform(0, 0.9) * width), int(generator.uniform(0, 0.9) * height)
        wide, tall = int(generator.uniform(0.05, 0.3) * width), int(generator.uniform(0.05, 0.4) * height)
        room[y0 : y0 + tall, x0 : x0 + wide] += generator.uniform(-25.0, 25.0)
    return np.asarray(room.clip(35.0, 125.0))
