"""The usual script: OpenCV capture, a detector and paho in one loop.

    python -m scripts.lib.bench.programs.script --url URL --port PORT --topic TOPIC --model FILE|haar

Written as in tutorials, with correct results: it publishes changes only, with QoS 1, and ends a visit after the same
time as the agent. ONNX Runtime and OpenCV have their default options.
"""

import argparse
import json
import time

import cv2
import numpy as np
import paho.mqtt.client as mqtt

GONE_S = 0.3
THRESHOLD = 0.4
IOU = 0.4


def gridbox(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def detect(frame):
        height, width = frame.shape[:2]
        small = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), (384, 240)).astype(np.float32) / 255.0
        cov, bbox = session.run(None, {name: small.transpose(2, 0, 1)[None]})
        boxes, scores = [], []
        for row, column in np.argwhere(cov[0, 0] > THRESHOLD):
            x, y = column * 16 + 0.5, row * 16 + 0.5
            left, top, right, bottom = bbox[0, :, row, column] * 35.0
            boxes.append([float(x - left), float(y - top), float(left + right), float(top + bottom)])
            scores.append(float(cov[0, 0, row, column]))
        found = []
        for kept in cv2.dnn.NMSBoxes(boxes, scores, THRESHOLD, IOU) if boxes else ():
            x, y, w, h = boxes[int(kept)]
            found.append((x / 384 * width, y / 240 * height, w / 384 * width, h / 240 * height))
        return found

    return detect


def haar(_):
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")
    return lambda frame: cascade.detectMultiScale(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), 1.1, 5)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", args.port)
    client.loop_start()
    detect = (haar if args.model == "haar" else gridbox)(args.model)
    capture = cv2.VideoCapture(args.url)
    present, seen_t, processed, counted_t = False, 0.0, 0, 0.0
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        found = detect(frame)
        processed += 1
        now = time.monotonic()
        if len(found):
            seen_t = now
            if not present:
                present = True
                x, y, w, h = (float(v) for v in found[0])
                height, width = frame.shape[:2]
                box = [x / width, y / height, (x + w) / width, (y + h) / height]
                client.publish(args.topic, json.dumps({"event": "start", "box": box}), qos=1)
        elif present and now - seen_t > GONE_S:
            present = False
            client.publish(args.topic, json.dumps({"event": "end"}), qos=1)
        if now - counted_t >= 1.0:
            counted_t = now
            client.publish(args.topic + "/count", json.dumps({"processed": processed, "read": processed}))


if __name__ == "__main__":
    main()
