"""Draws an evaluation: two plots for choosing a threshold, and a contact sheet of the mistakes."""

from pathlib import Path
from typing import Any, List, Mapping, Tuple

import cv2
import numpy as np

from edge_agent.commands.evaluate.dataset import Miss, read_image
from edge_agent.core.types import Array
from edge_agent.errors import InputError

SIDE, LEFT, TOP, GAP, BELOW = 400, 60, 96, 90, 60
TILE, SPACE, CAPTION, COLUMNS, MOST = 176, 8, 40, 6, 60
INK, PALE, LIGHT = (40, 40, 40), (110, 110, 110), (225, 225, 225)
BLUE, ORANGE, RED, AMBER = (178, 114, 0), (0, 94, 213), (40, 40, 210), (0, 150, 230)


def plot_curves(curve: Tuple[Array, Array, Array], figures: Mapping[str, Any], path: Path) -> None:
    """Draw precision over recall, and both over the threshold; a dot and a line mark the threshold in use.

    Args:
        curve: Precision, recall, threshold, each (K,), by falling threshold.
        figures: The figures of the evaluation, as `evaluate --json` writes them.
        path: PNG to write.
    """
    sheet = np.full((TOP + SIDE + BELOW, LEFT + 2 * SIDE + GAP + 40, 3), 255, np.uint8)
    precision, recall, threshold = curve
    about = "{model} {precision_in_use}: {faces} faces in {pictures} images".format(**figures)
    _text(sheet, about, (LEFT, 30), size=0.6)
    shown = {key: "-" if figures[key] is None else f"{figures[key]:.3f}" for key in ("precision", "recall")}
    _text(
        sheet,
        f"IoU {figures['iou']:g}, average precision {figures['average_precision']:.3f}; in use: threshold "
        f"{figures['threshold']:g}, precision {shown['precision']}, recall {shown['recall']}",
        (LEFT, 54),
        PALE,
    )
    _axes(sheet, LEFT, "recall")
    _text(sheet, "precision", (LEFT, TOP - 10), BLUE)
    _line(sheet, LEFT, recall, precision, BLUE)
    if figures["precision"] is not None and figures["recall"] is not None:
        cv2.circle(sheet, _at(LEFT, figures["recall"], figures["precision"]), 6, RED, -1, cv2.LINE_AA)
    right = LEFT + SIDE + GAP
    _axes(sheet, right, "threshold")
    _text(sheet, "precision", (right, TOP - 10), BLUE)
    _text(sheet, "recall", (right + 80, TOP - 10), ORANGE)
    _text(sheet, "in use", (right + 140, TOP - 10), RED)
    cv2.line(sheet, _at(right, figures["threshold"], 0), _at(right, figures["threshold"], 1), RED, 1, cv2.LINE_AA)
    for values, colour in ((precision, BLUE), (recall, ORANGE)):
        _line(sheet, right, threshold, values, colour)
    _save(sheet, path)


def contact_sheet(misses: List[Miss], path: Path) -> None:
    """Draw up to sixty mistakes: missed faces framed red, false alarms amber, each with its surroundings."""
    shown = misses[:MOST]
    columns = max(2, min(COLUMNS, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    sheet = np.full((rows * (TILE + CAPTION) + SPACE, columns * (TILE + SPACE) + SPACE, 3), 255, np.uint8)
    if not shown:
        _text(sheet, "no mistakes", (20, TILE // 2))
    for index, miss in enumerate(shown):
        x, y = SPACE + index % columns * (TILE + SPACE), SPACE + index // columns * (TILE + CAPTION)
        sheet[y : y + TILE, x : x + TILE] = _tile(miss)
        _text(sheet, miss.kind, (x, y + TILE + 13), _colour(miss))
        _text(sheet, _shortened(miss.image.stem), (x, y + TILE + 27), PALE, 0.36)
    _save(sheet, path)


def _colour(miss: Miss) -> Tuple[int, int, int]:
    return RED if miss.kind == "missed" else AMBER


def _shortened(name: str) -> str:
    """The end of a file name, as much as fits below a tile; names in one folder differ at their ends."""
    return name if len(name) <= 26 else f"..{name[-24:]}"


def _tile(miss: Miss) -> Array:
    image = cv2.cvtColor(read_image(miss.image, color=False), cv2.COLOR_GRAY2BGR)
    left, top, right, bottom = (float(v) for v in miss.box)
    half = max(right - left, bottom - top, 24.0)
    cx, cy = (left + right) / 2, (top + bottom) / 2
    thickness = max(1, int(half / 40))
    cv2.rectangle(image, (int(left), int(top)), (int(right), int(bottom)), _colour(miss), thickness)
    scale = TILE / (2 * half)
    move = np.array([[scale, 0, TILE / 2 - cx * scale], [0, scale, TILE / 2 - cy * scale]], np.float32)
    return np.asarray(cv2.warpAffine(image, move, (TILE, TILE), flags=cv2.INTER_AREA, borderValue=LIGHT))


def _save(sheet: Array, path: Path) -> None:
    if not cv2.imwrite(str(path), sheet):
        raise InputError(f"{path}: cannot be written", "choose a folder that can be written")


def _axes(sheet: Array, left: int, across: str) -> None:
    for tenth in range(0, 11, 2):
        (x, _), (_, y) = _at(left, tenth / 10, 0), _at(left, 0, tenth / 10)
        colour = LIGHT if tenth else PALE
        cv2.line(sheet, (x, TOP), (x, TOP + SIDE), colour, 1)
        cv2.line(sheet, (left, y), (left + SIDE, y), colour, 1)
        _text(sheet, f"{tenth / 10:.1f}", (x - 11, TOP + SIDE + 20))
        _text(sheet, f"{tenth / 10:.1f}", (left - 34, y + 5))
    _text(sheet, across, (left + SIDE // 2 - 28, TOP + SIDE + 44))


def _line(sheet: Array, left: int, across: Array, up: Array, colour: Tuple[int, int, int]) -> None:
    points = np.array([_at(left, float(x), float(y)) for x, y in zip(across, up)], np.int32)
    if len(points) > 1:
        cv2.polylines(sheet, [points], False, colour, 2, cv2.LINE_AA)


def _at(left: int, across: float, up: float) -> Tuple[int, int]:
    return left + round(min(across, 1.0) * SIDE), TOP + round((1 - up) * SIDE)


def _text(
    sheet: Array, text: str, where: Tuple[int, int], colour: Tuple[int, int, int] = INK, size: float = 0.45
) -> None:
    cv2.putText(sheet, text, where, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
