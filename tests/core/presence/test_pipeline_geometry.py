"""Boxes, zones, crops and snapshots in the upright frame; each raw pixel encodes its upright position."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.transform import CameraTransform, contains
from edge_agent.core.frame import Frame
from edge_agent.core.presence.crops import CropParams
from edge_agent.core.presence.pipeline import FacePipeline, PipelineParams
from edge_agent.core.types import Box, Detections, Sight
from tests.fakes.clock import FakeClock

SEEN = 200  # blue of every pixel that no mask hides
EPS = 1e-9


def upright(width, height):
    """(H, W, 3): red is x, green is y."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x, y, np.full_like(x, SEEN)], axis=2).astype(np.uint8)


def raw(image, rotate, flip):
    """The frame as delivered by a camera that needs a clockwise `rotate`, then `flip`."""
    if flip in ("vertical", "both"):
        image = image[::-1]
    if flip in ("horizontal", "both"):
        image = image[:, ::-1]
    return np.rot90(image, rotate // 90)


class Finder:
    """Returns a fixed face in px of the upright frame, relative to the position encoded in the image's pixels."""

    def __init__(self, face):
        self.face = face

    def detect(self, image):
        row, column = np.argwhere(image.pixels[..., 2] == SEEN)[0]
        x, y, _ = (int(value) for value in image.pixels[row, column])
        corner = np.array([x - column, y - row] * 2, np.float32)
        return Detections(np.array([self.face], np.float32) - corner, np.array([0.9]))


def shades(pixel, size, masks):
    """What a pixel may show: one thing, or either where its centre lies on a mask's outline, to within rounding."""
    (x, y), (width, height) = pixel, size
    near = [((x + 0.5) / width + right, (y + 0.5) / height + down) for right in (-EPS, EPS) for down in (-EPS, EPS)]
    return {(0, 0, 0) if any(contains(mask, point) for mask in masks) else (x, y, SEEN) for point in near}


def check(crop, size, masks):
    """The crop shows the area of its box, without masked pixels."""
    width, height = size
    left, top = round(crop.box.left * width), round(crop.box.top * height)
    assert crop.pixels.shape == (round(crop.box.bottom * height) - top, round(crop.box.right * width) - left, 3)
    for row, line in enumerate(crop.pixels.tolist()):
        for column, colour in enumerate(line):
            assert tuple(colour) in shades((left + column, top + row), size, masks)


@st.composite
def polygons(draw):
    """Three to five points around a centre."""
    radii = draw(st.lists(st.floats(0.1, 0.5), min_size=3, max_size=5))
    x, y = draw(PART), draw(PART)
    angles = np.arange(len(radii)) * (2 * np.pi / len(radii)) + draw(st.floats(0, 1))
    points = [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for radius, angle in zip(radii, angles)]
    return tuple((round(float(np.clip(x, 0, 1)), 3), round(float(np.clip(y, 0, 1)), 3)) for x, y in points)


@st.composite
def regions(draw):
    """At least a quarter of each side."""
    left, top = draw(st.floats(0, 0.75)), draw(st.floats(0, 0.75))
    return left, top, draw(st.floats(left + 0.25, 1)), draw(st.floats(top + 0.25, 1))


SIDES = st.integers(24, 90)
PART = st.floats(0, 1)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    SIDES, SIDES, st.sampled_from([0, 90, 180, 270]), st.sampled_from(["none", "horizontal", "vertical", "both"]),
    st.none() | regions(), st.lists(polygons(), max_size=2).map(tuple), polygons(), st.tuples(PART, PART), PART,
)  # fmt: skip
@example(
    24, 24, 0, "none", None, (((0.5, 0.0), (0.0, 0.5), (0.0, 0.0), (0.0, 0.0)),), ((0.5, 0.0), (0.0, 0.4), (0.0, 0.0)),
    (0.0, 0.0), 0.0,
)  # fmt: skip
def test_boxes_zones_and_crops_lie_where_the_pixels_do(width, height, rotate, flip, roi, masks, zone, at, margin):
    camera = CameraParams("test://", rotate=rotate, flip=flip, roi=roi, masks=masks, zones={"desk": zone})
    view = CameraTransform(camera)
    assume((view.region(view.upright(Frame(raw(upright(width, height), rotate, flip), 0, 0.0)))[0].pixels > 0).any())
    face = (at[0] * (width - 12), at[1] * (height - 12), at[0] * (width - 12) + 12, at[1] * (height - 12) + 12)
    clock, crops = FakeClock(), CropParams(margin=margin, min_quality=0.0, min_face_px=1)
    pipeline = FacePipeline("door", camera, Finder(face), lambda: "id", clock, PipelineParams(crops=crops))
    pipeline.set_sight(Sight.OK, clock())
    frame = Frame(raw(upright(width, height), rotate, flip), 1, clock.t)
    info = pipeline.frame_info(frame, clock())
    assert (info.width, info.height) == (width, height)
    start = pipeline.step(frame, info).events[0]
    box = (start.box.left, start.box.top, start.box.right, start.box.bottom)
    np.testing.assert_allclose(box, np.array(face) / (width, height, width, height), atol=1e-4)
    centre = ((start.box.left + start.box.right) / 2, (start.box.top + start.box.bottom) / 2)
    assert start.zones == (("desk",) if contains(zone, centre) else ())
    snapshot = pipeline.snapshot(frame, info)
    assert snapshot.box == Box(0.0, 0.0, 1.0, 1.0)
    check(snapshot, (width, height), masks)
    crop = pipeline.set_sight(Sight.STOPPED, clock()).events[0].crop
    assert crop.box.left <= start.box.left + 1e-4 and start.box.bottom <= crop.box.bottom + 1e-4
    check(crop, (width, height), masks)
