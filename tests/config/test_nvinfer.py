"""nvinfer's configurations: both syntaxes, the result of every key, faults with their lines, round trips."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.config.nvinfer.exporter import export_nvinfer
from edge_agent.config.nvinfer.file import Report, parse_nvinfer
from edge_agent.config.nvinfer.importer import import_nvinfer
from edge_agent.config.settings import Settings, load_settings
from edge_agent.errors import InputError, ModelError
from tests.fakes import graphs
from tests.fakes.uff_writer import detectnet

# In the words of NVIDIA's config_infer_primary_facedetectir.txt (DeepStream 6.0 to 7.0).
FACEDETECTIR = """
[property]
gpu-id=0
net-scale-factor=0.0039215697906911373
tlt-model-key=tlt_encode
tlt-encoded-model=../models/facedetectir/resnet18_facedetectir_pruned.etlt
labelfile-path=../labels_facedetectir.txt
int8-calib-file=../models/facedetectir/facedetectir_int8.txt
model-engine-file=../models/facedetectir/resnet18_facedetectir_pruned.etlt_b1_gpu0_int8.engine
input-dims=3;240;384;0
uff-input-blob-name=input_1
batch-size=1
process-mode=1
model-color-format=0
## 0=FP32, 1=INT8, 2=FP16 mode
network-mode=1
num-detected-classes=1
interval=0
gie-unique-id=1
output-blob-names=output_bbox/BiasAdd;output_cov/Sigmoid
cluster-mode=2

#[class-attrs-all]
#minBoxes=3

[class-attrs-all]
topk=20
nms-iou-threshold=0.5
pre-cluster-threshold=0.2

[class-attrs-0]
topk=20
nms-iou-threshold=0.5
pre-cluster-threshold=0.4
"""
AS_SETTINGS = {
    "model.model": "facedetectir",
    "model.precision": "int8",
    "detection.cluster_mode": "nms",
    "detection.pre_cluster_threshold": "0.4",
    "detection.nms_iou_threshold": "0.5",
    "detection.top_k": "20",
}


def as_yaml(text: str) -> str:
    """The same in NVIDIA's YAML form."""
    lines = []
    for line in text.splitlines():
        if line.startswith("["):
            lines.append(line.strip("[]") + ":")
        elif line.startswith("#") or not line:
            lines.append(line)
        else:
            key, _, value = line.partition("=")
            lines.append(f"  {key}: {value}")
    return "\n".join(lines)


def imported(folder: Path, text: str, name: str = "config.txt", **options: Any) -> Report:
    path = folder / name
    path.write_text(text, "utf-8")
    return import_nvinfer(path, folder / "models", **options)


def dotted(report: Report) -> Dict[str, str]:
    return {".".join(path): value for path, value in report.settings.items()}


def about(sentences: List[str], key: str) -> str:
    (sentence,) = [sentence for sentence in sentences if key in sentence]
    return sentence


def minimal(model: Path, *properties: str, attributes: str = "") -> str:
    lines = ["[property]", f"onnx-file={model.name}", "net-scale-factor=0.00392157", "cluster-mode=2", *properties]
    return "\n".join(lines) + f"\n[class-attrs-all]\n{attributes}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graphs.gridbox(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def peoplenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes in PeopleNet's size under TAO's names, and its label file under a name of its own."""
    folder = tmp_path_factory.mktemp("peoplenet")
    (folder / "names.txt").write_text("Person\nBag\nFace\n")
    return graphs.gridbox(folder / "p.onnx", net=(960, 544), classes=3, suffix=":0", batch="N")


@pytest.mark.parametrize("name", ["config.txt", "config.yml"])
def test_nvidias_own_file(tmp_path: Path, name: str) -> None:
    text = as_yaml(FACEDETECTIR) if name.endswith("yml") else FACEDETECTIR
    report = imported(tmp_path, text, name)
    assert dotted(report) == AS_SETTINGS
    assert not report.differs
    load_settings({}, None, dotted(report))
    assert "edge-agent model fetch facedetectir --accept-license" in about(report.taken, "tlt-encoded-model")
    assert "tlt_encode" not in "".join(report.taken + report.ignored)
    keys = {line.partition("=")[0] for line in FACEDETECTIR.splitlines() if "=" in line and not line.startswith("#")}
    reported = "\n".join(report.taken + report.ignored)
    assert not {key for key in keys if f": {key}=" not in reported}, "a key that was not reported"


def test_a_users_own_file_is_named_with_its_key(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "facedetectir"
    folder.mkdir(parents=True)
    for name in ("mine.etlt", "resnet18_facedetectir_pruned.etlt"):
        (folder / name).write_bytes(b"\x07\0\0\0input_1" + bytes(16))
    (tmp_path / "configs").mkdir()
    text = FACEDETECTIR.replace("=../models", f"={tmp_path}/models")
    report = imported(tmp_path / "configs", text)
    assert dotted(report)["model.model"] == str(folder / "resnet18_facedetectir_pruned.etlt")
    report = import_nvinfer(tmp_path / "configs" / "config.txt", tmp_path / "models")
    assert dotted(report)["model.model"] == "facedetectir"
    mine = text.replace("resnet18_facedetectir_pruned.etlt\n", "mine.etlt\n").replace("key=tlt_encode", "key=sesame 13")
    report = imported(tmp_path / "configs", mine)
    assert (dotted(report)["model.model"], dotted(report)["model.key"]) == (str(folder / "mine.etlt"), "sesame 13")
    assert "sesame" not in "".join(report.taken + report.ignored + report.differs)
    assert "cannot be read here" in about(report.ignored, "nothing was compared")
    assert "does not exist" in about(report.differs, "int8-calib-file")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("net-scale-factor=1.0", "pixels in 0..1, so this agent uses 1/255"),
        ("offsets=124;117;104", "without mean subtraction"),
        ("mean-file=mean.ppm", "without mean subtraction"),
        ("model-color-format=1", "this agent feeds RGB"),
        ("model-color-format=2", "GRAY, but the model takes 3 channels"),
        ("maintain-aspect-ratio=1", "stretches"),
        ("infer-dims=3;544;960", "the model takes 3;240;384, which is used"),
        ("infer-dims=3;240;385", "the model takes 3;240;384, which is used"),
        ("uff-input-dims=3;240;384;1", "not NCHW"),
        ("num-detected-classes=3", "the model has 1"),
        ("output-blob-names=boxes;scores", "output_cov/Sigmoid;output_bbox/BiasAdd, which are used"),
        ("parse-bbox-func-name=NvDsInferParseYolo", "this agent loads no custom code"),
        ("process-mode=2", "secondary"),
        ("gpu-id=1", "first GPU"),
        ("network-mode=1", "INT8 needs a calibration cache"),
        ("int8-calib-file=none.txt", "no calibration is set"),
        ("workspace-size=1", "16 to 65536 MB"),
        ("filter-out-class-ids=0", "is the face"),
    ],
)
def test_keys_that_contradict_the_model_or_agent_are_reported(
    tmp_path: Path, model: Path, line: str, reason: str
) -> None:
    text = minimal(model, line).replace("onnx-file=", f"onnx-file={model.parent}/")
    report = imported(tmp_path, text)
    assert len(report.differs) == 1, report.differs
    assert reason in report.differs[0]
    assert line in report.differs[0]
    load_settings({}, None, dotted(report))


def test_missing_keys_have_nvinfers_defaults(tmp_path: Path, model: Path) -> None:
    report = imported(model.parent, f"[property]\nonnx-file={model.name}\ncluster-mode=2")
    assert dotted(report) == {
        "model.model": str(model),
        "model.precision": "fp32",
        "detection.cluster_mode": "nms",
        "detection.pre_cluster_threshold": "0.2",
        "detection.nms_iou_threshold": "0.3",
        "detection.top_k": "1000",
    }
    assert "which means 1: " in about(report.differs, "net-scale-factor")


@pytest.mark.parametrize(
    ("lines", "mode"),
    [("cluster-mode=1", "dbscan"), ("cluster-mode=3 # hybrid", "hybrid"), ("cluster-mode=4", "none"),
     ("enable-dbscan=1", "dbscan"), ("cluster-mode=2\nenable-dbscan=1", "nms")],
)  # fmt: skip
def test_clustering(model: Path, lines: str, mode: str) -> None:
    text = minimal(model, attributes="eps=0.5\nminBoxes=2\ndbscan-min-score=0.7\n").replace("cluster-mode=2", lines)
    report = imported(model.parent, text)
    found = load_settings({}, None, dotted(report)).detection
    assert (found.cluster_mode, found.eps, found.min_boxes, found.dbscan_min_score) == (mode, 0.5, 2, 0.7)
    assert not report.differs


@pytest.mark.parametrize("lines", ["cluster-mode=0", "enable-dbscan=0", ""])
def test_grouped_rectangles_become_their_nearest(model: Path, lines: str) -> None:
    text = minimal(model, attributes="group-threshold=1\neps=0.2\n").replace("cluster-mode=2", lines)
    report = imported(model.parent, text)
    found = load_settings({}, None, dotted(report)).detection
    assert (found.cluster_mode, found.min_boxes, found.eps) == ("dbscan", 2, 0.7)
    assert "this agent lacks OpenCV's groupRectangles" in report.differs[0]
    assert len(report.differs) == 1


def test_values_beyond_this_agents_bounds_are_clamped_and_reported(model: Path) -> None:
    attributes = "pre-cluster-threshold=0\ntopk=5000\ndetected-min-w=9000\nroi-top-offset=5\nwhat=1\n"
    report = imported(model.parent, minimal(model, attributes=attributes))
    found = load_settings({}, None, dotted(report)).detection
    assert (found.pre_cluster_threshold, found.top_k, found.min_width_px) == (0.001, 1000, 8192)
    assert [sentence.partition("=")[0].split()[-1] for sentence in report.differs] == [
        "pre-cluster-threshold", "topk", "detected-min-w",
    ]  # fmt: skip
    assert "ROI" in about(report.ignored, "roi-top-offset")
    assert "not known" in about(report.ignored, "what=1")


def test_of_the_old_and_the_new_name_of_the_threshold_the_later_counts(model: Path) -> None:
    for attributes, value in (("threshold=0.3\n", 0.3), ("pre-cluster-threshold=0.1\nthreshold=0.3\n", 0.3),
                              ("threshold=0.3\npre-cluster-threshold=0.1\n", 0.1)):  # fmt: skip
        report = imported(model.parent, minimal(model, attributes=attributes))
        assert dotted(report)["detection.pre_cluster_threshold"] == repr(value)


def test_of_a_repeated_key_the_last_value_counts(model: Path) -> None:
    report = imported(model.parent, minimal(model, "network-mode=0", "network-mode=2"))
    assert dotted(report)["model.precision"] == "fp16"
    assert "a later line" in about(report.ignored, "network-mode=0")


def test_the_class_that_is_a_face(peoplenet: Path) -> None:
    folder = peoplenet.parent
    text = minimal(peoplenet, "num-detected-classes=3", "labelfile-path=names.txt") + (
        "pre-cluster-threshold=0.2\n[class-attrs-0]\npre-cluster-threshold=0.5\n"
        "[class-attrs-2]\npre-cluster-threshold=0.3\n"
    )
    report = imported(folder, text)
    found = dotted(report)
    assert (found["model.class_name"], found["model.labels_file"]) == ("Face", str(folder / "names.txt"))
    assert found["detection.pre_cluster_threshold"] == "0.3"
    assert "not the face class" in about(report.ignored, "[class-attrs-0]")
    assert not report.differs
    bag = dotted(imported(folder, text, class_name="bag"))
    assert (bag["model.class_name"], bag["detection.pre_cluster_threshold"]) == ("Bag", "0.2")
    unnamed = text.replace("labelfile-path=names.txt", "labelfile-path=none.txt")
    assert dotted(imported(folder, unnamed, class_name="2"))["model.class_name"] == "2"
    with pytest.raises(InputError, match=r"config.txt:6: which of the classes 0, 1, 2 is a face\?"):
        imported(folder, unnamed)


FAULTS = [
    ("", "no group [property]"),
    ("[application]\nperf=1", "no group [property]"),
    ("gpu-id=0\n[property]", ":1: gpu-id: stands before any group"),
    ("[property]\ngpu-id 0", ":2: 'gpu-id 0': expected [group], key=value"),
    ("[property\ngpu-id=0", ":1: '[property': expected [group]"),
    (
        "infer_config {\n  unique_id: 1",
        ":1: 'infer_config {': expected nvinfer's configuration; this one is for nvinferserver",
    ),
    ("[property]\n=0", ":2: '=0': expected"),
    ("[property]\n\n# x\nmodel-engine-file=a.engine", ":1: [property] names no model"),
    ("[property]\nonnx-file=", ":2: onnx-file: expected a value"),
    ("[property]\nonnx-file=a\\qb.onnx", ":2: onnx-file: expected no escape \\q"),
    ("[property]\nonnx-file=m.caffemodel", ":2: onnx-file=m.caffemodel: expected a file that ends in .onnx"),
    ("[property]\nnetwork-type=1", ":2: network-type=1: expected 0, a detector"),
    ("[property]\nis-classifier=1", ":2: is-classifier=1: expected 0, a detector"),
    ("{}\nnet-scale-factor=1/255", ":6: net-scale-factor=1/255: expected a number"),
    ("{}\nnet-scale-factor=nan", ":6: net-scale-factor=nan: expected a number"),
    ("{}\nnetwork-mode=3", ":6: network-mode=3: expected a whole number from 0 to 2"),
    ("{}\nnum-detected-classes=0", ":6: num-detected-classes=0: expected a whole number, at least 1"),
    ("{}\ninfer-dims=3;240", ":6: infer-dims=3;240: expected 3 numbers separated by ';'"),
    ("{}\ninput-dims=3;240;384", ":6: input-dims=3;240;384: expected 4 numbers"),
    ("{}\ncluster-mode=9", ":6: cluster-mode=9: expected a whole number from 0 to 4"),
    ("{}\nenable-dla=yes", ":6: enable-dla=yes: expected 0 or 1"),
    ("{}\n[class-attrs-1]\n", ":6: [class-attrs-1]: expected class-attrs-all, or a class from 0 to 0"),
    ("{}\n[class-attrs-x]\n", ":6: [class-attrs-x]: expected"),
    ("{}\n[class-attrs-all]\ntopk=2.5", ":7: topk=2.5: expected a whole number"),
    ("{}\n[class-attrs-all]\nnms-iou-threshold=1.5", ":7: nms-iou-threshold=1.5: expected a number from 0 to 1"),
    ("{}\n[class-attrs-0]\npre-cluster-threshold=-1", ":7: pre-cluster-threshold=-1: expected a number, at least 0"),
]


@pytest.mark.parametrize(("text", "reason"), FAULTS)
def test_a_broken_file_gives_one_line_that_names_the_line(model: Path, text: str, reason: str) -> None:
    whole = minimal(model, "gpu-id=0").partition("\n[class")[0]
    with pytest.raises(InputError) as caught:
        imported(model.parent, text.replace("{}", whole))
    assert reason in caught.value.message
    assert "config.txt" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("property:\n  - a", ":2: '- a': expected 'group:'"),
        ("property: {gpu-id: 0}", ":1: '{gpu-id: 0}': expected a plain value"),
        ("property: 1", ":1: property: expected nothing behind"),
        ("property:\n  a: [3, 240]", ":2: '[3, 240]': expected a plain value"),
        ("property:\n  a: 1\n    b: 2", ":3: b: indented unlike the lines above"),
        ("property:\n\ta: 1", ":2: 'a: 1': expected"),
        ("  a: 1\nproperty:", ":1: a: stands before any group"),
        ("[property]\ngpu-id=0", ":1: '[property]': expected 'group:'"),
    ],
)
def test_a_broken_yaml_file_gives_one_line_too(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        imported(tmp_path, text, "config.yml")
    assert reason in caught.value.message


def test_yaml_values_may_be_quoted_and_commented() -> None:
    file = parse_nvinfer("---\nproperty: # x\n  a: '3;240;384' # y\n  b: \"#1\"\n  c: d#e\n", Path("c.yaml"))
    assert {key: entry.text for key, entry in file.groups["property"].entries.items()} == {
        "a": "3;240;384", "b": "#1", "c": "d#e",
    }  # fmt: skip


@pytest.mark.parametrize("data", [b"[property]\n\xff", b"x" * ((1 << 20) + 1)])
def test_binary_input_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "c.txt").write_bytes(data)
    with pytest.raises(InputError, match=r"not UTF-8|larger than"):
        import_nvinfer(tmp_path / "c.txt", tmp_path)
    with pytest.raises(InputError, match=r"No such file"):
        import_nvinfer(tmp_path / "none.txt", tmp_path)


@given(
    st.text(alphabet=st.sampled_from("[]=#;:\\ \t\n\r'\"ab-1.propety"), max_size=80), st.sampled_from([".txt", ".yml"])
)
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused_in_one_line(text: str, suffix: str) -> None:
    try:
        parse_nvinfer("[property]\n" + text if suffix == ".txt" else "property:\n" + text, Path(f"c{suffix}"))
    except InputError as error:
        assert error.message.startswith(f"c{suffix}:")
        assert "\n" not in error.message


def share(low: float) -> st.SearchStrategy:
    return st.floats(low, 1.0, exclude_min=low == 0.0, allow_nan=False)


DETECTION = st.fixed_dictionaries(
    {
        "cluster_mode": st.sampled_from(["nms", "dbscan", "hybrid", "none"]),
        "pre_cluster_threshold": share(0.0),
        "nms_iou_threshold": st.floats(0.0, 1.0),
        "top_k": st.integers(1, 1000),
        "post_cluster_threshold": st.floats(0.0, 1.0),
        "eps": share(0.0),
        "min_boxes": st.integers(1, 1000),
        "dbscan_min_score": st.floats(0.0, 1e9),
        "min_width_px": st.integers(0, 8192),
        "min_height_px": st.integers(0, 8192),
    }
)
MODEL = st.fixed_dictionaries(
    {
        "precision": st.sampled_from(["int8", "fp16", "fp32"]),
        "workspace_mb": st.integers(16, 65536),
        "dla_core": st.none() | st.integers(0, 7),
        "class_name": st.sampled_from(["Person", "Bag", "Face"]),
    }
)


def there_and_back(given_settings: Settings, folder: Path, models: Path) -> Settings:
    export = export_nvinfer(given_settings, models, folder / "labels.txt")
    (folder / "back.txt").write_text(export.text, "utf-8")
    if export.labels is not None:
        (folder / "labels.txt").write_text(export.labels)
    class_name = given_settings.model.class_name
    report = import_nvinfer(folder / "back.txt", models, class_name)
    assert not report.differs, report.differs
    return load_settings({}, None, dotted(report))


@given(detection=DETECTION, model_params=MODEL, calibrated=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_round_trip_is_lossless(
    peoplenet: Path, detection: Dict[str, Any], model_params: Dict[str, Any], calibrated: bool
) -> None:
    folder = peoplenet.parent
    cache = folder / " a cache.txt"
    cache.write_text("TRT-8001-EntropyCalibration2\n")
    words = {f"detection.{name}": value for name, value in detection.items()}
    words.update({f"model.{name}": value for name, value in model_params.items()})
    words.update({"model.model": str(peoplenet), "model.labels_file": str(folder / "names.txt")})
    if calibrated or model_params["precision"] == "int8":
        words["model.calibration"] = str(cache)
    before = load_settings({}, None, words)
    after = there_and_back(before, folder, folder)
    assert (after.model, after.detection) == (before.model, before.detection)


def test_defaults_of_the_model_are_written_out(tmp_path: Path) -> None:
    """A label file is created where there was none."""
    path = graphs.gridbox(tmp_path / "m.onnx", net=(736, 416))
    before = load_settings({}, None, {"model.model": str(path), "model.threads": 4})
    export = export_nvinfer(before, tmp_path, tmp_path / "l.txt")
    assert export.labels == "face\n"
    assert [note.partition(":")[0] for note in export.notes] == ["precision auto", "EDGE_AGENT_MODEL__THREADS"]
    for line in ("infer-dims=3;416;736", "network-mode=2", "pre-cluster-threshold=0.4", "nms-iou-threshold=0.5",
                 "[class-attrs-0]", "output-blob-names=output_bbox/BiasAdd;output_cov/Sigmoid"):  # fmt: skip
        assert f"{line}\n" in export.text
    after = there_and_back(before, tmp_path, tmp_path)
    assert after.detection == replace(before.detection, pre_cluster_threshold=0.4, nms_iou_threshold=0.5)
    again = export_nvinfer(after, tmp_path, tmp_path / "l.txt")
    assert again.text.replace("labels.txt", "l.txt") == export.text


def test_facedetectir_round_trip(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model facedetectir is not there"):
        export_nvinfer(load_settings({}, None, {"model.model": "facedetectir"}), tmp_path, tmp_path / "l.txt")
    folder = tmp_path / "facedetectir"
    folder.mkdir()
    (folder / "resnet18_facedetectir_pruned.etlt").write_bytes(b"\x07\0\0\0input_1" + bytes(16))
    (folder / "facedetectir_int8.txt").write_text("TRT-8001-EntropyCalibration2\n")
    (folder / "labels.txt").write_text("face")
    before = load_settings({}, None, {"model.model": "facedetectir"})
    export = export_nvinfer(before, tmp_path, tmp_path / "l.txt")
    for line in ("infer-dims=3;240;384", "tlt-model-key=tlt_encode", "uff-input-blob-name=input_1", "network-mode=1"):
        assert f"{line}\n" in export.text
    after = there_and_back(before, tmp_path, tmp_path)
    assert after.model == replace(before.model, precision="int8")


def test_uff_round_trip(tmp_path: Path) -> None:
    (tmp_path / "m.uff").write_bytes(detectnet(np.zeros((1, 3, 48, 64), np.float32), (2, 2, 2, 2, 2)).encode())
    (tmp_path / "names.txt").write_text("head\n")
    words = {
        "model.model": f"{tmp_path}/m.uff",
        "model.labels_file": f"{tmp_path}/names.txt",
        "model.precision": "fp16",
    }
    before = load_settings({}, None, words)
    export = export_nvinfer(before, tmp_path, tmp_path / "l.txt")
    for line in (f"uff-file={tmp_path}/m.uff", "infer-dims=3;48;64", "uff-input-blob-name=input_1"):
        assert f"{line}\n" in export.text
    assert there_and_back(before, tmp_path, tmp_path).model == before.model


def test_centerface_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nvinfer cannot decode centerface"):
        export_nvinfer(load_settings({}), tmp_path, tmp_path / "l.txt")
    path = graphs.centerface(tmp_path / "c.onnx")
    with pytest.raises(ModelError, match=r"expected a DetectNet_v2"):
        export_nvinfer(load_settings({}, None, {"model.model": str(path)}), tmp_path, tmp_path / "l.txt")
