"""The latencies as an SVG: every onset a dot, the median a stroke; and how overload goes over time."""

import math
from typing import Any, Dict, List, Sequence, Tuple
from xml.sax.saxutils import escape

from scripts.lib.bench import arms

LEFT, WIDTH, ROW, TOP = 220, 620, 26, 46
LOW_MS, HIGH_MS = 5.0, 5000.0
INK, PALE, OURS, OTHER = "#333", "#ddd", "#0a7d5a", "#c05a10"
COURSE = 150
OVERLOADED = (arms.OVERLOAD, arms.SCRIPT_FP32, arms.SCRIPT)
"""Arms whose latency is plotted per face; one of them receives more frames than it can infer."""


def draw(found: Dict[str, Any], caption: Sequence[str]) -> str:
    """Of `report.as_json`'s arms; those without onsets are left out."""
    rows = [(name, arm["latencies_ms"]) for name, arm in found.items() if arm["latencies_ms"]]
    courses = [(name, found[name]["rounds_ms"]) for name in OVERLOADED if found.get(name, {}).get("rounds_ms")]
    below = TOP + ROW * len(rows) + 34
    end = below + (COURSE + 60 if courses else 0)
    height = end + 16 * len(caption)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 40}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="12" y="20" font-size="14" fill="{INK}">'
        "From the first frame with a face to the event at a subscriber, ms, log scale (stroke: the median)</text>",
    ]
    parts += _axis(TOP + ROW * len(rows))
    for number, (name, latencies) in enumerate(rows):
        parts += _row(name, latencies, TOP + ROW * number + ROW // 2)
    parts += _courses(courses, below + 30) if courses else []
    for number, line in enumerate(caption):
        y = end + 2 + 16 * number
        parts.append(f'<text x="12" y="{y}" fill="{INK}" font-size="10">{escape(line)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _row(name: str, latencies: Sequence[float], y: int) -> List[str]:
    color = OURS if name.startswith("agent") else OTHER
    middle = sorted(latencies)[len(latencies) // 2]
    dots = [f'<circle cx="{_x(ms):.1f}" cy="{y}" r="4" fill="{color}" fill-opacity="0.45"/>' for ms in latencies]
    x = f"{_x(middle):.1f}"
    stroke = f'<path d="M{x} {y - 10}V{y + 10}" stroke="{INK}" stroke-width="2"/>'
    return [f'<text x="12" y="{y + 4}" fill="{INK}">{escape(name)}</text>', *dots, stroke]


def _courses(courses: Sequence[Tuple[str, Sequence[Sequence[float]]]], top: int) -> List[str]:
    """One line per arm and round, from its first face to its last: flat, unless late frames queue up."""
    made = [f'<text x="12" y="{top - 10}" font-size="14" fill="{INK}">The same from face to face of a round (flat: '
            "nothing queues up)</text>"]  # fmt: skip
    bottom = top + COURSE
    for ms, label in _ticks()[1::2]:
        y = bottom - _share(ms) * COURSE
        made.append(f'<path d="M{LEFT} {y:.1f}h{WIDTH}" stroke="{PALE}"/>')
        made.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="{INK}">{label} ms</text>')
    for number, (name, rounds) in enumerate(courses):
        color = OURS if name.startswith("agent") else OTHER
        dash = f' stroke-dasharray="{2 * number + 2}"' if number > 1 else ""
        for late in rounds:
            step = WIDTH / max(1, len(late) - 1)
            line = " ".join(f"{LEFT + step * n:.1f},{bottom - _share(ms) * COURSE:.1f}" for n, ms in enumerate(late))
            made.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"{dash}/>')
        made.append(f'<text x="12" y="{top + 14 + 16 * number}" fill="{color}">{escape(name)}</text>')
    return made


def _axis(bottom: int) -> List[str]:
    made = []
    for tick, label in _ticks():
        made.append(f'<path d="M{_x(tick):.1f} {TOP - 8}V{bottom}" stroke="{PALE}"/>')
        made.append(f'<text x="{_x(tick):.1f}" y="{bottom + 14}" text-anchor="middle" fill="{INK}">{label}</text>')
    return made


def _ticks() -> List[Tuple[float, str]]:
    return [(ms, f"{ms:g}") for ms in (5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)]


def _x(ms: float) -> float:
    return LEFT + _share(ms) * WIDTH


def _share(ms: float) -> float:
    return math.log(min(max(ms, LOW_MS), HIGH_MS) / LOW_MS) / math.log(HIGH_MS / LOW_MS)
