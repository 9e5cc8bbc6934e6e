"""Finds the TensorRT of this machine: in this interpreter, else in that of JetPack 4.

This module imports nothing that builds engines, so that a start on the CPU stays short.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Mapping, Optional

from edge_agent.errors import MissingPackage
from edge_agent.inference.trt.api import load_tensorrt

if TYPE_CHECKING:
    from edge_agent.inference.trt.backend import TensorRtBackend

JETPACK_4 = Path("/usr/bin/python3.6")  # the only version that JetPack 4 has TensorRT bindings for


def open_backend(python: Optional[str], environ: Mapping[str, str], jetpack_4: Path = JETPACK_4) -> "TensorRtBackend":
    """TensorRT with a GPU that answers. Call it in the thread that will use and close it.

    Args:
        python: Interpreter of a worker process that runs TensorRT 8; when None, this interpreter if it has TensorRT,
            else a worker of `jetpack_4`.
        environ: Names the folder of the CUDA compiler.
        jetpack_4: The interpreter that JetPack 4 has TensorRT for.

    Raises:
        MissingPackage: tensorrt or pycuda is not installed.
        EngineError: No GPU answers.
    """
    if python is not None:
        return _worker(python)
    try:
        trt = load_tensorrt()
    except MissingPackage:
        if not jetpack_4.exists():
            raise
        try:
            return _worker(str(jetpack_4))
        except MissingPackage:
            pass  # report what this interpreter lacks instead
        raise
    from edge_agent.inference.cuda.context import open_cuda
    from edge_agent.inference.trt.backend import LocalTensorRt

    cuda = open_cuda()
    with ExitStack() as on_failure:
        on_failure.callback(cuda.close)
        backend = LocalTensorRt(trt, cuda, environ)
        on_failure.pop_all()
    return backend


def _worker(python: str) -> "TensorRtBackend":
    from edge_agent.inference.trt.worker_backend import open_worker

    return open_worker(python)
