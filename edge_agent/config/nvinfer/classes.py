"""Converts nvinfer's [class-attrs-*] groups and clustering to this agent's detection settings, and back.

Source: Gst-nvinfer's published parser (gstnvinfer_property_parser.h and .cpp): [class-attrs-all] applies to
every class, [class-attrs-N] overrides it for class N, and the rest has the defaults of that header.
"""

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple, Union

from edge_agent.config.nvinfer.file import PROPERTY, Entry, Group, NvinferFile, Report
from edge_agent.core.detection.clustering import ClusterParams
from edge_agent.core.detection.detector import DetectionParams, model_defaults
from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.errors import InputError

PREFIX = "class-attrs-"
MODES = {1: "dbscan", 2: "nms", 3: "hybrid", 4: "none"}
_EVERY = ("nms", "dbscan", "hybrid", "none")
_DENSE = ("dbscan", "hybrid")
_TINY = 0.001  # replaces 0, which nvinfer accepts and this agent does not


@dataclass(frozen=True)
class _Attribute:
    """One key of a class.

    Attributes:
        key: nvinfer's key.
        setting: This agent's setting in the section detection.
        default: nvinfer's default.
        low: This agent's lowest value.
        high: This agent's highest value.
        whole: True for integers.
        modes: Clustering modes that use it.
        bound: nvinfer's highest value.
    """

    key: str
    setting: str
    default: float
    low: float
    high: float = float("inf")
    whole: bool = False
    modes: Tuple[str, ...] = _EVERY
    bound: float = float("inf")


_ATTRIBUTES = (
    _Attribute("pre-cluster-threshold", "pre_cluster_threshold", 0.2, 0.0, 1.0),
    _Attribute("nms-iou-threshold", "nms_iou_threshold", 0.3, 0.0, 1.0, modes=("nms", "hybrid"), bound=1.0),
    _Attribute("topk", "top_k", -1, 1, 1000, whole=True),
    _Attribute("post-cluster-threshold", "post_cluster_threshold", 0.0, 0.0, 1.0),
    _Attribute("eps", "eps", 0.0, 0.0, 1.0, modes=_DENSE),
    _Attribute("minBoxes", "min_boxes", 0, 1, 1000, whole=True, modes=_DENSE),
    _Attribute("dbscan-min-score", "dbscan_min_score", 0.0, 0.0, modes=("dbscan",)),
    _Attribute("detected-min-w", "min_width_px", 0, 0, 8192, whole=True),
    _Attribute("detected-min-h", "min_height_px", 0, 0, 8192, whole=True),
)
_MEANS_MORE_THAN_ZERO = ("pre_cluster_threshold", "eps")
_IGNORED = {
    "border-color": "nothing is drawn",
    "bg-color": "nothing is drawn",
    "roi-top-offset": "use EDGE_AGENT_CAMERAS__<CAMERA>__ROI or its ZONES",
    "roi-bottom-offset": "use EDGE_AGENT_CAMERAS__<CAMERA>__ROI or its ZONES",
    "detected-max-w": "this agent has no largest face size",
    "detected-max-h": "this agent has no largest face size",
}


def import_classes(file: NvinferFile, target: int, classes: int, report: Report) -> None:
    """Import clustering and thresholds of the face class.

    Args:
        file: The configuration; cluster-mode and enable-dbscan of its [property] are read here.
        target: Index of the face class.
        classes: Number of classes.
        report: Takes the settings and remarks.

    Raises:
        InputError: A group or value that nvinfer also refuses.
    """
    attributes = _of_class(file, target, classes, report)
    mode = _mode(file, attributes, report)
    for attribute in _ATTRIBUTES:
        _import(attribute, attributes.pop(attribute.key, None), mode, report)
    for entry in attributes.values():
        report.ignore(entry, _IGNORED.get(entry.key, "not known to this agent"))


def export_classes(params: DetectionParams, contract: ModelContract) -> List[str]:
    """The lines of the face class's group."""
    own = model_defaults(contract)
    lines = [f"[{PREFIX}{contract.target}]"]
    for attribute in _ATTRIBUTES:
        value = getattr(params, attribute.setting)
        lines.append(f"{attribute.key}={own[attribute.setting] if value is None else value!r}")
    return lines


def mode_number(params: ClusterParams) -> int:
    """Nvinfer's number of the clustering mode."""
    return next(number for number, name in MODES.items() if name == params.cluster_mode)


def _of_class(file: NvinferFile, target: int, classes: int, report: Report) -> Dict[str, Entry]:
    found: Dict[str, Entry] = {}
    own: Dict[str, Entry] = {}
    for name, group in file.groups.items():
        if name == f"{PREFIX}all":
            found = _renamed(group.entries)
        elif name.startswith(PREFIX):
            index = name[len(PREFIX) :]
            if not (index.isascii() and index.isdigit() and int(index) < classes):
                expected = f"{PREFIX}all, or a class from 0 to {classes - 1} of num-detected-classes={classes}"
                raise InputError(f"{group.where}: [{name}]: expected {expected}")
            if int(index) == target:
                own = _renamed(group.entries)
            else:
                report.ignored.append(f"line {_line(group)}: [{name}]: not the face class")
        elif name != PROPERTY:
            report.ignored.append(f"line {_line(group)}: [{name}]: not a known group of nvinfer")
    for key, entry in found.items():
        if key in own:
            report.ignore(entry, f"[{PREFIX}{target}] overrides it")
    return {**found, **own}


def _line(group: Group) -> str:
    return group.where.rpartition(":")[2]


def _renamed(entries: Dict[str, Entry]) -> Dict[str, Entry]:
    """Entries with the threshold under its new name; of old and new name the later one counts, as in nvinfer."""
    old, new = entries.get("threshold"), entries.get("pre-cluster-threshold")
    renamed = {key: entry for key, entry in entries.items() if key != "threshold"}
    order = list(entries)
    if old is not None and (new is None or order.index(old.key) > order.index(new.key)):
        renamed["pre-cluster-threshold"] = old
    return renamed


def _mode(file: NvinferFile, attributes: Dict[str, Entry], report: Report) -> str:
    properties = file.groups[PROPERTY].entries
    given, legacy = properties.get("cluster-mode"), properties.get("enable-dbscan")
    number = given.whole(0, 4) if given is not None else 1 if legacy is not None and legacy.flag() else 0
    source = given or legacy or "cluster-mode is not set, which means 0"
    path = ("detection", "cluster_mode")
    group_threshold = attributes.pop("group-threshold", None)
    if number:
        report.set(source, path, MODES[number])
        if group_threshold is not None:
            report.ignore(group_threshold, "applies to cluster-mode 0 only")
        return MODES[number]
    least = 1 + (group_threshold.whole(0) if group_threshold is not None else 0)
    report.set(source, path, "dbscan")
    report.set(
        group_threshold or "group-threshold is not set",
        ("detection", "min_boxes"),
        min(least, 1000),
        "OpenCV keeps groups of more than group-threshold boxes",
    )
    report.differ(
        source,
        "this agent lacks OpenCV's groupRectangles; dbscan, the most similar mode, is set. Boxes and scores will "
        "differ. eps is another distance there, so this agent's default stays; check the effect with 'evaluate'",
    )
    attributes.pop("eps", None)
    attributes.pop("minBoxes", None)
    return "grouped"


def _import(attribute: _Attribute, entry: Optional[Entry], mode: str, report: Report) -> None:
    path = ("detection", attribute.setting)
    default = getattr(DetectionParams(), attribute.setting)
    if entry is None:
        if mode not in attribute.modes and attribute.modes != _EVERY:
            return
        value = attribute.default
        source: Union[Entry, str] = f"{attribute.key} is not set, so nvinfer uses {value:g}"
    else:
        # The published parser refuses topk=-1, although -1 is its default.
        read = entry.whole if attribute.whole else entry.number
        value = read(-1.0 if attribute.key == "topk" else 0.0, attribute.bound)
        source = entry
    fitting = _fitted(attribute, value)
    if entry is None and fitting == default:
        return
    report.set(source, path, int(fitting) if attribute.whole else fitting)
    if attribute.key == "topk" and value < 0:
        return
    if fitting != value:
        report.differ(source, f"this agent accepts {_bounds(attribute)}; {fitting:g} is set")
    elif entry is not None and attribute.setting in ("min_width_px", "min_height_px") and value:
        report.taken[-1] += "; in px of the camera's frame, in nvinfer of the muxer's frame"


def _fitted(attribute: _Attribute, value: float) -> float:
    if attribute.key == "topk" and value < 0:
        return attribute.high
    if attribute.setting in _MEANS_MORE_THAN_ZERO and value == 0:
        return _TINY
    return min(max(value, attribute.low), attribute.high)


def _bounds(attribute: _Attribute) -> str:
    if attribute.setting in _MEANS_MORE_THAN_ZERO:
        return f"more than 0, and at most {attribute.high:g}"
    return f"{attribute.low:g} to {attribute.high:g}"
