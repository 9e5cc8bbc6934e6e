"""Levels adapted to dim and hazy images; well exposed ones pass as they are."""

from dataclasses import replace

import numpy as np
import pytest

from edge_agent.core.detection.detector import DetectionParams, FaceDetector
from edge_agent.core.detection.levels import SPAN, adapted
from edge_agent.core.detection.model_contract import FACEDETECTIR
from edge_agent.core.frame import FULL_RANGE, LIMITED_RANGE, Image, Levels
from edge_agent.core.types import EngineInfo
from edge_agent.inference.preprocess import Preprocessor

RNG = np.random.default_rng(5)
SCENE = np.clip(np.linspace(20, 220, 640)[None] + RNG.normal(0, 4, (480, 640)), 0, 255)


def seen(image: Image) -> np.ndarray:
    """Gray levels that reach the network."""
    return Preprocessor(replace(FACEDETECTIR, gain=1.0))(image)[0, 0]


def span(image: Image) -> float:
    low, high = np.percentile(seen(image), (1, 99.5))
    return float(high - low)


@pytest.mark.parametrize("pixels", [SCENE.astype(np.uint8), np.dstack([SCENE.astype(np.uint8)] * 3)])
def test_a_well_exposed_image_is_the_same_object(pixels: np.ndarray) -> None:
    image = Image(pixels)
    assert adapted(image) is image


@pytest.mark.parametrize(
    ("levels", "dtype"),
    [
        (FULL_RANGE, np.uint8),
        (LIMITED_RANGE, np.uint8),
        (Levels(0.0, 1 / 4), np.uint16),
        (Levels(64.0, 1 / 16), np.uint16),
        (Levels(0.0, 1 / 256), np.uint16),
    ],
)
@pytest.mark.parametrize("factor", [1 / 2, 1 / 8, 1 / 32])
def test_a_dim_image_reaches_the_network_with_full_contrast(levels: Levels, dtype: type, factor: float) -> None:
    pixels = np.rint(SCENE * factor / levels.gain + levels.offset).astype(dtype)
    image = Image(pixels, levels)
    result = adapted(image)
    assert result.pixels is pixels and result.smooth
    assert image.levels == levels, "crops and figures use the image as captured"
    assert SPAN * 0.7 < span(result) < SPAN * 1.2
    wanted = seen(Image(SCENE.astype(np.uint8)))
    assert np.corrcoef(seen(result).ravel(), wanted.ravel())[0, 1] > 0.97


def test_an_image_over_a_black_level_and_a_hazy_one_are_stretched() -> None:
    for floor in (16.0, 150.0):
        result = adapted(Image(np.rint(SCENE / 10 + floor).astype(np.uint8)))
        assert SPAN * 0.8 < span(result) < SPAN * 1.2
        assert seen(result).min() > 0 and seen(result).max() < 255


def test_the_levels_change_without_a_step() -> None:
    low, high = np.percentile(SCENE, (1, 99.5))
    for floor in (0.0, 60.0):
        before, after = (adapted(Image(np.rint(SCENE * f + floor).astype(np.uint8))) for f in
                         ((SPAN - 4) / (high - low), (SPAN + 4) / (high - low)))  # fmt: skip
        assert before.smooth and not after.smooth
        assert np.abs(seen(before)[:, 1:-1] - seen(after)[:, 1:-1]).mean() < 8


def test_a_black_or_uniform_image_stays_one() -> None:
    for level in (0, 3, 130, 255):
        result = seen(adapted(Image(np.full((48, 64), level, np.uint8))))
        assert result.min() == result.max()


def test_pixels_under_a_privacy_mask_do_not_count() -> None:
    pixels = np.rint(SCENE / 16 + 20).astype(np.uint8)
    mask = np.zeros(pixels.shape, bool)
    mask[:, :200] = True
    hidden = np.where(mask, 0, pixels).astype(np.uint8)
    assert adapted(Image(hidden, mask=mask)).levels.gain > 10
    everything = Image(hidden, mask=np.ones(pixels.shape, bool))
    assert adapted(everything) is everything


class Recorder:
    contract = FACEDETECTIR

    def __init__(self, backend: str = "onnxruntime") -> None:
        self.info = EngineInfo(backend, "fp32", "model", "")

    def infer(self, image: Image) -> dict:
        self.image = image
        return {"cov": np.zeros((1, 15, 24), np.float32), "bbox": np.zeros((4, 15, 24), np.float32)}


@pytest.mark.parametrize("on", [True, False])
def test_the_detector_adapts_unless_it_is_turned_off(on: bool) -> None:
    engine, image = Recorder(), Image(np.rint(SCENE / 20).astype(np.uint8))
    FaceDetector(engine, DetectionParams(adapt_levels=on)).detect(image)  # type: ignore[arg-type]
    assert (engine.image is image) != on


def test_the_scripted_engine_gets_the_sensors_levels() -> None:
    engine, image = Recorder("scripted"), Image(np.rint(SCENE / 20).astype(np.uint8))
    FaceDetector(engine, DetectionParams(adapt_levels=True)).detect(image)  # type: ignore[arg-type]
    assert engine.image is image, "it knows its markers by their brightness"
