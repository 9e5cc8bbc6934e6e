"""Makes an nvinfer configuration from the settings, so that the model finds the same faces in DeepStream."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import List, Optional, Tuple

from edge_agent.config.nvinfer.classes import export_classes, mode_number
from edge_agent.config.nvinfer.importer import PRECISIONS
from edge_agent.config.settings import Settings
from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.errors import InputError
from edge_agent.inference import EngineParams
from edge_agent.inference.model_facts import Facts, facts_of
from edge_agent.models import registry
from edge_agent.models.onnx.binding import class_names, face_class

_FILE_KEYS = {".onnx": "onnx-file", ".uff": "uff-file", ".etlt": "tlt-encoded-model"}
_NO_COUNTERPART = ("backend", "threads", "interpolation")


@dataclass(frozen=True)
class Export:
    """The files to write.

    Attributes:
        text: The configuration, a key file.
        labels: The label file; None when the settings name one, which `text` then refers to.
        notes: Settings without a counterpart in nvinfer, one sentence each.
    """

    text: str
    labels: Optional[str]
    notes: Tuple[str, ...]


def export_nvinfer(settings: Settings, directory: Path, labels: Path) -> Export:
    """The configuration for the model and detection settings, with absolute paths.

    Args:
        settings: Only the sections model and detection are used.
        directory: Folder of fetched models.
        labels: Path of the label file to be written.

    Raises:
        InputError: nvinfer cannot decode this model without a custom parser.
        ModelError: The model is missing or damaged.
        MissingPackage: It is encrypted, and NVIDIA's package is not installed.
    """
    params, notes = settings.model, []
    path, calibration = _files(params, directory)
    facts = facts_of(path, params.key)
    contract = _with_classes(params, path, facts)
    precision = params.precision
    if precision == "auto":
        precision = "int8" if calibration is not None else "fp16"
        notes.append(f"precision auto: nvinfer has no such mode, so network-mode is {precision}")
    notes += [
        f"EDGE_AGENT_MODEL__{name.upper()}: nvinfer has no counterpart"
        for name in _NO_COUNTERPART
        if getattr(params, name) != getattr(EngineParams(), name)
    ]
    given = Path(params.labels_file).absolute() if params.labels_file is not None else None
    lines = [
        "# Written by edge-agent model export-deepstream.",
        "[property]",
        "gpu-id=0",
        "gie-unique-id=1",
        "process-mode=1",
        "network-type=0",
        "batch-size=1",
        *_model_lines(path, params, facts),
        f"labelfile-path={_escaped(given or labels.absolute())}",
        f"num-detected-classes={facts.classes}",
        f"net-scale-factor={contract.gain!r}",
        f"model-color-format={2 if contract.channels == 1 else 0}",
        "maintain-aspect-ratio=0",
        f"network-mode={next(number for number, name in PRECISIONS.items() if name == precision)}",
        *([f"int8-calib-file={_escaped(calibration)}"] if calibration is not None else []),
        f"workspace-size={params.workspace_mb}",
        *(["enable-dla=1", f"use-dla-core={params.dla_core}"] if params.dla_core is not None else []),
        f"cluster-mode={mode_number(settings.detection)}",
        *_filtered_classes(contract),
        "",
        *export_classes(settings.detection, contract),
    ]
    text = None if given is not None else "\n".join(contract.labels) + "\n"
    return Export("\n".join(lines) + "\n", text, tuple(notes))


def _files(params: EngineParams, directory: Path) -> Tuple[Path, Optional[Path]]:
    """(model, calibration cache or None)."""
    given = Path(params.calibration).absolute() if params.calibration is not None else None
    if params.model.endswith(registry.SUFFIXES):
        return Path(params.model).absolute(), given
    card = registry.card_of(params.model)
    if card.contract.kind != "gridbox":
        raise InputError(
            f"model {card.name}: nvinfer cannot decode {card.contract.kind} without a custom parser",
            "expected a DetectNet_v2: set EDGE_AGENT_MODEL__MODEL to facedetectir, or to an .onnx, .uff or .etlt file",
        )
    path = registry.locate(card, directory).absolute()
    fetched = path.with_name(registry.FACEDETECTIR_CARD.files[1].name)
    return path, given or (fetched if fetched.is_file() else None)


def _with_classes(params: EngineParams, path: Path, facts: Facts) -> ModelContract:
    labels = class_names(registry.labels_of(path, params.labels_file), facts.classes, str(path))
    return replace(facts.contract, labels=labels, target=face_class(labels, params.class_name, str(path)))


def _model_lines(path: Path, params: EngineParams, facts: Facts) -> List[str]:
    contract, (width, height) = facts.contract, facts.contract.net
    lines = [f"{_FILE_KEYS[path.suffix]}={_escaped(path)}"]
    if path.suffix == ".etlt":
        lines.append(f"tlt-model-key={_escaped(params.key or registry.FACEDETECTIR_KEY)}")
    lines.append(f"infer-dims={contract.channels};{height};{width}")
    if facts.uff:
        lines += [f"uff-input-blob-name={facts.input}", "uff-input-order=0"]
    return [*lines, f"output-blob-names={facts.outputs['bbox']};{facts.outputs['cov']}"]


def _filtered_classes(contract: ModelContract) -> List[str]:
    """The line that filters out all classes but the face; nvinfer would report them."""
    others = [str(index) for index in range(len(contract.labels)) if index != contract.target]
    return [f"filter-out-class-ids={';'.join(others)}"] if others else []


def _escaped(value: object) -> str:
    r"""`value` escaped for GLib, which drops leading blanks; \s keeps them and trailing ones."""
    text = str(value).replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    inner = text.strip(" ")
    begin = len(text) - len(text.lstrip(" "))
    return "\\s" * begin + inner + "\\s" * (len(text) - begin - len(inner))
