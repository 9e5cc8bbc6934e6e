"""Frames of jetson-utils' camera reach the kernel without a copy."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edge_agent.capture import SourceOptions
from edge_agent.capture.jetson.source import JetsonSource
from edge_agent.core.camera.params import CameraParams
from edge_agent.core.camera.transform import CameraTransform
from edge_agent.core.detection.model_contract import FACEDETECTIR
from edge_agent.inference.cuda.compiler import KernelCache
from edge_agent.inference.cuda.context import CudaContext
from edge_agent.inference.cuda.preprocess import ARGUMENTS, CudaPreprocessor
from edge_agent.inference.preprocess import Preprocessor
from tests.capture.contract import next_frame
from tests.fakes.jetson_utils import Board, FakeJetsonUtils, Input
from tests.fakes.kernel_twin import TwinCompiler, spans
from tests.fakes.pycuda import FakeCuda


@pytest.mark.parametrize("color", [False, True])
def test_the_kernel_gets_the_pointer_of_the_source(tmp_path: Path, color: bool) -> None:
    cuda = FakeCuda(spans=spans)
    context = CudaContext(cuda)
    preprocess = CudaPreprocessor(context, KernelCache(tmp_path, TwinCompiler), FACEDETECTIR)
    module = FakeJetsonUtils(Board({"csi://0": Input(size_at=lambda sequence: (1280, 720))}))
    view = CameraTransform(CameraParams("csi://0"))
    with closing(JetsonSource("csi://0", SourceOptions(color=color), module)) as source:
        source.open()
        for _ in range(6):
            with next_frame(source) as frame:
                cuda.map(frame.pixels)
                image = view.upright(frame)
                tensor = preprocess(image)
                context.wait()
                cuda.unmap(frame.pixels)
                launched = np.frombuffer(cuda.launches[-1].arguments, ARGUMENTS)[0]
                assert launched["source"] == frame.device.pointer == frame.pixels.__array_interface__["data"][0]
                assert launched["pitch"] == frame.pixels.strides[0]
                made = cuda.at(tensor.pointer, int(np.prod(tensor.shape)) * 4).view(np.float32).reshape(tensor.shape)
                expected = Preprocessor(FACEDETECTIR)(image)
                np.testing.assert_allclose(made, expected, atol=1.0 / 255)
    assert preprocess.copied == 0
    preprocess.close()
    context.close()
    cuda.assert_clean()
