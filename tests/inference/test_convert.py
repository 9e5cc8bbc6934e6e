"""`edge-agent model convert` in a process of its own: .uff and .etlt files become .onnx files.

NVIDIA's decryption package may not be shipped; a fake module on the import path behaves as theirs is documented: a
wrong key raises nothing, and yields bytes of the right length without meaning.
"""

import json
import os
import struct
import subprocess
import sys
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from typing import List

import numpy as np
import pytest

from tests.fakes.uff_writer import detectnet

ROOT = Path(__file__).resolve().parents[2]
CODEC = """
from hashlib import sha256
from itertools import cycle

def decrypt_stream(input_stream, output_stream, passphrase, encryption=True, rewind=True):
    assert isinstance(passphrase, bytes) and encryption and not rewind
    sealed = input_stream.read()
    if len(sealed) < 16:
        raise ValueError("Invalid nonce size (%d) for CTR." % len(sealed))
    stream = cycle(sha256(passphrase).digest())
    output_stream.write(bytes(byte ^ other for byte, other in zip(sealed[16:], stream)))
"""


def etlt(payload: bytes, key: str, name: bytes = b"input_1") -> bytes:
    stream = cycle(sha256(key.encode()).digest())
    return struct.pack("<i", len(name)) + name + bytes(16) + bytes(a ^ b for a, b in zip(payload, stream))


def convert(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run it with `folder` first on the import path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-m", "edge_agent", "model", "convert", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder, timeout=60)


def package(folder: Path, init: str = "", codec: str = CODEC) -> None:
    (folder / "eff_tao_encryption").mkdir()
    (folder / "eff_tao_encryption" / "__init__.py").write_text(init)
    (folder / "eff_tao_encryption" / "tao_codec.py").write_text(codec)


def faults(done: "subprocess.CompletedProcess[str]") -> List[str]:
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def model() -> bytes:
    image = np.random.default_rng(3).random((1, 3, 48, 64)).astype(np.float32)
    return detectnet(image, (2, 2, 2, 2, 2)).encode()


def test_uff_becomes_a_model_that_the_agent_runs(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "in.uff").write_bytes(model)
    done = convert(tmp_path, "in.uff", "out.onnx")
    assert done.returncode == 0, done.stderr
    assert "input_1 float32 1x3x48x64" in done.stdout
    assert "output_cov/Sigmoid float32 1x1x3x4" in done.stdout
    assert "Conv 27" in done.stdout
    assert "contract     gridbox, input 3x48x64, stride 16x16, classes 1" in done.stdout
    assert "tried out with ONNX Runtime" in done.stdout
    assert "set EDGE_AGENT_MODEL__MODEL=out.onnx" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.uff", "out.onnx"]


def test_json_and_a_free_batch(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "in.uff").write_bytes(model)
    done = convert(tmp_path, "in.uff", "out.onnx", "--json", "--free-batch", "--output", "output_cov/Sigmoid")
    report = json.loads(done.stdout)
    assert report["outputs"] == ["output_cov/Sigmoid float32 batchx1x3x4"]
    assert report["contract"] is None
    assert "EDGE_AGENT_MODEL" not in done.stdout


def test_etlt_with_its_key(tmp_path: Path, model: bytes) -> None:
    package(tmp_path)
    (tmp_path / "in.etlt").write_bytes(etlt(model, "tlt_encode"))
    (tmp_path / "in.uff").write_bytes(model)
    assert convert(tmp_path, "in.etlt", "a.onnx", "--key", "tlt_encode").returncode == 0
    assert convert(tmp_path, "in.uff", "b.onnx").returncode == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_etlt_that_holds_onnx(tmp_path: Path, model: bytes) -> None:
    package(tmp_path)
    (tmp_path / "in.uff").write_bytes(model)
    convert(tmp_path, "in.uff", "a.onnx")
    (tmp_path / "in.etlt").write_bytes(etlt((tmp_path / "a.onnx").read_bytes(), "mine", b""))
    done = convert(tmp_path, "in.etlt", "b.onnx", "--key", "mine")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    (fault, _) = faults(convert(tmp_path, "in.etlt", "b.onnx", "--key", "mine", "--output", "x"))
    assert "holds ONNX" in fault


def test_a_wrong_key_is_reported(tmp_path: Path, model: bytes) -> None:
    package(tmp_path)
    (tmp_path / "in.etlt").write_bytes(etlt(model, "tlt_encode"))
    (fault, hint) = faults(convert(tmp_path, "in.etlt", "out.onnx", "--key", "nvidia_tlt"))
    assert "in.etlt: decrypted with this key it is no UFF model: a wrong key" in fault
    assert "tlt_encode" in hint
    (fault, hint) = faults(convert(tmp_path, "in.etlt", "out.onnx", "--key", "sesame-13"))
    assert "sesame" not in fault + hint
    assert not (tmp_path / "out.onnx").exists()
    (_, hint) = faults(convert(tmp_path, "in.etlt", "out.onnx"))
    assert "--key" in hint


def test_a_truncated_etlt_is_reported(tmp_path: Path, model: bytes) -> None:
    package(tmp_path)
    (tmp_path / "in.etlt").write_bytes(etlt(model, "tlt_encode")[:20])
    (fault, _) = faults(convert(tmp_path, "in.etlt", "out.onnx", "--key", "tlt_encode"))
    assert "in.etlt: cannot be decrypted" in fault


def test_without_nvidias_package_the_hint_names_its_installation(tmp_path: Path, model: bytes) -> None:
    package(tmp_path, init="raise ImportError('not for this Python')")
    (tmp_path / "in.etlt").write_bytes(etlt(model, "tlt_encode"))
    (fault, hint) = faults(convert(tmp_path, "in.etlt", "out.onnx", "--key", "tlt_encode"))
    assert "NVIDIA's package nvidia-eff-tao-encryption is needed (not for this Python)" in fault
    assert "pip install nvidia-eff-tao-encryption" in hint
    if sys.version_info[:2] not in ((3, 7), (3, 8), (3, 10), (3, 12)):
        assert "Python 3.7, 3.8, 3.10, 3.12 only" in hint
        assert "edge-agent model convert IN.etlt OUT.onnx --key KEY" in hint


def test_without_onnxruntime_the_result_is_not_tried_out(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not installed')")
    (tmp_path / "in.uff").write_bytes(model)
    done = convert(tmp_path, "in.uff", "out.onnx")
    assert done.returncode == 0, done.stderr
    assert "not tried out: that needs onnxruntime" in done.stdout


def test_without_onnx_the_hint_names_the_extra(tmp_path: Path, model: bytes) -> None:
    (tmp_path / "onnx.py").write_text("raise ImportError('not installed')")
    (tmp_path / "in.uff").write_bytes(model)
    (fault, hint) = faults(convert(tmp_path, "in.uff", "out.onnx"))
    assert "onnx cannot be imported: not installed" in fault
    assert "pip install 'edge-agent[convert]'" in hint
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (("absent.uff", "out.onnx"), "absent.uff: No such file"),
        (("in.uff", "out.engine"), "out.engine: the result is ONNX"),
        (("in.uff", "absent/out.onnx"), "absent/out.onnx: cannot be written"),
        (("plain.uff", "out.onnx"), "plain.uff: damaged or no UFF file"),
        (("in.uff", "out.onnx", "--output", "absent"), "in.uff: no node is called absent"),
        ((".", "out.onnx"), "Is a directory"),
    ],
)
def test_unusable_arguments_are_reported(tmp_path: Path, model: bytes, words: List[str], reported: str) -> None:
    (tmp_path / "in.uff").write_bytes(model)
    (tmp_path / "plain.uff").write_text("no model at all")
    assert reported in faults(convert(tmp_path, *words))[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.uff", "plain.uff"]
