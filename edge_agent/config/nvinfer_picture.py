"""How nvinfer would prepare a picture, held against how this agent prepares it for the same model."""

import math
from typing import Dict, Optional

from edge_agent.config.nvinfer_file import Entry
from edge_agent.config.nvinfer_report import Report
from edge_agent.core.contract import FACEDETECTIR
from edge_agent.inference.model_facts import Facts

_COLORS = ("RGB", "BGR", "GRAY")
_DIMENSIONS = ("infer-dims", "input-dims", "uff-input-dims")


def check_picture(left: Dict[str, Entry], facts: Optional[Facts], report: Report) -> None:
    """Take the keys of preprocessing and of tensors out of `left`, and tell what contradicts the model.

    Args:
        left: Entries of [property] that nothing has taken yet.
        facts: Of the model; None where it could not be read.
        report: What comes of it.

    Raises:
        InputError: A value that nvinfer refuses, too.
    """
    _scale(left, facts, report)
    _color(left, facts, report)
    _dimensions(left, facts, report)
    _outputs(left, facts, report)
    aspect = left.pop("maintain-aspect-ratio", None)
    if aspect is not None and aspect.flag():
        report.differ(aspect, "this agent stretches the picture, as NVIDIA's own configurations of DetectNet_v2 do")
    elif aspect is not None:
        report.agree(aspect, "the picture is stretched")


def _scale(left: Dict[str, Entry], facts: Optional[Facts], report: Report) -> None:
    gain = facts.contract.gain if facts is not None else FACEDETECTIR.gain
    entry = left.pop("net-scale-factor", None)
    value = entry.number() if entry is not None else 1.0
    if not math.isclose(value, gain, rel_tol=1e-4):
        source = entry or "net-scale-factor is not set, which means 1"
        report.differ(source, f"DetectNet_v2 is trained on pictures in 0..1, so this agent uses 1/{1 / gain:g}")
    elif entry is not None:
        report.agree(entry, f"this agent's own, 1/{1 / gain:g}")
    offsets = left.pop("offsets", None)
    if offsets is not None and any(offsets.numbers((1, 2, 3, 4))):
        report.differ(offsets, "DetectNet_v2 is trained without mean subtraction; this agent subtracts none")
    elif offsets is not None:
        report.agree(offsets, "nothing is subtracted")
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
        report.differ(entry, "colour is given as RGB here; gray pictures are the same either way")
    else:
        report.agree(entry, f"{color}; of a gray picture all channels are equal")


def _dimensions(left: Dict[str, Entry], facts: Optional[Facts], report: Report) -> None:
    given = [left.pop(key) for key in _DIMENSIONS if key in left]
    for entry in given[1:]:
        report.ignore(entry, f"{given[0].key} comes first")
    if not given:
        return
    entry = given[0]
    values = tuple(int(value) for value in entry.numbers((3,) if entry.key == "infer-dims" else (4,)))
    if len(values) == 4 and values[3] != 0:
        report.differ(entry, "the order of axes is not NCHW, which this agent's models have")
        return
    if facts is None:
        report.ignore(entry, "the model's own size counts")
        return
    contract = facts.contract
    own = (contract.channels, contract.net[1], contract.net[0])
    if values[:3] != own:
        report.differ(entry, f"the model takes {';'.join(map(str, own))}, which counts")
    else:
        report.agree(entry, "the model's own size")


def _outputs(left: Dict[str, Entry], facts: Optional[Facts], report: Report) -> None:
    entry = left.pop("output-blob-names", None)
    if entry is None:
        return
    names = {_bare(name) for name in entry.texts()}
    if facts is not None and names != {_bare(name) for name in facts.outputs.values()}:
        report.differ(entry, f"the model's are {';'.join(facts.outputs.values())}, which count")
    elif not all(any(role in name for name in names) for role in ("cov", "bbox")):
        report.differ(entry, "a DetectNet_v2 has one output with cov and one with bbox in its name")
    else:
        report.agree(entry, "found by themselves")


def _bare(name: str) -> str:
    return name[:-2] if name.endswith(":0") else name
