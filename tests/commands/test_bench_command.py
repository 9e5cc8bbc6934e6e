"""`edge-agent bench --inference-only`: real figures of a real engine, in words and as JSON."""

import json
import time
from typing import Any, Mapping

import numpy as np
import pytest

from edge_agent.commands.bench_inference import measure
from edge_agent.core.frame import Image
from tests.fakes import graphs
from tests.fakes.agent import edge_agent


@pytest.mark.slow
def test_it_measures_what_the_agent_would_run(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install onnxruntime")
    model = graphs.gridbox(tmp_path / "m.onnx")
    words = ("bench", "--inference-only", "--seconds", "0.4", "--size", "640x480")
    done = edge_agent(*words, "--json", settings={"MODEL__MODEL": model, "MODEL__THREADS": 1})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["engine"]["backend"] == "onnxruntime" and report["engine"]["detail"]["threads"] == 1
    assert (report["picture"], report["batch"]) == ("640x480", 1)
    for part in (report["whole"], report["network"]):
        assert part["count"] >= 1
        assert 0 < part["p50_ms"] <= part["p90_ms"] <= part["p99_ms"] <= part["max_ms"]
        assert 0 < part["per_s"] <= 1000 / part["p50_ms"] * 2
    table = edge_agent(*words, "--model", model, "--threads", "2", settings={"MODEL__MODEL": "nobody"})
    assert table.returncode == 0, table.stderr
    assert "engine    onnxruntime, m.onnx, fp32" in table.stdout and "threads 2" in table.stdout
    assert [line.split()[0] for line in table.stdout.splitlines()[3:6]] == ["whole", "network", "preprocessing:"]


class Slow:
    """An engine that takes 2 ms to preprocess and 4 ms to run, and is strict about what it is given."""

    def __init__(self) -> None:
        self.seen = set()

    def prepare(self, image: Image) -> int:
        time.sleep(0.002)
        assert image.pixels.shape == (80, 128)
        self.seen.add(image.pixels.tobytes())
        return 17

    def run(self, tensor: int) -> Mapping[str, Any]:
        assert tensor == 17
        time.sleep(0.004)
        return {"cov": np.zeros(1)}

    def infer(self, image: Image) -> Mapping[str, Any]:
        return self.run(self.prepare(image))


class Whole:
    def infer(self, image: Image) -> Mapping[str, Any]:
        return {}


def test_preprocessing_and_network_are_measured_separately():
    engine = Slow()
    found = measure(engine, (128, 80), 0.6)  # type: ignore[arg-type]
    assert len(engine.seen) == 8
    assert found.whole.p50_ms >= 6.0 and found.network.p50_ms >= 4.0
    assert 0 < found.preprocess_ms < found.whole.max_ms
    assert found.whole.cpu_ms < found.whole.p50_ms  # it slept
    assert found.whole.per_s <= 1000 / 6.0


def test_an_undivided_engine_is_measured_as_a_whole():
    found = measure(Whole(), (128, 80), 0.1)  # type: ignore[arg-type]
    assert found.network is None and found.preprocess_ms is None
    assert found.whole.count > 100


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--size", "big"), "--size big"),
        (("--seconds", "0"), "--seconds 0"),
        (("--threads", "0"), "--threads 0"),
        (("--batch", "2"), "invalid choice"),
        (("--model", "missing.onnx"), "missing.onnx"),
        (("--backend", "tensorrt"), "tensorrt"),
    ],
)
def test_an_engine_that_cannot_be_measured_is_reported_in_one_line(tmp_path, words, why):
    if "tensorrt" in words:
        pytest.importorskip("onnxruntime")
        try:
            import tensorrt  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("needs a machine without TensorRT: it is installed here")
    done = edge_agent("bench", "--inference-only", *words, settings={"MODEL__MODELS_DIR": tmp_path})
    assert done.returncode != 0 and why in done.stderr and "Traceback" not in done.stderr
