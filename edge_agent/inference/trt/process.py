"""Starts and stops a TensorRT worker process (`worker.py`) and sends it requests with deadlines."""

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
_HELLO_LIMIT_S = 120.0  # a Nano takes half a minute to import TensorRT and open the GPU for the first time
_END_LIMIT_S = 5.0
_HEADER_LIMIT_BYTES = 1 << 24
_INSTALL = (
    "on JetPack 4: sudo apt-get install python3-libnvinfer, which is for python3.6; see scripts/install-jetson --check"
)


class WorkerError(Exception):
    """The worker's error answer to a request; the worker stays usable.

    Args:
        kind: "model", "build" or "engine".
        reason: Error text.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


class WorkerProcess:
    """A worker process. Used by one thread; every failure except a `WorkerError` ends the process.

    Args:
        python: Name or path of an interpreter that has TensorRT 8.

    Attributes:
        hello: The worker's first message: facts of TensorRT and the GPU.
        python: As given.

    Raises:
        MissingPackage: The interpreter does not exist, or lacks TensorRT or the driver.
        EngineError: The GPU or the worker does not answer.
    """

    def __init__(self, python: str) -> None:
        self._map: Optional[mmap.mmap] = None
        self._open = False
        self.python = python
        self._failure: Optional[EngineError] = None
        with ExitStack() as on_failure:
            self._memory = os.memfd_create("edge-agent-tensors")
            on_failure.callback(os.close, self._memory)
            self._channel, theirs = socket.socketpair()
            with theirs, ExitStack() as unstarted:
                unstarted.callback(self._channel.close)
                self._process = _start(python, theirs.fileno(), self._memory)
                unstarted.pop_all()
            on_failure.callback(self._end)
            on_failure.callback(self._channel.close)  # runs first, so that the worker exits
            self.hello = self._receive_hello()
            on_failure.pop_all()
        self._open = True

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def request(self, do: str, limit_s: float, payload: bytes = b"", **fields: Any) -> Tuple[Dict[str, Any], bytes]:
        """Send one request and wait for its answer: header and payload.

        Raises:
            WorkerError: The worker answered with an error.
            EngineError: The worker has ended, or did not answer within `limit_s`; this object is then closed.
        """
        if not self._open:
            raise self._failure or EngineError(f"TensorRT's worker: {do}: used after it was closed")
        try:
            self._send({"do": do, **fields}, payload, limit_s)
            header, answer = self._receive(limit_s)
        except OSError as error:
            raise self._lost(do, limit_s, error) from error
        if not header["ok"]:
            raise WorkerError(header["kind"], header["why"])
        return header, answer

    def tensor(self, offset: int, shape: Tuple[int, ...], nbytes: int) -> Array:
        """(shape) float32 array at `offset` of the shared memory of `nbytes`; valid until `close`."""
        if self._map is None or len(self._map) < nbytes:
            self._map = mmap.mmap(self._memory, nbytes)  # arrays keep an older mapping alive
        return np.frombuffer(self._map, np.float32, int(np.prod(shape)), offset).reshape(shape)

    def close(self) -> None:
        """End the worker and wait until it has ended. Idempotent."""
        if not self._open:
            return
        self._open = False
        with suppress(OSError):  # the worker may have ended already
            self._send({"do": "quit"}, b"", _END_LIMIT_S)
        self._channel.close()
        self._end()
        self._map = None
        os.close(self._memory)

    def _receive_hello(self) -> Dict[str, Any]:
        try:
            hello, _ = self._receive(_HELLO_LIMIT_S)
        except OSError as error:
            lost = self._lost("starting", _HELLO_LIMIT_S, error)
            code = self._process.returncode
            if code > 0:  # no crash: the interpreter could not run the file
                raise MissingPackage(
                    f"{self.python} does not run TensorRT's worker: exit code {code}", _INSTALL
                ) from error
            raise lost from error
        if hello.get("protocol") != PROTOCOL:
            raise EngineError(
                f"TensorRT's worker uses protocol {hello.get('protocol')}, this agent {PROTOCOL}",
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
        """Header and payload of one frame.

        Raises:
            OSError: No valid frame arrived in time, or the worker has closed the socket.
        """
        until = time.monotonic() + limit_s
        magic, text_bytes, payload_bytes = FRAME.unpack(self._read(FRAME.size, until))
        if magic != MAGIC or text_bytes > _HEADER_LIMIT_BYTES:
            raise ConnectionError("it sent an invalid frame")
        header: Dict[str, Any] = json.loads(self._read(text_bytes, until))
        return header, bytes(self._read(payload_bytes, until))

    def _read(self, count: int, until: float) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        done = 0
        while done < count:
            self._channel.settimeout(max(until - time.monotonic(), 0.001))
            count_read = self._channel.recv_into(view[done:])
            if not count_read:
                raise ConnectionError("it has closed the connection")
            done += count_read
        return data

    def _lost(self, doing: str, limit_s: float, error: OSError) -> EngineError:
        """End a worker that no longer answers; the error to raise, with how it ended."""
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
        self._failure = EngineError(
            f"TensorRT's worker: {doing}: {how}",
            "see its last lines in the log; a Nano that is out of memory kills it: sudo dmesg | grep -i oom",
        )
        return self._failure

    def _end(self, patience_s: float = _END_LIMIT_S) -> None:
        """Wait until the process has ended; kill it after `patience_s`."""
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _start(python: str, channel: int, memory: int) -> "subprocess.Popen[bytes]":
    # Isolated (-I), because this environment's PYTHON* variables and folders are for another version of Python.
    command = [python, "-I", str(PROGRAM), str(channel), str(memory)]
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(channel, memory))
    except OSError as error:
        raise MissingPackage(f"{python} cannot be run: {error.strerror}", _INSTALL) from error
