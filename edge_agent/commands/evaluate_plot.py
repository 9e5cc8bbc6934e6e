"""Pictures of an evaluation: the precision-recall curve, and a contact sheet of the mistakes."""

from pathlib import Path
from typing import List, Optional, Tuple

import cv2
import numpy as np

from edge_agent.commands.pictures import Miss, read_picture
from edge_agent.core.types import Array
from edge_agent.errors import InputError

SIDE, MARGIN = 520, 56
TILE, COLUMNS, MOST = 160, 6, 60
INK, LIGHT, BLUE, RED, AMBER = (40, 40, 40), (225, 225, 225), (180, 90, 20), (40, 40, 210), (0, 150, 230)


def plot_curve(curve: Tuple[Array, Array, Array], point: Tuple[Optional[float], Optional[float]], path: Path) -> None:
    """Draw precision over recall, with the operating point as a dot.

    Args:
        curve: Precision, recall, threshold, each (K,).
        point: (precision, recall) at the threshold in use.
        path: PNG to write.
    """
    sheet = np.full((SIDE + 2 * MARGIN, SIDE + 2 * MARGIN, 3), 255, np.uint8)
    for tenth in range(0, 11, 2):
        x, y = _at(tenth / 10, 0)[0], _at(0, tenth / 10)[1]
        cv2.line(sheet, (x, MARGIN), (x, MARGIN + SIDE), LIGHT, 1)
        cv2.line(sheet, (MARGIN, y), (MARGIN + SIDE, y), LIGHT, 1)
        _text(sheet, f"{tenth / 10:.1f}", (x - 10, MARGIN + SIDE + 20))
        _text(sheet, f"{tenth / 10:.1f}", (MARGIN - 36, y + 5))
    _text(sheet, "recall", (MARGIN + SIDE // 2 - 20, SIDE + 2 * MARGIN - 12))
    _text(sheet, "precision", (8, MARGIN - 14))
    points = np.array([_at(float(r), float(p)) for p, r in zip(curve[0], curve[1])], np.int32)
    if len(points) > 1:
        cv2.polylines(sheet, [points], False, BLUE, 2, cv2.LINE_AA)
    if point[0] is not None and point[1] is not None:
        cv2.circle(sheet, _at(point[1], point[0]), 5, RED, -1, cv2.LINE_AA)
        _text(sheet, f"in use: precision {point[0]:.3f}, recall {point[1]:.3f}", (MARGIN + 16, MARGIN + SIDE - 16))
    _save(sheet, path)


def contact_sheet(misses: List[Miss], path: Path) -> None:
    """Draw up to sixty mistakes: missed faces framed red, false alarms amber, each with its surroundings."""
    shown = misses[:MOST]
    rows = max(1, -(-len(shown) // COLUMNS))
    sheet = np.full((rows * (TILE + 22), COLUMNS * TILE, 3), 255, np.uint8)
    if not shown:
        _text(sheet, "no mistakes", (20, TILE // 2))
    for index, miss in enumerate(shown):
        x, y = index % COLUMNS * TILE, index // COLUMNS * (TILE + 22)
        sheet[y : y + TILE, x : x + TILE] = _tile(miss)
        _text(sheet, f"{miss.kind}: {miss.picture.stem}"[:24], (x + 3, y + TILE + 14))
    _save(sheet, path)


def _tile(miss: Miss) -> Array:
    picture = cv2.cvtColor(read_picture(miss.picture, color=False), cv2.COLOR_GRAY2BGR)
    left, top, right, bottom = (float(v) for v in miss.box)
    half = max(right - left, bottom - top, 24.0)
    cx, cy = (left + right) / 2, (top + bottom) / 2
    colour = RED if miss.kind == "missed" else AMBER
    cv2.rectangle(picture, (int(left), int(top)), (int(right), int(bottom)), colour, max(1, int(half / 40)))
    scale = TILE / (2 * half)
    move = np.array([[scale, 0, TILE / 2 - cx * scale], [0, scale, TILE / 2 - cy * scale]], np.float32)
    return np.asarray(cv2.warpAffine(picture, move, (TILE, TILE), flags=cv2.INTER_AREA))


def _save(sheet: Array, path: Path) -> None:
    if not cv2.imwrite(str(path), sheet):
        raise InputError(f"{path}: cannot be written", "choose a folder that can be written")


def _at(recall: float, precision: float) -> Tuple[int, int]:
    return MARGIN + round(recall * SIDE), MARGIN + round((1 - precision) * SIDE)


def _text(sheet: Array, text: str, where: Tuple[int, int]) -> None:
    cv2.putText(sheet, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
