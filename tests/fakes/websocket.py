"""A websocket gateway in front of a broker, as RFC 6455 has it; Debian's mosquitto is built without one."""

import base64
import contextlib
import hashlib
import socket
import struct
import threading
from typing import List, Tuple

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class WebsocketGateway:
    """Takes websockets on `path` and passes their content to a TCP port.

    Attributes:
        refused: Requests for another path.
    """

    def __init__(self, port: int, path: str = "/mqtt") -> None:
        self._target, self._path = port, path.encode()
        self.refused = 0
        self._held: List[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End every connection."""
        for sock in (self._server, *self._held):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                inner, _ = self._server.accept()
                self._held.append(inner)
                threading.Thread(target=self._serve, args=(inner,), daemon=True).start()

    def _serve(self, inner: socket.socket) -> None:
        with contextlib.suppress(OSError), inner.makefile("rb") as reader:
            method, path, _ = reader.readline().split(b" ", 2)
            headers = dict(self._header(line) for line in iter(reader.readline, b"\r\n"))
            if path != self._path or method != b"GET" or headers[b"sec-websocket-protocol"] != b"mqtt":
                self.refused += 1
                inner.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                inner.shutdown(socket.SHUT_RDWR)
                return
            key = base64.b64encode(hashlib.sha1(headers[b"sec-websocket-key"] + GUID).digest())
            inner.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Accept: " + key + b"\r\n\r\n"
            )
            outer = socket.create_connection(("127.0.0.1", self._target), 5.0)
            outer.settimeout(None)
            self._held.append(outer)
            threading.Thread(target=self._back, args=(outer, inner), daemon=True).start()
            while True:
                head = reader.read(2)
                if len(head) < 2:
                    break
                length = head[1] & 0x7F
                if length >= 126:
                    size, form = (2, "!H") if length == 126 else (8, "!Q")
                    (length,) = struct.unpack(form, reader.read(size))
                mask, data = reader.read(4), reader.read(length)
                if head[0] & 0x0F == 8:
                    break
                outer.sendall(bytes(byte ^ mask[at % 4] for at, byte in enumerate(data)))
            outer.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _header(line: bytes) -> Tuple[bytes, bytes]:
        name, _, value = line.partition(b":")
        return name.strip().lower(), value.strip()

    @staticmethod
    def _back(outer: socket.socket, inner: socket.socket) -> None:
        with contextlib.suppress(OSError):
            for data in iter(lambda: outer.recv(65000), b""):
                head = bytes([0x82, len(data)]) if len(data) < 126 else b"\x82\x7e" + struct.pack("!H", len(data))
                inner.sendall(head + data)
            inner.shutdown(socket.SHUT_RDWR)
