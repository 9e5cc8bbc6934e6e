"""A real RTSP server (gst-rtsp-server) that shows a face in H.264, and a proxy that loses packets of its stream.

Run as a program by the system's Python, which has GObject introspection: rtsp_server.py PORT IMAGE FPS GOP PROTOCOL.
"""

import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import List, Optional, Type

SYSTEM_PYTHON = "/usr/bin/python3"
PACKAGES = (
    "apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly"
)
_PROBE = (
    "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; "
    "Gst.init(None); assert all(map(Gst.ElementFactory.find, ('x264enc', 'rtph264pay', 'imagefreeze', 'pngdec')))"
)


def missing() -> str:
    """Why the server cannot run here, with what would enable it; empty when it can."""
    if not Path(SYSTEM_PYTHON).exists():
        return f"needs {SYSTEM_PYTHON}"
    probe = subprocess.run([SYSTEM_PYTHON, "-c", _PROBE], capture_output=True, check=False)
    return "" if probe.returncode == 0 else f"needs a real RTSP server: {PACKAGES}"


def free_port() -> int:
    """An unused TCP port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RtspServer:
    """`with RtspServer(image, fps, gop) as server: server.port`; each client has its own encoder, so a keyframe first.

    Args:
        image: PNG file whose content moves a little from frame to frame.
        fps: Frames per second.
        gop: Frames from keyframe to keyframe.
        protocol: `tcp` or `udp`; clients that ask for another are refused with status 461.
    """

    def __init__(self, image: Path, fps: int = 15, gop: int = 30, protocol: str = "tcp") -> None:
        self.port = free_port()
        self._command = [
            SYSTEM_PYTHON,
            str(Path(__file__).resolve()),
            *map(str, (self.port, image, fps, gop, protocol)),
        ]
        self._process: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> "RtspServer":
        self._process = subprocess.Popen(self._command)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the RTSP server does not start")

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class LossyProxy:
    """RTSP over TCP; drops this part of the interleaved video packets. `loss` may be changed at any time.

    Setting `hold_s` holds everything back once for so long; then the backlog comes at once.
    """

    def __init__(self, target: int, loss: float = 0.0, seed: int = 1) -> None:
        self.loss = loss
        self.dropped = 0
        self.hold_s = 0.0
        self._target, self._chance = target, random.Random(seed)
        self._sockets: List[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        for one in (self._server, *self._sockets):
            one.close()

    def _serve(self) -> None:
        try:
            while True:
                client, _ = self._server.accept()
                camera = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, camera]
                threading.Thread(target=self._copy, args=(client, camera), daemon=True).start()
                threading.Thread(target=self._lose, args=(camera, client), daemon=True).start()
        except OSError:
            return

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while True:
                data = source.recv(65536)
                if not data:
                    break
                sink.sendall(data)
        except OSError:
            pass
        sink.close()

    def _lose(self, source: socket.socket, sink: socket.socket) -> None:
        left = b""
        try:
            while True:
                data = source.recv(65536)
                if not data:
                    break
                left += data
                if self.hold_s:
                    seconds, self.hold_s = self.hold_s, 0.0
                    time.sleep(seconds)
                kept = b""
                while left:
                    whole = self._length(left)
                    if whole > len(left):
                        break
                    packet, left = left[:whole], left[whole:]
                    if packet[:2] == b"$\0" and self._chance.random() < self.loss:
                        self.dropped += 1
                    else:
                        kept += packet
                sink.sendall(kept)
        except OSError:
            pass
        sink.close()

    @staticmethod
    def _length(data: bytes) -> int:
        """Bytes of the interleaved packet or RTSP message at the start; more than there are when it is not whole."""
        if data[:1] == b"$":
            return 4 + int.from_bytes(data[2:4], "big") if len(data) >= 4 else len(data) + 1
        head = data.find(b"\r\n\r\n") + 4
        if head < 4:
            return len(data) + 1
        lines = data[:head].decode("latin-1").lower().split("\r\n")
        return head + sum(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))


def main(port: str, image: str, fps: str, gop: str, protocol: str) -> None:
    """Serve /live until killed."""
    import gi  # of the system's Python

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtsp", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtsp, GstRtspServer

    Gst.init(None)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f"( filesrc location={image} ! pngdec ! imagefreeze is-live=true ! video/x-raw,framerate={fps}/1 ! videoconvert"
        " ! timeoverlay halignment=right ! video/x-raw,format=I420"
        f" ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={gop} bitrate=2000 threads=1"
        " ! video/x-h264,profile=baseline ! rtph264pay config-interval=-1 name=pay0 pt=96 )"
    )
    factory.set_shared(False)
    factory.set_latency(0)
    factory.set_protocols(GstRtsp.RTSPLowerTrans.UDP if protocol == "udp" else GstRtsp.RTSPLowerTrans.TCP)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/live", factory)
    server.attach(None)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:6])
