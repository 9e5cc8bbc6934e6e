"""The table of ids and visits: its scenes and counts, with an engine that needs no model."""

import json

import cv2
import numpy as np
import pytest

from edge_agent.core.detection.detector import Decoder, DetectionParams
from edge_agent.inference.scripted import ScriptedEngine
from scripts.lib import track_table


def marked(*lefts):
    """A gray image with bright markers, which the scripted engine finds."""
    image = np.full((240, 384), 60, np.uint8)
    for left in lefts:
        image[64:128, left : left + 64] = 230
    return image


def test_a_still_scene_counts_each_face_once():
    variants = [track_table.variant(text)[1] for text in ("a", "b:continue_ratio=1,max_lost_s=0.5")]
    engine = ScriptedEngine()
    decoders = [(Decoder(engine.contract, DetectionParams(), params), params) for params in variants]
    frames = track_table.still_frames(marked(32, 224), 20, 1.0, np.random.default_rng(1))
    for row in track_table.run(("two", 2, 10.0, frames), engine.infer, decoders):
        assert (row.ids, row.visits, row.brief, row.wrong, row.onset_s) == (2, 2, 0, 0.0, 0.0)


def test_a_short_visit_is_brief_and_a_scene_is_the_same_for_the_same_seed(tmp_path):
    params = track_table.variant("a")[1]
    engine = ScriptedEngine()
    frames = iter([marked()] * 3 + [marked(32)] + [marked()] * 30)
    decoders = [(Decoder(engine.contract, DetectionParams(), params), params)]
    (row,) = track_table.run(("flash", 0, 10.0, frames), engine.infer, decoders)
    assert (row.visits, row.brief) == (1, 1)

    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "p.png"), marked(8, 120, 240))
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [x, 64, 64, 64], "iscrowd": 0} for x in (8, 120, 240)]
    images = [{"id": 1, "file_name": "p.png", "width": 384, "height": 240}]
    labels = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "face"}]}
    (tmp_path / "coco.json").write_text(json.dumps(labels))
    one, other = (
        [(name, faces, [frame.sum() for frame in frames])
         for name, faces, _, frames in track_table.scenes(tmp_path, 1, 0.3, 7)]
        for _ in range(2)
    )  # fmt: skip
    assert one == other and [(name.split(" x ")[0], faces) for name, faces, _ in one] == [("p.png", 3)] * 3


def test_an_unknown_setting_is_refused():
    with pytest.raises(track_table.argparse.ArgumentTypeError, match="confirm: expected one of"):
        track_table.variant("a:confirm=1")
