"""Imports an nvinfer configuration as settings, and compares it with the model's own properties.

Meaning of the keys: NVIDIA's page "Gst-nvinfer", and its published parser (gstnvinfer_property_parser.cpp).
"""

import math
import os
from pathlib import Path
from typing import Dict, Optional, Tuple

from edge_agent.config.nvinfer.classes import import_classes
from edge_agent.config.nvinfer.file import PROPERTY, Entry, NvinferFile, Report, read_nvinfer
from edge_agent.core.detection.model_contract import FACEDETECTIR
from edge_agent.errors import InputError, MissingPackage, ModelError
from edge_agent.inference.model_facts import FACEDETECTIR_FACTS, Facts, facts_of
from edge_agent.models.onnx.binding import class_names, face_class
from edge_agent.models.registry import FACEDETECTIR_CARD, FACEDETECTIR_KEY, fetch_command, labels_of

_COLORS = ("RGB", "BGR", "GRAY")
_DIMENSIONS = ("infer-dims", "input-dims", "uff-input-dims")


def check_preprocessing(left: Dict[str, Entry], facts: Optional[Facts], report: Report) -> None:
    """Remove the keys of preprocessing and tensors from `left`, and report contradictions with the model.

    Args:
        left: Entries of [property] not handled yet.
        facts: The model's properties; None when it could not be read.
        report: Takes the settings and remarks.

    Raises:
        InputError: A value that nvinfer also refuses.
    """
    _scale(left, facts, report)
    _color(left, facts, report)
    _dimensions(left, facts, report)
    _outputs(left, facts, report)
    aspect = left.pop("maintain-aspect-ratio", None)
    if aspect is not None and aspect.flag():
        report.differ(aspect, "this agent stretches the image, as NVIDIA's own configurations of DetectNet_v2 do")
    elif aspect is not None:
        report.agree(aspect, "this agent stretches the image, too")


def _scale(left: Dict[str, Entry], facts: Optional[Facts], report: Report) -> None:
    gain = facts.contract.gain if facts is not None else FACEDETECTIR.gain
    entry = left.pop("net-scale-factor", None)
    value = entry.number() if entry is not None else 1.0
    if not math.isclose(value, gain, rel_tol=1e-4):
        source = entry or "net-scale-factor is not set, which means 1"
        report.differ(source, f"DetectNet_v2 is trained on pixels in 0..1, so this agent uses 1/{1 / gain:g}")
    elif entry is not None:
        report.agree(entry, f"this agent's scale, 1/{1 / gain:g}")
    offsets = left.pop("offsets", None)
    if offsets is not None and any(offsets.numbers((1, 2, 3, 4))):
        report.differ(offsets, "DetectNet_v2 is trained without mean subtraction; this agent subtracts none")
    elif offsets is not None:
        report.agree(offsets, "this agent subtracts no mean")
    mean = left.pop("mean-file", None)
    if mean is not None:
        report.differ(mean, "DetectNet_v2 is trained without mean subtraction; this agent subtracts none")


def _color(left: Dict[str, Entry], facts: Optional[Facts], report: Report) -> None:
    entry = left.pop("model-color-format", None)
    if entry is None:
        return
    color = _COLORS[entry.whole(0, 2)]
    channels = facts.contract.channels if facts is not None else (1 if color == "GRAY" else 3)
    if (color == "GRAY") != (channels == 1):
        report.differ(entry, f"{color}, but the model takes {channels} channel{'s' if channels > 1 else ''}")
    elif color == "BGR":
        report.differ(entry, "this agent feeds RGB; gray images are equal in both")
    else:
        report.agree(entry, f"{color}; all channels of a gray image are equal")


def _dimensions(left: Dict[str, Entry], facts: Optional[Facts], report: Report) -> None:
    given = [left.pop(key) for key in _DIMENSIONS if key in left]
    for entry in given[1:]:
        report.ignore(entry, f"{given[0].key} takes precedence")
    if not given:
        return
    entry = given[0]
    values = tuple(int(value) for value in entry.numbers((3,) if entry.key == "infer-dims" else (4,)))
    if len(values) == 4 and values[3] != 0:
        report.differ(entry, "the order of axes is not NCHW, which this agent's models have")
        return
    if facts is None:
        report.ignore(entry, "the model's own size is used")
        return
    contract = facts.contract
    own = (contract.channels, contract.net[1], contract.net[0])
    if values[:3] != own:
        report.differ(entry, f"the model takes {';'.join(map(str, own))}, which is used")
    else:
        report.agree(entry, "the model's own size")


def _outputs(left: Dict[str, Entry], facts: Optional[Facts], report: Report) -> None:
    entry = left.pop("output-blob-names", None)
    if entry is None:
        return
    names = {_bare(name) for name in entry.texts()}
    if facts is not None and names != {_bare(name) for name in facts.outputs.values()}:
        report.differ(entry, f"the model's are {';'.join(facts.outputs.values())}, which are used")
    elif not all(any(role in name for name in names) for role in ("cov", "bbox")):
        report.differ(entry, "a DetectNet_v2 has one output with cov and one with bbox in its name")
    else:
        report.agree(entry, "this agent finds them itself")


def _bare(name: str) -> str:
    return name[:-2] if name.endswith(":0") else name


PRECISIONS = {0: "fp32", 1: "int8", 2: "fp16"}
_MODELS = ("onnx-file", "tlt-encoded-model", "uff-file")
_WORKSPACE_MB = (16, 65536)
_ENGINES = "this agent builds, verifies and caches its own engines"
_FROM_MODEL = "read from the model itself"
_OTHER_NETWORK = "applies to networks that are not detectors"
_SECONDARY = "applies to secondary mode; this agent infers whole frames"
_IGNORED = {
    "model-engine-file": _ENGINES,
    "force-implicit-batch-dim": _ENGINES,
    "batch-size": "this agent infers one frame at a time",
    "interval": "this agent infers every frame; a camera's FPS setting lowers the rate",
    "gie-unique-id": "this agent has one model",
    "process-mode": "this agent infers whole frames",
    "network-type": "this agent runs detectors only",
    "is-classifier": "this agent runs detectors only",
    "uff-input-blob-name": _FROM_MODEL,
    "uff-input-order": _FROM_MODEL,
    "network-input-order": _FROM_MODEL,
    "gpu-id": "this agent uses the first GPU",
    "scaling-filter": "EDGE_AGENT_MODEL__INTERPOLATION chooses between linear and area",
    "scaling-compute-hw": "the GPU scales where TensorRT runs, else the CPU",
    "output-tensor-meta": "this agent has no other element that takes tensors",
    "operate-on-gie-id": _SECONDARY,
    "operate-on-class-ids": _SECONDARY,
    "secondary-reinfer-interval": _SECONDARY,
    "input-object-min-width": _SECONDARY,
    "input-object-min-height": _SECONDARY,
    "classifier-threshold": _OTHER_NETWORK,
    "classifier-async-mode": _OTHER_NETWORK,
    "segmentation-threshold": _OTHER_NETWORK,
    "symmetric-padding": "this agent does not pad",
    "enable-dbscan": "cluster-mode overrides it",
}
_CUSTOM = ("parse-bbox-func-name", "custom-lib-path", "engine-create-func-name", "parse-bbox-instance-mask-func-name")


def import_nvinfer(path: Path, directory: Path, class_name: Optional[str] = None) -> Report:
    """Settings from the configuration in `path`; paths in it are relative to its folder.

    Args:
        path: A key file, or YAML (.yml, .yaml).
        directory: Folder of fetched models; a file in it becomes a name of the registry.
        class_name: Name or number of the face class, where the labels do not identify it.

    Raises:
        InputError: It cannot be read or parsed, is not for a detector, or names no model.
    """
    return _Import(read_nvinfer(path), directory, class_name).report


class _Import:
    """One import; `_left` holds the entries not handled yet."""

    def __init__(self, file: NvinferFile, directory: Path, class_name: Optional[str]) -> None:
        self.report = Report()
        self._file, self._folder, self._directory = file, file.path.resolve().parent, directory
        self._left: Dict[str, Entry] = dict(file.groups[PROPERTY].entries)
        for entry in file.repeated:
            self.report.ignore(entry, "a later line overrides it")
        self._refuse_other_networks()
        self._registered = False
        self._facts = self._model()
        classes, target = self._classes(class_name)
        self._filter(target)
        self._precision()
        check_preprocessing(self._left, self._facts, self.report)
        import_classes(file, target, classes, self.report)
        self._remaining()

    def _refuse_other_networks(self) -> None:
        kind, legacy = self._left.get("network-type"), self._left.get("is-classifier")
        if kind is not None and kind.whole():
            raise kind.fault("0, a detector, the only kind that this agent runs")
        if kind is None and legacy is not None and legacy.flag():
            raise legacy.fault("0, a detector, the only kind that this agent runs")

    def _model(self) -> Optional[Facts]:
        entry = next((self._left.pop(key) for key in _MODELS if self._left.get(key)), None)
        if entry is None:
            where = self._file.groups[PROPERTY].where
            raise InputError(f"{where}: [{PROPERTY}] names no model: expected one of {', '.join(_MODELS)}")
        for other in _MODELS:
            if other in self._left:
                self.report.ignore(self._left.pop(other), f"{entry.key} takes precedence")
        path = self._path(entry)
        given = self._left.pop("tlt-model-key", None)
        key = given.string() if given is not None else None
        if path.suffix not in (".onnx", ".uff", ".etlt"):
            raise entry.fault("a file that ends in .onnx, .uff or .etlt")
        name = FACEDETECTIR_CARD.name
        fetched = (self._directory / name / FACEDETECTIR_CARD.files[0].name).absolute()
        if path == fetched or (path.name == fetched.name and not path.is_file()):
            self._registered = True
            run = fetch_command(FACEDETECTIR_CARD, self._directory)
            self.report.set(entry, ("model", "model"), name, "" if fetched.is_file() else f"to fetch it: {run}")
            if given is not None:
                self.report.agree(Entry(given.key, "***", given.where), "this agent knows the key of this model")
            return self._facts_of(entry, fetched, key) if fetched.is_file() else FACEDETECTIR_FACTS
        self.report.set(entry, ("model", "model"), str(path))
        if given is not None and path.suffix == ".etlt" and key != FACEDETECTIR_KEY:
            self.report.set(given, ("model", "key"), given.string())
        elif given is not None:
            self.report.agree(Entry(given.key, "***", given.where), "the key that this agent uses by default")
        return self._facts_of(entry, path, key)

    def _facts_of(self, entry: Entry, path: Path, key: Optional[str]) -> Optional[Facts]:
        if not path.is_file():
            self.report.differ(entry, f"{path} does not exist, so nothing was compared with it")
            return None
        try:
            return facts_of(path, key)
        except MissingPackage as error:
            self.report.ignored.append(f"the model cannot be read here, so nothing was compared: {error.message}")
        except ModelError as error:
            self.report.differ(entry, str(error))
        return None

    def _classes(self, class_name: Optional[str]) -> Tuple[int, int]:
        """(number of classes, index of the face class)."""
        report, facts = self.report, self._facts
        count, file = self._left.pop("num-detected-classes", None), self._left.pop("labelfile-path", None)
        claimed = count.whole(1) if count is not None else None
        classes = facts.classes if facts is not None else claimed or 1
        if count is not None and claimed != classes:
            report.differ(count, f"the model has {classes}")
        elif count is not None:
            report.agree(count, _FROM_MODEL)
        labels = self._labels(file, classes)
        if classes == 1 and class_name is None:
            return claimed or 1, 0
        names = labels or class_names((), classes, str(self._file.path))
        try:
            target = face_class(names, class_name, str(self._file.path))
        except ModelError:
            where = (file or count or next(iter(self._file.groups[PROPERTY].entries.values()))).where
            raise InputError(
                f"{where}: which of the classes {', '.join(names)} is a face? expected --class-name NAME or NUMBER"
            ) from None
        report.set(file or "the face class", ("model", "class_name"), names[target])
        return max(classes, claimed or 1), target

    def _labels(self, file: Optional[Entry], classes: int) -> Tuple[str, ...]:
        if file is None:
            return ()
        path = self._path(file)
        if not path.is_file():
            self.report.ignore(file, f"{path} does not exist; one class needs no name")
            return ()
        labels = labels_of(path, str(path))
        if len(labels) != classes:
            self.report.differ(file, f"{path} names {len(labels)} classes, not {classes}; it is not used")
            return ()
        if self._registered:
            self.report.agree(file, "this agent knows the class of this model")
            return ()
        self.report.set(file, ("model", "labels_file"), str(path))
        return labels

    def _filter(self, target: int) -> None:
        entry = self._left.pop("filter-out-class-ids", None)
        if entry is not None and str(target) in entry.texts():
            self.report.differ(entry, f"class {target} is the face, which this agent does not filter out")
        elif entry is not None:
            self.report.agree(entry, "this agent reports the face class only")

    def _precision(self) -> None:
        report = self.report
        mode, cache = self._left.pop("network-mode", None), self._left.pop("int8-calib-file", None)
        precision = PRECISIONS[mode.whole(0, 2) if mode is not None else 0]
        calibrated = False
        if cache is not None:
            path = self._path(cache)
            own = self._directory / FACEDETECTIR_CARD.name / FACEDETECTIR_CARD.files[1].name
            calibrated = path.is_file() or self._registered
            if self._registered and (path == own.absolute() or not path.is_file()):
                report.agree(cache, "is fetched with the model")
            elif path.is_file():
                report.set(cache, ("model", "calibration"), str(path))
            else:
                report.differ(cache, f"{path} does not exist; no calibration is set")
        source = mode or "network-mode is not set, which means 0 (FP32)"
        report.set(source, ("model", "precision"), precision, "set auto for a board that does not support it")
        if precision == "int8" and not calibrated:
            problem = "INT8 needs a calibration cache, or a file that holds Q/DQ, else it fails: set auto"
            report.differ(source, problem)
        workspace = self._left.pop("workspace-size", None)
        if workspace is not None:
            asked = workspace.whole(0)
            fitting = min(max(asked, _WORKSPACE_MB[0]), _WORKSPACE_MB[1])
            if asked:
                report.set(workspace, ("model", "workspace_mb"), fitting)
            else:
                report.ignore(workspace, "0 means the default")
            if asked and asked != fitting:
                report.differ(workspace, f"this agent accepts {_WORKSPACE_MB[0]} to {_WORKSPACE_MB[1]} MB")
        self._dla()

    def _dla(self) -> None:
        enable, core = self._left.pop("enable-dla", None), self._left.pop("use-dla-core", None)
        if enable is not None and enable.flag():
            self.report.set(core or enable, ("model", "dla_core"), core.whole(0, 7) if core is not None else 0)
        elif enable is not None:
            self.report.agree(enable, "this agent uses no accelerator either")
        if core is not None and not (enable is not None and enable.flag()):
            self.report.ignore(core, "enable-dla is off")

    def _remaining(self) -> None:
        report = self.report
        # Reported already, with the classes.
        self._left.pop("cluster-mode" if "cluster-mode" in self._left else "enable-dbscan", None)
        for key, entry in self._left.items():
            if key in _CUSTOM:
                report.differ(entry, "this agent loads no custom code; it decodes the outputs as DetectNet_v2")
            elif key == "process-mode" and entry.whole(1, 2) == 2:
                report.differ(entry, _SECONDARY)
            elif key == "gpu-id" and entry.whole(0):
                report.differ(entry, _IGNORED[key])
            else:
                report.ignore(entry, _IGNORED.get(key, "not known to this agent"))

    def _path(self, entry: Entry) -> Path:
        # Not resolved: the target of a symbolic link may change.
        return Path(os.path.normpath(self._folder / entry.string()))
