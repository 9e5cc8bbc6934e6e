"""A fake board for processes of their own: a folder for PYTHONPATH whose `tensorrt` and `pycuda` are fakes."""

import json
import os
from pathlib import Path
from typing import Any, Dict, Mapping

from tests.fakes.gpu import toolkit
from tests.fakes.kernel_twin import spans
from tests.fakes.pycuda import FakeCuda
from tests.fakes.tensorrt import BOARDS, FakeTensorRT

_BOARD = "FAKE_BOARD"
_MODULES = {
    "tensorrt.py": "import sys\nfrom tests.fakes.board_modules import TRT\nsys.modules[__name__] = TRT\n",
    "pycuda/__init__.py": "",
    "pycuda/driver.py": "import sys\nfrom tests.fakes.board_modules import CUDA\nsys.modules[__name__] = CUDA\n",
}
ROOT = Path(__file__).resolve().parents[2]


def environment(
    folder: Path,
    version: str = "10.3",
    board: str = "orin",
    gpu: Mapping[str, Any] = {},
    cuda_fails: Mapping[str, str] = {},
    tensorrt_fails: Mapping[str, str] = {},
) -> Dict[str, str]:
    """What a process needs in its environment to find itself on that board; its cache is `folder/cache`.

    Args:
        folder: For the modules, the toolkit and the cache.
        version: Of TensorRT.
        board: One of `BOARDS`.
        gpu: Arguments for `FakeCuda`.
        cuda_fails: `FakeCuda.fail`.
        tensorrt_fails: `FakeTensorRT.fail`.
    """
    for name, text in _MODULES.items():
        path = folder / "modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    told = {"version": version, "board": board, "gpu": gpu, "cuda": cuda_fails, "tensorrt": tensorrt_fails}
    return {
        **toolkit(folder / "cuda"),
        "PYTHONPATH": os.pathsep.join([str(folder / "modules"), str(ROOT)]),
        "CACHE_DIRECTORY": str(folder / "cache"),
        _BOARD: json.dumps(told),
    }


if _BOARD in os.environ:
    _told = json.loads(os.environ[_BOARD])
    _board = BOARDS[_told["board"]]
    CUDA = FakeCuda(spans=spans, **{"capability": _board.capability, "integrated": _board.integrated, **_told["gpu"]})
    CUDA.fail.update(_told["cuda"])
    TRT = FakeTensorRT(_told["version"], _board, CUDA)
    TRT.fail.update(_told["tensorrt"])
