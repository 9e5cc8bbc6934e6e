"""`edge-agent watch`: what the agents on a broker say, live, for a person."""

import argparse
import json
import queue
import shutil
import sys
import time
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, List, Optional, Tuple
from urllib.parse import urlsplit

from edge_agent.commands.arguments import add_command
from edge_agent.commands.live import Account
from edge_agent.commands.watch_table import Table, printable
from edge_agent.errors import EdgeAgentError, InputError
from edge_agent.mqtt.params import MqttParams, TlsParams

ANSWER_S = 10.0
REDRAW_S = 1.0
ENTER, LEAVE, HOME = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H\x1b[J"
OLDER_LINES = 100
LINE_CHARS = 500
"""Of what somebody has published; more than all that an agent says."""

Item = Tuple[str, Any]
"""What paho's thread tells: "connected", "lost", "subscribed" with reason codes, or "message"."""


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = add_command(
        subparsers,
        "watch",
        "watch what the agents on a broker say, live",
        "A presence in parentheses is the last one known. FPS: pictures looked at each second; LATENCY: from picture "
        "to result, p95; both are as old as the agent's last health, up to half a minute.",
    )
    parser.add_argument(
        "--broker", default="mqtt://localhost", metavar="URL", help="mqtt[s]://[USER@]HOST[:PORT] (mqtt://localhost)"
    )
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="its first line is USER's password")
    parser.add_argument("--ca", type=Path, metavar="FILE", help="authority of the broker's certificate, PEM")
    parser.add_argument("--cert", type=Path, metavar="FILE", help="client certificate, PEM")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its key, where --cert does not hold it")
    parser.add_argument("--base", default="edge-agent", help="first level(s) of the topics (edge-agent)")
    parser.add_argument("--node", default="+", help="this agent only")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="end then; else at Ctrl-C")
    parser.add_argument("--json", action="store_true", help="one JSON object per message")


def run(args: argparse.Namespace) -> int:
    """0 at Ctrl-C or after `--duration`, when something was heard."""
    if args.duration is not None and not args.duration > 0:
        raise InputError(f"--duration {args.duration:g}: expected a number above 0")
    if args.node != "+" and set(args.node) & set("+#/"):
        raise InputError(f"--node {args.node}: no node's name", "expected what EDGE_AGENT_NODE says there")
    return _Watch(address(args), args).run()


def address(args: argparse.Namespace) -> MqttParams:
    """The broker, from the command line.

    Raises:
        InputError: The address cannot be understood, or carries a password.
    """
    url = args.broker if "//" in args.broker else f"mqtt://{args.broker}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.password is not None:
        raise InputError("--broker holds a password, which others on this machine could read", "use --password-file")
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path.strip("/"):
        raise InputError(f"--broker {args.broker}: not a broker's address", "expected mqtt[s]://[USER@]HOST[:PORT]")
    files = [None if path is None else str(path) for path in (args.ca, args.cert, args.key, args.password_file)]
    secure = parts.scheme == "mqtts"
    if not secure and any(files[:3]):
        raise InputError("--ca, --cert and --key are for an encrypted connection", "expected --broker mqtts://...")
    if args.password_file is not None and parts.username is None:
        raise InputError("--password-file without a user", "expected --broker mqtt[s]://USER@HOST")
    tls = TlsParams(secure, *files[:3])
    return MqttParams(
        parts.hostname, port or (8883 if secure else 1883), username=parts.username, password_file=files[3], tls=tls
    )


def filters(base: str, node: str) -> List[str]:
    """What a person needs to know; no pictures of faces."""
    root = f"{base}/{node}"
    own = ("availability", "info", "health", "response/+")
    camera = ("availability", "presence", "presence/attributes", "face_count", "events", "zones/+/presence", "+/state")
    return [f"{root}/{name}" for name in own] + [f"{root}/+/{name}" for name in camera]


def _new_items() -> "queue.SimpleQueue[Item]":
    return queue.SimpleQueue()


class _Watch:
    def __init__(self, params: MqttParams, args: argparse.Namespace) -> None:
        self._params, self._args = params, args
        self._items = _new_items()
        self._account, self._table = Account(args.base), Table(args.base)
        self._live = not args.json and sys.stdout.isatty()
        self._started_t = self._drawn_t = time.monotonic()
        self._heard = 0

    def run(self) -> int:
        client = self._connect()
        until_t = None if self._args.duration is None else time.monotonic() + self._args.duration
        try:
            with ExitStack() as stack:
                if self._live:
                    print(ENTER, end="")
                    stack.callback(print, LEAVE, end="", flush=True)
                while until_t is None or time.monotonic() < until_t:
                    self._step()
        except KeyboardInterrupt:
            pass
        finally:
            client.disconnect()
            client.loop_stop()
        if self._live:
            print("\n".join(self._lines()))
        if not self._heard:
            below = "/".join((self._args.base, self._args.node))
            raise EdgeAgentError(
                f"nothing was heard below {below}", "is --base right, does an agent run, and may this user read there?"
            )
        return 0

    def _connect(self) -> Any:
        """Connected and subscribed, or an error that says why not."""
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

        from edge_agent.mqtt.login import password
        from edge_agent.mqtt.tls import context, explain

        params, where = self._params, f"{self._params.host}:{self._params.port}"
        # Every broker speaks 3.1.1, and nothing of 5 is needed here.
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
        client.connect_timeout = ANSWER_S
        if params.username is not None:
            client.username_pw_set(params.username, password(params.password_file))
        if params.tls.enabled:
            client.tls_set_context(context(params.tls))
        wanted = [(topic, 1) for topic in filters(self._args.base, self._args.node)]
        put = self._items.put
        client.on_connect = lambda _client, _data, _flags, reason, _properties: put(("connected", reason))
        client.on_disconnect = lambda *_: put(("lost", None))
        client.on_subscribe = lambda _client, _data, _mid, reasons, _properties: put(("subscribed", reasons))
        client.on_message = lambda _client, _data, message: put(("message", message))
        try:
            client.connect(params.host, params.port)
        except (OSError, ValueError) as error:
            raise EdgeAgentError(
                f"no broker: {explain(error, params.host, params.port)}", "name another with --broker mqtt://HOST"
            ) from None
        client.loop_start()
        try:
            self._await(client, wanted, where)
        except EdgeAgentError:
            client.loop_stop()
            raise
        return client

    def _await(self, client: Any, wanted: List[Tuple[str, int]], where: str) -> None:
        reason = self._next("connected", where)
        if reason.is_failure:
            raise EdgeAgentError(f"{where}: refused: {reason.getName()}", "see USER in --broker, and --password-file")

        def again(client: Any, *_: Any) -> None:
            self._items.put(("again", None))
            client.subscribe(wanted)

        client.on_connect = again
        client.subscribe(wanted)
        reasons = self._next("subscribed", where)
        if all(reason.is_failure for reason in reasons):
            raise EdgeAgentError(f"{where}: this user may not read below {self._args.base}", "see its access list")

    def _next(self, kind: str, where: str) -> Any:
        from edge_agent.mqtt.tls import hear_refusal

        try:
            found, value = self._items.get(timeout=ANSWER_S)
        except queue.Empty:
            found, value = "silent", None
        if found == kind:
            return value
        refused = hear_refusal(self._params) if self._params.tls.enabled else None
        hint = "" if self._params.tls.enabled else "does it want TLS (mqtts://)?"
        raise EdgeAgentError(f"{where}: {refused or 'takes the connection, but does not answer as a broker'}", hint)

    def _step(self) -> None:
        """Wait for a moment, and show what has come."""
        try:
            kind, value = self._items.get(timeout=0.2)
        except queue.Empty:
            pass
        else:
            if kind == "message":
                self._message(value.topic, value.payload, value.retain)
            elif kind in ("lost", "again"):
                self._say("the connection to the broker is lost" if kind == "lost" else "connected again")
        if self._live and time.monotonic() - self._drawn_t >= REDRAW_S:
            self._drawn_t = time.monotonic()
            print(HOME + "\n".join(self._lines()), end="", flush=True)

    def _message(self, topic: str, payload: bytes, retained: bool) -> None:
        self._heard += 1
        t = time.monotonic()
        if self._args.json:
            print(json.dumps(_as_json(t - self._started_t, topic, payload, retained)), flush=True)
            return
        self._table.take(topic, payload, t)
        line: Optional[str]
        try:
            line = self._account.line(topic, payload, retained)
        except (TypeError, ValueError, AttributeError, OverflowError):
            line = f"{topic}: not as the contract has it"
        for seen in (self._account.presence, self._account.events, self._account.latencies_ms):
            del seen[:-OLDER_LINES]
        if line is not None:
            self._say(line)

    def _say(self, line: str) -> None:
        line = f"{datetime.now():%H:%M:%S}  {printable(line[:LINE_CHARS])}"
        if self._live:
            self._table.note(line)
        elif self._args.json:
            print(line, file=sys.stderr, flush=True)
        else:
            print(line, flush=True)

    def _lines(self) -> List[str]:
        size = shutil.get_terminal_size()
        return self._table.lines(time.monotonic(), datetime.now(timezone.utc), size.columns, size.lines - 1)


def _as_json(t_s: float, topic: str, payload: bytes, retained: bool) -> Any:
    text = payload.decode("utf-8", "replace")
    value: Any = text
    if text[:1] == "{":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text
    return {"t_s": round(t_s, 3), "topic": topic, "retained": retained, "payload": value}
