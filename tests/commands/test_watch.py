"""`edge-agent watch` with a real broker, agent and terminal."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.commands.live import Account
from edge_agent.commands.watch import Table, printable, span
from edge_agent.core.protocol.messages import gap_for_events, gap_for_message
from tests.fakes import certificates
from tests.fakes.agent import AgentProcess, edge_agent, environment
from tests.fakes.broker import Broker, Listener, eventually, free_port, needs_mosquitto
from tests.outbox.contract import message

NOW = datetime(2026, 11, 22, 17, 5, 12, tzinfo=timezone.utc)
NODE = "edge-agent/lobby"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as running:
        yield running


def agent(broker: Broker) -> AgentProcess:
    """One camera that sees a face for a second, again and again."""
    settings = {
        "NODE": "lobby", "MQTT__PORT": broker.port, "HEALTH__INTERVAL_S": 1, "PRESENCE__DELAY_ON_S": 0,
        "PRESENCE__DELAY_OFF_S": 0.3, "CAMERAS__DOOR__URI": "test://one?fps=30",
    }  # fmt: skip
    return AgentProcess(settings)


def watch(broker: Broker, *more: Any) -> Any:
    return edge_agent("watch", "--broker", f"mqtt://127.0.0.1:{broker.port}", "--duration", 2, *more)


@pytest.mark.slow
@needs_mosquitto
def test_line_by_line_without_a_terminal(broker: Broker) -> None:
    with Listener(broker, f"{NODE}/door/presence") as listener, agent(broker):
        eventually(lambda: listener.last(f"{NODE}/door/presence") == b"ON")
        done = watch(broker)
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("lobby: agent is online", "presence ON", "health ok", "door: sight ok", "lobby: edge-agent "):
        assert words in done.stdout
    assert "\x1b" not in done.stdout and not any("crop of" in line for line in done.stdout.splitlines())


@pytest.mark.slow
@needs_mosquitto
def test_json_for_programs_and_one_node_only(broker: Broker) -> None:
    with Listener(broker, f"{NODE}/door/presence") as listener, agent(broker):
        eventually(lambda: listener.last(f"{NODE}/door/presence") == b"ON")
        done = watch(broker, "--json", "--node", "lobby")
        none = watch(broker, "--json", "--node", "yard")
    messages = {message["topic"]: message["payload"] for message in map(json.loads, done.stdout.splitlines())}
    assert messages[f"{NODE}/availability"] == "online" and messages[f"{NODE}/health"]["state"] == "ok"
    assert (none.returncode, none.stdout) == (1, "")
    assert "no message below edge-agent/yard" in none.stderr


class Terminal:
    """`edge-agent watch` inside a terminal of 110 by 30 characters; its output is recorded."""

    def __init__(self, *arguments: Any) -> None:
        self.drawn = ""
        self._fd, inner = pty.openpty()
        environ = {**environment({}), "COLUMNS": "110", "LINES": "30", "TERM": "xterm"}
        command = [sys.executable, "-m", "edge_agent", "watch", *map(str, arguments)]
        self._process = subprocess.Popen(command, stdout=inner, stderr=inner, env=environ)
        os.close(inner)

    def read(self) -> None:
        while select.select([self._fd], [], [], 0.05)[0]:
            try:
                self.drawn += os.read(self._fd, 65536).decode()
            except OSError:
                return

    def screens(self) -> List[str]:
        """Every complete screen, without the terminal's control sequences."""
        self.read()
        return [part.replace("\r", "") for part in self.drawn.split("\x1b[H\x1b[J")[1:]]

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit code."""
        self._process.send_signal(signal.SIGINT)
        end = time.monotonic() + 15
        while self._process.poll() is None:
            assert time.monotonic() < end
            self.read()
        self.read()
        return self._process.returncode

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._fd)


@pytest.mark.slow
@needs_mosquitto
def test_a_table_on_a_terminal(broker: Broker) -> None:
    terminal = Terminal("--broker", f"mqtt://127.0.0.1:{broker.port}")
    try:
        with agent(broker):
            row = re.compile(r"^lobby/door +ON .*\bok\b.* ms .*(start|end|update) #\d+, \d+ s ago$", re.MULTILINE)
            eventually(lambda: any(row.search(screen) for screen in terminal.screens()), "the row of lobby/door")
            assert any("lobby: online, health ok, outbox 0 pending" in screen for screen in terminal.screens())
        eventually(lambda: "lobby: offline" in terminal.screens()[-1], "the agent has gone")
        assert all(len(line) <= 110 for screen in terminal.screens() for line in screen.splitlines())
        assert terminal.interrupt() == 0
        assert terminal.drawn.startswith("\x1b[?1049h") and "\x1b[?25h\x1b[?1049l" in terminal.drawn
        assert "lobby: offline" in terminal.drawn.rsplit("\x1b[?1049l")[1], "the last screen stays"
    finally:
        terminal.close()


@needs_mosquitto
def test_it_outlives_the_broker(broker: Broker) -> None:
    address = f"mqtt://127.0.0.1:{broker.port}"
    command = [sys.executable, "-u", "-m", "edge_agent", "watch", "--broker", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment({})) as process:
        with Listener(broker, qos=1) as listener:
            publish(broker, "lobby/availability", b"online")
            eventually(lambda: listener.heard)
        assert process.stdout is not None
        assert "lobby: agent is online" in process.stdout.readline()
        broker.kill()
        assert "is lost" in process.stdout.readline()
        broker.start()
        assert "connected again" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(15) == 0
        finally:
            process.kill()


def publish(broker: Broker, topic: str, payload: bytes) -> None:
    """Publish retained messages below the base, so that the order of connecting does not matter."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.publish(f"edge-agent/{topic}", payload, qos=1, retain=True).wait_for_publish(15)
    client.disconnect()
    client.loop_stop()


@pytest.mark.slow
@needs_mosquitto
def test_malformed_messages_are_tolerated(broker: Broker) -> None:
    for topic in ("lobby/health", "lobby/info", "lobby/door/events", "lobby/door/presence/attributes", "lobby/x/state"):
        for number, payload in enumerate((b"", b"[]", b'{"engine": 3, "score": "x"}', b"\xff", b'{"reasons": 3}')):
            publish(broker, topic.replace("lobby", f"lobby{number}"), payload)
    publish(broker, "evil/availability", b"\x1b]0;owned\x07")
    publish(broker, "vast/availability", b"[" * 100_000)
    done = watch(broker)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout and "?]0;owned?" in done.stdout
    assert "[[[" in done.stdout and max(map(len, done.stdout.splitlines())) < 600


def test_no_broker_at_the_address() -> None:
    done = edge_agent("watch", "--broker", f"mqtt://127.0.0.1:{free_port()}")
    assert done.returncode == 1 and "no broker: 127.0.0.1:" in done.stderr and "refused" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--broker", "http://x"], "not a broker's address"),
        (["--broker", "mqtt://x:99999"], "not a broker's address"),
        (["--broker", "mqtt://u:secret@x"], "holds a password"),
        (["--broker", "mqtt://x", "--ca", "f"], "expected --broker mqtts://"),
        (["--broker", "mqtt://x", "--password-file", "f"], "without a user"),
        (["--broker", "mqtts://x", "--ca", "/nonexistent/ca.pem"], "cannot be used"),
        (["--broker", "mqtt://u@x", "--password-file", "/nonexistent/p"], "/nonexistent/p"),
        (["--duration", "0"], "above 0"),
        (["--duration", "nan"], "above 0"),
        (["--node", "a/b"], "not a node's name"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line(arguments: List[str], words: str) -> None:
    done = edge_agent("watch", *arguments)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
    assert "secret" not in done.stderr and len(done.stderr.splitlines()) <= 2


@needs_mosquitto
def test_login_and_access_list(tmp_path: Path) -> None:
    (tmp_path / "acl").write_text("user nobody\ntopic read #\n")
    (tmp_path / "passwords").write_text("")
    config = f"allow_anonymous false\npassword_file {tmp_path}/passwords\nacl_file {tmp_path}/acl"
    with Broker(tmp_path, config) as broker:
        done = watch(broker)
    assert done.returncode == 1 and "refused: Not authorized" in done.stderr


@pytest.mark.slow
@needs_mosquitto
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs certificates: apt-get install openssl")
def test_tls(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    certificates.make(certs, "127.0.0.1", "monitor")
    certificates.make(certs / "stranger", "127.0.0.1", "monitor")
    files = f"cafile {certs}/ca.pem\ncertfile {certs}/broker.pem\nkeyfile {certs}/broker.key\nrequire_certificate true"
    with Broker(tmp_path, f"listener PORT 127.0.0.1\n{files}") as broker:
        address = ("watch", "--broker", f"mqtts://127.0.0.1:{broker.port}", "--duration", 1)
        own = ("--cert", certs / "monitor.pem", "--key", certs / "monitor.key")
        stranger = ("--cert", certs / "stranger" / "monitor.pem", "--key", certs / "stranger" / "monitor.key")
        right = edge_agent(*address, "--ca", certs / "ca.pem", *own)
        assert "no message below" in right.stderr
        for wrong, words in (
            ((), "not trusted"),
            (("--ca", certs / "stranger" / "ca.pem", *own), "not trusted"),
            (("--ca", certs / "ca.pem"), "the broker wants one"),
            (("--ca", certs / "ca.pem", *stranger), "an authority that the broker does not know"),
        ):
            done = edge_agent(*address, *wrong)
            assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
        plain = edge_agent("watch", "--broker", f"mqtt://127.0.0.1:{broker.port}")
        assert plain.returncode == 1 and "does it require TLS" in plain.stderr


def test_the_table_of_a_fleet() -> None:
    table = Table("edge-agent")
    health = {
        "state": "degraded", "reasons": ["camera yard: dark"], "uptime_s": 7300, "outbox": {"pending": 7},
        "cameras": {
            "door": {"fps_inferred": 29.97, "latency_ms": {"p95": 12.4}},
            "yard": {"fps_inferred": 0.0, "latency_ms": {"p95": None}},
        },
    }  # fmt: skip
    for topic, payload in {
        "lobby/availability": b"online",
        "lobby/health": json.dumps(health).encode(),
        "lobby/door/presence": b"ON",
        "lobby/door/face_count": b"2",
        "lobby/door/presence/attributes": b'{"reason": "ok", "since": "2026-11-22T17:05:02.000000Z"}',
        "lobby/door/events": b'{"event_type": "start", "seq": 12}',
        "lobby/yard/presence": b"None",
        "lobby/yard/availability": b"offline",
        "annex/availability": b"offline",
    }.items():
        table.take(f"edge-agent/{topic}", payload, 100.0)
    assert table.lines(104.0, NOW) == [
        "NODE/CAMERA  PRESENCE   SINCE  FACES  SIGHT  FPS   LATENCY  LAST EVENT",
        "annex: offline, health unknown, outbox ? pending",
        "lobby: online, health degraded, outbox 7 pending, up 2 h",
        "  ! camera yard: dark",
        "lobby/door   ON         10 s   2      ok     30.0  12 ms    start #12, 4 s ago",
        "lobby/yard   (unknown)",
    ]
    assert "health silent for 5 min" in "\n".join(table.lines(400.0, NOW))
    assert [len(line) for line in table.lines(104.0, NOW, width=20, height=3)] == [20, 20, 20]
    assert "up 3 h" in table.lines(100.0 + 3600, NOW)[2], "it goes on between two healths"
    table.take("edge-agent/lobby/availability", b"offline", 104.0)
    assert table.lines(104.0, NOW)[2] == "lobby: offline, health was degraded, outbox 7 pending"
    table.take("edge-agent/lobby/door/events", b'{"from_seq": 3, "to_seq": 4}', 104.0)
    table.add_line("the last")
    assert table.lines(104.0, NOW)[-1] == "the last" and "gap" in "\n".join(table.lines(104.0, NOW))


def test_a_gap_shows_what_was_lost() -> None:
    crop = gap_for_message(message(4, "crop"), "purged")
    events = gap_for_events(f"{NODE}/door/events", "door", 41, (7, 9), "overrun")
    assert [Account("edge-agent").line(gap.topic, gap.payload) for gap in (crop, events) if gap is not None] == [
        "lobby/door: GAP: crops #4 lost, 1 in all (purged)",
        "lobby/door: GAP: events #7 to #9 lost, 3 in all (overrun)",
    ]


def test_words() -> None:
    assert [span(s) for s in (-1, 0, 119, 300, 7300, 200_000)] == ["0 s", "0 s", "119 s", "5 min", "2 h", "2 d"]
    assert printable("a\x1b[2Jb\n\u202ec") == "a?[2Jb??c"


@pytest.mark.parametrize("number", [10**310, float("nan"), float("inf"), "x", [], None, True])
def test_numbers_that_are_none_stay_out_of_the_table(number) -> None:
    table = Table("edge-agent")
    camera = {"fps_inferred": number, "latency_ms": {"p95": 12.0}}
    health = {"uptime_s": number, "cameras": {"door": camera, "yard": {"latency_ms": {"p95": number}}}}
    table.take("edge-agent/lobby/health", json.dumps(health).encode(), 100.0)
    for name in ("door", "yard"):
        table.take(f"edge-agent/lobby/{name}/presence", b"ON", 100.0)
    text = "\n".join(table.lines(101.0, NOW))
    assert "12 ms" in text and not any(word in text for word in ("nan", "inf", "1000000"))


@pytest.mark.parametrize("payload", [b"[" * 100_000, b'{"engine": {"backend": "x"}}', b"\xff", b"null"])
def test_malformed_info_and_health_give_one_line(payload) -> None:
    for topic in ("info", "health"):
        assert "lobby: " in str(Account("edge-agent").line(f"edge-agent/lobby/{topic}", payload))
