"""Reading model files for TensorRT: .etlt decrypted or converted, label files, classes by number."""

from pathlib import Path

import numpy as np
import pytest

from edge_agent.core.frame import Image
from edge_agent.errors import MissingPackage, ModelError
from edge_agent.inference import EngineParams, open_engine
from edge_agent.inference.convert import convert_file
from edge_agent.inference.model_facts import FACEDETECTIR_FACTS, facts_of
from edge_agent.inference.trt.network import read_network
from tests.fakes import graphs
from tests.fakes.uff_writer import detectnet

SEALED = b"\x07\0\0\0input_1" + bytes(16)


def test_the_converted_form_of_an_encrypted_file_is_found(tmp_path: Path) -> None:
    encrypted = tmp_path / "mine.etlt"
    encrypted.write_bytes(SEALED)
    with pytest.raises(MissingPackage, match=r"nvidia-eff-tao-encryption") as caught:
        read_network(str(encrypted), tmp_path)
    assert str(tmp_path / "mine.onnx") in caught.value.hint
    encrypted.with_suffix(".uff").write_bytes(detectnet(np.zeros((1, 3, 48, 64), np.float32), (2, 2, 2, 2, 2)).encode())
    network = read_network(str(encrypted), tmp_path)
    assert (network.contract.net, network.uff is not None) == ((64, 48), True)
    graphs.gridbox(tmp_path / "mine.onnx", net=(736, 416))
    network = read_network(str(encrypted), tmp_path)
    assert (network.contract.net, network.uff) == ((736, 416), None)


def test_labels_and_class_name_are_applied(tmp_path: Path) -> None:
    path = graphs.gridbox(tmp_path / "p.onnx", classes=3, suffix=":0")
    (tmp_path / "names.txt").write_text("Person\nBag\nFace\n")
    network = read_network(str(path), tmp_path, labels_file=str(tmp_path / "names.txt"))
    assert (network.contract.labels, network.contract.target) == (("Person", "Bag", "Face"), 2)
    assert read_network(str(path), tmp_path, class_name="1").contract.target == 1
    assert network.binding.input == "input_1:0"


def test_facedetect_in_uff_runs_on_the_cpu(tmp_path: Path) -> None:
    """In the size of NVIDIA's FaceDetect, 3x416x736; the outputs are compared with a network in numpy."""
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")
    pixels = np.random.default_rng(1).integers(0, 255, (416, 736), np.uint8)
    net = detectnet(np.repeat(pixels[None, None].astype(np.float32) / 255, 3, axis=1), (2, 2, 2, 2, 2))
    path = tmp_path / "facedetect.uff"
    path.write_bytes(net.encode())
    params = EngineParams(model=str(path), backend="onnxruntime")
    with pytest.raises(ModelError, match=r"needs it converted") as caught:
        open_engine(params, tmp_path)
    assert caught.value.hint == f"run: edge-agent model convert {path} {path.with_suffix('.onnx')}"
    convert_file(path, path.with_suffix(".onnx"))
    engine = open_engine(params, tmp_path)
    assert (engine.contract.net, engine.contract.stride) == ((736, 416), (16.0, 16.0))
    answers = engine.infer(Image(pixels))
    for role, name in (("cov", "output_cov/Sigmoid"), ("bbox", "output_bbox/BiasAdd")):
        np.testing.assert_allclose(answers[role], net.values[name][0], atol=1e-4, rtol=1e-4)
    engine.close()


def test_facedetectir_has_facts_while_it_is_encrypted(tmp_path: Path) -> None:
    encrypted = tmp_path / "resnet18_facedetectir_pruned.etlt"
    encrypted.write_bytes(SEALED)
    assert facts_of(encrypted) == FACEDETECTIR_FACTS
    other = tmp_path / "other.etlt"
    other.write_bytes(SEALED)
    with pytest.raises(MissingPackage):
        facts_of(other)
    uff = detectnet(np.zeros((1, 3, 240, 384), np.float32), (2, 2, 2, 2, 2)).encode()
    encrypted.with_suffix(".uff").write_bytes(uff)
    assert facts_of(encrypted) == FACEDETECTIR_FACTS
