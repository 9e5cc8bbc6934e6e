"""The latencies as an SVG: every onset a dot, the median a stroke; and how overload goes over time."""

import math
from typing import Any, Dict, List, Sequence, Tuple
from xml.sax.saxutils import escape

LEFT, WIDTH, ROW, TOP = 220, 620, 26, 46
LOW_MS, HIGH_MS = 5.0, 5000.0
INK, PALE, OURS, OTHER = "#333", "#ddd", "#0a7d5a", "#c05a10"


def draw(found: Dict[str, Any], caption: Sequence[str]) -> str:
    """Of `report.as_json`'s arms; those without onsets are left out."""
    rows = [(name, arm["latencies_ms"]) for name, arm in found.items() if arm["latencies_ms"]]
    height = TOP + ROW * len(rows) + 34 + 16 * len(caption)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 40}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="12" y="20" font-size="14" fill="{INK}">'
        "From the first picture with a face to the event at a subscriber, ms, log scale (stroke: the median)</text>",
    ]
    parts += _axis(TOP + ROW * len(rows))
    for number, (name, latencies) in enumerate(rows):
        parts += _row(name, latencies, TOP + ROW * number + ROW // 2)
    for number, line in enumerate(caption):
        y = TOP + ROW * len(rows) + 36 + 16 * number
        parts.append(f'<text x="12" y="{y}" fill="{INK}" font-size="10">{escape(line)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _row(name: str, latencies: Sequence[float], y: int) -> List[str]:
    color = OURS if name.startswith("agent") else OTHER
    middle = sorted(latencies)[len(latencies) // 2]
    dots = [f'<circle cx="{_x(ms):.1f}" cy="{y}" r="4" fill="{color}" fill-opacity="0.45"/>' for ms in latencies]
    x = f"{_x(middle):.1f}"
    stroke = f'<path d="M{x} {y - 10}V{y + 10}" stroke="{INK}" stroke-width="2"/>'
    return [f'<text x="12" y="{y + 4}" fill="{INK}">{escape(name)}</text>', *dots, stroke]


def _axis(bottom: int) -> List[str]:
    made = []
    for tick, label in _ticks():
        made.append(f'<path d="M{_x(tick):.1f} {TOP - 8}V{bottom}" stroke="{PALE}"/>')
        made.append(f'<text x="{_x(tick):.1f}" y="{bottom + 14}" text-anchor="middle" fill="{INK}">{label}</text>')
    return made


def _ticks() -> List[Tuple[float, str]]:
    return [(ms, f"{ms:g}") for ms in (5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)]


def _x(ms: float) -> float:
    share = math.log(min(max(ms, LOW_MS), HIGH_MS) / LOW_MS) / math.log(HIGH_MS / LOW_MS)
    return LEFT + share * WIDTH
