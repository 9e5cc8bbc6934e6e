"""An HTTP camera whose answers are given byte by byte, for what real cameras send against the standard."""

import hashlib
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Callable, Dict, List, Optional, Type

import cv2

from tests.fakes.images import numbered_image

USER, PASSWORD = "door", "p@s:s/w#1%"
Send = Callable[[bytes], None]


def jpeg(number: int) -> bytes:
    """A JPEG that shows `number`."""
    return bytes(cv2.imencode(".jpg", numbered_image(number % 256)[..., ::-1])[1].tobytes())


class HttpCamera:
    """`with HttpCamera(answer) as camera: camera.uri()`.

    Args:
        answer: Gets the request's path and a function that sends bytes, status line and headers included; the
            connection is closed when it returns.
        digest: Algorithm of Digest authentication; empty for no authentication.
    """

    def __init__(self, answer: Callable[[str, Send], None], digest: str = "") -> None:
        self.paths: List[str] = []
        self.closing = threading.Event()
        camera = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.close_connection = True
                camera.paths.append(self.path)
                if digest and not allowed(self.headers.get("Authorization", ""), self.path, digest):
                    self.wfile.write(
                        b'HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm="b"\r\nWWW-Authenticate: Digest '
                        b'realm="a, b", nonce="n0", qop="auth,auth-int", algorithm=%s, opaque="o"\r\n\r\n'
                        % digest.encode()
                    )
                    return
                with suppress(OSError):
                    answer(self.path, self.send_bytes)

            def send_bytes(self, data: bytes) -> None:
                self.wfile.write(data)
                self.wfile.flush()

            def log_message(self, *_: object) -> None:
                """Suppress the request log."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self.port = int(self._http.server_address[1])
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})

    def uri(self, path: str = "/", who: str = "", host: str = "127.0.0.1") -> str:
        return f"http://{who}{host}:{self.port}{path}"

    def __enter__(self) -> "HttpCamera":
        self._thread.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def allowed(authorization: str, path: str, algorithm: str) -> bool:
    """Whether a Digest answer is right, computed as RFC 7616 says."""
    fields: Dict[str, str] = dict(re.findall(r'(\w+)="?((?<==")[^"]*|[^",\s]+)', authorization))
    name = algorithm.replace("-sess", "")

    def digest(*parts: str) -> str:
        return hashlib.new(name.replace("SHA-256", "sha256"), ":".join(parts).encode()).hexdigest()

    secret = digest(USER, "a, b", PASSWORD)
    if algorithm.endswith("-sess"):
        secret = digest(secret, "n0", fields.get("cnonce", ""))
    wanted = digest(secret, "n0", fields.get("nc", ""), fields.get("cnonce", ""), "auth", digest("GET", path))
    return authorization.startswith("Digest ") and fields.get("uri") == path and fields.get("response") == wanted
