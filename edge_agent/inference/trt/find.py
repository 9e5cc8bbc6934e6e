"""Finding the TensorRT of this machine: in this interpreter, else in that of JetPack 4."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Mapping, Optional

from edge_agent.errors import MissingPackage
from edge_agent.inference.trt.api import load_tensorrt

if TYPE_CHECKING:  # a CPU's start is shorter without what builds engines
    from edge_agent.inference.trt.backend import TensorRtBackend

JETPACK_4 = Path("/usr/bin/python3.6")  # its bindings of TensorRT are for no other


def find_backend(python: Optional[str], environ: Mapping[str, str], jetpack_4: Path = JETPACK_4) -> "TensorRtBackend":
    """TensorRT, with a GPU that answers. Call it in the thread that will use and close it.

    Args:
        python: Interpreter of a worker process that is to run TensorRT 8; when None, this interpreter runs it if it
            has it, else a worker of JetPack 4's.
        environ: For finding the CUDA compiler.
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
            pass  # what this interpreter lacks matters more
        raise
    from edge_agent.inference.cuda.context import open_cuda
    from edge_agent.inference.trt.backend import LocalTensorRt

    cuda = open_cuda()
    with ExitStack() as failing:
        failing.callback(cuda.close)
        place = LocalTensorRt(trt, cuda, environ)
        failing.pop_all()
    return place


def _worker(python: str) -> "TensorRtBackend":
    from edge_agent.inference.trt.worker_backend import open_worker

    return open_worker(python)
