"""Runs networks for `tests/fakes/python36/tensorrt.py`, whose Python has no packages.

Requests and responses: two lengths, a JSON header, a payload. "open" takes an ONNX file; "run" its input, float32.
"""

import hashlib
import json
import struct
import sys
from typing import Any, BinaryIO, Dict, Tuple

import numpy as np
import onnx
import onnxruntime


def opened(data: bytes) -> Tuple[Any, Dict[str, Any]]:
    model = onnx.load_from_string(data)
    source = model.graph.input[0]
    dims = source.type.tensor_type.shape.dim
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session, {
        "key": hashlib.sha256(data).hexdigest(),
        "input": source.name,
        "shape": [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims],
        "outputs": [output.name for output in session.get_outputs()],
        "nodes": [list(node.output) for node in model.graph.node],
    }


def run(session: Any, request: Dict[str, Any], payload: bytes) -> Tuple[Dict[str, Any], bytes]:
    feed = np.frombuffer(payload, np.float32).reshape(request["shape"])
    if request.get("scale"):
        scale = np.float32(struct.unpack(">f", bytes.fromhex(request["scale"]))[0])
        feed = (np.clip(np.rint(feed / scale), -128, 127) * scale).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    values = session.run(None, {session.get_inputs()[0].name: feed})
    if request.get("half"):
        values = [value.astype(np.float16).astype(np.float32) for value in values]
    if request.get("wrong"):
        values = [value * np.float32(0.3) + 1 for value in values]
    data = b"".join(np.ascontiguousarray(value, np.float32).tobytes() for value in values)
    return {"shapes": {name: list(value.shape) for name, value in zip(names, values)}}, data


def serve(requests: BinaryIO, responses: BinaryIO) -> None:
    sessions: Dict[str, Any] = {}
    while True:
        head = requests.read(8)
        if len(head) < 8:
            return
        sizes = struct.unpack("<II", head)
        request, payload = json.loads(requests.read(sizes[0])), requests.read(sizes[1])
        if request["do"] == "open":
            session, answer = opened(payload)
            sessions[answer["key"]] = session
            data = b""
        else:
            answer, data = run(sessions[request["key"]], request, payload)
        text = json.dumps(answer).encode()
        responses.write(struct.pack("<II", len(text), len(data)) + text + data)
        responses.flush()


def main() -> None:
    serve(sys.stdin.buffer, sys.stdout.buffer)
