"""A real mosquitto, a subscriber that keeps a record, and a gate between agent and broker."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, List, NamedTuple, Optional

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.fakes.schemas import validate_message
from tests.fakes.waiting import DEADLINE_S, eventually

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
MOSQUITTO = shutil.which("mosquitto", path=PATH)
needs_mosquitto = pytest.mark.broker
"""tests/conftest.py skips what carries this mark where there is no mosquitto."""
VERSIONS = {"5": MQTTProtocolVersion.MQTTv5, "3.1.1": MQTTProtocolVersion.MQTTv311}


def free_port() -> int:
    """An unused TCP port on loopback."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Broker:
    """One mosquitto on a free loopback port; the same port at every start.

    Args:
        folder: For its configuration, log and data.
        config: More lines of configuration; with `listener` or `allow_anonymous` it replaces ours.
        persistence: Keep retained messages over an ordered stop.
    """

    def __init__(self, folder: Path, config: str = "", persistence: bool = False) -> None:
        self.port = free_port()
        self.log = folder / "mosquitto.log"
        self._folder = folder
        self._process: Optional[subprocess.Popen[bytes]] = None
        self.configure(config, persistence)

    def configure(self, config: str, persistence: bool = False) -> None:
        """Set the configuration of the next start."""
        lines = ["" if "listener" in config else f"listener {self.port} 127.0.0.1"]
        lines += ["" if "allow_anonymous" in config else "allow_anonymous true"]
        lines += ["max_inflight_messages 0", "log_type all"]
        # As root, mosquitto becomes another user, who may not read the test's files.
        lines += ["user root"] if os.geteuid() == 0 else []
        lines += [f"persistence true\npersistence_location {self._folder}/"] if persistence else []
        (self._folder / "mosquitto.conf").write_text("\n".join([*lines, config.replace("PORT", str(self.port)), ""]))

    def start(self) -> "Broker":
        """Start, and wait until it listens."""
        assert MOSQUITTO is not None
        with self.log.open("ab") as log:
            command = [MOSQUITTO, "-c", str(self._folder / "mosquitto.conf")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(self._listens, f"mosquitto on {self.port}; see {self.log}")
        return self

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """Stop it cleanly."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9`: no clean disconnect, no saved state."""
        self._end(signal.SIGKILL)

    def send_signal(self, what: signal.Signals) -> None:
        """SIGSTOP: keep connections, and answer nothing. SIGCONT: go on. SIGHUP: read access lists again."""
        assert self._process is not None
        self._process.send_signal(what)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(DEADLINE_S)
            self._process = None

    def _listens(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self.log.read_text("utf-8", "replace")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return False

    def __enter__(self) -> "Broker":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


class Heard(NamedTuple):
    """One message as the subscriber got it."""

    topic: str
    payload: bytes
    retain: bool
    qos: int
    properties: Any


class Listener:
    """An independent subscriber; validates and records all that it receives. Reconnects automatically.

    Args:
        broker: Where.
        filters: What to listen to. QoS 0 by default: what the broker has acknowledged is then already on its way here.
    """

    def __init__(
        self, broker: Broker, *filters: str, version: str = "5", qos: int = 0, tls: Any = None, **login: str
    ) -> None:
        self.heard: List[Heard] = []
        self.faults: List[str] = []
        self.ready = threading.Event()
        self._filters, self._qos = filters or ("#",), qos
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=VERSIONS[version])
        if login:
            self._client.username_pw_set(login["username"], login["password"])
        if tls is not None:
            self._client.tls_set_context(tls)
        self._client.on_connect = lambda client, *_: client.subscribe([(f, self._qos) for f in self._filters])
        self._client.on_subscribe = lambda *_: self.ready.set()
        self._client.on_disconnect = lambda *_: self.ready.clear()
        self._client.on_message = self._note
        self._client.reconnect_delay_set(0.05, 0.2)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def topics(self) -> List[str]:
        return [heard.topic for heard in list(self.heard)]

    def payloads(self, topic: str) -> List[bytes]:
        """Payloads of one topic, oldest first."""
        return [heard.payload for heard in list(self.heard) if heard.topic == topic]

    def last(self, topic: str) -> Optional[bytes]:
        """The newest payload of one topic."""
        return (self.payloads(topic) or [None])[-1]

    def _note(self, client: Client, _: Any, message: Any) -> None:
        try:
            validate_message(message.topic, message.payload)
        except (AssertionError, ValueError, KeyError) as fault:
            self.faults.append(f"{message.topic}: {fault!r}")
        self.heard.append(Heard(message.topic, message.payload, message.retain, message.qos, message.properties))

    def __enter__(self) -> "Listener":
        assert self.ready.wait(DEADLINE_S), "the listener could not subscribe"
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        # paho closes its wake-up sockets only when it is deleted, which in a cycle may come too late for that.
        self._client.on_connect = self._client.on_subscribe = self._client.on_disconnect = None
        self._client.on_message = None
        if kind is None:
            assert not self.faults, self.faults


class Gate:
    """A TCP forwarder in front of a broker, that can be shut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open = True
        self._pairs: List[socket.socket] = []
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self) -> None:
        """Cut open connections and refuse new ones."""
        with self._lock:
            self._open = False
            for sock in self._pairs:
                _cut(sock)
            self._pairs.clear()

    def open(self) -> None:
        """Let connections through again."""
        with self._lock:
            self._open = True

    def close(self) -> None:
        self.shut()
        _cut(self._server)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._server.accept()
            except OSError:
                return
            with self._lock:
                try:
                    if not self._open:
                        raise ConnectionRefusedError
                    outer = socket.create_connection(("127.0.0.1", self._target), 5.0)
                except OSError:
                    inner.close()
                    continue
                outer.settimeout(None)
                self._pairs += [inner, outer]
            for source, sink in ((inner, outer), (outer, inner)):
                threading.Thread(target=_forward, args=(source, sink), daemon=True).start()


class Front:
    """Passes MQTT 3.1.1 on to a broker; answers every other first packet with `answer`, or not at all.

    Args:
        port: Of the broker.
        answer: Sent before the connection is closed; with b"" it is left open, mute.
    """

    def __init__(self, port: int, answer: bytes = b"") -> None:
        self._target, self._answer = port, answer
        self._held: List[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        _cut(self._server)
        self._server.close()
        for sock in self._held:
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._server.accept()
                first = inner.recv(65536)
            except OSError:
                return
            self._held.append(inner)
            if b"\x00\x04MQTT\x04" in first:
                outer = socket.create_connection(("127.0.0.1", self._target), 5.0)
                outer.settimeout(None)
                outer.sendall(first)
                for source, sink in ((inner, outer), (outer, inner)):
                    threading.Thread(target=_forward, args=(source, sink), daemon=True).start()
            elif self._answer:
                inner.sendall(self._answer)
                _cut(inner)


def _forward(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data = source.recv(65536)
            if not data:
                break
            sink.sendall(data)
    _cut(sink)
    source.close()


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
