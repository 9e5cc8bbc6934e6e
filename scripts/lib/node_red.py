"""The shipped Node-RED flow, headless, between a real broker and a real agent; Node-RED is no dependency of the tests.

    python -m scripts.lib.node_red RED_JS

RED_JS is `node_modules/node-red/red.js` of an `npm install node-red`. Prints the count of messages per output of
the flow; fails when one output has none, when a late event triggers an action, or when Node-RED logs an error.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from scripts.lib.generated import ROOT
from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, eventually, free_port

AGENT: Dict[str, Any] = {
    "CAMERAS__DOOR__URI": "test://one?fps=15",
    "PRESENCE__DELAY_OFF_S": 0.5,
    "HEALTH__INTERVAL_S": 1,
}
EVENTS = "edge-agent/n/door/events"
LATE = {"schema": "edge-agent.face-event/1", "event_type": "start", "delivery": {"replayed": True, "queued_ms": 40_000}}
GAP = {"schema": "edge-agent.gap/1", "from_seq": 3, "to_seq": 5, "count": 3, "reason": "full"}
START = "a face has appeared"
LIVE = ("somebody is there", "nobody is there", START, "it has left")
BLIND = "cannot see: change nothing"
REST = ("late: for the archive only", "messages were lost")


@contextmanager
def node_red(red_js: str, folder: Path, broker: Broker) -> Iterator[List[str]]:
    """Run the flow; yields the lines that Node-RED prints, a list that grows."""
    flow = json.loads((ROOT / "config" / "node-red" / "flow.json").read_text("utf-8"))
    for node in flow:
        node.update({"mqtt-broker": {"port": str(broker.port)}, "debug": {"console": True}}.get(node["type"], {}))
    (folder / "flow.json").write_text(json.dumps(flow))
    printed: List[str] = []
    command = ["node", red_js, "-u", str(folder), "-p", str(free_port()), str(folder / "flow.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=printed.extend, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            eventually(lambda: any("Connected to broker" in line for line in printed), "Node-RED connects", 60.0)
            yield printed
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(15)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("red_js")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Broker(Path(name)) as broker, node_red(
        arguments.red_js, Path(name), broker
    ) as printed:

        def times(output: str) -> int:
            return sum(f"[debug:{output}]" in line for line in list(printed))

        client = Client(CallbackAPIVersion.VERSION2)
        starts: List[bytes] = []
        client.on_message = lambda _, __, message: (
            starts.append(message.payload) if b'"start"' in message.payload else None
        )
        client.connect("127.0.0.1", broker.port)
        client.subscribe(EVENTS, 1)
        client.loop_start()
        with AgentProcess({**AGENT, "MQTT__PORT": broker.port}) as agent:
            for output in LIVE:
                eventually(lambda output=output: times(output), output, 60.0)
            for payload in (LATE, GAP):
                client.publish(EVENTS, json.dumps(payload), qos=1)
            for output in REST:
                eventually(lambda output=output: times(output), output)
            blind = times(BLIND)
            agent.stop()
            eventually(lambda: times(BLIND) > blind, BLIND)
        client.disconnect()
        client.loop_stop()
        counts = {output: times(output) for output in (*LIVE, *REST, BLIND)}
        errors = [line for line in printed if "[error]" in line]
        if counts[START] != len(starts) - 1:
            errors.append(f"{len(starts) - 1} live starts, {counts[START]} acted on")
    for output, count in counts.items():
        print(f"{count:4d}  {output}")
    print("".join(errors), end="")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
