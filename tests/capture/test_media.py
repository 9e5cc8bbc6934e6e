"""Video files and live streams, with real files and a real HTTP server."""

import os
import socket
import struct
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import List

import av
import numpy as np
import pytest

from edge_agent.capture import SourceOptions, open_source
from edge_agent.capture.http_source import HttpSource
from edge_agent.capture.media import MediaSource
from edge_agent.capture.media_stream import stream_options
from edge_agent.core.ports import Source
from edge_agent.errors import EndOfStream, InputError, SourceError
from tests.capture.contract import MakeSource, SourceContract, next_frame
from tests.fakes.images import HEIGHT, WIDTH, image_number, numbered_image, write_clip
from tests.fakes.mjpeg_server import MjpegServer
from tests.fakes.waiting import eventually

PLAIN = SourceOptions()


def opened(uri: str, options: SourceOptions = PLAIN) -> Source:
    source = open_source(uri, options)
    source.open()
    return source


def numbers_to_the_end(source: Source) -> List[int]:
    seen = []
    while True:
        try:
            with next_frame(source) as frame:
                seen.append(image_number(frame.levels.to_gray8(frame.pixels)))
        except EndOfStream:
            return seen


class TestFastFileContract(SourceContract):
    @pytest.fixture
    def make_source(self, tmp_path: Path) -> MakeSource:
        clip = write_clip(tmp_path / "clip.mkv", 20)
        return lambda: MediaSource(f"{clip}?pace=fast&loop=1", PLAIN)


class TestRealTimeFileContract(SourceContract):
    @pytest.fixture
    def make_source(self, tmp_path: Path) -> MakeSource:
        clip = write_clip(tmp_path / "clip.mp4", 30, "mpeg4", "yuv420p", fps=50)
        return lambda: MediaSource(f"{clip}?loop=1", PLAIN)


class TestStreamContract(SourceContract):
    @pytest.fixture
    def make_source(self):
        with MjpegServer() as server:
            yield lambda: HttpSource(server.uri(), PLAIN)


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "playlist", "list", "images", "huge", "huge gif"])
def test_what_is_no_video_file_or_too_large_is_an_error_at_once(tmp_path: Path, kind: str) -> None:
    path, pipe = tmp_path / "clip.mp4", tmp_path / "pipe.mp4"
    os.mkfifo(pipe)  # opening it would never return
    if kind == "pipe":
        path = pipe
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with closing(socket.socket(socket.AF_UNIX)) as bound:
            bound.bind(str(path))
    elif kind == "playlist":
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{pipe}\n#EXT-X-ENDLIST\n")
    elif kind == "list":
        path.write_text("ffconcat version 1.0\nfile pipe.mp4\n")
    elif kind == "images":
        path = tmp_path / "clip.mjpeg"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IHDR" + struct.pack(">II", 30_000, 30_000) + bytes(100))
    elif kind == "huge":
        path = tmp_path / "clip.y4m"
        with path.open("wb") as file:
            file.write(b"YUV4MPEG2 W30000 H30000 F25:1 Cmono\nFRAME\n")
            file.truncate(901 << 20)
    else:
        path = tmp_path / "clip.gif"
        one = b"," + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02\x44\x01\0;"
        path.write_bytes(b"GIF89a" + struct.pack("<HH", 30_000, 30_000) + b"\x80\0\0" + bytes(6) + one)
    program = """if True:
        import resource, sys
        from edge_agent.capture import open_source
        from edge_agent.errors import SourceError
        source = open_source(sys.argv[1])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        try:
            source.open()
            while True:
                source.read(1.0)
        except SourceError as error:
            print(error)
        print("more than before, MB:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before)
    """
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    error, memory = done.stdout.splitlines()
    if kind in ("pipe", "device", "socket"):
        assert "not a regular file" in error
    assert path.name in error and int(memory.rpartition(" ")[2]) < 30


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "dtype"),
    [
        ("mjpeg", "yuvj420p", np.uint8),  # full range
        ("mpeg4", "yuv420p", np.uint8),  # limited range
        ("ffv1", "yuv422p", np.uint8),
        ("ffv1", "gray", np.uint8),
        ("ffv1", "yuv420p10le", np.uint16),
        ("ffv1", "gray16le", np.uint16),
        ("ffv1", "bgr0", np.uint8),  # no luma plane: converted
    ],
)
def test_black_is_black_and_white_is_white_in_every_format(tmp_path: Path, codec: str, pix_fmt: str, dtype) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 3, codec, pix_fmt)
    with closing(opened(f"{clip}?pace=fast")) as source, next_frame(source) as frame:
        assert frame.pixels.dtype == dtype
        gray = frame.levels.to_gray8(frame.pixels)
        assert gray.shape == (HEIGHT, WIDTH)
        assert gray[8, 8] >= 252
        assert gray[8, WIDTH - 8] <= 3
        assert image_number(gray) == 0


def test_luma_is_a_view_not_a_copy(tmp_path: Path) -> None:
    with closing(opened(f"{write_clip(tmp_path / 'clip.mkv', 2)}?pace=fast")) as source, next_frame(source) as frame:
        assert not frame.pixels.flags.owndata
        assert frame.pixels.strides[0] > WIDTH


def test_colour_is_kept_when_asked(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    write_clip(clip, 2, "ffv1", "bgr0")
    with closing(opened(f"{clip}?pace=fast", SourceOptions(color=True))) as source, next_frame(source) as frame:
        np.testing.assert_array_equal(frame.pixels, numbered_image(0))


def test_fast_pace_returns_every_frame_once_and_then_ends(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 60)
    with closing(opened(f"{clip}?pace=fast")) as source:
        assert numbers_to_the_end(source) == list(range(60))
        with pytest.raises(EndOfStream):
            source.read(0.1)
        source.open()
        with next_frame(source) as frame:
            assert frame.sequence == 60, "the sequence continues over a reopen"


def test_loop_restarts_and_the_sequence_continues(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 7)
    with closing(opened(f"{clip}?pace=fast&loop=1")) as source:
        frames = [next_frame(source) for _ in range(20)]
        assert [image_number(frame.pixels) for frame in frames] == [index % 7 for index in range(20)]
        assert [frame.sequence for frame in frames] == list(range(20))


def test_real_pace_skips_and_counts_late_frames(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 100, fps=100)
    with closing(opened(str(clip))) as source:
        seen = []
        while True:
            try:
                with next_frame(source) as frame:
                    seen.append(image_number(frame.pixels))
                    assert seen[-1] == frame.sequence
            except EndOfStream:
                break
            time.sleep(0.045)  # a slow reader, not synchronisation
        assert seen == sorted(set(seen))
        assert len(seen) < 50
        assert len(seen) + source.counters()["skipped"] == 100


def test_real_pace_takes_as_long_as_the_clip(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 20, fps=25)
    with closing(opened(str(clip))) as source:
        started = time.monotonic()
        assert numbers_to_the_end(source)[-1] == 19
        assert time.monotonic() - started >= 19 / 25 - 0.05


def test_a_truncated_file_gives_its_intact_frames(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 40)
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 6 // 10])
    with closing(opened(f"{clip}?pace=fast")) as source:
        seen = numbers_to_the_end(source)
    assert seen[:15] == list(range(15))
    assert len(seen) < 40


def test_unreadable_files_are_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(1).bytes(4096))
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("noise.mp4", "empty.mp4", "missing.mp4"):
        source = open_source(str(tmp_path / name))
        for _ in range(2):
            with pytest.raises(SourceError, match=name) as caught:
                source.open()
            assert not isinstance(caught.value, EndOfStream)
            assert caught.value.hint
        with pytest.raises(SourceError, match="not open"):
            source.read(0.01)


def test_a_file_without_video_is_an_error(tmp_path: Path) -> None:
    import av

    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(SourceError, match="no video"):
        open_source(str(path)).open()


def test_video_of_an_unknown_codec_is_an_error_of_the_file_and_of_the_stream(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", 5)
    unknown = clip.read_bytes().replace(b"MJPG", b"ZZ9Z")
    clip.write_bytes(unknown)
    with pytest.raises(SourceError, match=r"clip\.avi: FFmpeg has no decoder"):
        open_source(str(clip)).open()
    with MjpegServer(file=unknown) as server, pytest.raises(SourceError, match="FFmpeg has no decoder"):
        open_source(server.uri("/file")).open()


def test_options_of_a_file_are_checked() -> None:
    with pytest.raises(InputError, match="pace=quick"):
        open_source("clip.mp4?pace=quick")
    with pytest.raises(InputError, match="unknown option speed"):
        open_source("clip.mp4?speed=2")


def test_a_stream_returns_the_newest_frame_and_counts_the_dropped() -> None:
    with MjpegServer() as server, closing(opened(server.uri())) as source:
        next_frame(source).release()
        eventually(lambda: source.counters()["dropped"] >= 5, "frames are dropped", 5)
        dropped = source.counters()["dropped"]
        assert dropped >= 5
        with next_frame(source) as first, next_frame(source) as second:
            assert first.sequence > dropped, "the dropped frames have lower numbers"
            assert second.sequence > first.sequence
            assert image_number(first.pixels) < image_number(second.pixels)
            assert image_number(second.pixels) - image_number(first.pixels) == second.sequence - first.sequence


def test_a_stream_in_colour() -> None:
    with MjpegServer() as server, closing(opened(server.uri(), SourceOptions(color=True))) as source:
        assert next_frame(source).pixels.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "reason"), [("/stall", "no frame|broke off"), ("/gone", "ended|broke off")])
def test_a_stream_that_breaks_off_is_an_error_and_can_be_opened_again(path: str, reason: str) -> None:
    with MjpegServer() as server, closing(opened(server.uri(path), SourceOptions(stall_after_s=1.0))) as source:
        for _ in range(2):
            last = -1
            with pytest.raises(SourceError, match=reason) as caught:
                deadline = time.monotonic() + 15
                while time.monotonic() < deadline:
                    frame = source.read(0.1)
                    if frame is not None:
                        last = frame.sequence
            assert not isinstance(caught.value, EndOfStream), "the end of a live stream is an error"
            assert last >= 0
            source.open()
            with next_frame(source) as frame:
                assert frame.sequence > last


SILENT = pytest.param("/silent", marks=pytest.mark.slow)


@pytest.mark.parametrize("path", ["/garbage", "/text", SILENT])
def test_answers_without_video_are_an_error(path: str) -> None:
    with MjpegServer() as server:
        source = HttpSource(server.uri(path), SourceOptions(stall_after_s=1.0))
        with closing(source), pytest.raises(SourceError, match=r"127\.0\.0\.1"):
            source.open()
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline:
                source.read(0.1)


def test_damaged_frames_do_not_end_a_stream() -> None:
    with MjpegServer() as server, closing(opened(server.uri("/damaged"))) as source:
        for _ in range(12):
            next_frame(source).release()
        assert source.counters()["decode_errors"] > 0


def test_credentials_open_the_stream_and_are_never_logged(caplog, capfd) -> None:
    with MjpegServer(locked=True) as server:
        with closing(opened(server.uri("/live?token=t0k3n", "door:s3cr3t@"))) as source:
            next_frame(source).release()
            texts = [source.uri]
        for who in ("", "door:wr0ng@"):
            with pytest.raises(SourceError, match=r"nauthorized|401") as caught:
                opened(server.uri("/live?token=t0k3n", who))
            texts.append(str(caught.value))
        for uri in ("rtsp://door:s3cr3t@127.0.0.1:9/x?token=t0k3n", "http://door:s3c/r3t@127.0.0.1:9/x"):
            with pytest.raises(SourceError) as caught:
                opened(uri)
            texts.append(str(caught.value))
    texts += [caplog.text, *capfd.readouterr()]
    for secret in ("s3cr3t", "wr0ng", "t0k3n", "r3t@"):
        assert not any(secret in text for text in texts), texts


def test_close_does_not_wait_for_a_silent_camera() -> None:
    with MjpegServer() as server:
        source = opened(server.uri("/stall"))
        next_frame(source).release()
        before = time.monotonic()
        source.close()
        assert time.monotonic() - before < 3.0


def test_rtsp_to_a_closed_port_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening, so connections are refused
        port = taken.getsockname()[1]
        with pytest.raises(SourceError, match=f"rtsp://127.0.0.1:{port}/live: .*refused"):
            opened(f"rtsp://user:secret@127.0.0.1:{port}/live")


def test_rtsp_options_follow_ffmpegs_version() -> None:
    new = stream_options("tcp", 5.0, (59, 16, 100))
    assert new["timeout"] == "5000000"
    assert new["rtsp_transport"] == "tcp"
    assert "stimeout" not in new
    old = stream_options("udp", 5.0, (58, 76, 100))
    assert old["stimeout"] == "5000000"
    assert "timeout" not in old, "in FFmpeg 4 it means: listen"
    assert old["rtsp_transport"] == "udp"
    for options in (new, old):
        assert not {"http", "https", "file"} & set(options["protocol_whitelist"].split(","))


ROTATION = {"right": (0, 1, -1, 0), "left": (0, -1, 1, 0), "half": (-1, 0, 0, -1), "mirrored": (-1, 0, 0, 1)}
UPRIGHT = {
    "right": lambda pixels: np.rot90(pixels, -1),
    "left": np.rot90,
    "half": lambda pixels: np.rot90(pixels, 2),
    "mirrored": np.fliplr,
}


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("name", ROTATION)
def test_the_display_matrix_turns_frames_upright(tmp_path: Path, name: str, color: bool) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 2, "mpeg4", "yuv420p")
    options = SourceOptions(color=color)
    with closing(opened(f"{clip}?pace=fast", options)) as source, next_frame(source) as frame:
        as_stored = frame.pixels.copy()
    a, b, c, d = (0x10000 * value for value in ROTATION[name])
    data, identity = clip.read_bytes(), struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    at = data.index(b"tkhd")
    at = data.index(identity, at)
    clip.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000) + data[at + 36 :])
    with closing(opened(f"{clip}?pace=fast", options)) as source, next_frame(source) as frame:
        np.testing.assert_array_equal(frame.pixels, UPRIGHT[name](as_stored))
        assert frame.pixels.flags.c_contiguous


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize(("codec", "suffix"), [("ffv1", "mkv"), ("png", "mov")])
@pytest.mark.parametrize("color", [False, True])
def test_raw_values_in_sixteen_bit_video_are_not_black(
    tmp_path: Path, bits: int, codec: str, suffix: str, color: bool
) -> None:
    raw = np.random.default_rng(3).integers(0, 1 << bits, (96, 128)).astype(np.uint16)
    stored = "gray16be" if codec == "png" else "gray16le"
    with av.open(str(tmp_path / f"raw.{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, stored
        picture = av.VideoFrame.from_ndarray(raw, format="gray16le")
        container.mux(stream.encode(picture.reformat(format=stored)))
        container.mux(stream.encode())
    clip = f"{tmp_path}/raw.{suffix}?pace=fast"
    with closing(opened(clip, SourceOptions(color=color))) as source, next_frame(source) as frame:
        shown = frame.levels.to_gray8(frame.pixels)
        np.testing.assert_array_equal(shown[..., 0] if color else shown, raw >> (bits - 8))
