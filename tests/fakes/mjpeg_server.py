"""An HTTP server that streams MJPEG like an IP camera and simulates its faults."""

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Optional, Type

import cv2

from tests.fakes.images import numbered_image

PERIOD_S = 0.02


class MjpegServer:
    """`with MjpegServer() as server: server.uri()`; the path selects the answer.

    `/live`: images without end; `/stall`: five images, then nothing; `/gone`: five images, then the connection is
    closed; `/garbage`: parts that are not images; `/damaged`: every third image is damaged; `/silent`: no headers;
    `/text`: an HTML page; `/file`: the bytes of `file`. User `door`, password `s3cr3t` when `locked`.
    """

    def __init__(self, locked: bool = False, file: bytes = b"") -> None:
        self.locked, self.file = locked, file
        self.closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    server.answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Suppress the request log."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.block_on_close = False
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05})

    def uri(self, path: str = "/live", who: str = "") -> str:
        return f"http://{who}127.0.0.1:{self._http.server_address[1]}{path}"

    def __enter__(self) -> "MjpegServer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        if self.locked:
            expected = "Basic " + base64.b64encode(b"door:s3cr3t").decode()
            if request.headers.get("Authorization") != expected:
                request.send_response(401)
                request.send_header("WWW-Authenticate", 'Basic realm="camera"')
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
        path = request.path.partition("?")[0]
        if path == "/silent":
            self.closing.wait()
            return
        request.send_response(200)
        if path == "/file":
            request.end_headers()
            request.wfile.write(self.file)
            return
        if path == "/text":
            request.send_header("Content-Type", "text/html")
            request.end_headers()
            request.wfile.write(b"<html>this is no camera</html>" * 200)
            return
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        index = 0
        while not self.closing.wait(PERIOD_S):
            if index == 5 and path == "/stall":
                self.closing.wait()
                return
            if index == 5 and path == "/gone":
                return
            body = cv2.imencode(".jpg", numbered_image(index % 256)[..., ::-1])[1].tobytes()
            if path == "/garbage" or (path == "/damaged" and index % 3 == 2):
                body = bytes(len(body))
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            request.wfile.write(head + body + b"\r\n")
            index += 1
