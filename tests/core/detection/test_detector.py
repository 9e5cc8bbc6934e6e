"""Raw outputs to faces in px of the image, with NVIDIA's configurations and sizes."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.core.detection.detector import Decoder, DetectionParams, FaceDetector
from edge_agent.core.detection.evidence import EvidenceParams
from edge_agent.core.detection.model_contract import CENTERFACE, FACEDETECTIR, ModelContract
from edge_agent.core.frame import Image
from edge_agent.core.types import CLEAR, FAIR, WEAK, EngineInfo
from edge_agent.errors import ModelError
from tests.core.detection import detection_oracles as oracle

PEOPLENET = ModelContract("gridbox", net=(960, 544), labels=("person", "bag", "face"), target=2)
FACEDETECT = ModelContract("gridbox", net=(736, 416))

# From NVIDIA's configuration files; a limit of 1000 means none.
NVIDIA = {
    "a, class-attrs-0 (shipped)": DetectionParams("nms", 0.5, 20, pre_cluster_threshold=0.4),
    "a, class-attrs-all": DetectionParams("nms", 0.5, 20, pre_cluster_threshold=0.2),
    "a, commented DBSCAN": DetectionParams(
        "dbscan", None, 20, eps=0.7, min_boxes=3, pre_cluster_threshold=0.4, min_width_px=4, min_height_px=4
    ),
    "b, DBSCAN on a branch": DetectionParams(
        "dbscan", None, 1000, eps=0.7, min_boxes=3, pre_cluster_threshold=0.05, min_width_px=4, min_height_px=4
    ),
    "c, Triton": DetectionParams("nms", 0.5, 20, post_cluster_threshold=0.2, pre_cluster_threshold=0.4),
    "nvinfer's defaults": DetectionParams("nms", 0.3, 1000, pre_cluster_threshold=0.2),
    "FaceDetect": DetectionParams("dbscan", None, 1000, eps=0.2, min_boxes=1, pre_cluster_threshold=0.2),
    "hybrid, with a's values": DetectionParams("hybrid", 0.5, 20, eps=0.7, min_boxes=3, pre_cluster_threshold=0.4),
}


class RecordedEngine:
    """An engine that answers what was recorded, and remembers what it was asked."""

    def __init__(self, contract, outputs):
        self.info = EngineInfo("recorded", "fp32", "none", "")
        self.contract = contract
        self.outputs = outputs
        self.images = []

    def infer(self, image):
        self.images.append(image)
        return self.outputs

    def close(self):
        pass


def planted(boxes, contract=FACEDETECTIR, scores=None):
    """Outputs in which each network-px box lights the cell under its middle."""
    columns, rows = contract.net[0] // 16, contract.net[1] // 16
    outputs = {"cov": np.zeros((1, rows, columns), np.float32), "bbox": np.zeros((4, rows, columns), np.float32)}
    for i, (left, top, right, bottom) in enumerate(boxes):
        column, row = int((left + right) / 32), int((top + bottom) / 32)
        x, y = column * 16 + 0.5, row * 16 + 0.5
        outputs["cov"][0, row, column] = 0.9 if scores is None else scores[i]
        outputs["bbox"][:, row, column] = np.array([x - left, y - top, right - x, bottom - y]) / 35
    return outputs


def detect(contract, outputs, size=(640, 480), params=None):
    image = Image(np.zeros((size[1], size[0]), np.uint8))
    return FaceDetector(RecordedEngine(contract, outputs), params or DetectionParams()).detect(image)


def literal(outputs, contract, params, source):
    """The whole way, by the scalar loops: decode, cluster, scale, size filter."""
    rows = oracle.departures(
        oracle.gridbox(outputs["cov"], outputs["bbox"], contract.target, params.pre_cluster_threshold, contract.net),
        contract.net,
    )
    if params.cluster_mode == "nms":
        rows = oracle.nms(rows, params.nms_iou_threshold, params.post_cluster_threshold, params.top_k)
    elif params.cluster_mode == "dbscan":
        rows = oracle.dbscan(rows, params.eps, params.min_boxes, top_k=params.top_k)
    else:
        rows = oracle.hybrid(rows, params.eps, params.min_boxes, params.nms_iou_threshold, top_k=params.top_k)
    x, y = source[0] / contract.net[0], source[1] / contract.net[1]
    scaled = [(r[0] * x, r[1] * y, r[2] * x, r[3] * y, r[4]) for r in rows]
    return [r for r in scaled if not (r[2] - r[0] < params.min_width_px or r[3] - r[1] < params.min_height_px)]


@pytest.mark.parametrize("params", NVIDIA.values(), ids=NVIDIA.keys())
@pytest.mark.parametrize(
    ("contract", "source", "grids"),
    [(FACEDETECTIR, (1280, 800), 60), (FACEDETECT, (640, 480), 15), (PEOPLENET, (1920, 1080), 8)],
    ids=["384x240", "736x416", "960x544"],
)
def test_every_configuration_of_nvidias_agrees_with_the_literal_loops(contract, source, grids, params):
    rng = np.random.default_rng(7)
    columns, rows = contract.net[0] // 16, contract.net[1] // 16
    decoder = Decoder(contract, params)
    found = 0
    for _ in range(grids):
        outputs = oracle.face_grid(rng, len(contract.labels), rows, columns, faces=int(rng.integers(0, 7)))
        faces = decoder.decode(outputs, source)
        expected = np.array(literal(outputs, contract, params, source)).reshape(-1, 5)
        np.testing.assert_allclose(faces.xyxy, expected[:, :4], atol=0.02)
        np.testing.assert_allclose(faces.confidence, expected[:, 4], atol=1e-6)
        found += len(faces)
    assert found > grids


def test_faces_are_in_px_of_the_image():
    outputs = planted([(96, 60, 144, 120)])
    faces = detect(FACEDETECTIR, outputs, (640, 480))
    scale = np.array([640 / 384, 480 / 240] * 2)
    np.testing.assert_allclose(faces.xyxy, np.array([[96, 60, 144, 120]]) * scale, atol=1e-2)
    assert faces.score_kind == "max"


def test_the_engine_is_called_once_with_the_image():
    engine = RecordedEngine(FACEDETECTIR, planted([]))
    strided = np.zeros((480, 640, 3), np.uint8)[::2, ::2]
    image = Image(strided)
    assert len(FaceDetector(engine, DetectionParams()).detect(image)) == 0
    assert engine.images == [image]


def centerface_outputs(cell, size_px, rows=64, columns=96):
    outputs = {
        "heatmap": np.zeros((1, rows, columns), np.float32),
        "scale": np.zeros((2, rows, columns), np.float32),
        "offset": np.zeros((2, rows, columns), np.float32),
    }
    outputs["heatmap"][0, cell[0], cell[1]] = 0.9
    outputs["scale"][:, cell[0], cell[1]] = np.log(size_px / 4)
    return outputs


def test_letterboxed_faces_are_in_px_of_the_image():
    faces = detect(CENTERFACE, centerface_outputs((30, 40), 40.0), (1280, 800))  # 384x240 inside 384x256
    middle, half = np.array([162.0, 122.0]), 20
    expected = np.concatenate([middle - half, middle + half]) * (1280 / 384)
    np.testing.assert_allclose(faces.xyxy, [expected], rtol=1e-5)


def test_a_face_in_the_letterbox_padding_is_none_and_one_half_in_it_is_clipped():
    assert len(detect(CENTERFACE, centerface_outputs((62, 40), 8.0), (1280, 800))) == 0
    faces = detect(CENTERFACE, centerface_outputs((59, 40), 40.0), (1280, 800))
    assert faces.xyxy[0, 3] == 800
    assert faces.xyxy[0, 1] > 700


@pytest.mark.parametrize(("contract", "threshold", "iou"), [(FACEDETECTIR, 0.4, 0.5), (CENTERFACE, 0.35, 0.3)])
def test_unset_parameters_are_the_models_defaults(contract, threshold, iou):
    assert Decoder(contract, DetectionParams()).threshold == threshold
    # Two boxes of IoU 0.4: one face or two, by the model's own threshold.
    if contract is FACEDETECTIR:
        outputs = planted([(100, 100, 140, 140), (117.1, 100, 157.1, 140)])
    else:
        outputs = centerface_outputs((30, 40), 40.0)
        outputs["heatmap"][0, 30, 44] = 0.8
        outputs["scale"][:, 30, 44] = np.log(10)
        outputs["offset"][1, 30, 44] = 0.3
    assert len(detect(contract, outputs)) == (2 if iou == 0.5 else 1)
    assert len(detect(contract, outputs, params=DetectionParams(nms_iou_threshold=0.35))) == 1
    assert len(detect(contract, outputs, params=DetectionParams(nms_iou_threshold=0.45))) == 2


def test_the_threshold_can_be_changed_live_and_set_back():
    outputs = planted([(40, 40, 80, 80), (200, 100, 240, 140)], scores=[0.9, 0.5])
    detector = FaceDetector(RecordedEngine(FACEDETECTIR, outputs), DetectionParams(pre_cluster_threshold=0.45))
    image = Image(np.zeros((240, 384), np.uint8))
    assert len(detector.detect(image)) == 2
    detector.set_threshold(0.8)
    assert detector.threshold == 0.8
    assert len(detector.detect(image)) == 1
    detector.set_threshold(None)
    assert detector.threshold == 0.45
    detector.set_threshold(0.95)
    detector.configure(DetectionParams())
    assert detector.threshold == 0.4


@pytest.mark.parametrize("value", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_a_threshold_out_of_range_is_refused_and_the_old_one_stays(value):
    decoder = Decoder(FACEDETECTIR, DetectionParams())
    with pytest.raises(ValueError, match=r"threshold: expected .* got"):
        decoder.set_threshold(value)
    assert decoder.threshold == 0.4


def test_configure_takes_every_parameter_live():
    outputs = planted([(40, 40, 80, 80), (200, 100, 260, 140)])
    decoder = Decoder(FACEDETECTIR, DetectionParams())
    assert len(decoder.decode(outputs, (384, 240))) == 2
    decoder.configure(DetectionParams(min_width_px=50))
    assert len(decoder.decode(outputs, (384, 240))) == 1
    decoder.configure(DetectionParams(top_k=1))
    assert len(decoder.decode(outputs, (384, 240))) == 1


@pytest.mark.parametrize(
    ("params", "kept"), [({"min_width_px": 80}, 1), ({"min_width_px": 81}, 0), ({"min_height_px": 81}, 0)]
)
def test_the_minimum_size_is_in_px_of_the_image(params, kept):
    outputs = planted([(40, 40, 80, 80)])
    assert len(detect(FACEDETECTIR, outputs, (768, 480), DetectionParams(**params))) == kept


def test_an_unknown_kind_of_model_is_a_clear_error():
    with pytest.raises(ModelError, match=r"'yolo' is unknown.*gridbox, centerface"):
        Decoder(replace(FACEDETECTIR, kind="yolo"), DetectionParams())


def test_outputs_of_another_model_are_a_clear_error():
    with pytest.raises(ModelError, match="expected"):
        detect(replace(FACEDETECTIR, target=1), planted([]))


def test_every_field_is_described_and_bounded():
    for field in fields(DetectionParams):
        assert field.metadata["description"]
        assert field.name in ("cluster_mode", "adapt_levels") or {"ge", "gt"} & set(field.metadata)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(16, 4000),
    height=st.integers(16, 4000),
    mode=st.sampled_from(["nms", "dbscan", "hybrid", "none"]),
    centerface=st.booleans(),
)
def test_faces_lie_in_the_image(seed, width, height, mode, centerface):
    rng = np.random.default_rng(seed)
    if centerface:
        placed = CENTERFACE.place((width, height))
        rows, columns = placed.net_h // 4, placed.net_w // 4
        outputs = {
            "heatmap": (rng.random((1, rows, columns)) * (rng.random((1, rows, columns)) < 0.01)).astype(np.float32),
            "scale": rng.uniform(-2, 5, (2, rows, columns)).astype(np.float32),
            "offset": rng.uniform(-1, 1, (2, rows, columns)).astype(np.float32),
        }
    else:
        outputs = oracle.random_grid(rng, 1, 15, 24, 0.1)
    contract = CENTERFACE if centerface else FACEDETECTIR
    faces = Decoder(contract, DetectionParams(mode)).decode(outputs, (width, height))
    assert len(faces) <= 20
    assert (faces.xyxy >= 0).all()
    assert (faces.xyxy <= np.array([width, height] * 2)).all()
    assert (faces.xyxy[:, 2:] > faces.xyxy[:, :2]).all()
    assert ((faces.confidence > 0) & (faces.confidence <= 1)).all()
    assert (np.diff(faces.confidence) <= 0).all()


def grid_or_heat(rng, centerface):
    """Contract and random outputs of either kind, with scores all over 0..1."""
    if not centerface:
        return FACEDETECTIR, oracle.random_grid(rng, 1, 15, 24, 0.2)
    heat = rng.random((1, 72, 96)) * (rng.random((1, 72, 96)) < 0.02)
    scale, offset = rng.uniform(0, 3, (2, 72, 96)), rng.uniform(-1, 1, (2, 72, 96))
    return CENTERFACE, {
        name: values.astype(np.float32) for name, values in (("heatmap", heat), ("scale", scale), ("offset", offset))
    }


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    mode=st.sampled_from(["nms", "dbscan", "hybrid", "none"]),
    post=st.sampled_from([0.0, 0.6]),
    min_score=st.sampled_from([0.0, 1.5]),
    top_k=st.sampled_from([5, 1000]),
    centerface=st.booleans(),
)
def test_grading_adds_weak_detections_and_leaves_the_faces_as_they_are(seed, mode, post, min_score, top_k, centerface):
    contract, outputs = grid_or_heat(np.random.default_rng(seed), centerface)
    params = DetectionParams(
        mode,
        None,
        top_k,
        post_cluster_threshold=post,
        dbscan_min_score=min_score,
        pre_cluster_threshold=0.5,
        min_boxes=2,
    )
    faces = Decoder(contract, params).decode(outputs, (640, 480))
    found = Decoder(contract, params, EvidenceParams(continue_ratio=0.6)).decode(outputs, (640, 480))
    clear = np.ones(len(found), bool) if found.evidence is None else found.evidence >= FAIR
    np.testing.assert_array_equal(found.xyxy[clear], faces.xyxy)
    np.testing.assert_array_equal(found.confidence[clear], faces.confidence)
    assert len(found) <= top_k and (found.confidence >= np.float32(0.3)).all()
    same = Decoder(contract, params, EvidenceParams(continue_ratio=1.0)).decode(outputs, (640, 480))
    strong = np.ones(len(same), bool) if same.evidence is None else same.evidence >= FAIR
    np.testing.assert_array_equal(same.xyxy[strong], faces.xyxy)


def blob(score, left, outputs):
    """Add a face of 3 x 2 cells to a FaceDetectIR grid."""
    for row in (3, 4):
        for column in range(left, left + 3):
            x, y = column * 16 + 0.5, row * 16 + 0.5
            outputs["cov"][0, row, column] = score
            outputs["bbox"][:, row, column] = np.array([x - left * 16, y - 40, left * 16 + 64 - x, 96 - y]) / 35


MODEL_DEFAULT = ({}, 0.41, 0.39, 0.27)
RAISED = ({"pre_cluster_threshold": 0.8}, 0.81, 0.79, 0.55)
AFTER_MERGING = ({"pre_cluster_threshold": 0.2, "post_cluster_threshold": 0.6}, 0.61, 0.59, 0.41)


@pytest.mark.parametrize(
    ("mode", "limits", "clear", "weak", "nothing"),
    [
        (mode, *case)
        for mode in ("nms", "dbscan", "hybrid", "none")
        for case in (MODEL_DEFAULT, RAISED, *([AFTER_MERGING] if mode != "none" else []))
    ],
)
def test_a_face_below_the_score_that_starts_a_track_is_weak_in_every_mode(mode, limits, clear, weak, nothing):
    outputs = planted([])
    for score, left in ((clear, 1), (weak, 9), (nothing, 17)):
        blob(score, left, outputs)
    found = Decoder(FACEDETECTIR, DetectionParams(mode, **limits), EvidenceParams()).decode(outputs, (384, 240))
    each = {(round(float(box[0]) / 16), grade) for (box, _), grade in zip(found, found.evidence.tolist())}
    assert each == {(1, FAIR), (9, WEAK)}


@pytest.mark.parametrize("mode", ["nms", "dbscan", "hybrid", "none"])
@pytest.mark.parametrize(("threshold", "fair", "clear"), [(0.4, 0.54, 0.56), (0.8, 0.84, 0.86), (0.05, 0.28, 0.29)])
def test_a_face_near_the_threshold_is_fair_in_every_mode(mode, threshold, fair, clear):
    outputs = planted([])
    for score, left in ((fair, 1), (clear, 9)):
        blob(score, left, outputs)
    params = DetectionParams(mode, pre_cluster_threshold=threshold)
    found = Decoder(FACEDETECTIR, params, EvidenceParams()).decode(outputs, (384, 240))
    each = {(round(float(box[0]) / 16), grade) for (box, _), grade in zip(found, found.evidence.tolist())}
    assert each == {(1, FAIR), (9, CLEAR)}
    sure = Decoder(FACEDETECTIR, params, EvidenceParams(clear_margin=0.0)).decode(outputs, (384, 240))
    assert sure.evidence is None or set(sure.evidence.tolist()) == {CLEAR}


def test_a_dbscan_group_whose_sum_is_too_small_is_weak():
    outputs = planted([])
    blob(0.5, 1, outputs)
    params = DetectionParams("dbscan", dbscan_min_score=3.5)
    assert len(Decoder(FACEDETECTIR, params).decode(outputs, (384, 240))) == 0
    found = Decoder(FACEDETECTIR, params, EvidenceParams()).decode(outputs, (384, 240))
    assert found.evidence.tolist() == [WEAK] and found.confidence.tolist() == [0.5]


def test_a_threshold_set_by_a_command_moves_the_score_that_continues():
    outputs = planted([(48, 48, 112, 112)], scores=[0.65])
    decoder = Decoder(FACEDETECTIR, DetectionParams(), EvidenceParams())
    assert decoder.decode(outputs, (384, 240)).evidence is None
    decoder.set_threshold(0.9)
    assert decoder.decode(outputs, (384, 240)).evidence.tolist() == [WEAK]
    decoder.configure(DetectionParams(pre_cluster_threshold=0.9), EvidenceParams(continue_ratio=0.8))
    assert len(decoder.decode(outputs, (384, 240))) == 0
