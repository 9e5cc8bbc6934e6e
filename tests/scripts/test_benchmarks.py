"""The small benchmarks: computation of their figures."""

import os
from pathlib import Path
from typing import Any, Dict, Tuple
from xml.etree import ElementTree

import numpy as np
import pytest

from scripts.lib.bench import frigate, idle, micro, process, publish, scale
from scripts.lib.bench.curves import Panel, svg

FRIGATE = {
    frigate.IMAGE: "import nothing_that_exists\ndef grab_cv2_contours(): pass\ndef get_yuv_crop(): pass\n"
    "def yuv_crop_and_resize(): pass\ndef yuv_region_2_rgb(frame, region): calls.append('crop')\ncalls = []\n",
    frigate.MOTION: "class ImprovedMotionDetector:\n    def __init__(self, *a): pass\n    def detect(self, f): pass\n",
    frigate.TRACK: "def distance(a, b): return 0.0\ndef frigate_distance(a, b): return distance(a, b)\n",
}


def test_figures_are_of_the_sorted_values() -> None:
    assert publish.figures([3.0, 1.0, 2.0]) == (3, 2.0, 3.0, 3.0)
    assert publish.figures([float(n) for n in range(1, 201)])[1:] == (100.0, 198.0, 200.0)
    assert str(publish.figures([1.0])) == "1 values, p50 1.00, p99 1.00, max 1.00"


def test_packets_of_the_fleet_are_mqtt() -> None:
    assert (
        publish._length(127) == b"\x7f" and publish._length(128) == b"\x80\x01" and publish._length(321) == b"\xc1\x02"
    )
    packet = publish._connect("fleet-7")
    assert packet[1] == len(packet) - 2 and packet.endswith(b"\x00\x07fleet-7") and b"\x00\x04MQTT\x04" in packet


@pytest.mark.parametrize("faces", micro.FACES)
def test_the_grid_shows_so_many_faces_to_every_step(faces: int) -> None:
    assert len(micro.own_nms(faces)()) == faces
    assert len(micro.own_tracker(faces)()) == faces
    boxes, scores = micro.candidates(faces)
    assert boxes.shape == (12 * faces, 4) and scores.min() >= 0.4


def test_calls_alternate_and_the_median_counts() -> None:
    order = []
    timed = micro.measure({name: lambda name=name: order.append(name) for name in "ab"}, rounds=2, repeats=3)
    assert order == list("ab" + "aaabbb" * 2) and set(timed) == {"a", "b"} and min(timed.values()) >= 0.0


def test_functions_of_frigate_are_loaded_without_its_imports(tmp_path: Path) -> None:
    for name, text in FRIGATE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    known: Dict[str, Any] = {"calls": []}
    frigate._take(tmp_path / frigate.IMAGE, ("yuv_region_2_rgb",), known)
    frigate._take(tmp_path / frigate.TRACK, ("distance", "frigate_distance"), known)
    known["yuv_region_2_rgb"](None, None)
    assert known["calls"] == ["crop"] and known["frigate_distance"](1, 2) == 0.0
    with pytest.raises(KeyError):
        frigate._take(tmp_path / frigate.MOTION, ("RenamedDetector",), known)


def test_processor_time_and_memory_of_this_process_are_read() -> None:
    used = process.usage(os.getpid())
    assert used.cpu_s > 0.0 and used.peak_rss_bytes > 10_000_000
    assert idle.cpu_s(os.getpid()) > 0.0
    assert scale.pss_mb(os.getpid()) > 1.0


def cost(rss_mb: float) -> scale.Cost:
    return scale.Cost(rss_mb, rss_mb / 2, 5.0, 100, 0, 8.0, 9.0)


def scaled(most_mb: float, lost: int = 0) -> Tuple[Dict[Tuple[str, int], scale.Cost], Any]:
    costs = {(arm, n): cost(mb) for arm in (scale.TOGETHER, scale.APART) for n, mb in ((1, 100.0), (8, most_mb))}
    return costs, [scale.Load(50, 200.0, lost, 0.5, 2.0, 20.0, 3.0, 9.0), scale.Load(500, 2000.0, 0, 1, 4, 20, 30, 40)]


@pytest.mark.parametrize(
    ("most_mb", "lost", "met"), [(105.0, 0, [1, 1, 1]), (120.0, 0, [0, 1, 1]), (105.0, 2, [1, 1, 0])]
)
def test_goals_of_scaling_are_judged(most_mb: float, lost: int, met: Any) -> None:
    costs, loads = scaled(most_mb, lost)
    assert list(scale.goals(costs, 8, False, loads).values()) == [bool(one) for one in met]
    lean = {**costs, ("scene, without OpenCV", 1): cost(96.0)}
    assert list(scale.goals(lean, 8, True, loads).values())[-1] is False, "96 MB of 95"


def test_tables_and_curves_hold_every_measurement() -> None:
    costs, loads = scaled(105.0)
    text = scale.tables(costs, loads)
    assert text.count("\n| ") == 2 * 2 + 1 + 2 and "| 8, one process | 105 | 52.5 |" in text
    tree = ElementTree.fromstring(svg(scale.panels(costs, loads)))
    tags = [node.tag.rpartition("}")[2] for node in tree.iter()]
    assert tags.count("circle") == 3 * 4 + 2


def test_an_axis_is_divided_by_round_steps() -> None:
    tree = ElementTree.fromstring(svg([Panel("<title>", "x", {"y": [(0.0, 0.0), (10.0, 47.0)]})]))
    shown = [node.text for node in tree.iter() if node.text and node.text.strip()]
    assert {"<title>", "0", "10", "20", "30", "40", "50"} <= set(shown)


def test_a_median_is_of_each_figure() -> None:
    assert scale.median([cost(100.0), cost(300.0), cost(200.0)]).peak_rss_mb == 200.0
    assert np.isclose(scale.median([cost(100.0)]).pss_mb, 50.0)
