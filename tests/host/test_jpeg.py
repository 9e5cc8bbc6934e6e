"""JPEG encoding with both encoders."""

import sys

import numpy as np
import pytest

from edge_agent.errors import MissingPackage
from edge_agent.host.jpeg import encoder

cv2 = pytest.importorskip("cv2", reason="needs OpenCV: pip install opencv-python-headless")


@pytest.fixture(params=["cv2", "simplejpeg"])
def encode(request, monkeypatch):
    pytest.importorskip(request.param, reason=f"needs {request.param}: pip install {request.param}")
    if request.param != "cv2":
        monkeypatch.setitem(sys.modules, "cv2", None)  # makes the import fail
    return encoder()


def scene(*planes):
    y, x = np.mgrid[0:48, 0:65]
    base = (40 + 2 * x + y).astype(np.uint8)
    return np.dstack([plane(base) for plane in planes]) if len(planes) > 1 else planes[0](base)


def back(data):
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return decoded if decoded.ndim == 2 else decoded[..., ::-1]


@pytest.mark.parametrize("cut", [np.s_[:], np.s_[:, ::-1], np.s_[::2, ::2], np.s_[:1, :1]])
@pytest.mark.parametrize(
    "pixels", [scene(lambda v: v), scene(lambda v: v, lambda v: v // 2, lambda v: 255 - v)], ids=["gray", "rgb"]
)
def test_decoding_gives_the_encoded_pixels(encode, pixels, cut):
    decoded = back(encode(pixels[cut], 95))
    assert decoded.shape == pixels[cut].shape
    assert np.abs(decoded.astype(int) - pixels[cut]).max() <= 12, "colour is subsampled"


def test_higher_quality_gives_a_larger_file(encode):
    noise = np.random.default_rng(1).integers(0, 255, (64, 64)).astype(np.uint8)
    sizes = [len(encode(noise, quality)) for quality in (1, 50, 85, 100)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 4


def test_without_an_encoder_the_error_names_the_packages(monkeypatch):
    for name in ("cv2", "simplejpeg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackage, match="EDGE_AGENT_CROPS__ENABLED=false"):
        encoder()
