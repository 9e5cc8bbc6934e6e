"""Scalar reference implementations of NVIDIA's algorithms, and random grids as their input."""

import math
from typing import Dict, List, Tuple

import numpy as np

Row = Tuple[float, float, float, float, float]  # left, top, right, bottom, confidence


def gridbox(cov, bbox, target, threshold, net, stride=16, scale=35.0, offset=0.5) -> List[Row]:
    """DeepStream's parseBoundingBox for one class: normalised centres, its clipping, its underflow test."""
    width, height = net
    cov, bbox = cov.tolist(), bbox.tolist()
    rows = []
    for h in range(len(cov[0])):
        for w in range(len(cov[0][0])):
            confidence = cov[target][h][w]
            if confidence < threshold:
                continue
            x, y = (w * stride + offset) / scale, (h * stride + offset) / scale
            x1 = (bbox[4 * target][h][w] - x) * -scale
            y1 = (bbox[4 * target + 1][h][w] - y) * -scale
            x2 = (bbox[4 * target + 2][h][w] + x) * scale
            y2 = (bbox[4 * target + 3][h][w] + y) * scale
            x1, x2 = (width - 1 if v >= width else max(v, 0.0) for v in (x1, x2))
            y1, y2 = (height - 1 if v >= height else max(v, 0.0) for v in (y1, y2))
            if x2 - x1 < 0 or y2 - y1 < 0:
                continue
            rows.append((x1, y1, x2, y2, confidence))
    return rows


def departures(rows: List[Row], net) -> List[Row]:
    """The documented differences of gridbox.py: clip to W-1 and H-1 always, drop empty boxes."""
    right, bottom = net[0] - 1, net[1] - 1
    clipped = [(min(a, right), min(b, bottom), min(c, right), min(d, bottom), s) for a, b, c, d, s in rows]
    return [row for row in clipped if row[2] > row[0] and row[3] > row[1]]


def overlap(a, b) -> float:
    """IoU of two rows, in their own number type."""
    zero = type(a[0])(0)
    width = max(zero, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(zero, min(a[3], b[3]) - max(a[1], b[1]))
    inner = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    return inner / union if union else zero


def nms(rows: List[Row], iou_threshold: float, post_threshold: float = 0.0, top_k: int = 10**6) -> List[Row]:
    """DeepStream's NMS: stable sort, keep if IoU with all kept <= threshold, then the post threshold, then top k."""
    kept: List[Row] = []
    for row in sorted(rows, key=lambda r: -r[4]):
        if all(overlap(row, other) <= iou_threshold for other in kept):
            kept.append(row)
    return [row for row in kept if row[4] > post_threshold][:top_k]


def dbscan_labels(rows: List[Row], eps: float, min_boxes: int) -> List[int]:
    """NvDsInferDBScan's loop, order and all: the neighbour count is read before neighbours are joined."""
    boxes = [tuple(np.float32(v) for v in row) for row in rows]
    n, eps = len(boxes), np.float32(eps)
    distance = [[np.float32(0)] * n for _ in range(n)]
    for i in range(n):
        for j in range(i + 1, n):
            distance[i][j] = distance[j][i] = np.float32(1) - overlap(boxes[i], boxes[j])

    def find(i):
        return [j for j in range(n) if j != i and distance[i][j] < eps]

    labels, visited, neighbours = [-1] * n, [False] * n, [[] for _ in range(n)]
    cluster = 0
    for i in range(n):
        if visited[i]:
            continue
        visited[i] = True
        neighbours[i] = find(i)
        count = len(neighbours[i])
        if count + 1 < min_boxes:
            continue
        labels[i] = cluster
        for k in range(count):
            j = neighbours[i][k]
            if visited[j]:
                continue
            visited[j] = True
            neighbours[j] = find(j)
            if len(neighbours[j]) + 1 >= min_boxes:
                neighbours[i] += [m for m in neighbours[j] if m not in neighbours[i]]
                labels[j] = cluster
        cluster += 1
    return labels


def dbscan(rows, eps, min_boxes, min_score=0.0, post_threshold=0.0, top_k=10**6, ratio=60.0) -> List[Row]:
    """DeepStream's DBSCAN: confidence-weighted left, top, width, height; area filter; max confidence; post; top k."""
    labels = dbscan_labels(rows, eps, min_boxes)
    merged = []
    for label in range(max(labels, default=-1) + 1):
        members = [row for row, own in zip(rows, labels) if own == label]
        total = sum(row[4] for row in members)
        if total < min_score:
            continue
        left, top, width, height = (
            sum(row[4] * value(row) for row in members) / total
            for value in (lambda r: r[0], lambda r: r[1], lambda r: r[2] - r[0], lambda r: r[3] - r[1])
        )
        if math.sqrt(width * height) / (len(members) + 1) > ratio:
            continue
        merged.append((left, top, left + width, top + height, max(row[4] for row in members)))
    merged = [row for row in merged if not row[4] < post_threshold]
    return sorted(merged, key=lambda r: -r[4])[:top_k]


def hybrid(rows, eps, min_boxes, iou_threshold, post_threshold=0.0, top_k=10**6) -> List[Row]:
    """DeepStream's hybrid: members of groups, unmerged, then NMS."""
    labels = dbscan_labels(rows, eps, min_boxes)
    return nms([row for row, label in zip(rows, labels) if label != -1], iou_threshold, post_threshold, top_k)


def rows_of(xyxy, confidence) -> List[Row]:
    """Arrays side by side as rows of Python floats."""
    return [(*box, score) for box, score in zip(xyxy.tolist(), confidence.tolist())]


def random_rows(rng: np.random.Generator, count: int, size: float = 384.0) -> Tuple[np.ndarray, np.ndarray]:
    """`count` boxes in clumps of all tightness, as float32 (xyxy, confidence); scores may be equal."""
    clumps = rng.integers(1, max(2, count // 4) + 1)
    centres = rng.uniform(0, size, (clumps, 2))
    sides = rng.uniform(8, 160, (clumps, 2))
    jitter = rng.choice([0.02, 0.15, 0.4, 1.0], clumps)
    which = rng.integers(0, clumps, count)
    centre = centres[which] + rng.normal(0, 1, (count, 2)) * sides[which] * jitter[which, None]
    half = sides[which] * rng.uniform(0.8, 1.25, (count, 2)) / 2
    xyxy = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
    return xyxy, rng.integers(1, 512, count).astype(np.float32) / 512


def random_grid(rng: np.random.Generator, classes: int, rows: int, columns: int, lit: float) -> Dict[str, np.ndarray]:
    """Outputs of a DetectNet_v2: `lit` of the cells have some coverage; boxes of all sizes, some inside out."""
    cov = np.where(rng.random((classes, rows, columns)) < lit, rng.random((classes, rows, columns)), 0.0)
    bbox = rng.uniform(-0.5, 4.0, (4 * classes, rows, columns))
    return {"cov": cov.astype(np.float32), "bbox": bbox.astype(np.float32)}


def face_grid(rng: np.random.Generator, classes: int, rows: int, columns: int, faces: int) -> Dict[str, np.ndarray]:
    """A random grid with, in every class, faces that several neighbouring cells nearly agree on."""
    outputs = random_grid(rng, classes, rows, columns, lit=8 / (rows * columns))
    for _ in range(faces):
        side = rng.uniform(40, 140, 2)
        middle = rng.uniform(0, 1, 2) * (columns * 16, rows * 16)
        edges = np.concatenate([middle - side / 2, middle + side / 2])
        for row in range(max(0, int(middle[1] / 16) - 1), min(rows, int(middle[1] / 16) + 2)):
            for column in range(max(0, int(middle[0] / 16) - 1), min(columns, int(middle[0] / 16) + 2)):
                x, y = column * 16 + 0.5, row * 16 + 0.5
                own = (edges + rng.normal(0, rng.choice([0.02, 0.2]) * side.mean(), 4)) * (-1, -1, 1, 1)
                outputs["cov"][:, row, column] = rng.uniform(0.1, 1.0, classes)
                outputs["bbox"][:, row, column] = np.tile((own + np.array([x, y, -x, -y])) / 35, classes)
    return outputs
