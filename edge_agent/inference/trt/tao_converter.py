"""Runs NVIDIA's tao-converter, if it is installed, to build a TensorRT plan from an encrypted .etlt model.

Arguments: docs.nvidia.com/tao/archive/5.5.0/text/tao-converter. It exists for TensorRT 7.1 to 8.4 (and works with
8.5). The model stays encrypted, so the plan's outputs cannot be compared with a reference.
"""

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.errors import EngineError, ModelError
from edge_agent.models.onnx.binding import Binding

PROGRAM = "tao-converter"
_LIMIT_S = 3600.0


@dataclass(frozen=True)
class EncryptedModel:
    """A model that only tao-converter can decrypt.

    Attributes:
        etlt: The file.
        key: Encryption key.
        program: Path of tao-converter.
    """

    etlt: Path
    key: str
    program: str


def find_converter() -> Optional[str]:
    """tao-converter's path, or None."""
    return shutil.which(PROGRAM)


def convert(
    encrypted: EncryptedModel,
    binding: Binding,
    contract: ModelContract,
    precision: str,
    calibration: Optional[bytes],
    workspace_bytes: int,
    dla_core: Optional[int],
) -> bytes:
    """The plan; takes minutes.

    Args:
        encrypted: The model.
        binding: Names of the outputs.
        contract: Size of the input.
        precision: "int8", "fp16" or "fp32".
        calibration: A calibration cache for the TensorRT that the program uses; needed for INT8.
        workspace_bytes: Scratch memory that layers may use.
        dla_core: Deep learning accelerator, or None for the GPU.

    Raises:
        ModelError: tao-converter wrote no plan.
        EngineError: It did not finish in time.
    """
    width, height = contract.net
    with tempfile.TemporaryDirectory() as scratch:
        plan = Path(scratch) / "model.plan"
        command = [encrypted.program, "-k", encrypted.key, "-d", f"{contract.channels},{height},{width}"]
        command += ["-o", ",".join(binding.outputs.values()), "-t", precision]
        if precision == "int8" and calibration is not None:
            cache = Path(scratch) / "calibration.txt"
            cache.write_bytes(calibration)
            command += ["-c", str(cache)]
        command += ["-b", "1", "-m", "1", "-w", str(workspace_bytes)]
        if dla_core is not None:
            command += ["-u", str(dla_core)]
        message = _run([*command, "-e", str(plan), str(encrypted.etlt)], encrypted)
        try:
            data = plan.read_bytes()
        except OSError:
            data = b""
    if not data:  # its exit code is 0 even when it fails
        raise ModelError(
            f"{encrypted.etlt}: {PROGRAM} built no engine from it: {message}",
            f"is {encrypted.program} the one for this board's TensorRT, and the file whole (edge-agent model verify)?",
        )
    return data


def _run(command: List[str], encrypted: EncryptedModel) -> str:
    """Run the program; its last error line."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{encrypted.program} took longer than {_LIMIT_S:g} s", "is the board busy?") from error
    except OSError as error:
        raise ModelError(
            f"{encrypted.program} does not start: {error.strerror}", "is it for this board, and executable?"
        ) from error
    lines = [line.strip() for line in done.stdout.replace(encrypted.key, "...").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"it printed nothing, status {done.returncode}"])[-1][:300]
