"""A camera in a process of its own: MJPEG over HTTP at a fixed rate. It never waits for a slow reader.

It shows a face at place 0 until it reads "go" from stdin, then plays its schedule. A client has a queue of two images
behind a small socket buffer; what does not fit is dropped, the oldest first, and counted. Prints JSON lines: its port,
every onset and end at the time its first image was sent, and finally the count of dropped images.
"""

import contextlib
import json
import os
import selectors
import socket
import sys
import time
from collections import deque
from typing import Any, Deque, Dict, List, Optional

from scripts.lib.bench.scene import Visit, scene_jpegs, visits

SEND_BUFFER_BYTES = 65536
QUEUE = 2
BOUNDARY = "bench"
HEAD = f"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary={BOUNDARY}\r\n\r\n".encode()


class Reader:
    """One client."""

    def __init__(self, link: socket.socket) -> None:
        link.setblocking(False)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.link, self.asked = link, False
        self._under_way = memoryview(HEAD)
        self._waiting: Deque[bytes] = deque()
        self.dropped = 0

    def offer(self, part: bytes) -> None:
        """Queue one image; drops the oldest that is not being sent yet."""
        if len(self._waiting) >= QUEUE:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(part)
        self.push()

    def push(self) -> None:
        """Send as much as the socket accepts now.

        Raises:
            OSError: The client has gone.
        """
        with contextlib.suppress(BlockingIOError):
            while self._under_way or self._waiting:
                if not self._under_way:
                    self._under_way = memoryview(self._waiting.popleft())
                self._under_way = self._under_way[self.link.send(self._under_way) :]

    @property
    def behind(self) -> bool:
        return bool(self._under_way or self._waiting)


class Camera:
    """The server."""

    def __init__(self, fps: float, plan: List[Visit], tail_s: float) -> None:
        self._parts: Dict[Optional[int], List[bytes]] = {
            slot: [_part(jpeg) for jpeg in jpegs] for slot, jpegs in scene_jpegs().items()
        }
        self._fps, self._plan = fps, plan
        self._end_s = (plan[-1].end_s if plan else 0.0) + tail_s
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ, self._accept)
        self._selector.register(sys.stdin, selectors.EVENT_READ, self._go)
        self._readers: List[Reader] = []
        self._began_t: Optional[float] = None
        self._dropped = self._frames = 0
        self._ended = self._reported = False

    def run(self) -> None:
        """Until stdin ends."""
        _report(port=self._server.getsockname()[1])
        due_t, shown = time.monotonic(), 0
        while not self._ended:
            due_t += 1.0 / self._fps
            self._serve_until(due_t)
            now = time.monotonic()
            if self._began_t is not None and now > self._began_t + self._end_s:
                self._account()
            slot = self._slot(now)
            if slot != shown:
                _report(t=time.monotonic(), slot=slot)
                shown = slot
            self._show(slot)
        self._account()

    def _account(self) -> None:
        """Report once that the schedule is over; images continue until the process is stopped."""
        if not self._reported:
            _report(frames=self._frames, dropped=self._dropped + sum(reader.dropped for reader in self._readers))
        self._reported = True

    def _slot(self, now: float) -> Optional[int]:
        if self._began_t is None:
            return 0
        at_s = now - self._began_t
        return next((visit.slot for visit in self._plan if visit.start_s <= at_s < visit.end_s), None)

    def _show(self, slot: Optional[int]) -> None:
        parts = self._parts[slot]
        self._frames += 1
        for reader in list(self._readers):
            if reader.asked:
                self._try(reader, lambda reader=reader: reader.offer(parts[self._frames % len(parts)]))

    def _serve_until(self, due_t: float) -> None:
        while not self._ended:
            for reader in self._readers:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if reader.asked and reader.behind else 0)
                self._selector.modify(reader.link, wanted, reader)
            wait_s = due_t - time.monotonic()
            if wait_s <= 0:
                return
            for key, _ in self._selector.select(wait_s):
                if isinstance(key.data, Reader):
                    self._try(key.data, lambda reader=key.data: self._hear(reader))
                else:
                    key.data()

    def _hear(self, reader: Reader) -> None:
        with contextlib.suppress(BlockingIOError):
            if not reader.link.recv(4096):
                raise ConnectionResetError
            reader.asked = True
        reader.push()

    def _try(self, reader: Reader, act: Any) -> None:
        try:
            act()
        except OSError:
            self._selector.unregister(reader.link)
            self._readers.remove(reader)
            self._dropped += reader.dropped
            reader.link.close()

    def _accept(self) -> None:
        reader = Reader(self._server.accept()[0])
        self._readers.append(reader)
        self._selector.register(reader.link, selectors.EVENT_READ, reader)

    def _go(self) -> None:
        if not os.read(0, 64):
            self._ended = True
        elif self._began_t is None:
            self._began_t = time.monotonic()


def _part(jpeg: bytes) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    return head.encode() + jpeg + b"\r\n"


def _report(**what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    Camera(asked["fps"], visits(asked["onsets"], asked["seed"]), asked["tail_s"]).run()
