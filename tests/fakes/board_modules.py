"""A fake board for child processes: a folder for PYTHONPATH whose `tensorrt` and `pycuda` are fakes."""

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
    """The environment variables that give a process this board; its cache is `folder/cache`.

    Args:
        folder: Folder for the modules, the toolkit and the cache.
        version: TensorRT's.
        board: One of `BOARDS`.
        gpu: Arguments for `FakeCuda`.
        cuda_fails: `FakeCuda.fail`.
        tensorrt_fails: `FakeTensorRT.fail`.
    """
    for name, text in _MODULES.items():
        path = folder / "modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    config = {"version": version, "board": board, "gpu": gpu, "cuda": cuda_fails, "tensorrt": tensorrt_fails}
    return {
        **toolkit(folder / "cuda"),
        "PYTHONPATH": os.pathsep.join([str(folder / "modules"), str(ROOT)]),
        "CACHE_DIRECTORY": str(folder / "cache"),
        _BOARD: json.dumps(config),
    }


if _BOARD in os.environ:
    _config = json.loads(os.environ[_BOARD])
    _board = BOARDS[_config["board"]]
    CUDA = FakeCuda(spans=spans, **{"capability": _board.capability, "integrated": _board.integrated, **_config["gpu"]})
    CUDA.fail.update(_config["cuda"])
    TRT = FakeTensorRT(_config["version"], _board, CUDA)
    TRT.fail.update(_config["tensorrt"])
