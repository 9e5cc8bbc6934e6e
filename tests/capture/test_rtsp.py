"""A real RTSP server: the first frame, lost packets, and a backlog."""

import time
from contextlib import closing
from pathlib import Path
from typing import List, Tuple

import cv2
import pytest

from edge_agent.capture import SourceOptions
from edge_agent.capture.media_stream import StreamSource
from edge_agent.capture.synthetic.source import ASTRONAUT
from edge_agent.errors import SourceError
from tests.fakes import rtsp_server
from tests.fakes.rtsp_server import LossyProxy, RtspServer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(rtsp_server.missing()), reason=rtsp_server.missing() or "-")]
FPS = 15


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rtsp") / "face.png"
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(ASTRONAUT)), (640, 480)))
    return path


def watched(source: StreamSource, seconds: float) -> List[Tuple[bool, float]]:
    """(damaged, age at reading in s) of every frame of so many seconds."""
    seen = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        frame = source.read(0.25)
        if frame is not None:
            with frame:
                seen.append((frame.damaged, time.monotonic() - frame.t))
    return seen


def test_the_first_keyframe_is_not_lost_though_the_next_is_ten_seconds_away(image: Path) -> None:
    with RtspServer(image, FPS, gop=10 * FPS) as server:
        with closing(StreamSource(f"rtsp://127.0.0.1:{server.port}/live", SourceOptions())) as source:
            source.open()
            seen = watched(source, 3.0)
    assert len(seen) > FPS, "frames come at once, not after the next keyframe"
    assert not any(damaged for damaged, _ in seen)


def test_lost_packets_damage_all_frames_up_to_the_next_keyframe(image: Path) -> None:
    with RtspServer(image, FPS, gop=2 * FPS) as server:
        proxy = LossyProxy(server.port)
        with closing(StreamSource(f"rtsp://127.0.0.1:{proxy.port}/live", SourceOptions())) as source:
            source.open()
            assert not any(damaged for damaged, _ in watched(source, 1.0))
            proxy.loss = 0.5
            lossy = watched(source, 4.0)
            proxy.loss = 0.0
            after = [damaged for damaged, _ in watched(source, 6.0)]
        proxy.close()
    assert proxy.dropped > 10
    shown = [damaged for damaged, _ in lossy]
    assert True in shown and all(shown[shown.index(True) :]), "not one of them is evidence"
    clean = after.index(False)
    assert not any(after[clean:]), "a clean keyframe ends it"


def test_a_backlog_is_skipped_and_the_age_of_frames_is_known(image: Path) -> None:
    with RtspServer(image, FPS, gop=FPS) as server:
        proxy = LossyProxy(server.port)
        with closing(StreamSource(f"rtsp://127.0.0.1:{proxy.port}/live", SourceOptions(stall_after_s=10))) as source:
            source.open()
            watched(source, 2.0)
            proxy.hold_s = 3.0
            held = watched(source, 6.0)
        proxy.close()
    counters = source.counters()
    assert counters["skipped_packets"] > 0, "what is too old is not decoded"
    assert held[-1][1] < 1.0 and counters["lag_ms"] < 1000, "it has caught up"
    assert not any(damaged for damaged, _ in held[-5:])


def test_a_camera_that_streams_over_udp_only_is_named_and_can_be_used(image: Path) -> None:
    with RtspServer(image, FPS, gop=FPS, protocol="udp") as server:
        uri = f"rtsp://door:s3cr3t@127.0.0.1:{server.port}/live"
        with pytest.raises(SourceError, match="does not stream over TCP") as caught:
            StreamSource(uri, SourceOptions()).open()
        assert "?transport=udp" in caught.value.hint
        with closing(StreamSource(f"{uri}?transport=udp", SourceOptions())) as source:
            source.open()
            assert len(watched(source, 2.0)) > FPS
