"""Synthetic scenes: the rendered frames follow the script, and the list of faces is exact."""

import json
import time
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import List

import cv2
import numpy as np
import pytest

from edge_agent.capture import SourceOptions, open_source
from edge_agent.capture.synthetic.scene import SCENES, parse_scene
from edge_agent.capture.synthetic.source import ASTRONAUT, SyntheticSource
from edge_agent.errors import EndOfStream, InputError, SourceError
from tests.capture.contract import MakeSource, SourceContract, next_frame
from tests.fakes.waiting import eventually

PLAIN = SourceOptions()


def opened(uri: str, options: SourceOptions = PLAIN) -> SyntheticSource:
    source = open_source(uri, options)
    assert isinstance(source, SyntheticSource)
    source.open()
    return source


def read_frames(uri: str, count: int) -> List[np.ndarray]:
    with closing(opened(uri)) as source:
        return [next_frame(source).pixels for _ in range(count)]


class TestRealTimeContract(SourceContract):
    @pytest.fixture
    def make_source(self) -> MakeSource:
        return lambda: SyntheticSource("test://one?size=160x120&fps=100", PLAIN)


class TestFastContract(SourceContract):
    @pytest.fixture
    def make_source(self) -> MakeSource:
        return lambda: SyntheticSource("test://crowd?size=160x120&pace=fast&bits=10", PLAIN)


class TestColourImageContract(SourceContract):
    @pytest.fixture
    def make_source(self) -> MakeSource:
        return lambda: SyntheticSource("test://demo?size=160x120&pace=fast&color=1", PLAIN)


def test_the_same_seed_gives_the_same_frames_and_another_seed_other_ones() -> None:
    uri = "test://one?pace=fast&size=160x120&seed={}"
    first, again, other = (read_frames(uri.format(seed), 80) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other))


@pytest.mark.parametrize("name", sorted(SCENES))
def test_every_scene_has_noise_and_structure(name: str) -> None:
    frames = read_frames(f"test://{name}?pace=fast&size=320x240&fps=10", 30)
    assert all(not np.array_equal(a, b) for a, b in zip(frames, frames[1:])), "noise makes every frame differ"
    smooth = cv2.blur(frames[0], (5, 5))
    assert smooth.std() > 8, "a room has structure"


def test_markers_are_at_the_scenes_positions() -> None:
    with closing(opened("test://crowd?pace=fast&fps=2")) as source:
        counts = set()
        for index in range(42):
            with next_frame(source) as frame:
                boxes = source.scene.boxes(index / 2, 640, 480)
                counts.add(len(boxes))
                bright = frame.pixels > 170
                for left, top, right, bottom in boxes.round().astype(int):
                    assert bright[top:bottom, left:right].mean() > 0.7, "an ellipse fills 0.785 of its box"
                    bright[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3] = False
                assert not bright.any(), "nothing bright beside the faces"
        assert counts == set(range(9))


def test_the_faces_repeat_with_the_period() -> None:
    ledger = SCENES["one"].scripted_faces(25.0)
    assert [(face.start_s, face.end_s) for face in ledger] == [(2.0, 7.0), (12.0, 17.0), (22.0, 27.0)]
    for face in ledger:
        assert SCENES["one"].faces(face.start_s)
        assert not SCENES["one"].faces(face.start_s - 0.01)
        assert not SCENES["one"].faces(face.end_s)
    assert len(SCENES["still"].scripted_faces(3600.0)) == 1
    assert SCENES["still"].faces(86400.0)
    assert SCENES["empty"].scripted_faces(100.0) == []


def test_demo_shows_the_real_image() -> None:
    frames = read_frames("test://demo?pace=fast&fps=1&noise=0", 19)
    image = cv2.imread(str(ASTRONAUT), cv2.IMREAD_GRAYSCALE)
    face = image[66:175, 185:268]
    boxes = SCENES["demo"].boxes(18.0, 640, 480)
    assert len(boxes) == 1
    best = 0.0
    for height in range(130, 220, 4):
        template = cv2.resize(face, (height * face.shape[1] // face.shape[0], height))
        _, score, _, at = cv2.minMaxLoc(cv2.matchTemplate(frames[18], template, cv2.TM_CCOEFF_NORMED))
        if score > best:
            best, centre = score, (at[0] + template.shape[1] / 2, at[1] + template.shape[0] / 2)
    assert best > 0.95
    left, top, right, bottom = boxes[0]
    assert abs(centre[0] - (left + right) / 2) < 6
    assert abs(centre[1] - (top + bottom) / 2) < 6
    assert len({frame.tobytes() for frame in (frames[0], frames[12])}) == 1, "an empty room between both visits"


def test_a_given_image_is_panned_and_zoomed(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "white.png"), np.full((100, 100), 240, np.uint8))
    script = tmp_path / "scene.json"
    script.write_text(
        json.dumps(
            {"appearances": [{"start_s": 0, "end_s": 10, "from": [0.3, 0.5], "to": [0.7, 0.5], "size": [0.2, 0.4]}]}
        )
    )
    frames = read_frames(
        f"test://?pace=fast&fps=1&noise=0&script={script}&picture={tmp_path / 'white.png'}&size=320x200", 10
    )
    found = [np.argwhere(frame > 200) for frame in frames]
    tall = [np.ptp(where[:, 0]) + 1 for where in found]
    middle = [where[:, 1].mean() for where in found]
    assert tall == sorted(tall)
    assert tall[0] == 40
    assert abs(tall[9] - 76) <= 4
    assert middle == sorted(middle)
    assert abs(middle[0] - 0.3 * 320) < 2


def test_disturbances() -> None:
    uri = "test://still?pace=fast&fps=10&size=320x240&dark=1-2&cover=2-3&freeze=3-4,5-6"
    frames = read_frames(uri, 70)
    seconds = [frames[n * 10 : n * 10 + 10] for n in range(7)]
    assert all(frame.max() > 190 for frame in seconds[0])
    assert all(frame.max() < 10 for frame in seconds[1])
    for frame in seconds[2]:
        assert cv2.blur(frame, (9, 9)).std() < 2, "covered: no structure"
    for frozen in (seconds[3], seconds[5]):
        assert all(np.array_equal(frozen[0], frame) for frame in frozen)
    for alive in (seconds[0], seconds[1], seconds[2], seconds[4], seconds[6]):
        assert not any(np.array_equal(a, b) for a, b in zip(alive, alive[1:]))


@pytest.mark.parametrize(("strobe", "lit", "dark"), [("1:1", 1, 1), ("2:1", 2, 1), ("1:2", 1, 2)])
def test_strobe_alternates(strobe: str, lit: int, dark: int) -> None:
    frames = read_frames(f"test://still?pace=fast&size=160x120&strobe={strobe}", 12)
    is_lit = [bool(frame.max() > 190) for frame in frames]
    assert is_lit == ([True] * lit + [False] * dark) * (12 // (lit + dark))


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_bit_depths_show_the_same_frame(bits: int) -> None:
    with closing(opened(f"test://one?pace=fast&size=160x120&bits={bits}")) as source, next_frame(source) as frame:
        assert frame.pixels.dtype == (np.uint8 if bits == 8 else np.uint16)
        assert int(frame.pixels.max()) < 1 << bits
        expected = read_frames("test://one?pace=fast&size=160x120", 1)[0]
        np.testing.assert_array_equal(frame.levels.to_gray8(frame.pixels), expected)


def test_colour_is_rgb() -> None:
    with closing(opened("test://still?pace=fast", SourceOptions(color=True, width=320, height=240))) as source:
        pixels = next_frame(source).pixels
    assert pixels.shape == (240, 320, 3)
    red, green, blue = pixels.reshape(-1, 3).mean(axis=0)
    assert red > green > blue


def test_a_reopen_after_the_end_restarts_the_scene() -> None:
    with closing(opened("test://one?pace=fast&fps=10&size=160x120&end=3")) as source:
        played = []
        for _ in range(2):
            frames = []
            with pytest.raises(EndOfStream):
                while True:
                    frames.append(next_frame(source))
            with pytest.raises(EndOfStream):
                source.read(0.01)
            played.append(frames)
            source.open()
        assert [frame.sequence for frames in played for frame in frames] == list(range(60))
        assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(*played))


def test_lose_fails_and_a_reopen_continues_after_it() -> None:
    with closing(opened("test://empty?pace=fast&fps=10&size=160x120&lose=1-2")) as source:
        for _ in range(10):
            next_frame(source).release()
        with pytest.raises(SourceError, match="device failed") as caught:
            source.read(0.1)
        assert not isinstance(caught.value, EndOfStream)
        source.open()
        with next_frame(source) as frame:
            assert frame.sequence == 20, "the scene's clock went on"


def test_a_large_background_is_rendered_at_open() -> None:
    tracemalloc.start()
    try:
        source = SyntheticSource("test://one?size=2048x2048", SourceOptions())
        built = tracemalloc.get_traced_memory()[1]
        with closing(source):
            source.open()
            opened = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert built < 2048 * 2048 / 10 and opened > 2048 * 2048


def test_lose_in_real_time_cannot_be_opened_until_its_end() -> None:
    with closing(opened("test://empty?fps=50&size=160x120&lose=0.2-0.6")) as source:
        began = time.monotonic()
        with pytest.raises(SourceError, match="device failed"):
            while True:
                frame = source.read(0.1)
                assert time.monotonic() - began < 10
                if frame is not None:
                    frame.release()
        refused = 0

        def opens() -> bool:
            nonlocal refused
            try:
                source.open()
            except SourceError:
                refused += 1
                return False
            return True

        eventually(opens, "the camera is back", 10)
        assert refused > 0
        with next_frame(source) as frame:
            assert frame.sequence >= 30


def test_real_time_returns_the_newest_and_counts_the_skipped() -> None:
    with closing(opened("test://empty?fps=200&size=160x120")) as source:
        sequences = []
        for _ in range(8):
            with next_frame(source) as frame:
                sequences.append(frame.sequence)
            time.sleep(0.03)  # a slow reader, not synchronisation
        missing = sequences[-1] + 1 - len(sequences)
        assert missing >= 7 * 4
        assert source.counters() == {"skipped": missing}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("test://nobody", "unknown scene 'nobody'.*demo"),
        ("test://one?colour=1", "unknown option colour.*color"),
        ("test://one?size=640", "size=640"),
        ("test://one?size=8x8", "16x16"),
        ("test://one?fps=0", "fps=0"),
        ("test://one?dark=5", "dark=5"),
        ("test://one?dark=5-2", "end after they start"),
        ("test://one?strobe=1", "strobe=1"),
        ("test://one?bits=9", "8, 10, 12, 16"),
        ("test://one?bits=10&color=1", "bits=10"),
        ("test://one?picture=missing.png", "missing.png: No such file"),
        ("test://one?script=missing.json", "missing.json"),
    ],
)
def test_bad_options_are_named(uri: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        open_source(uri)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not a scene script"),
        ("[]", "not a scene script"),
        ("[" * 100_000, "not a scene script"),
        (f'{{"period_s": {"9" * 400}, "appearances": []}}', "not a scene script"),
        ("{}", "'appearances' is missing"),
        ('{"appearances": [{"start_s": 1}]}', "'from' is missing"),
        ('{"appearances": [{"start_s": 3, "end_s": 1, "from": [0, 0], "size": 0.2}]}', "from 3 to 1 s"),
        ('{"appearances": [{"start_s": 0, "end_s": 1, "from": [0, 0], "size": 0}]}', "size 0"),
        ('{"appearances": [{"start_s": 0, "end_s": 1, "from": [0], "size": 1}]}', "unpack"),
        ('{"appearances": [], "look": "ghost"}', "ghost"),
        ('{"period_s": 1, "appearances": [{"start_s": 0, "end_s": 2, "from": [0, 0], "size": 1}]}', "period_s 1"),
    ],
)
def test_bad_scripts_are_named(text: str, expected: str) -> None:
    with pytest.raises(InputError, match=f"scene.json.*{expected}"):
        parse_scene(text, "scene.json")
