"""The image source on real files and folders."""

import logging
import os
import socket
import struct
import subprocess
import sys
import time
import zlib
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_agent.capture import SourceOptions, open_source
from edge_agent.capture.image_header import image_size
from edge_agent.capture.images import MAX_BYTES, ImageSource
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


@pytest.mark.parametrize(("bits", "shift"), [(10, 0), (12, 0), (14, 0), (16, 0), (10, 6), (12, 4)])
def test_raw_values_of_fewer_bits_are_not_black(tmp_path: Path, bits: int, shift: int) -> None:
    raw = np.random.default_rng(2).integers(0, 1 << bits, (96, 128)).astype(np.uint16)
    gray, dark = raw >> (bits - 8), raw // 10 >> (bits - 8)
    cv2.imwrite(str(tmp_path / "raw.png"), raw << shift)
    cv2.imwrite(str(tmp_path / "tenth.png"), raw // 10 << shift)
    for uri, options in ((tmp_path / "raw.png", PLAIN), (f"{tmp_path}?pace=fast", PLAIN)):
        with closing(opened(uri, options)) as source, next_frame(source) as frame:
            np.testing.assert_array_equal(frame.levels.to_gray8(frame.pixels), gray)
            if source.uri.endswith("fast"):  # a darker image of the same folder has the same depth
                with next_frame(source) as darker:
                    np.testing.assert_array_equal(darker.levels.to_gray8(darker.pixels), dark)
    with closing(opened(tmp_path / "raw.png", SourceOptions(color=True))) as source, next_frame(source) as frame:
        np.testing.assert_array_equal(frame.pixels[..., 0], gray)


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


def make_special(path: Path, kind: str) -> None:
    """Put something at `path` that is no regular file, or is too large."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with closing(socket.socket(socket.AF_UNIX)) as bound:
            bound.bind(str(path))
    elif kind == "endless":
        with path.open("wb") as file:
            file.truncate(MAX_BYTES + 1)
    else:
        width, height = (30_000, 30_000) if kind == "huge" else (2**31 - 1, 2**31 - 1)
        path.write_bytes(png(width, height))


def png(width: int, height: int) -> bytes:
    """An image of zeros, compressed well: of 30000x30000 px in 0.9 MB, truncated where it is larger."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = zlib.compressobj(1)
    rows = b"".join(packed.compress(bytes(30_001)) for _ in range(min(height, 30_000))) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "endless", "huge", "absurd"])
def test_what_is_no_file_or_too_large_is_skipped_at_once_and_takes_no_memory(folder: Path, kind: str) -> None:
    (folder / "2.png").unlink()
    make_special(folder / "2.png", kind)
    # In a process of its own: reading a pipe would never return, and the peak of memory is the process's.
    program = """if True:
        import resource, sys
        from edge_agent.capture import open_source
        from edge_agent.errors import EndOfStream, SourceError
        from tests.fakes.images import image_number

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

        source, seen = open_source(sys.argv[1]), []
        source.open()
        frame = source.read(1.0)
        before = peak()
        try:
            while True:
                seen.append(image_number(frame.pixels))
                frame = source.read(1.0)
        except EndOfStream:
            print(seen, source.counters())
        single = open_source(sys.argv[2])
        try:
            single.open()
        except SourceError as error:
            print(error)
        print("more than before, MB:", peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", program, f"{folder}?pace=fast", str(folder / "2.png")],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    counts, error, memory = done.stdout.splitlines()
    assert counts == "[0, 1, 3, 4] {'unreadable': 1}"
    words = {"endless": "larger than 128 MiB", "huge": "30000x30000 px", "absurd": "2147483647x2147483647 px"}
    assert words.get(kind, "not a regular file") in error
    assert int(memory.rpartition(" ")[2]) < 30


@pytest.mark.parametrize("encode", ["png", "jpg", "progressive", "bmp", "tiff", "pgm", "ppm", "webp", "lossless"])
def test_the_size_is_read_from_the_header_of_every_format(encode: str) -> None:
    options = {
        "progressive": ("jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        "lossless": ("webp", [cv2.IMWRITE_WEBP_QUALITY, 101]),
        "webp": ("webp", [cv2.IMWRITE_WEBP_QUALITY, 80]),
    }
    suffix, flags = options.get(encode, (encode, []))
    image = np.random.default_rng(1).integers(0, 255, (211, 1234, 3), np.uint8)
    data = cv2.imencode(f".{suffix}", image[..., 0] if suffix == "pgm" else image, flags)[1].tobytes()
    assert image_size(data) == (1234, 211)
    for length in range(40):  # a file may end anywhere
        image_size(data[:length])
    for at in range(2, min(len(data), 600)):
        image_size(data[:at] + b"\xff" * 8 + data[at + 8 :])


def test_odd_headers_are_read_like_the_decoder_reads_them() -> None:
    exif = b"\xff\xd8\xff\xe1\x00\x10" + b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01" + bytes(5)
    frame = b"\xff\xff\xff\xc2\x00\x11\x08" + struct.pack(">HH", 20_000, 30_000)
    assert image_size(exif + frame) == (30_000, 20_000), "a thumbnail's header is not the image's"
    assert image_size(b"P5\n# 1 2\n# more\n 640\t#x\n480\n255\n") == (640, 480)
    assert image_size(b"BM" + bytes(12) + struct.pack("<Iii", 40, 640, -480)) == (640, 480)
    entries = struct.pack("<HHIIHHIIHHIIHHII", 256, 4, 1, 64, 257, 3, 1, 48, 322, 4, 1, 40_000, 323, 4, 1, 50_000)
    tiff = b"II*\0" + struct.pack("<IH", 8, 4) + entries
    assert image_size(tiff) == (40_000, 50_000), "a tile is decoded as a whole"
    extended = b"RIFF" + bytes(4) + b"WEBPVP8X" + bytes(8) + b"\x0f\x27\x00" + b"\x1f\x4e\x00"
    assert image_size(extended) == (10_000, 20_000)
    assert image_size(b"GIF89a" + bytes(20)) is None


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
