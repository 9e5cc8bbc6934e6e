"""The scripted engine finds the synthetic scenes' markers, decoded by the real decoder."""

from contextlib import closing
from typing import List

import numpy as np
import pytest

from edge_agent.capture import SourceOptions
from edge_agent.capture.synthetic.source import SyntheticSource
from edge_agent.core.detection.geometry import iou
from edge_agent.core.detection.gridbox import decode
from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.frame import Image
from edge_agent.core.types import Array
from edge_agent.errors import EngineError, InputError
from edge_agent.inference.scripted import ScriptedEngine


def faces(engine: ScriptedEngine, image: Image) -> Array:
    """(N, 4) distinct boxes in source px, from the real decoder."""
    boxes, _ = decode(engine.infer(image), engine.contract, 0.4)
    height, width = image.pixels.shape[:2]
    found: List[Array] = []
    for box in engine.contract.place((width, height)).to_source(boxes):
        if not found or iou(np.array(found), box[None]).max() < 0.9:
            found.append(box)
    return np.array(found, np.float32).reshape(-1, 4)


@pytest.mark.parametrize("scene", ["one", "crowd", "still", "empty"])
@pytest.mark.parametrize("options", ["", "&size=1280x800", "&noise=10", "&bits=12", "&color=1&size=640x400"])
def test_it_finds_the_scenes_markers_and_nothing_else(scene: str, options: str) -> None:
    engine = ScriptedEngine()
    with closing(SyntheticSource(f"test://{scene}?pace=fast&fps=2{options}", SourceOptions())) as source:
        source.open()
        counts = set()
        for index in range(40):
            frame = source.read(1.0)
            assert frame is not None
            with frame:
                height, width = frame.pixels.shape[:2]
                truth = source.scene.boxes(index / 2, width, height)
                found = faces(engine, Image(frame.pixels, frame.levels))
            counts.add(len(found))
            assert len(found) == len(truth), index / 2
            if len(truth):
                overlap = iou(truth, found)
                assert overlap.max(axis=1).min() > 0.6
                assert sorted(overlap.argmax(axis=1)) == list(range(len(truth))), "each its own"
    assert counts == {"one": {0, 1}, "crowd": set(range(9)), "still": {1}, "empty": {0}}[scene]


@pytest.mark.parametrize("options", ["dark=0-10", "cover=0-10"])
def test_it_finds_nothing_in_the_dark(options: str) -> None:
    engine = ScriptedEngine()
    with closing(SyntheticSource(f"test://still?pace=fast&{options}", SourceOptions())) as source:
        source.open()
        for _ in range(5):
            frame = source.read(1.0)
            assert frame is not None
            assert len(faces(engine, Image(frame.pixels, frame.levels))) == 0


def test_it_accepts_strided_views_of_changing_sizes_and_another_net() -> None:
    engine = ScriptedEngine(net=(480, 272))
    assert engine.contract == ModelContract("gridbox", net=(480, 272))
    with closing(SyntheticSource("test://still?pace=fast", SourceOptions())) as source:
        source.open()
        frame = source.read(1.0)
        assert frame is not None
        outputs = engine.infer(Image(frame.pixels))
        assert outputs["cov"].shape == (1, 17, 30)
        assert outputs["bbox"].shape == (4, 17, 30)
        assert outputs["cov"].dtype == outputs["bbox"].dtype == np.float32
        turned = faces(engine, Image(frame.pixels[::-1, ::-1].T))
        truth = source.scene.boxes(0.0, 640, 480)[:, [1, 0, 3, 2]]  # the middle: turning leaves it there
        assert iou(truth, turned).max() > 0.6
        assert len(faces(engine, Image(frame.pixels[:120]))) == 0, "cut off: only the background is left"


def test_the_option_fail_after() -> None:
    engine = ScriptedEngine(query="fail_after=2")
    image = Image(np.zeros((48, 64), np.uint8))
    engine.infer(image)
    engine.infer(image)
    for _ in range(2):
        with pytest.raises(EngineError, match="scripted"):
            engine.infer(image)
    engine.close()
    engine.close()


def test_the_option_wrong_golden() -> None:
    assert len(faces(ScriptedEngine(query="wrong_golden=1"), Image(np.zeros((480, 640), np.uint8)))) == 1


@pytest.mark.parametrize("query", ["fail=1", "slow_s=much"])
def test_bad_options_are_named(query: str) -> None:
    with pytest.raises(InputError, match=query.partition("=")[0]):
        ScriptedEngine(query=query)
