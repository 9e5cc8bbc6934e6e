"""HTTP cameras: streams of JPEGs, addresses of single JPEGs, and video in a container.

The program fetches by itself; FFmpeg gets bytes and opens neither addresses nor files, whatever a camera sends.
"""

import re
import time
from typing import Optional, Tuple

from edge_agent.capture import SourceOptions
from edge_agent.capture.address import Query, without_options
from edge_agent.capture.http_client import Answer, Camera
from edge_agent.capture.http_multipart import Parts
from edge_agent.capture.live import HINT_PATH, HINT_SILENT, Link, LiveSource, open_timeout_s
from edge_agent.capture.media_decode import JpegDecoder
from edge_agent.capture.media_stream import play_file
from edge_agent.errors import InputError, SourceError

DEFAULT_FPS = 2.0
_PEEKED = 512
_AT_ONCE_S = 0.001  # a read that takes longer has waited for the camera
_BEHIND_S = 1.0
_TEXT = frozenset({"application/json", "application/xml", "application/vnd.apple.mpegurl", "application/x-mpegurl"})


class HttpSource(LiveSource):
    """An HTTP camera.

    Args:
        uri: http:// or https://, with user and password where the camera requires them. `?fps=` is how often the
            address of a single image is fetched; it is not sent to such a camera. The rest of the query is.
        options: Only `color` and `stall_after_s` are used.

    Raises:
        InputError: `fps` is not a number, or slower than `stall_after_s` allows.
    """

    def __init__(self, uri: str, options: SourceOptions) -> None:
        super().__init__(uri, options, self._fetch)
        self._full_uri = uri
        self._camera_uri, own = without_options(uri, ("fps",))
        self._fps = Query(self.uri, own).number("fps", max(DEFAULT_FPS, 2 / options.stall_after_s), 0.01, 100.0)
        if self._fps * options.stall_after_s <= 1.0:
            raise InputError(
                f"{self.uri}: fps={self._fps:g} fetches no image within {options.stall_after_s:g} s",
                f"set STALL_AFTER_S above {1 / self._fps:g}, or a higher fps",
            )

    def _fetch(self, link: Link) -> SourceError:
        camera, answer = self._connect(link, self._camera_uri)
        try:
            if self._full_uri != self._camera_uri and not _is_single_image(answer):
                camera.disconnect()  # so `fps` is an option of the camera's own
                camera, answer = self._connect(link, self._full_uri)
            return self._play_answer(link, camera, answer)
        finally:
            link.use(None)
            camera.disconnect()

    @staticmethod
    def _connect(link: Link, uri: str) -> Tuple[Camera, Answer]:
        open_s = open_timeout_s(link.stall_after_s)
        camera = Camera(uri, open_s, max(link.stall_after_s, open_s))
        link.use(camera)
        return camera, camera.get()

    def _play_answer(self, link: Link, camera: Camera, answer: Answer) -> SourceError:
        kind = answer.content_type
        boundary: Optional[str] = answer.boundary
        if kind == "image/jpeg":
            boundary = ""
        elif not kind.startswith("multipart/"):
            boundary = _boundary_of(answer.peek(_PEEKED))
        if boundary is None:
            if kind.startswith("text/") or kind in _TEXT:
                return SourceError("the camera sends text, no video", HINT_PATH)
            return play_file(answer, link)
        link.connected()
        decoder = JpegDecoder()
        count = _play_images(link, answer, boundary, decoder)
        single = not kind.startswith("multipart/") and (count == 1 or (kind == "image/jpeg" and count == 0))
        if not single:
            return SourceError("the stream has ended", HINT_SILENT)
        return self._poll(link, camera, decoder)

    def _poll(self, link: Link, camera: Camera, decoder: JpegDecoder) -> SourceError:
        """Fetch one image after the other until the link is stopped."""
        due_t = time.monotonic()
        while True:
            due_t = max(due_t + 1.0 / self._fps, time.monotonic())
            link.wait(due_t - time.monotonic())
            if link.stopping:
                return SourceError("stopped")
            try:
                count = _play_images(link, camera.get(), "", decoder)
                link.trouble(None if count else SourceError("the camera sends no image", HINT_PATH))
            except SourceError as error:  # once is no failure of the camera: it may be busy, or starting again
                camera.disconnect()
                link.trouble(error)


def _play_images(link: Link, answer: Answer, boundary: str, decoder: JpegDecoder) -> int:
    """Decode the JPEGs of an answer until it ends; returns their number.

    When no read has waited for data in the last `_BEHIND_S`, decoding is too slow for the stream: then images are left
    out until one waits, but for one in a second.
    """
    errors = link.counters["decode_errors"] - decoder.errors
    count = 0
    waited_t = decoded_t = time.monotonic()

    def read(size: int) -> bytes:
        nonlocal waited_t
        asked_t = time.monotonic()
        data = answer.read(size)
        arrived_t = time.monotonic()
        if arrived_t - asked_t > _AT_ONCE_S:
            waited_t = arrived_t
        return data

    for image in Parts(read, boundary):
        if link.stopping:
            break
        count += 1
        arrived_t = time.monotonic()
        lag_s = arrived_t - waited_t  # at most: the image came after the last wait
        link.counters["lag_ms"] = int(lag_s * 1000)
        if lag_s > _BEHIND_S and arrived_t - decoded_t < _BEHIND_S:
            link.counters["skipped_packets"] += 1
            link.alive(arrived_t)
            continue
        decoded_t = arrived_t
        link.offer(decoder.decode(image), arrived_t)
        link.counters["decode_errors"] = errors + decoder.errors
    return count


def _is_single_image(answer: Answer) -> bool:
    if answer.content_type.startswith("multipart/"):
        return False
    return answer.content_type.startswith("image/") or (answer.has_length and answer.peek(_PEEKED)[:2] == b"\xff\xd8")


def _boundary_of(start: bytes) -> Optional[str]:
    """The boundary of JPEGs in a body whose type does not say so; empty for JPEGs alone; None for anything else."""
    if start.startswith(b"\xff\xd8\xff"):
        return ""
    match = re.match(rb"\s*--([^\r\n]{1,70})\r?\n", start)
    if match is not None:
        return match[1].decode("latin-1")
    return "" if re.match(rb"(?i)\s*content-(type|length)\s*:", start) else None
