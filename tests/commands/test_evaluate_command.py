"""`edge-agent evaluate` as a user runs it: real images, label files and process."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

RNG = np.random.default_rng(5)


def evaluate(*arguments):
    command = [sys.executable, "-m", "edge_agent", "evaluate", "--model", "scripted", "--backend", "scripted"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Ten images with one bright marker each, which the scripted engine detects, and one without."""
    root = tmp_path_factory.mktemp("labelled")
    (root / "images").mkdir()
    (root / "kitti").mkdir()
    coco = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "Face"}, {"id": 2, "name": "car"}]}
    for index in range(11):
        image = RNG.normal(60, 3, (480, 768)).clip(0, 255).astype(np.uint8)
        left, top = 96 + 32 * index, 96 + 16 * (index % 5)
        lines = ["DontCare 0 0 0 0 0 10 10"]
        if index < 10:
            cv2.ellipse(image, (left + 48, top + 64), (48, 64), 0, 0, 360, 235, -1)
            lines.append(f"face 0 0 0 {left} {top} {left + 96} {top + 128} 0 0 0 0 0 0 0")
            box = [left, top, 96, 128]
            coco["annotations"].append({"image_id": index, "bbox": box, "category_id": 1, "id": index})
            coco["annotations"].append({"image_id": index, "bbox": [0, 0, 9, 9], "category_id": 2, "id": 100 + index})
        cv2.imwrite(str(root / "images" / f"p{index}.png"), image)
        (root / "kitti" / f"p{index}.txt").write_text("\n".join(lines) + "\n")
        coco["images"].append({"id": index, "file_name": f"p{index}.png"})
    (root / "coco.json").write_text(json.dumps(coco))
    return root


@pytest.mark.parametrize("labels", ["coco.json", "kitti"])
def test_both_label_layouts_give_the_same_figures(labelled, labels, tmp_path):
    out = tmp_path / "out.json"
    done = evaluate("--images", labelled / "images", "--labels", labelled / labels, "--json", out, "--plot", tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert (figures["pictures"], figures["faces"]) == (11, 10)
    assert figures["recall"] == 1.0 and figures["precision"] == 1.0 and figures["accuracy"] == 1.0
    assert "| 1.0000 | 1.0000 | 1.0000 |" in done.stdout
    assert "evaluating: 11/11" in done.stderr
    assert cv2.imread(str(tmp_path / "precision-recall.png")) is not None
    assert cv2.imread(str(tmp_path / "mistakes.jpg")) is not None


def test_a_label_that_nothing_matches_lowers_recall(labelled, tmp_path):
    coco = json.loads((labelled / "coco.json").read_text())
    coco["annotations"].append({"image_id": 10, "bbox": [10, 10, 60, 80], "category_id": 1, "id": 999})
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(coco))
    out = tmp_path / "out.json"
    done = evaluate("--images", labelled / "images", "--labels", labels, "--json", out)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["recall"] == pytest.approx(10 / 11, abs=1e-4)
    assert figures["precision"] == 1.0


ONE_BOX = b'{"images": [{"id": 1, "file_name": "p0.png"}], "annotations": [{"image_id": 1, "bbox": %s}]}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{not json", "not JSON (line 1"),
        (b"[]", "expected COCO JSON"),
        (b'{"images": [{"id": 1}], "annotations": []}', "KeyError: 'file_name'"),
        (b'{"images": [], "annotations": [{"image_id": 7, "bbox": [1, 2]}]}', "ValueError"),
        (b"\xff\xfe\x00", "not a text file"),
        (b"[" * 100_000, "not JSON"),
        (ONE_BOX % b"[1, 9, 3, -4]", "[1, 9, 4, 5] is not a box"),
        (ONE_BOX % b"[1, 2, 3, NaN]", "[1, 2, 4, nan] is not a box"),
        (ONE_BOX % (b"[1, 2, 3, " + b"9" * 400 + b"]"), "OverflowError"),
    ],
)
def test_a_malformed_label_file_is_one_clear_line(labelled, tmp_path, content, message):
    labels = tmp_path / "labels.json"
    labels.write_bytes(content)
    done = evaluate("--images", labelled / "images", "--labels", labels)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["coco", "kitti"])
def test_a_pipe_among_the_labels_is_refused_instead_of_waited_for(labelled, tmp_path, layout):
    labels = tmp_path / "labels.json"
    if layout == "kitti":
        labels = tmp_path / "kitti"
        labels.mkdir()
        os.mkfifo(labels / "p0.txt")
    else:
        os.mkfifo(labels)
    done = evaluate("--images", labelled / "images", "--labels", labels)
    assert done.returncode == 1 and "not a regular file" in done.stderr and "Traceback" not in done.stderr


def test_bad_arguments_are_refused_before_any_work(labelled, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    bad_kitti = tmp_path / "kitti"
    bad_kitti.mkdir()
    (bad_kitti / "p0.txt").write_text("face 0 0 0 one two three four\n")
    upturned, folder = tmp_path / "upturned", tmp_path / "folder"
    upturned.mkdir()
    (upturned / "p0.txt").write_text("face 0 0 0 9 9 3 4\n")
    (folder / "mistakes.jpg").mkdir(parents=True)
    cases = [
        (["--images", tmp_path / "no", "--labels", labelled / "coco.json"], "no such folder"),
        (["--images", empty, "--labels", labelled / "coco.json"], "holds no file"),
        (["--images", labelled / "images", "--labels", tmp_path / "no.json"], "No such file"),
        (["--images", labelled / "images", "--labels", empty], "no .txt file"),
        (["--images", labelled / "images", "--labels", bad_kitti], "line 1"),
        (["--images", labelled / "images", "--labels", upturned], "[9, 9, 3, 4] is not a box"),
        (["--images", labelled / "images", "--labels", labelled / "coco.json", "--plot", folder], "mistakes.jpg"),
        (["--images", labelled / "images", "--labels", labelled / "coco.json", "--iou", "7"], "--iou 7"),
        (["--images", labelled / "images", "--labels", labelled / "coco.json", "--iou", "1"], "--iou 1"),
        (["--images", labelled / "images", "--labels", labelled / "coco.json", "--threshold", "0"], "--threshold 0"),
        (["--images", labelled / "kitti", "--labels", labelled / "kitti"], "not an image"),
        (["--images", labelled / "images", "--labels", labelled / "coco.json", "--json", tmp_path], "Is a directory"),
    ]
    for arguments, message in cases:
        done = evaluate(*arguments)
        assert done.returncode == 1, (arguments, done.stdout)
        assert message in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
