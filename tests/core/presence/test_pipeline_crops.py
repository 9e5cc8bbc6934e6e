"""The best crop of each visit."""

import numpy as np

from edge_agent.core.camera.params import CameraParams
from edge_agent.core.presence.crops import CropParams
from edge_agent.core.types import Sight
from tests.core.presence.staged_camera import HEIGHT, WIDTH, StagedCamera, textured


def level_of(crop):
    """The level that the face in a crop was painted with."""
    return int(np.bincount(crop.pixels[crop.pixels > 80]).argmax())


def ends(camera):
    return {event.event_id: event for event in camera.events if event.event_type == "end"}


def test_crops_belong_to_their_event_when_faces_cross():
    camera = StagedCamera()
    for i in range(41):
        a, b = (100 + 10 * i, 200), (500 - 10 * i, 280)
        camera.show(a, b, after_s=0.05, pixels=textured((*a, 180), (*b, 230)))
    camera.sight(Sight.STOPPED)
    crops = {event_id: event.crop for event_id, event in ends(camera).items()}
    assert {event_id: level_of(crop) for event_id, crop in crops.items()} == {"event-1": 180, "event-2": 230}


def test_every_end_event_has_the_crop():
    def left(camera):
        camera.show(after_s=1.5)

    for ending in (
        left,
        lambda camera: camera.sight(Sight.LOST),
        lambda camera: camera.set_enabled(False),
        lambda camera: camera.sight(Sight.STOPPED),
    ):
        camera = StagedCamera()
        camera.show((320, 240), pixels=textured((320, 240, 200)))
        ending(camera)
        (end,) = ends(camera).values()
        assert level_of(end.crop) == 200
        assert end.quality == end.crop.quality


def test_the_best_crop_is_kept_with_its_frame():
    camera = StagedCamera()
    camera.show((320, 240), pixels=textured((320, 240, 90)))
    best = camera.show((322, 240), pixels=textured((322, 240, 220)))
    camera.show((324, 240), pixels=textured((324, 240, 100)))
    camera.sight(Sight.LOST)
    crop = ends(camera)["event-1"].crop
    assert level_of(crop) == 220 and crop.info is best.info
    assert crop.box.left < 282 / WIDTH and crop.box.bottom > 280 / HEIGHT, "wider than the face"


def test_the_crop_owns_its_pixels():
    camera = StagedCamera()
    pixels = textured((320, 240, 200))
    camera.show((320, 240), pixels=pixels)
    pixels[:] = 0
    camera.sight(Sight.LOST)
    assert level_of(ends(camera)["event-1"].crop) == 200


def test_crops_are_masked():
    mask = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
    camera = StagedCamera(camera=CameraParams("test://", masks=(mask,)))
    camera.show((320, 240), pixels=textured((320, 240, 200)))
    camera.sight(Sight.LOST)
    crop = ends(camera)["event-1"].crop
    assert not crop.pixels[:, : crop.pixels.shape[1] // 2 - 1].any()


def test_only_a_clearly_better_crop_causes_an_update():
    camera = StagedCamera()
    for _ in range(30):
        camera.show((320, 240), pixels=textured((320, 240, 66)))
    assert camera.published == [("start", "event-1")]
    camera.show((320, 240), pixels=textured((320, 240, 220)))
    assert camera.published[1:] == [("update", "event-1")]
    assert camera.events[-1].quality.score > camera.events[0].quality.score * 1.2
    for _ in range(30):
        camera.show((320, 240), pixels=textured((320, 240, 221)))
    assert len(camera.events) == 2


def test_a_face_at_the_edge_or_too_small_has_events_but_no_crop():
    camera = StagedCamera(crops=CropParams(min_face_px=100))
    camera.show((320, 240), pixels=textured((320, 240, 200)))
    camera.sight(Sight.LOST)
    end = ends(camera)["event-1"]
    assert end.crop is None and end.quality.face_px == 80


def test_the_first_acceptable_crop_is_returned_once_per_visit():
    camera = StagedCamera()
    places = (100, 100), (300, 100)
    pixels = textured((*places[0], 180), (*places[1], 230))
    first = [camera.show(*places, pixels=pixels).first_crop for _ in range(5)]
    assert [crop[0] if crop else None for crop in first] == ["event-1", "event-2", None, None, None]
    assert [level_of(crop) for _, crop in first[:2]] == [180, 230]


def test_with_crops_switched_off_no_crop_is_kept_or_published():
    camera = StagedCamera()
    camera.show((320, 240), pixels=textured((320, 240, 200)))
    camera.pipeline.set_crops(False)
    assert not camera.pipeline.crops_on
    assert camera.show((320, 240), pixels=textured((320, 240, 240))).first_crop is None
    camera.sight(Sight.LOST)
    assert ends(camera)["event-1"].crop is None
    camera.pipeline.set_crops(True)
    camera.sight(Sight.OK)
    camera.show((320, 240), pixels=textured((320, 240, 200)))
    camera.sight(Sight.LOST)
    assert ends(camera)["event-2"].crop is not None


def test_off_by_setting():
    camera = StagedCamera(crops=CropParams(enabled=False))
    assert camera.show((320, 240), pixels=textured((320, 240, 200))).first_crop is None
    camera.sight(Sight.LOST)
    assert ends(camera)["event-1"].crop is None and ends(camera)["event-1"].quality is not None


def test_crops_are_bounded_for_any_face():
    camera = StagedCamera(crops=CropParams(max_side_px=64))
    camera.show((320, 240), side=400, pixels=textured((320, 240, 200), side=400))
    camera.sight(Sight.LOST)
    crop = ends(camera)["event-1"].crop
    assert max(crop.pixels.shape) <= 64 and crop.pixels.base is None
