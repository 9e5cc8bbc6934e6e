"""Finding the TensorRT of this machine: in this interpreter, else in that of JetPack 4."""

import os
import shutil
from contextlib import ExitStack
from typing import Mapping, Optional

from edge_agent.errors import MissingPackage
from edge_agent.inference.cuda import open_cuda
from edge_agent.inference.trt_api import load_tensorrt
from edge_agent.inference.trt_place import LocalTensorRt, Place
from edge_agent.inference.trt_remote import open_worker

_JETPACK_4 = "python3.6"  # the only one that its bindings of TensorRT know


def find_place(python: Optional[str], environ: Mapping[str, str]) -> Place:
    """TensorRT, with a GPU that answers. Call it in the thread that will use and close it.

    Args:
        python: Interpreter of a worker process that is to run TensorRT 8; when None, this interpreter runs it if it
            has it, else a worker in PATH's python3.6 if that has it.
        environ: For finding programs.

    Raises:
        MissingPackage: tensorrt or pycuda is not installed.
        EngineError: No GPU answers.
    """
    if python is not None:
        return open_worker(python)
    try:
        trt = load_tensorrt()
    except MissingPackage:
        other = shutil.which(_JETPACK_4, path=environ.get("PATH", os.defpath))
        if other is None:
            raise
        try:
            return open_worker(other)
        except MissingPackage:
            pass  # what this interpreter lacks matters more
        raise
    cuda = open_cuda()
    with ExitStack() as failing:
        failing.callback(cuda.close)
        place = LocalTensorRt(trt, cuda, environ)
        failing.pop_all()
    return place
