"""The image source on real files and folders."""

import logging
import time
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.capture import SourceOptions, open_source
from edge_agent.capture.images import ImageSource
from edge_agent.core.ports import Source
from edge_agent.errors import EndOfStream, InputError, SourceError
from tests.capture.contract import MakeSource, SourceContract, next_frame
from tests.fakes.images import HEIGHT, WIDTH, image_number, numbered_image

PLAIN = SourceOptions()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, 0..4, written in another order, and a file that is not an image."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in (3, 0, 4, 1, 2):
        cv2.imwrite(str(folder / f"{index}.png"), numbered_image(index))
    (folder / "labels.txt").write_text("no image")
    return folder


def opened(uri: object, options: SourceOptions = PLAIN) -> Source:
    source = open_source(str(uri), options)
    source.open()
    return source


class TestSingleImageContract(SourceContract):
    @pytest.fixture
    def make_source(self, folder: Path) -> MakeSource:
        return lambda: ImageSource(f"{folder}/1.png?fps=100", PLAIN)


class TestFolderContract(SourceContract):
    @pytest.fixture
    def make_source(self, folder: Path) -> MakeSource:
        return lambda: ImageSource(f"{folder}?loop=1&pace=fast", PLAIN)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "pgm"])
def test_formats_are_read_as_gray(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    cv2.imwrite(str(path), numbered_image(0b1011)[..., 0])
    with closing(opened(path)) as source, next_frame(source) as frame:
        assert frame.pixels.shape == (HEIGHT, WIDTH)
        assert image_number(frame.pixels) == 0b1011


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    deep = (np.arange(48 * 64, dtype=np.uint16) * 21).reshape(48, 64)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    with closing(opened(tmp_path / "deep.png")) as source, next_frame(source) as frame:
        np.testing.assert_array_equal(frame.pixels, deep)
        np.testing.assert_array_equal(frame.levels.to_gray8(frame.pixels), deep >> 8)


def test_colour_is_rgb_when_asked(tmp_path: Path) -> None:
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., 2] = 200  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "red.png"), red)
    with closing(opened(tmp_path / "red.png", SourceOptions(color=True))) as source, next_frame(source) as frame:
        assert frame.pixels[5, 5].tolist() == [200, 0, 0]


def test_a_single_image_repeats_at_its_rate(folder: Path) -> None:
    with closing(opened(f"{folder}/4.png?fps=50")) as source:
        times = []
        for _ in range(11):
            with next_frame(source) as frame:
                assert image_number(frame.pixels) == 4
                times.append(frame.t)
        assert times[-1] - times[0] >= 10 / 50 - 0.02
        assert source.kind == "still"


def test_an_image_that_is_not_due_is_not_returned(folder: Path) -> None:
    with closing(opened(f"{folder}/4.png?fps=0.01")) as source:
        next_frame(source).release()
        assert source.read(0.02) is None


def test_a_folder_is_read_once_in_order(folder: Path) -> None:
    with closing(opened(f"{folder}?pace=fast")) as source:
        for _ in range(2):
            seen = []
            with pytest.raises(EndOfStream):
                while True:
                    with next_frame(source) as frame:
                        seen.append(image_number(frame.pixels))
            assert seen == [0, 1, 2, 3, 4]
            source.open()
        with next_frame(source) as frame:
            assert frame.sequence == 10


def test_undecodable_files_are_skipped_counted_and_logged_once(folder: Path, caplog) -> None:
    (folder / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (folder / "2.png").write_bytes(b"")
    (folder / "3.png").unlink()
    (folder / "3.png").mkdir()
    with caplog.at_level(logging.DEBUG), closing(opened(f"{folder}?pace=fast")) as source:
        seen = []
        with pytest.raises(EndOfStream):
            while True:
                with next_frame(source) as frame:
                    seen.append(image_number(frame.pixels))
        assert seen == [0, 4]
        assert source.counters() == {"unreadable": 3}
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "1.png" in warnings[0].getMessage()


def test_invalid_paths_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.jpg").write_bytes(b"no image")
    for uri, expected in (
        (tmp_path / "empty", "no image in this folder"),
        (tmp_path / "missing.png", "No such file"),
        (broken / "a.jpg", "not an image"),
    ):
        source = open_source(str(uri))
        with pytest.raises(SourceError, match=expected) as caught:
            source.open()
        assert caught.value.hint
        assert uri.name in str(caught.value)
    with closing(opened(f"{broken}?loop=1")) as source, pytest.raises(SourceError, match="none of the 1"):
        source.read(1.0)


def test_options_are_checked(folder: Path) -> None:
    with pytest.raises(InputError, match="fps=0"):
        open_source(f"{folder}?fps=0")
    with pytest.raises(InputError, match="fps=many"):
        open_source(f"{folder}?fps=many")
    with pytest.raises(InputError, match=r"loop=yes.*0, 1"):
        open_source(f"{folder}?loop=yes")


def test_read_respects_its_timeout_while_waiting(folder: Path) -> None:
    with closing(opened(f"{folder}?fps=1")) as source:
        next_frame(source).release()
        before = time.monotonic()
        waits = 0
        while source.read(0.1) is None:
            waits += 1
        assert 3 <= waits <= 12, "it does not spin"
        assert time.monotonic() - before >= 0.9
