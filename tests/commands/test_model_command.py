"""`edge-agent model`: arguments, output as lines or JSON, and exit status."""

import argparse
import json
import struct
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest

from edge_agent.commands import model
from edge_agent.errors import EdgeAgentError, InputError, ModelError
from tests.fakes import graphs
from tests.fakes.uff_writer import detectnet


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    model.add_parser(parser.add_subparsers())
    return model.run(parser.parse_args(["model", *words]))


def call_json(capsys: pytest.CaptureFixture, *words: str) -> Any:
    call(*words, "--json")
    return json.loads(capsys.readouterr().out)


def calibration(*lines: str) -> bytes:
    return "\n".join(["TRT-7000-EntropyCalibration2", *lines, ""]).encode()


def test_list_shows_licence_and_state_of_every_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("list", "--models-dir", str(tmp_path)) == 0
    out = capsys.readouterr().out
    assert "centerface" in out
    assert "MIT" in out
    assert "facedetectir" in out
    assert out.count("not here") == 2
    listed = call_json(capsys, "list", "--models-dir", str(tmp_path))
    assert [entry["name"] for entry in listed["models"]] == ["centerface", "facedetectir"]
    assert listed["models"][0]["files"][0]["sha256"]
    assert listed["models"][1]["contract"] == "gridbox, input 3x240x384, stride 16x16, classes 1"


def test_list_uses_the_services_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert call_json(capsys, "list")["models_dir"] == str(tmp_path / "models")


def test_verify_lists_each_file_and_fails_when_one_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("verify", "facedetectir", "--models-dir", str(tmp_path)) == 1
    out = capsys.readouterr().out
    assert out.count("missing") == 3
    assert "edge-agent model fetch facedetectir --accept-license" in out
    report = call_json(capsys, "verify", "centerface", "--models-dir", str(tmp_path))
    assert report["ok"] is False
    assert report["files"][0]["state"] == "missing"


def test_fetch_from_a_folder_then_verify(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = tmp_path / "usb"
    source.mkdir()
    for name, size in (("resnet18_facedetectir_pruned.etlt", 9_528_386), ("facedetectir_int8.txt", 4144)):
        (source / name).write_bytes(bytes(size))
    (source / "labels.txt").write_text("face")
    where = ("--models-dir", str(tmp_path / "models"))
    with pytest.raises(ModelError, match="--accept-license"):
        call("fetch", "facedetectir", "--from", str(source), *where)
    assert call("fetch", "facedetectir", "--accept-license", "--from", str(source), *where) == 0
    out = capsys.readouterr().out
    assert "is ready" in out
    made = tmp_path / "models" / "facedetectir" / "resnet18_facedetectir_pruned.onnx"
    assert f"edge-agent model convert {made.with_suffix('.etlt')} {made} --key tlt_encode" in out
    made.write_bytes(b"")
    assert call("fetch", "facedetectir", "--accept-license", *where) == 0
    assert "convert" not in capsys.readouterr().out
    assert call("verify", "facedetectir", *where) == 0
    assert capsys.readouterr().out.count("ok ") == 3


def test_inspect_reads_an_onnx_and_its_contract(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = graphs.gridbox(tmp_path / "m.onnx", classes=2, suffix=":0")
    assert call("inspect", str(path)) == 0
    assert "keeps the contract gridbox, input 3x240x384, stride 16x16, classes 2" in capsys.readouterr().out
    report = call_json(capsys, "inspect", str(path))
    assert report["kind"] == "onnx"
    assert report["opset"] == {"ai.onnx": 13}
    assert report["inputs"] == ["input_1:0 float32 1x3x240x384"]
    misfit = call_json(capsys, "inspect", str(graphs.gridbox(tmp_path / "n.onnx", bbox_planes=5)))
    assert misfit["contract"] is None
    assert "keeps no contract" in misfit["findings"][0]


@pytest.mark.parametrize(("node", "payload"), [("input_1", "uff"), ("", "onnx")])
def test_inspect_reads_the_header_of_an_etlt(
    tmp_path: Path, capsys: pytest.CaptureFixture, node: str, payload: str
) -> None:
    path = tmp_path / "m.etlt"
    path.write_bytes(struct.pack("<i", len(node)) + node.encode() + bytes(100))
    report = call_json(capsys, "inspect", str(path))
    assert (report["payload"], report["input"], report["payload_bytes"]) == (payload, node, 100)


def test_inspect_of_an_etlt_names_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "m.etlt").write_bytes(struct.pack("<i", 7) + b"input_1" + bytes(100))
    findings = call_json(capsys, "inspect", str(tmp_path / "m.etlt"))["findings"]
    assert "versions up to 8.6" in findings[0]
    assert "edge-agent model convert" in findings[1]


def test_inspect_reads_a_uff(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    net = detectnet(np.zeros((1, 3, 48, 64), np.float32), (2, 2, 2, 2, 2))
    (tmp_path / "m.uff").write_bytes(net.encode())
    report = call_json(capsys, "inspect", str(tmp_path / "m.uff"))
    assert (report["kind"], report["contract"]) == ("uff", "gridbox, input 3x48x64, stride 16x16, classes 1")
    assert report["inputs"] == ["input_1 float32 1x3x48x64"]
    assert report["operations"]["Conv"] == 27
    assert "edge-agent model convert" in report["findings"][-1]
    (tmp_path / "m.uff").write_bytes(b"no uff")
    with pytest.raises(ModelError, match=r"m\.uff"):
        call("inspect", str(tmp_path / "m.uff"))


def test_inspect_checks_the_range_of_a_calibration_cache(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "int8.txt"
    path.write_bytes(calibration("input_1: 3c010a14", "a/b:0: 3d5a1f3c"))
    report = call_json(capsys, "inspect", str(path))
    assert (report["kind"], report["tensorrt"], report["tensors"], report["input"]) == (
        "calibration",
        "7000",
        2,
        "input_1",
    )
    assert report["input_amplitude"] == pytest.approx(1.00024, abs=1e-4)
    assert "as images in 0..1 do" in report["findings"][0]
    for reaches, expected in ((0.7, "0..1 do: a DetectNet_v2"), (250, "0..255 do: CenterFace"), (9, "made for other")):
        path.write_bytes(calibration(f"input_1: {struct.pack('>f', reaches / 127).hex()}", "dead: 0"))
        assert expected in call_json(capsys, "inspect", str(path))["findings"][0]


def test_inspect_reads_labels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "labels.txt").write_text("person\nface\n")
    assert call_json(capsys, "inspect", str(tmp_path / "labels.txt"))["labels"] == ["person", "face"]


BROKEN: List[Any] = [
    ("m.etlt", b"\x01", "its header states the length -1"),
    ("m.etlt", struct.pack("<i", -5) + bytes(50), "its header states the length -5"),
    ("m.etlt", struct.pack("<i", 60) + bytes(50), "its header states the length 60"),
    ("m.etlt", struct.pack("<i", 3) + b"\xff\x00\x01", "not text"),
    ("m.onnx", b"\x08", "damaged or no ONNX"),
    ("m.txt", b"TRT-what\n", "its first line is"),
    ("m.txt", calibration("input_1: zz"), "line 2"),
    ("m.txt", calibration("input_1: 3c01"), "line 2"),
    ("m.txt", calibration(), "names no tensor"),
    ("m.txt", b"\xff\xfe\x00", "neither a calibration cache nor text"),
    ("m.bin", b"abc", "of no known kind"),
]


@pytest.mark.parametrize(("name", "data", "expected"), BROKEN)
def test_inspect_names_the_damage(tmp_path: Path, name: str, data: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EdgeAgentError, match=expected) as caught:
        call("inspect", str(tmp_path / name))
    assert name in caught.value.message
    assert caught.value.hint


def test_missing_names_and_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        call("inspect", str(tmp_path / "no.onnx"))
    with pytest.raises(ModelError, match="did you mean 'centerface'"):
        call("fetch", "centre_face", "--models-dir", str(tmp_path))
