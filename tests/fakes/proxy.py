"""A recording proxy in front of a broker: records every PUBLISH sent to it, and simulates network faults."""

import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Optional, Tuple

CONNECT, CONNACK, PUBLISH, PUBACK = 1, 2, 3, 4
REFUSALS = {"refuse": b"\x99", "busy": b"\x97"}
"""MQTT 5 reason codes: "payload format invalid", "quota exceeded"."""
POLL_S = 0.05

Verdict = Optional[str]
"""What to do with a PUBLISH: None passes it on, "cut" discards it and cuts, others refuse it as in `REFUSALS`."""


@dataclass
class Passed:
    """One PUBLISH of the agent's.

    Attributes:
        t: Wall-clock seconds when it came by.
        fate: "passed", or what was done with it instead.
        code: The broker's reason code; None without an acknowledgement, 0 for success and in MQTT 3.1.1.
    """

    t: float
    connection: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    fate: str = "passed"
    code: Optional[int] = None

    @property
    def arrived(self) -> bool:
        """The broker has taken responsibility for it."""
        return self.fate == "passed" and self.code is not None and self.code < 0x80

    def as_line(self) -> str:
        """One line of JSON, for debugging."""
        text = self.payload.decode("utf-8", "replace") if self.payload[:2] != b"\xff\xd8" else "(jpeg)"
        return json.dumps({**vars(self), "payload": text})


class RecordingProxy:
    """Listens on a port of its own for as long as it lives; passes whole packets only.

    Args:
        port: Of the broker, on loopback.

    Attributes:
        record: Every PUBLISH towards the broker, in order.
        judge: Decides on each of them.
        protocol: MQTT's level (4 or 5) of the newest connection.
        turned_away: CONNECTs that were refused.
        cuts: Connections that were cut.
    """

    def __init__(self, port: int) -> None:
        self.record: List[Passed] = []
        self.judge: Callable[[Passed], Verdict] = lambda passed: None
        self.protocol = self.turned_away = self.cuts = 0
        self._target = port
        self._open, self._refusal = True, 0
        self._up, self._down = threading.Event(), threading.Event()
        self._up.set()
        self._down.set()
        self._links: List[_Link] = []
        self._count = 0
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    @staticmethod
    def answers(port: int) -> bool:
        """Whether a process listens on this loopback port."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return True
        return False

    def cut(self) -> None:
        """Cut open connections and refuse new ones."""
        self._open = False
        self._cut_all()

    def stall(self, only_answers: bool = False) -> None:
        """Keep connections, and pass nothing on; or only what the broker sends."""
        self._down.clear()
        if not only_answers:
            self._up.clear()

    def refuse(self, code: int) -> None:
        """Cut open connections, and answer every CONNECT with this code."""
        self._refusal = code
        self._cut_all()

    def mend(self) -> None:
        """End all simulated faults."""
        self._open, self._refusal, self.judge = True, 0, lambda passed: None
        self._up.set()
        self._down.set()

    def close(self) -> None:
        """Cut all connections and stop."""
        self.cut()
        _shut(self._server)
        self._server.close()

    def _cut_all(self) -> None:
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            self.cuts += link.alive
            link.cut()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._server.accept()
                inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError:
                return
            with self._lock:
                self._count += 1
                link = _Link(self, self._count, inner)
                if self._open:
                    self._links = [known for known in self._links if known.alive] + [link]
                else:
                    link.cut()
            threading.Thread(target=link.upwards, daemon=True).start()


class _Link:
    """One connection of the agent's, and its counterpart at the broker."""

    def __init__(self, proxy: RecordingProxy, number: int, inner: socket.socket) -> None:
        self._proxy, self._number, self._inner = proxy, number, inner
        self._outer: Optional[socket.socket] = None
        self._level = 4
        self._unacked: Dict[int, Passed] = {}
        self.alive = True

    def cut(self) -> None:
        self.alive = False
        for sock in (self._inner, self._outer):
            if sock is not None:
                _shut(sock)

    def upwards(self) -> None:
        """Agent to broker."""
        with contextlib.suppress(OSError):
            for packet in packets(self._inner):
                if not self._may_flow(self._proxy._up):
                    break
                kind = packet[0] >> 4
                if kind == CONNECT and not self._connect(packet):
                    break
                if kind == PUBLISH and not self._publish(packet):
                    continue
                if self._outer is not None:
                    self._outer.sendall(packet)
        self.cut()
        self._inner.close()

    def _downwards(self, outer: socket.socket) -> None:
        """Broker to agent."""
        with contextlib.suppress(OSError):
            for packet in packets(outer):
                if not self._may_flow(self._proxy._down):
                    break
                if packet[0] >> 4 == PUBACK:
                    body = _body(packet)
                    passed = self._unacked.pop(int.from_bytes(body[:2], "big"), None)
                    if passed is not None:
                        passed.code = body[2] if len(body) > 2 else 0
                self._inner.sendall(packet)
        self.cut()
        outer.close()

    def _may_flow(self, flowing: threading.Event) -> bool:
        while self.alive and not flowing.wait(POLL_S):
            pass
        return self.alive

    def _connect(self, packet: bytes) -> bool:
        body = _body(packet)
        self._level = self._proxy.protocol = body[2 + int.from_bytes(body[:2], "big")]
        if self._proxy._refusal:
            code = self._proxy._refusal
            self._proxy.turned_away += 1
            answer = bytes((0x20, 3, 0, code, 0)) if self._level == 5 else bytes((0x20, 2, 0, code))
            self._inner.sendall(answer)
            return False
        self._outer = socket.create_connection(("127.0.0.1", self._proxy._target), 5.0)
        self._outer.settimeout(None)
        self._outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._downwards, args=(self._outer,), daemon=True).start()
        return self.alive

    def _publish(self, packet: bytes) -> bool:
        """Record it; returns False when it must not be passed on."""
        passed, packet_id = _parse(packet, self._level, self._number)
        verdict = self._proxy.judge(passed)
        if verdict is not None:
            passed.fate = verdict
        self._proxy.record.append(passed)
        if verdict == "cut":
            self._proxy.cuts += 1
            self.cut()
        elif verdict in REFUSALS:
            self._inner.sendall(bytes((PUBACK << 4, 3)) + packet_id.to_bytes(2, "big") + REFUSALS[verdict])
        elif passed.qos:
            self._unacked[packet_id] = passed
        return verdict is None


def _parse(packet: bytes, level: int, connection: int) -> Tuple[Passed, int]:
    """A PUBLISH packet and its packet id (MQTT 5.0, 3.3; 3.1.1 is the same without properties)."""
    body, qos = _body(packet), packet[0] >> 1 & 3
    end = 2 + int.from_bytes(body[:2], "big")
    topic, packet_id = body[2:end].decode(), 0
    if qos:
        packet_id, end = int.from_bytes(body[end : end + 2], "big"), end + 2
    if level == 5:
        length, size = _varint(body, end)
        end += size + length
    return Passed(time.time(), connection, topic, body[end:], qos, bool(packet[0] & 1)), packet_id


def packets(sock: socket.socket) -> Iterator[bytes]:
    """Whole packets until the other end closes."""
    data = b""
    while True:
        whole = _length(data)
        while whole is not None and len(data) >= whole:
            yield data[:whole]
            data = data[whole:]
            whole = _length(data)
        more = sock.recv(65536)
        if not more:
            return
        data += more


def _length(data: bytes) -> Optional[int]:
    """Length of the packet at the start of `data`; None while its header is incomplete."""
    if len(data) < 2 or (data[1] & 0x80 and not any(byte < 0x80 for byte in data[1:5])):
        return None
    length, size = _varint(data, 1)
    return 1 + size + length


def _body(packet: bytes) -> bytes:
    return packet[1 + _varint(packet, 1)[1] :]


def _varint(data: bytes, at: int) -> Tuple[int, int]:
    """A variable byte integer (MQTT 5.0, 1.5.5) and how many bytes it takes."""
    value = 0
    for size in range(4):
        value |= (data[at + size] & 0x7F) << (7 * size)
        if data[at + size] < 0x80:
            return value, size + 1
    raise OSError("malformed length")


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
