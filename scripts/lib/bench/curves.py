"""Draws curves as SVG, without a plotting package."""

import math
from html import escape
from typing import List, Mapping, NamedTuple, Sequence, Tuple

Curve = Sequence[Tuple[float, float]]

WIDE, HIGH, LEFT, TOP, BOTTOM = 380, 250, 56, 44, 40
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


class Panel(NamedTuple):
    """One plot: the label of x, and (x, y) by name of the curve; y begins at 0."""

    title: str
    across: str
    curves: Mapping[str, Curve]


def svg(panels: Sequence[Panel]) -> str:
    """Return an SVG with all panels, two in a row."""
    rows = (len(panels) + 1) // 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDE}" height="{rows * HIGH}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number % 2 * WIDE},{number // 2 * HIGH})">')
        parts += _panel(panel)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> List[str]:
    points = [point for curve in panel.curves.values() for point in curve]
    across = sorted({x for x, _ in points})
    most = max(y for _, y in points)
    step = _round_step(most / 5)
    ticks = math.ceil(most / step)
    top = step * ticks
    right, floor = WIDE - 16, HIGH - BOTTOM

    def at(x: float, y: float) -> Tuple[float, float]:
        return LEFT + (right - LEFT) * x / across[-1], floor - (floor - TOP) * y / top

    parts = [f'<text x="{LEFT}" y="16" font-size="13" font-weight="bold">{escape(panel.title)}</text>']
    for tick in range(ticks + 1):
        _, y = at(0, tick * step)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick * step:g}</text>')
    for value in across:
        x, _ = at(value, 0)
        parts.append(f'<text x="{x:.1f}" y="{floor + 15}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{floor + 31}" text-anchor="middle">{escape(panel.across)}</text>')
    for number, (name, curve) in enumerate(panel.curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = "L".join("{:.1f} {:.1f}".format(*at(*point)) for point in curve)
        parts.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += ['<circle cx="{:.1f}" cy="{:.1f}" r="3" fill="{}"/>'.format(*at(*point), colour) for point in curve]
        parts.append(f'<text x="{LEFT + 6 + number * 150}" y="34" fill="{colour}">{escape(name)}</text>')
    return parts


def _round_step(least: float) -> float:
    """Return the next of 1, 2, 5 times a power of ten."""
    size = 1.0
    while size > least:
        size /= 10
    while size * 10 <= least:
        size *= 10
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor >= least)
