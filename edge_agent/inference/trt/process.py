"""The agent's end of a worker process (`trt.worker.py`): its start, its answers within deadlines, its end."""

import json
import mmap
import os
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import numpy as np

from edge_agent.core.types import Array
from edge_agent.errors import EngineError, MissingPackage
from edge_agent.inference.cuda.driver import hint_for
from edge_agent.inference.trt.worker import FRAME, MAGIC, PROTOCOL

PROGRAM = Path(__file__).with_name("worker.py")
_HELLO_LIMIT_S = 120.0  # importing TensorRT and opening the GPU take a cold Nano half a minute
_END_LIMIT_S = 5.0
_HEADER_LIMIT_BYTES = 1 << 24
_INSTALL = (
    "on JetPack 4: sudo apt-get install python3-libnvinfer, which is for python3.6; see scripts/install-jetson --check"
)


class WorkerError(Exception):
    """What the worker answered instead of what was asked for. It goes on.

    Args:
        kind: "model", "build" or "engine".
        why: In words.
    """

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


class WorkerProcess:
    """A worker, from its hello to its end. Used by one thread; whatever fails but a `WorkerError` ends it.

    Args:
        python: Interpreter that has TensorRT 8: name or path.

    Attributes:
        hello: What it said of itself.
        python: As given.

    Raises:
        MissingPackage: There is no such interpreter, or TensorRT or the driver is missing there.
        EngineError: No GPU answers, or the worker does not.
    """

    def __init__(self, python: str) -> None:
        self._map: Optional[mmap.mmap] = None
        self._open = False
        self.python = python
        self._fault: Optional[EngineError] = None
        with ExitStack() as failing:
            self._memory = os.memfd_create("edge-agent-tensors")
            failing.callback(os.close, self._memory)
            self._channel, theirs = socket.socketpair()
            with theirs, ExitStack() as unstarted:
                unstarted.callback(self._channel.close)
                self._process = _start(python, theirs.fileno(), self._memory)
                unstarted.pop_all()
            failing.callback(self._end)
            failing.callback(self._channel.close)  # first, so that the worker ends by itself
            self.hello = self._greeting()
            failing.pop_all()
        self._open = True

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, do: str, limit_s: float, payload: bytes = b"", **request: Any) -> Tuple[Dict[str, Any], bytes]:
        """The answer to one request: header and payload.

        Raises:
            WorkerError: The worker could not do it.
            EngineError: It has died, or did not answer within `limit_s`; this is closed then.
        """
        if not self._open:
            raise self._fault or EngineError(f"TensorRT's worker: {do}: used after it was closed")
        try:
            self._send({"do": do, **request}, payload, limit_s)
            header, answer = self._receive(limit_s)
        except OSError as error:
            raise self._lost(do, limit_s, error) from error
        if not header["ok"]:
            raise WorkerError(header["kind"], header["why"])
        return header, answer

    def tensor(self, offset: int, shape: Tuple[int, ...], nbytes: int) -> Array:
        """(shape) float32 at `offset` of the shared memory, of which `nbytes` are in use; valid until `close`."""
        if self._map is None or len(self._map) < nbytes:
            self._map = mmap.mmap(self._memory, nbytes)  # an older one lives as long as arrays over it
        return np.frombuffer(self._map, np.float32, int(np.prod(shape)), offset).reshape(shape)

    def close(self) -> None:
        """End the worker and wait for its end. Idempotent."""
        if not self._open:
            return
        self._open = False
        with suppress(OSError):  # it may have gone already
            self._send({"do": "quit"}, b"", _END_LIMIT_S)
        self._channel.close()
        self._end()
        self._map = None
        os.close(self._memory)

    def _greeting(self) -> Dict[str, Any]:
        try:
            hello, _ = self._receive(_HELLO_LIMIT_S)
        except OSError as error:
            lost = self._lost("starting", _HELLO_LIMIT_S, error)
            code = self._process.returncode
            if code > 0:  # no crash: it is not the Python, or the file, that was expected
                raise MissingPackage(
                    f"{self.python} does not run TensorRT's worker: exit code {code}", _INSTALL
                ) from error
            raise lost from error
        if hello.get("protocol") != PROTOCOL:
            raise EngineError(
                f"TensorRT's worker speaks protocol {hello.get('protocol')}, this agent {PROTOCOL}",
                "install edge-agent again",
            )
        if not hello["ok"] and hello["kind"] == "missing":
            raise MissingPackage(hello["why"], _INSTALL)
        if not hello["ok"]:
            raise EngineError(hello["why"], hint_for(hello["why"]))
        return hello

    def _send(self, header: Dict[str, Any], payload: bytes, limit_s: float) -> None:
        text = json.dumps(header).encode()
        self._channel.settimeout(limit_s)
        self._channel.sendall(FRAME.pack(MAGIC, len(text), len(payload)) + text)
        if payload:
            self._channel.sendall(payload)

    def _receive(self, limit_s: float) -> Tuple[Dict[str, Any], bytes]:
        """One frame.

        Raises:
            OSError: None came in time, or the other end has closed.
        """
        until = time.monotonic() + limit_s
        magic, text_bytes, payload_bytes = FRAME.unpack(self._exactly(FRAME.size, until))
        if magic != MAGIC or text_bytes > _HEADER_LIMIT_BYTES:
            raise ConnectionError("what it sent is no frame")
        header: Dict[str, Any] = json.loads(self._exactly(text_bytes, until))
        return header, bytes(self._exactly(payload_bytes, until))

    def _exactly(self, count: int, until: float) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        done = 0
        while done < count:
            self._channel.settimeout(max(until - time.monotonic(), 0.001))
            got = self._channel.recv_into(view[done:])
            if not got:
                raise ConnectionError("it has closed the connection")
            done += got
        return data

    def _lost(self, doing: str, limit_s: float, error: OSError) -> EngineError:
        """End what no longer answers, and tell how it ended."""
        late = isinstance(error, socket.timeout)
        self._channel.close()
        self._end(patience_s=0.0 if late else _END_LIMIT_S)
        if self._open:
            self._open = False
            self._map = None
            os.close(self._memory)
        code = self._process.returncode
        if late:
            how = f"no answer within {limit_s:g} s; it was killed"
        else:
            how = f"killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"
        self._fault = EngineError(
            f"TensorRT's worker: {doing}: {how}",
            "see its last words in the log; a Nano that is out of memory kills it: sudo dmesg | grep -i oom",
        )
        return self._fault

    def _end(self, patience_s: float = _END_LIMIT_S) -> None:
        """Wait for its end, or make it; it leaves no zombie."""
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _start(python: str, channel: int, memory: int) -> "subprocess.Popen[bytes]":
    # Isolated (-I): this environment's PYTHON* variables and folders are for another version of Python.
    command = [python, "-I", str(PROGRAM), str(channel), str(memory)]
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(channel, memory))
    except OSError as error:
        raise MissingPackage(f"{python} cannot be run: {error.strerror}", _INSTALL) from error
