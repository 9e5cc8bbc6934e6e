"""A real HTTP server over a few files that can misbehave as servers and networks do."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Dict, List, Optional, Tuple, Type


class FileServer:
    """Serves `files` by name; keeps every (path, Range header) that was asked for in `requests`.

    Args:
        files: Content by name.
        cut: By name: so many bytes are sent per connection, then it is dropped.
        ranges: False ignores Range, as simple servers do.
        lengths: False sends no Content-Length.
    """

    def __init__(
        self,
        files: Dict[str, bytes],
        cut: Optional[Dict[str, int]] = None,
        ranges: bool = True,
        lengths: bool = True,
    ) -> None:
        self.files, self.cut, self.ranges, self.lengths = files, cut or {}, ranges, lengths
        self.requests: List[Tuple[str, Optional[str]]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One GET."""
        name = handler.path.lstrip("/")
        span = handler.headers.get("Range")
        self.requests.append((name, span))
        if name not in self.files:
            handler.send_error(404)
            return
        content = self.files[name]
        start = int(span[len("bytes=") :].rstrip("-")) if span and self.ranges else 0
        if start >= len(content) > 0 and start:
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.lengths:
            handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        handler.wfile.write(content[start : start + self.cut.get(name, len(content))])

    def __enter__(self) -> "FileServer":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
