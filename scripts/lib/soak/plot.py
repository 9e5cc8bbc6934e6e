"""Draws the cost of the process over time, with the faults as bands."""

from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import cv2
import numpy as np

from edge_agent.commands.evaluate.plot import AMBER, BLUE, INK, LIGHT

WIDTH, PANEL, MARGIN = 900, 130, 64
PALE = (235, 240, 250)


def plot(
    rows: Sequence[Dict[str, float]], panels: Sequence[str], spans: Sequence[Tuple[float, float, str]], path: Path
) -> None:
    """Draw one panel per column of `rows` over `t_s`, from 0 to a little over its maximum.

    Args:
        rows: Samples.
        panels: Names of columns.
        spans: (from, to, what) of the faults, shown as bands.
        path: PNG to write.
    """
    height = MARGIN + (PANEL + MARGIN // 2) * len(panels)
    sheet = np.full((height, WIDTH + 2 * MARGIN, 3), 255, np.uint8)
    times = np.array([row["t_s"] for row in rows])
    last_s = max(float(times[-1]), 1.0)
    for number, name in enumerate(panels):
        top = MARGIN // 2 + number * (PANEL + MARGIN // 2)
        values = np.array([float(row[name]) for row in rows])
        _panel(sheet, top, name, times / last_s, values, [(a / last_s, min(1.0, b / last_s)) for a, b, _ in spans])
    _text(sheet, f"0 to {last_s:.0f} s; bands: {len(spans)} faults of broker, disk and settings", (MARGIN, height - 12))
    cv2.imwrite(str(path), sheet)


def _panel(
    sheet: np.ndarray, top: int, name: str, x: np.ndarray, values: np.ndarray, spans: List[Tuple[float, float]]
) -> None:
    bottom, most = top + PANEL, max(float(values.max()) * 1.1, 1e-9)
    for start, end in spans:
        cv2.rectangle(sheet, (_x(start), top), (max(_x(end), _x(start) + 1), bottom), PALE, -1)
    for part in (0.0, 0.5, 1.0):
        y = round(bottom - part * PANEL)
        cv2.line(sheet, (MARGIN, y), (MARGIN + WIDTH, y), LIGHT, 1)
        _text(sheet, f"{most * part:.4g}", (4, y + 5))
    points = np.stack([MARGIN + x * WIDTH, bottom - values / most * PANEL], 1).astype(np.int32)
    cv2.polylines(sheet, [points], False, BLUE, 1, cv2.LINE_AA)
    cv2.circle(sheet, (int(points[-1][0]), int(points[-1][1])), 3, AMBER, -1, cv2.LINE_AA)
    _text(sheet, f"{name}: {values[0]:g} at first, {values.max():g} at most, {values[-1]:g} at last", (MARGIN, top - 6))


def _x(part: float) -> int:
    return round(MARGIN + part * WIDTH)


def _text(sheet: np.ndarray, text: str, at: Tuple[int, int]) -> None:
    cv2.putText(sheet, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
