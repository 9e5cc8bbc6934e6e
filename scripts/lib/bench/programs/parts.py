"""Parts of an arm, measured alone, to be subtracted from the sums.

    python -m scripts.lib.bench.programs.parts decode-opencv|decode-agent|infer|libraries|libraries-lean ...

`decode-*` only read the camera: with cv2.VideoCapture, as the script does, or with the agent's own source, as the agent
does. `infer` only runs the network 30 times a second, with the agent's options, on one input. `libraries` has run it
once and holds what the agent needs of others, and nothing of the agent: numpy, ONNX Runtime, paho, pydantic-settings,
SQLite, PyAV, and OpenCV unless lean. What it keeps in memory is the least that is possible.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Callable, List

import numpy as np
import paho.mqtt.client as mqtt


def _decode_opencv(args: argparse.Namespace) -> Callable[[], bool]:
    import cv2

    capture = cv2.VideoCapture(args.url)
    return lambda: bool(capture.read()[0])


def _decode_agent(args: argparse.Namespace) -> Callable[[], bool]:
    from edge_agent.capture import SourceOptions, open_source

    source = open_source(args.url, SourceOptions())
    source.open()

    def read() -> bool:
        frame = source.read(0.1)
        if frame is None:
            return False
        with frame:
            return True

    return read


def _infer(args: argparse.Namespace) -> Callable[[], bool]:
    from edge_agent.core.detection.model_contract import FACEDETECTIR
    from edge_agent.core.frame import Image
    from edge_agent.inference.ort import OrtEngine

    engine = OrtEngine(Path(args.model), FACEDETECTIR, args.threads)
    tensor = engine.prepare(Image(np.full((480, 640), 60, np.uint8)))
    due_t = time.monotonic()
    times_ms: List[float] = []
    args.times_ms = times_ms

    def run() -> bool:
        nonlocal due_t
        due_t = max(due_t + 1 / args.fps, time.monotonic())
        time.sleep(max(0.0, due_t - time.monotonic()))
        began_t = time.perf_counter()
        engine.run(tensor)
        times_ms.append(1e3 * (time.perf_counter() - began_t))
        return True

    return run


def _libraries(args: argparse.Namespace) -> Callable[[], bool]:
    import sqlite3

    import av
    import onnxruntime
    import pydantic_settings

    if args.part == "libraries":
        import cv2

        args.kept = cv2
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(args.model, options, providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0]
    session.run(None, {taken.name: np.zeros(taken.shape, np.float32)})
    args.kept = (args.kept, session, sqlite3, av, pydantic_settings)

    def wait() -> bool:
        time.sleep(0.1)
        return True

    return wait


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parts = {
        "decode-opencv": _decode_opencv, "decode-agent": _decode_agent, "infer": _infer, "libraries": _libraries,
        "libraries-lean": _libraries,
    }  # fmt: skip
    parser.add_argument("part", choices=parts)
    parser.add_argument("--url")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--fps", type=float, default=30.0)
    args = parser.parse_args()
    args.times_ms, args.kept = [], None
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", args.port)
    client.loop_start()
    step = parts[args.part](args)
    count, counted_t = 0, 0.0
    while True:
        count += step()
        if time.monotonic() - counted_t >= 1.0:
            counted_t = time.monotonic()
            body = {"processed": count, "read": count, "infer_ms": args.times_ms[-40:]}
            client.publish(args.topic + "/count", json.dumps(body))


if __name__ == "__main__":
    main()
