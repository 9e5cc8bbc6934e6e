"""HTTP cameras: streams of JPEGs as cameras really send them, single images, containers, refusals and bad intent."""

import resource
import socket
import threading
import time
from contextlib import closing
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable, List
from urllib.parse import quote

import pytest

from edge_agent.capture import SourceOptions, open_source
from edge_agent.capture.http_multipart import MAX_HEAD, Parts
from edge_agent.capture.media_decode import Decoded, JpegDecoder
from edge_agent.core.ports import Source
from edge_agent.errors import InputError, SourceError
from tests.capture.contract import MakeSource, SourceContract, next_frame
from tests.fakes.http_camera import PASSWORD, USER, HttpCamera, Send, jpeg
from tests.fakes.images import image_number, write_clip
from tests.fakes.mjpeg_server import MjpegServer
from tests.fakes.waiting import eventually

OK = b"HTTP/1.1 200 OK\r\n"
MIXED = OK + b"Content-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
PLAIN_HEAD = b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
JPEGS = [jpeg(number) for number in range(8)]
LAYOUTS = {
    "standard": b"".join(b"--frame\r\n" + PLAIN_HEAD % len(one) + one + b"\r\n" for one in JPEGS),
    "no first boundary": b"".join(PLAIN_HEAD % len(one) + one + b"\r\n--frame\r\n" for one in JPEGS),
    "no dashes": b"".join(b"frame\r\n" + PLAIN_HEAD % len(one) + one + b"\r\n" for one in JPEGS),
    "no part headers": b"".join(b"--frame\r\n\r\n" + one + b"\r\n" for one in JPEGS),
    "no blank line either": b"".join(b"--frame\r\n" + one + b"\r\n" for one in JPEGS),
    "no boundary at all": b"".join(PLAIN_HEAD % len(one) + one for one in JPEGS),
    "nothing but JPEGs": b"".join(JPEGS),
    "lengths that become wrong": b"".join(
        b"--frame\r\n" + PLAIN_HEAD % (len(one) * (1 if number < 3 else 2)) + one + b"\r\n"
        for number, one in enumerate(JPEGS)
    ),
    "no length": b"".join(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + one + b"\r\n" for one in JPEGS),
    "a length of two bytes more": b"".join(b"--frame\r\n" + PLAIN_HEAD % (len(o) + 2) + o + b"\r\n" for o in JPEGS),
    "a length of 2 GB": b"".join(b"--frame\r\n" + PLAIN_HEAD % 2_000_000_000 + one + b"\r\n" for one in JPEGS),
    "only line feeds": b"".join(b"--frame\nContent-Type: image/jpeg\n\n" + one + b"\n" for one in JPEGS),
    "two lines before the JPEG": b"".join(b"--frame\r\n" + PLAIN_HEAD % len(o) + b"\r\n" + o + b"\r\n" for o in JPEGS),
    "padding after the JPEG": b"".join(b"--frame\r\nX: y\r\n\r\n" + one + bytes(99) + b"\r\n" for one in JPEGS),
}


def parts(body: bytes, boundary: str = "frame", piece: int = 1 << 16) -> List[bytes]:
    pieces = iter([body[at : at + piece] for at in range(0, len(body), piece)])
    return list(Parts(lambda _: next(pieces, b""), boundary))


@pytest.mark.parametrize("piece", [1, 7, 1000, 1 << 16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_every_image(layout: str, piece: int) -> None:
    found = parts(LAYOUTS[layout], piece=piece)
    assert len(found) == len(JPEGS)
    for got, sent in zip(found, JPEGS):
        assert got.startswith(sent) and len(got) - len(sent) in (0, 2)


@pytest.mark.parametrize("boundary", ["--frame", "frame", "", "other"])
def test_a_boundary_that_is_wrongly_announced_does_no_harm(boundary: str) -> None:
    assert parts(LAYOUTS["standard"], boundary) == JPEGS


@pytest.mark.parametrize("piece", [1, 1 << 16])
def test_a_cut_image_ends_at_the_next_boundary_or_image(piece: int) -> None:
    cut = JPEGS[0][:-100]
    head = b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"
    assert parts(head + cut + b"\r\n" + head + JPEGS[1], piece=piece) == [cut, JPEGS[1]]
    assert parts(cut + JPEGS[1] + cut, "", piece) == [cut, JPEGS[1], cut]


def test_a_thumbnail_inside_an_image_does_not_end_it() -> None:
    thumbnail = JPEGS[1]
    whole = JPEGS[0][:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + JPEGS[0][2:]
    assert parts(whole + whole, "") == [whole, whole]


def test_headers_without_end_are_refused() -> None:
    for line in (b"X: y\r\n", b"no line end ", b"\r\n"):
        taken = 0

        def read(size: int, line: bytes = line) -> bytes:
            nonlocal taken
            taken += 1000 * len(line)
            return line * 1000

        with pytest.raises(SourceError, match="no image within"):
            next(iter(Parts(read, "frame")))
        assert taken < 4 * MAX_HEAD


def opened(uri: str, options: SourceOptions = SourceOptions()) -> Source:  # noqa: B008
    source = open_source(uri, options)
    source.open()
    return source


def until_error(source: Source, within_s: float = 15.0) -> SourceError:
    deadline = time.monotonic() + within_s
    with pytest.raises(SourceError) as caught:
        while time.monotonic() < deadline:
            frame = source.read(0.1)
            if frame is not None:
                frame.release()
    return caught.value


def reply(data: bytes, path: str, send: Send) -> None:
    """An answer that sends `data` and ends."""
    send(data)


def streaming(layout: str) -> Callable[[str, Send], None]:
    def answer(path: str, send: Send) -> None:
        send(MIXED)
        while True:
            send(LAYOUTS[layout])
            time.sleep(0.02)

    return answer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_camera_of_every_layout_is_seen_undamaged(layout: str) -> None:
    with HttpCamera(streaming(layout)) as camera, closing(opened(camera.uri())) as source:
        for _ in range(4):
            with next_frame(source) as frame:
                assert not frame.damaged
                assert 0 <= image_number(frame.pixels) < len(JPEGS)
        assert source.counters()["decode_errors"] == 0


@pytest.mark.parametrize("kind", [b"", b"Content-Type: application/octet-stream\r\n"])
@pytest.mark.parametrize("layout", ["standard", "no first boundary", "nothing but JPEGs"])
def test_a_stream_whose_type_says_nothing_is_recognised(kind: bytes, layout: str) -> None:
    def answer(path: str, send: Send) -> None:
        send(OK + kind + b"\r\n")
        while True:
            send(LAYOUTS[layout])
            time.sleep(0.02)

    with HttpCamera(answer) as camera, closing(opened(camera.uri())) as source:
        for _ in range(3):
            assert not next_frame(source).damaged


def test_cut_images_are_damaged_frames() -> None:
    cut = JPEGS[0][: len(JPEGS[0]) // 4]

    def answer(path: str, send: Send) -> None:
        send(MIXED)
        while True:
            for one in (cut, JPEGS[1]):
                send(b"--frame\r\n" + PLAIN_HEAD % len(one) + one + b"\r\n")
                time.sleep(0.05)

    with HttpCamera(answer) as camera, closing(opened(camera.uri())) as source:
        seen = [next_frame(source).damaged for _ in range(8)]
        assert True in seen and False in seen
        assert source.counters()["decode_errors"] >= 1


def test_a_part_that_claims_two_gigabytes_takes_no_memory() -> None:
    def answer(path: str, send: Send) -> None:
        send(MIXED + b"--frame\r\n" + PLAIN_HEAD % 2_000_000_000)
        while True:
            send(bytes(1 << 20))

    with HttpCamera(answer) as camera:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with closing(opened(camera.uri())) as source:
            assert "exceeds 32 MiB" in until_error(source).message
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000, "in KiB"


class TestSnapshotContract(SourceContract):
    @pytest.fixture
    def make_source(self) -> MakeSource:
        with Snapshots() as camera:
            yield lambda: open_source(camera.uri("/snapshot.jpg?fps=25"))


class Snapshots(HttpCamera):
    """Each request gets one JPEG, of a number that increases; `busy` refuses this many requests."""

    def __init__(self) -> None:
        super().__init__(self._one)
        self.busy = 0
        self._count = 0

    def _one(self, path: str, send: Send) -> None:
        if self.busy:
            self.busy -= 1
            send(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
            return
        self._count += 1
        image = jpeg(self._count)
        send(OK + PLAIN_HEAD % len(image) + image)


def test_a_snapshot_address_is_polled_as_often_as_asked() -> None:
    with Snapshots() as camera:
        with closing(opened(camera.uri("/snapshot.jpg?channel=1&fps=20"))) as source:
            numbers = []
            started = time.monotonic()
            while len(numbers) < 8:
                with next_frame(source) as frame:
                    numbers.append(image_number(frame.pixels))
            assert time.monotonic() - started >= 6 / 20
        assert numbers == sorted(set(numbers))
        assert set(camera.paths) == {"/snapshot.jpg?channel=1"}, "fps is not the camera's"


def test_a_snapshot_address_outlives_some_refused_requests_but_not_many() -> None:
    with Snapshots() as camera:
        uri = camera.uri("/snapshot.jpg?fps=20")
        with closing(opened(uri, SourceOptions(stall_after_s=1.0))) as source:
            next_frame(source).release()
            camera.busy = 3
            eventually(lambda: camera.busy == 0, "the camera was busy", 5)
            next_frame(source).release()
            next_frame(source).release()
            camera.busy = 10**6
            assert "no frame for 1 s: the camera refuses the request with status 503" in until_error(source).message


def test_a_snapshot_rate_that_never_meets_the_limit_is_refused() -> None:
    with pytest.raises(InputError, match=r"fps=0\.1 .*STALL_AFTER_S above 10"):
        open_source("http://camera/snapshot.jpg?fps=0.1")
    open_source("http://camera/snapshot.jpg?fps=0.1", SourceOptions(stall_after_s=30))
    with pytest.raises(InputError, match="fps=often"):
        open_source("http://camera/snapshot.jpg?fps=often")


def test_a_streaming_camera_gets_its_own_fps_option() -> None:
    with HttpCamera(streaming("standard")) as camera:
        with closing(opened(camera.uri("/mjpg?fps=7&x=1"))) as source:
            next_frame(source).release()
        assert camera.paths[-1] == "/mjpg?fps=7&x=1"


@pytest.mark.parametrize("kind", [b"image/jpeg", b"image/jpg", b"application/octet-stream"])
def test_a_snapshot_is_polled_over_one_connection_where_the_camera_keeps_it(kind: bytes) -> None:
    ports = set()
    paths = set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            ports.add(self.client_address[1])
            paths.add(self.path)
            self.wfile.write(OK + b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, len(JPEGS[0])) + JPEGS[0])
            self.close_connection = False

        def log_message(self, *_: object) -> None:
            """Suppress the request log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    with closing(opened(f"http://127.0.0.1:{server.server_address[1]}/a?fps=25&x=1")) as source:
        for _ in range(5):
            assert not next_frame(source).damaged
    server.shutdown()
    thread.join()
    server.server_close()
    assert len(ports) == 1
    assert paths == {"/a?x=1"}


def test_images_are_left_out_when_decoding_cannot_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = JpegDecoder.decode
    sent = 0

    def slow(self: JpegDecoder, data: bytes) -> Decoded:
        time.sleep(0.1)
        return decode(self, data)

    def answer(path: str, send: Send) -> None:
        nonlocal sent
        send(MIXED)
        while True:
            send(b"--frame\r\n\r\n" + jpeg(sent % 256) + b"\r\n")
            sent += 1
            time.sleep(0.02)

    monkeypatch.setattr(JpegDecoder, "decode", slow)
    with HttpCamera(answer) as camera, closing(opened(camera.uri())) as source:
        ages = []
        until = time.monotonic() + 5.0
        while time.monotonic() < until:
            with next_frame(source) as frame:
                ages.append((sent - image_number(frame.pixels)) % 256)
        assert source.counters()["skipped_packets"] > 0
        assert len(ages) > 10
        assert max(ages[-10:]) < 100, "of 250 sent, 50 can be decoded: without skipping the last is 200 behind"


def test_a_slow_stream_is_waited_for_as_long_as_set() -> None:
    """Frames are 6 s apart, which FFmpeg's client took for the end of the stream after 5 s."""

    def answer(path: str, send: Send) -> None:
        send(MIXED)
        for one in JPEGS:
            time.sleep(5.6)
            send(b"--frame\r\n" + PLAIN_HEAD % len(one) + one + b"\r\n")

    with HttpCamera(answer) as camera, closing(opened(camera.uri(), SourceOptions(stall_after_s=30.0))) as source:
        with next_frame(source, 12.0) as frame:
            assert image_number(frame.pixels) == 0


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg4", "ts"), ("flv", "flv"), ("mpeg2video", "ts")])
def test_video_in_a_container_is_decoded(tmp_path: Path, codec: str, suffix: str) -> None:
    clip = write_clip(tmp_path / f"clip.{suffix}", 60, codec, "yuv420p").read_bytes()
    with HttpCamera(partial(reply, OK + b"Content-Type: video/x\r\n\r\n" + clip)) as camera:
        source = open_source(camera.uri("/live"))
        with closing(source):
            source.open()
            next_frame(source).release()
            assert "ended" in until_error(source).message


@pytest.mark.parametrize("algorithm", ["MD5", "MD5-sess", "SHA-256"])
def test_digest_authentication(algorithm: str) -> None:
    secret = f"{USER}:{quote(PASSWORD, safe='')}@"
    with HttpCamera(streaming("standard"), digest=algorithm) as camera:
        with closing(opened(camera.uri("/live?x=1", secret))) as source:
            next_frame(source).release()
        with pytest.raises(SourceError, match="401") as caught:
            opened(camera.uri("/live", f"{USER}:wr0ng@"))
        assert "password" in caught.value.hint
        assert "wr0ng" not in str(caught.value)


class Redirector(HttpCamera):
    """`/start` redirects to `target`; everything else streams."""

    def __init__(self, target: str = "") -> None:
        self.target = target
        super().__init__(self._answer)

    def _answer(self, path: str, send: Send) -> None:
        if path.startswith("/start"):
            send(b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % self.target.encode())
        else:
            streaming("standard")(path, send)


def test_a_redirect_within_the_camera_is_followed() -> None:
    with Redirector() as camera:
        for target in ("/live", "live", camera.uri("/live?x=1")):
            camera.target = target
            with closing(opened(camera.uri("/start"))) as source:
                next_frame(source).release()


def test_a_redirect_elsewhere_is_refused_and_nothing_is_sent_there() -> None:
    with Redirector() as camera, HttpCamera(streaming("standard")) as other:
        for target in (
            other.uri("/live"),
            other.uri("/live", host="localhost"),
            camera.uri("/live", host="localhost"),
            "file:///etc/passwd",
            "ftp://127.0.0.1/x",
            f"rtsp://127.0.0.1:{camera.port}/live",
            "",
        ):
            camera.target = target
            with pytest.raises(SourceError, match="redirects to"):
                opened(camera.uri("/start", "door:s3cr3t@"))
        camera.target = "/start"
        with pytest.raises(SourceError, match="circle"):
            opened(camera.uri("/start"))
        assert not other.paths


def test_playlists_are_not_followed(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.ts", 30, "mpeg4", "yuv420p")
    with HttpCamera(streaming("standard")) as other:
        lists = {
            "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other.uri('/a.ts')}\n#EXT-X-ENDLIST\n",
            "hls of a file": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n",
            "concat": f"ffconcat version 1.0\nfile {clip}\n",
            "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 26\n",
        }
        for text in lists.values():
            for kind in ("application/octet-stream", "video/mp2t", "application/vnd.apple.mpegurl"):
                sent = OK + f"Content-Type: {kind}\r\n\r\n{text}".encode()
                with HttpCamera(partial(reply, sent)) as camera, pytest.raises(SourceError):
                    opened(camera.uri("/live.m3u8"))
        assert not other.paths


def status(code: str) -> Callable[[str, Send], None]:
    return partial(reply, f"HTTP/1.1 {code}\r\nContent-Length: 0\r\n\r\n".encode())


@pytest.mark.parametrize(
    ("code", "words", "hint"),
    [
        ("401 Unauthorized", "401", "password"),
        ("403 Forbidden", "403", "password"),
        ("404 Not Found", "404", "path"),
        ("500 Oops", "500", "path"),
    ],
)
def test_a_refusal_names_its_cause_and_hints_at_nothing_else(code: str, words: str, hint: str) -> None:
    with HttpCamera(status(code)) as camera, pytest.raises(SourceError, match=words) as caught:
        opened(camera.uri("/live", "door:s3cr3t@"))
    assert hint in caught.value.hint
    assert ("password" in caught.value.hint) == (hint == "password")
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
def test_an_address_without_a_camera_is_explained(scheme: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening, so connections are refused
        for where, words in (
            (f"127.0.0.1:{taken.getsockname()[1]}", "connection refused"),
            ("no-such-camera.invalid", "unknown host"),
            ("a" * 70 + ".invalid", "unknown host"),
        ):
            with pytest.raises(SourceError, match=words) as caught:
                opened(f"{scheme}://door:s3cr3t@{where}/live")
            assert "password" not in caught.value.hint
            assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "https", "rtsp"])
@pytest.mark.parametrize("password", ["a/b", "a#b", "a?b", "1/2"])
def test_an_unescaped_character_in_a_password_is_explained(scheme: str, password: str) -> None:
    with pytest.raises(SourceError) as caught:
        opened(f"{scheme}://door:{password}@127.0.0.1:9/live")
    text = str(caught.value)
    assert ("%2F" in text and "%23" in text) or "refused" in text
    assert password not in text.replace("127.0.0.1", "") and password[-2:] + "@" not in text


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https", "rtsp"])
def test_a_server_that_never_answers_is_explained(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(SourceError, match="no answer") as caught:
            opened(f"{scheme}://door:s3cr3t@127.0.0.1:{server.getsockname()[1]}/live")
        assert time.monotonic() - started < 9
    assert "password" not in caught.value.hint


def rtsp_refusing(status: str) -> Callable[[], int]:
    """Start an RTSP server that refuses with `status`; returns its port."""

    def serve() -> int:
        server = socket.create_server(("127.0.0.1", 0))

        def answer() -> None:
            with server:
                server.settimeout(10)
                client, _ = server.accept()
                with client:
                    while True:
                        request = client.recv(65536).decode()
                        if not request:
                            return
                        number = request.partition("CSeq: ")[2].partition("\r\n")[0]
                        verb = request.partition(" ")[0]
                        sdp = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\n"
                        if verb == "DESCRIBE" and status.startswith("461"):
                            head = f"200 OK\r\nCSeq: {number}\r\nContent-Type: application/sdp"
                            reply = f"RTSP/1.0 {head}\r\nContent-Length: {len(sdp)}\r\n\r\n{sdp}"
                        elif verb == "OPTIONS":
                            reply = f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\nPublic: DESCRIBE, SETUP, PLAY\r\n\r\n"
                        else:
                            reply = f"RTSP/1.0 {status}\r\nCSeq: {number}\r\n\r\n"
                        client.sendall(reply.encode())

        threading.Thread(target=answer, daemon=True).start()
        return int(server.getsockname()[1])

    return serve


@pytest.mark.parametrize(
    ("code", "words", "hint"),
    [
        ("401 Unauthorized", "401", "password"),
        ("404 Not Found", "404", "path"),
        ("461 Unsupported Transport", "does not stream over TCP", r"\?transport=udp"),
    ],
)
def test_an_rtsp_refusal_names_its_cause(code: str, words: str, hint: str) -> None:
    port = rtsp_refusing(code)()
    with pytest.raises(SourceError, match=words) as caught:
        opened(f"rtsp://door:s3cr3t@127.0.0.1:{port}/live")
    assert hint.replace("\\", "") in caught.value.hint
    assert "s3cr3t" not in str(caught.value)


def test_the_rtsp_transport_is_checked() -> None:
    with pytest.raises(InputError, match="transport=pigeon"):
        open_source("rtsp://door:s3cr3t@camera/live?transport=pigeon")


def test_close_ends_a_camera_that_hangs() -> None:
    hanging = threading.Event()
    before = threading.active_count()
    with HttpCamera(lambda path, send: (send(MIXED), hanging.wait())) as camera:  # type: ignore[func-returns-value]
        source = opened(camera.uri())
        source.close()
        eventually(lambda: not [t for t in threading.enumerate() if t.name == "media-stream"], "the thread ends", 5)
        hanging.set()
    eventually(lambda: threading.active_count() <= before, "all threads end", 5)


def test_mjpeg_server_is_reconnected_without_leaks() -> None:
    with MjpegServer() as server, closing(open_source(server.uri())) as source:
        source.open()
        files = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(10):
            source.open()
            next_frame(source).release()
        assert len(list(Path("/proc/self/fd").iterdir())) <= files + 2
