"""`edge-agent demo`: runs an agent on a synthetic clip and checks its messages with a separate subscriber."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, List, Optional
from urllib.parse import urlsplit

from edge_agent.commands.arguments import add_command
from edge_agent.commands.broker import BrokerAddress, local_broker
from edge_agent.commands.live import Account, is_crop
from edge_agent.errors import EdgeAgentError, InputError
from edge_agent.mqtt.params import MqttParams

NODE, CAMERA, BASE = "demo", "camera", "edge-agent"
WANTED = ("presence ON", "event start", "event end", "presence OFF")
STOP_S = 6.0


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "demo",
        "run the agent on a synthetic clip and check its messages",
        "Exit code 0 only if an independent subscriber received presence ON, a face's start and end, and OFF.",
    )
    parser.add_argument("--duration", type=float, default=60.0, metavar="SECONDS", help="longest run (default 60)")
    parser.add_argument("--source", default="test://demo", metavar="URI", help="camera source (default test://demo)")
    parser.add_argument("--broker", metavar="URL", help="mqtt://[USER@]HOST[:PORT] (default: start a broker)")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR", help="folder for the crops")
    parser.add_argument("--json", action="store_true", help="print the messages and the result as JSON lines")


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns 0 only if the subscriber received ON, start, end and OFF."""
    if args.duration <= 0:
        raise InputError(f"--duration {args.duration:g}: expected a number above 0")
    _ensure_model(args.json)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {args.output}: {error.strerror}", "choose a folder that can be written") from error
    with ExitStack() as stack:
        broker = _given(args.broker) if args.broker else stack.enter_context(local_broker())
        if not args.json:
            print(f"broker: {broker.name} at {broker.host}:{broker.port}; source: {args.source}", flush=True)
        # A state folder of its own: the messages in the user's outbox must not go to the demo's broker.
        state_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-agent-demo-"))
        return _Demo(broker, args, state_dir).run()


def _ensure_model(quiet: bool) -> None:
    from edge_agent.models.fetch import fetch
    from edge_agent.models.registry import CENTERFACE_CARD, models_dir

    def report(line: str) -> None:
        if not quiet:
            print(line, flush=True)

    fetch(CENTERFACE_CARD, models_dir(None, os.environ), report, lambda done, total: None)


def _given(url: str) -> BrokerAddress:
    parts = urlsplit(url if "//" in url else f"mqtt://{url}")
    if parts.scheme != "mqtt" or not parts.hostname:
        raise InputError(f"--broker {url}: not a broker's address", "expected mqtt://HOST or mqtt://HOST:PORT")
    return BrokerAddress(parts.hostname, parts.port or 1883, "5", "given")


class _Demo:
    """One run: an agent in its own process, a subscriber in this one, and the result."""

    def __init__(self, broker: BrokerAddress, args: argparse.Namespace, state_dir: str) -> None:
        self._broker, self._args, self._state_dir = broker, args, state_dir
        self._account = Account(BASE)
        self._started_t = time.monotonic()
        self._crops: List[str] = []

    def run(self) -> int:
        from edge_agent.app.factories import subscriber_of

        subscriber = self._subscriber = subscriber_of(
            MqttParams(self._broker.host, self._broker.port), [f"{BASE}/{NODE}/#"]
        )
        subscriber.open()
        agent = self._start_agent()
        code: Optional[int] = None
        try:
            deadline = time.monotonic() + self._args.duration
            while time.monotonic() < deadline and code is None:
                self._show(deadline)
                code = agent.poll()
        except KeyboardInterrupt:
            pass
        finally:
            self._stop(agent)
            self._show(time.monotonic() + 0.3)
            subscriber.close()
        return self._result(code)

    def _start_agent(self) -> "subprocess.Popen[bytes]":
        settings = {
            "NODE": NODE,
            "STATE_DIR": self._state_dir,
            f"CAMERAS__{CAMERA.upper()}__URI": self._args.source,
            "MQTT__HOST": self._broker.host,
            "MQTT__PORT": str(self._broker.port),
            "MQTT__PROTOCOL": self._broker.protocol,
            "PRESENCE__DELAY_OFF_S": "1",
            "LOG_LEVEL": "WARNING",
        }
        environ = {k: v for k, v in os.environ.items() if not k.startswith("EDGE_AGENT_")}
        environ.update({f"EDGE_AGENT_{name}": value for name, value in settings.items()})
        return subprocess.Popen([sys.executable, "-m", "edge_agent", "run"], env=environ, start_new_session=True)

    def _stop(self, agent: "subprocess.Popen[bytes]") -> None:
        if agent.poll() is None:
            agent.send_signal(signal.SIGTERM)
        try:
            agent.wait(STOP_S)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()

    def _show(self, deadline: float) -> None:
        """Print what arrives until `deadline`, at most for half a second."""
        until = min(deadline, time.monotonic() + 0.5)
        while True:
            item = self._subscriber.next(max(0.0, until - time.monotonic()))
            if item is None:
                return
            kind, message = item
            if kind == "message":
                self._show_one(message.topic, message.payload, message.retain)

    def _show_one(self, topic: str, payload: bytes, retained: bool) -> None:
        line = self._account.line(topic, payload, retained)
        stamp = time.monotonic() - self._started_t
        saved = self._save(topic, payload) if is_crop(topic) else ""
        if self._args.json:
            shown = None if saved else payload.decode("utf-8", "replace")
            print(
                json.dumps({"t_s": round(stamp, 3), "topic": topic, "payload": shown, "file": saved or None}),
                flush=True,
            )
        elif line is not None:
            print(f"{stamp:6.1f} s  {line}{f'  -> {saved}' if saved else ''}", flush=True)

    def _save(self, topic: str, payload: bytes) -> str:
        path: Path = self._args.output / f"{topic.rsplit('/', 1)[1]}.jpg"
        path.write_bytes(payload)
        self._crops.append(str(path))
        return str(path)

    def _result(self, code: Optional[int]) -> int:
        presence, events = self._account.presence, self._account.events
        after_on = presence[presence.index("ON") :] if "ON" in presence else []
        seen = dict(zip(WANTED, ("ON" in presence, "start" in events, "end" in events, "OFF" in after_on)))
        missing = [name for name, there in seen.items() if not there]
        result: Dict[str, Any] = {
            "ok": not missing,
            "missing": missing,
            "appearances": events.count("start"),
            "crops": self._crops,
            "start_latency_ms": sorted(self._account.latencies_ms),
        }
        if self._args.json:
            print(json.dumps(result), flush=True)
        else:
            print(self._summary(result), flush=True)
        if code not in (None, 0):
            raise EdgeAgentError(f"the agent ended with exit code {code}", "its own error message is above")
        return 0 if not missing else 1

    def _summary(self, result: Dict[str, Any]) -> str:
        if not result["ok"]:
            hint = " (is --duration long enough for the clip?)" if result["appearances"] else ""
            return f"NOT received: {', '.join(result['missing'])}{hint}"
        latencies = result["start_latency_ms"]
        middle = latencies[len(latencies) // 2] if latencies else float("nan")
        where = f"; first crop: {result['crops'][0]}" if result["crops"] else ""
        return (
            f"the subscriber received ON, start, end and OFF: {result['appearances']} visit(s), "
            f"median {middle:.0f} ms from frame to event{where}"
        )
