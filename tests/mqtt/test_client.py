"""The client with a real broker, and with servers that are no broker."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Iterator, List, Mapping, Tuple

import pytest

from edge_agent.core.protocol.messages import Message
from edge_agent.mqtt.client import default_client_id
from edge_agent.mqtt.client_events import Acked, Connected, Disconnected, Received, Subscription
from edge_agent.mqtt.heartbeat import STEP_S
from edge_agent.mqtt.params import TlsParams
from tests.fakes.broker import PATH, VERSIONS, Broker, Front, Gate, Listener, eventually, free_port, needs_mosquitto
from tests.fakes.mqtt_agent import Agent, event, now
from tests.fakes.proxy import packets

ROOT = Path(__file__).resolve().parents[2]
ONLINE = "edge-agent/lobby/availability"


def test_client_ids_are_stable_and_differ_by_node_and_machine(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("4c4c4544\n")
    other.write_text("5c5c5555\n")
    assert default_client_id("lobby", one) == default_client_id("lobby", one)
    ids = {default_client_id(node, file) for node in ("lobby", "yard") for file in (one, other, tmp_path / "none")}
    assert len(ids) == 6 and not any("4c4c4544" in one_id for one_id in ids)


def test_a_refused_connection_is_a_fault_and_events_are_kept(tmp_path: Path) -> None:
    with Agent(free_port()) as agent:
        agent.until(lambda: agent.client.status().state == "waiting")
        assert "refused" in agent.client.status().fault and not agent.client.status().connected
        agent.put(event(1))
        agent.step()
        assert agent.outbox.status().pending == 1


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00" * 64, b""])
def test_a_server_that_is_no_broker_is_a_fault(answer: bytes) -> None:
    front = Front(free_port(), answer)
    with Agent(front.port, connect_timeout_s=0.3, protocol="5") as agent:
        agent.until(lambda: agent.client.status().state == "waiting")
        assert "does not answer as a broker" in agent.client.status().fault
        assert not any(isinstance(notice, Connected) for notice in agent.notices)
    front.close()


@needs_mosquitto
def test_the_broker_may_come_later(tmp_path: Path) -> None:
    broker = Broker(tmp_path)
    with Agent(broker.port) as agent:
        agent.put(event(1))
        agent.until(lambda: agent.client.status().state == "waiting")
        with broker, Listener(broker, "edge-agent/#"):
            agent.until(agent.settled)
            assert agent.client.status().fault == "" and "refused" in agent.client.status().last_fault


@needs_mosquitto
@pytest.mark.parametrize("answer", [b"\x20\x03\x00\x84\x00", b"\x20\x02\x00\x01", b""], ids=["0x84", "0x01", "mute"])
def test_falls_back_to_3_1_1(tmp_path: Path, answer: bytes) -> None:
    with Broker(tmp_path) as broker:
        front = Front(broker.port, answer)
        with Agent(front.port, connect_timeout_s=0.3) as agent:
            agent.put(event(1))
            agent.until(agent.settled)
            assert agent.client.status().protocol == "3.1.1"
        front.close()


def expect_missing_feature(agent: Agent, words: str) -> None:
    agent.until(lambda: agent.client.status().state == "waiting")
    status = agent.client.status()
    assert words in status.fault and "use another" in status.fault
    assert status.protocol == "5" and not status.connected and 60.0 <= status.retry_s <= 300.0
    assert not any(isinstance(notice, Connected) for notice in agent.notices)


@pytest.mark.parametrize(("properties", "words"), [(b"\x25\x00", "no retained messages"), (b"\x24\x00", "QoS 0 only")])
def test_a_broker_that_announces_a_missing_feature_is_a_fault_and_retried_late(properties: bytes, words: str) -> None:
    """CONNACK with success, and the property Retain Available or Maximum QoS (MQTT 5.0, 3.2.2.3)."""
    front = Front(free_port(), b"\x20\x05\x00\x00\x02" + properties)
    with Agent(front.port) as agent:
        expect_missing_feature(agent, words)
    front.close()


@needs_mosquitto
@pytest.mark.parametrize(
    ("config", "words"), [("retain_available false", "no retained messages"), ("max_qos 0", "QoS 0 only")]
)
def test_a_mosquitto_without_retain_or_qos_is_a_fault_and_retried_late(tmp_path: Path, config: str, words: str) -> None:
    with Broker(tmp_path, config) as broker, Agent(broker.port) as agent:
        expect_missing_feature(agent, words)


@needs_mosquitto
def test_qos_1_is_enough(tmp_path: Path) -> None:
    with Broker(tmp_path, "max_qos 1") as broker, Agent(broker.port) as agent:
        agent.until(agent.settled)


@needs_mosquitto
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_network_thread_that_blocks_or_dies_misses_its_deadline(tmp_path: Path) -> None:
    """`notify` is called on that thread, so the test can block or end the thread with it."""
    hold, dead = threading.Event(), threading.Event()

    def notify(notice: object) -> None:
        agent.pending.put(notice)
        if dead.is_set():
            raise SystemExit
        if isinstance(notice, Acked) and hold.is_set():
            release.wait(60.0)

    with Broker(tmp_path) as broker:
        for fault, delay_s in ((hold, STEP_S), (dead, -1.0)):
            release = threading.Event()
            agent = Agent(broker.port, on_notice=notify)
            with agent:
                agent.until(agent.settled)
                assert agent.client.overdue_s(time.monotonic() + STEP_S - 5.0) == 0.0, "an idle one is not late"
                fault.set()
                agent.put(event(1))
                agent.step()
                eventually(lambda: agent.client.overdue_s(time.monotonic() + delay_s + 0.1) > 0.0)  # noqa: B023
                release.set()
                if fault is hold:
                    fault.clear()
                    agent.until(agent.settled)
                    eventually(lambda: agent.client.overdue_s(time.monotonic() + STEP_S - 5.0) == 0.0)  # noqa: B023
        with Listener(broker, ONLINE) as listener:
            eventually(lambda: listener.last(ONLINE) == b"offline", "its connection went with it")
        assert not agent.client.status().connected and "died" in agent.client.status().fault


def test_an_absent_or_silent_broker_does_not_miss_the_deadline() -> None:
    front = Front(free_port(), b"")
    for port in (front.port, free_port()):
        with Agent(port, connect_timeout_s=0.3) as agent:
            agent.until(lambda: agent.client.status().state == "waiting")
            assert agent.client.overdue_s(time.monotonic() + STEP_S - 5.0) == 0.0
        assert agent.client.overdue_s(time.monotonic() + 1e6) == 0.0, "closed"
    front.close()


class Terse:
    """A scripted broker of one connection: one answer for each kind of packet, or none."""

    def __init__(self, answers: Mapping[int, bytes]) -> None:
        self.got: List[bytes] = []
        self._answers = answers
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self._server, self._server.accept()[0] as sock:
            for packet in packets(sock):
                self.got.append(packet)
                answer = self._answers.get(packet[0] >> 4, b"")
                sock.sendall(answer.replace(b"MID", packet[2:4]))


@pytest.mark.slow
def test_the_keepalive_of_the_broker_is_applied() -> None:
    """CONNACK with the property Server Keep Alive, 1 s (MQTT 5.0, 3.2.2.3.14): it would end a silent connection."""
    broker = Terse({1: b"\x20\x06\x00\x00\x03\x13\x00\x01"})
    with Agent(broker.port) as agent:
        agent.until(lambda: b"\xc0\x00" in broker.got, "a PINGREQ", deadline_s=10.0)
        assert agent.client.status().connected


def test_a_refused_subscription_is_a_fault() -> None:
    """SUBACK with "granted QoS 1" and "not authorized"."""
    broker = Terse({1: b"\x20\x03\x00\x00\x00", 8: b"\x90\x05MID\x00\x01\x87"})
    with Agent(broker.port, subscriptions=[Subscription("heard"), Subscription("unheard")]) as agent:
        agent.until(lambda: agent.publisher.faults)
        assert agent.publisher.faults == ["the broker refuses unheard: Not authorized"]


@needs_mosquitto
@pytest.mark.parametrize("version", VERSIONS)
def test_refused_credentials_are_reported_and_retried_late(
    tmp_path: Path, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    tool = shutil.which("mosquitto_passwd", path=PATH)
    assert tool is not None, "mosquitto_passwd comes with mosquitto"
    users, secret = tmp_path / "users", tmp_path / "secret"
    subprocess.run([tool, "-c", "-b", str(users), "agent", "correct-horse"], check=True, capture_output=True)
    secret.write_text("wrong-horse\n")
    credentials = {"username": "agent", "password_file": str(secret), "protocol": version}
    with Broker(tmp_path, f"allow_anonymous false\npassword_file {users}") as broker:
        with Agent(broker.port, **credentials) as agent:
            agent.until(lambda: agent.client.status().state == "waiting")
            status = agent.client.status()
            assert "refused" in status.fault and "password_file" in status.fault
            assert 60.0 <= status.retry_s <= 300.0 and not status.connected
            assert not any(isinstance(notice, Connected) for notice in agent.notices)
        secret.write_text("correct-horse\nsecond line\n")
        with Agent(broker.port, **credentials) as agent:
            agent.until(agent.settled)
        secret.unlink()
        with Agent(broker.port, **credentials) as agent:
            agent.until(lambda: "password_file" in agent.client.status().fault)
            assert "No such file" in agent.client.status().fault
    assert "horse" not in caplog.text


@needs_mosquitto
def test_a_listener_that_raises_does_not_end_the_thread(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    raised: List[object] = []

    def notify(notice: object) -> None:
        if isinstance(notice, (Acked, Disconnected)) and len(raised) < 3:
            raised.append(notice)
            raise RuntimeError("from the callback")
        agent.pending.put(notice)

    with Broker(tmp_path) as broker, Listener(broker) as listener:
        agent = Agent(broker.port, on_notice=notify)
        with agent:
            for seq in range(1, 30):
                agent.put(event(seq))
            agent.until(agent.settled)
            assert len(raised) == 3 and agent.client.status().reconnects >= 1
            eventually(lambda: len(set(listener.payloads("edge-agent/lobby/door/events"))) >= 29)
    assert "from the callback" in caplog.text


@needs_mosquitto
def test_a_broker_that_stops_acknowledging_is_disconnected(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker, Agent(broker.port, ack_timeout_s=0.5) as agent:
        agent.until(agent.settled)
        broker.send_signal(signal.SIGSTOP)
        agent.put(event(1))
        agent.until(lambda: "no acknowledgement" in agent.client.status().last_fault)
        broker.send_signal(signal.SIGCONT)
        agent.until(agent.settled)


@needs_mosquitto
def test_a_second_client_of_the_same_id_is_reported(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker, Agent(broker.port, client_id="twin") as one:
        one.until(one.settled)
        with Agent(broker.port, client_id="twin", node="yard", reports=()) as other:

            def noticed() -> bool:
                other.step()
                return "twin" in one.client.status().last_fault and "client" in one.client.status().last_fault

            one.until(noticed)


@needs_mosquitto
@pytest.mark.parametrize("version", VERSIONS)
def test_the_will_is_published_when_the_process_is_killed(tmp_path: Path, version: str) -> None:
    code = """
        import sys, threading
        from tests.fakes.mqtt_agent import Agent
        agent = Agent(int(sys.argv[1]), protocol=sys.argv[2])
        agent.client.start()
        agent.until(agent.settled)
        print("ready", flush=True)
        threading.Event().wait()
    """
    with Broker(tmp_path) as broker, Listener(broker, ONLINE) as listener:
        command = [sys.executable, "-c", textwrap.dedent(code), str(broker.port), version]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
        ) as child:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            eventually(lambda: listener.last(ONLINE) == b"online")
            child.kill()
        eventually(lambda: listener.last(ONLINE) == b"offline")
        with Listener(broker, ONLINE) as late:
            eventually(lambda: late.last(ONLINE) == b"offline")
            assert late.heard[0].retain


@needs_mosquitto
def test_close_waits_for_acknowledgements_or_leaves_the_will_to_the_broker(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker, Listener(broker) as listener, Agent(broker.port) as agent:
        agent.until(agent.settled)
        session = next(n.session for n in agent.notices if isinstance(n, Connected))
        door = Message(agent.topics.camera("door").availability, b"online")
        token = agent.client.publish(door, session)
        assert agent.client.close(5.0)
        assert any(isinstance(n, Acked) and n.token == token for n in agent.take(0.1)), "it waited"
        assert agent.client.status().state == "closed" and agent.client.close(0.0)
        eventually(lambda: listener.payloads("edge-agent/lobby/door/availability")[-1:] == [b"online"])
        assert listener.last(ONLINE) == b"online", "a clean goodbye: no will"
    with Broker(tmp_path) as broker, Listener(broker, ONLINE) as listener, Agent(broker.port) as agent:
        agent.until(agent.settled)
        broker.send_signal(signal.SIGSTOP)
        agent.put(event(1))
        agent.step()
        assert agent.client.close(0.2)
        broker.send_signal(signal.SIGCONT)
        eventually(lambda: listener.last(ONLINE) == b"offline")


@needs_mosquitto
def test_a_cut_connection_is_restored(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker:
        gate = Gate(broker.port)
        with Agent(gate.port) as agent:
            for cut in range(1, 3):
                agent.until(agent.settled)
                gate.shut()
                agent.until(lambda: not agent.client.status().connected)
                gate.open()
                agent.until(lambda: agent.client.status().connected)
                assert agent.client.status().reconnects == cut
            assert agent.publisher.close(now(), agent.take)
        gate.close()


@needs_mosquitto
def test_the_retain_flag_is_the_senders_where_that_matters_and_the_brokers_elsewhere(tmp_path: Path) -> None:
    """On MQTT 5. A retained command is refused even while it is new; Home Assistant's birth message is not."""
    command, birth = "edge-agent/lobby/request/ping", "homeassistant/status"
    wanted = [Subscription(command, as_published=True), Subscription(birth)]
    with Broker(tmp_path) as broker, Agent(broker.port, subscriptions=wanted) as agent:

        def received() -> List[Tuple[str, bool]]:
            # Each is recorded twice: as a client event, and by the handler.
            return [(one.topic, one.retain) for one in agent.notices if isinstance(one, Received)][::2]

        agent.until(agent.settled)
        with Agent(broker.port, node="other", reports=()) as other:
            other.until(other.settled)
            session = next(n.session for n in other.notices if isinstance(n, Connected))
            for retain in (False, True):
                for topic in (command, birth):
                    other.client.publish(Message(topic, b"online", retain=retain), session)
            agent.until(lambda: len(received()) == 4)
        assert set(received()) == {(command, False), (birth, False), (command, True)}
        with Agent(broker.port, node="late", subscriptions=wanted) as late:
            late.until(lambda: any(isinstance(one, Received) for one in late.notices))
            late.until(late.settled)
            assert {one.retain for one in late.notices if isinstance(one, Received)} == {True}


@needs_mosquitto
def test_a_message_for_an_ended_session_is_dropped(tmp_path: Path) -> None:
    """Otherwise it would overtake the state of the new session, and arrive twice."""
    with Broker(tmp_path) as broker, Listener(broker) as listener, Agent(broker.port) as agent:
        agent.until(agent.settled)
        door = agent.topics.camera("door").presence
        agent.client.publish(Message(door, b"ON"), session=0)
        agent.put(event(1))
        agent.until(agent.settled)
        eventually(lambda: listener.payloads("edge-agent/lobby/door/events"))
        assert listener.payloads(door) == [b"None"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two authorities; server certificates for this host and for another; a client's."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs certificates: apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    # Python 3.13 requires the key usage extension of an authority.
    authority = ("req", "-x509", "-days", "2", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    for ca in ("ca", "stranger"):
        run(*authority, *key, "-subj", f"/CN={ca}", "-keyout", f"{ca}.key", "-out", f"{ca}.pem")
    for name, san in (("server", "IP:127.0.0.1"), ("elsewhere", "DNS:elsewhere.example"), ("client", "DNS:lobby")):
        (folder / f"{name}.ext").write_text(f"subjectAltName={san}\n")
        run("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        run(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem",
        )  # fmt: skip
    yield folder


@needs_mosquitto
def test_tls_checks_authority_name_and_client(tmp_path: Path, certificates: Path) -> None:
    def config(name: str) -> str:
        files = f"certfile {certificates}/{name}.pem\nkeyfile {certificates}/{name}.key\ncafile {certificates}/ca.pem"
        return f"listener PORT 127.0.0.1\n{files}\nrequire_certificate true"

    own = {"cert_file": f"{certificates}/client.pem", "key_file": f"{certificates}/client.key"}
    right = TlsParams(True, f"{certificates}/ca.pem", **own)
    faults = [
        (TlsParams(True, f"{certificates}/stranger.pem", **own), "not trusted"),
        (TlsParams(True, f"{certificates}/none.pem", **own), "none.pem cannot be used"),
        (TlsParams(True, f"{certificates}/ca.pem"), "certificate"),
        (TlsParams(), "does not answer as a broker"),
    ]
    with Broker(tmp_path, config("server")) as broker:
        with Agent(broker.port, tls=right) as agent:
            agent.put(event(1, "end", crop=True, side=600))
            agent.until(agent.settled)
        for wrong, words in faults:
            with Agent(broker.port, tls=wrong, connect_timeout_s=1.0) as agent:
                agent.until(lambda: agent.client.status().state == "waiting")
                assert words in agent.client.status().fault
                assert not any(isinstance(notice, Connected) for notice in agent.notices)
    with Broker(tmp_path, config("elsewhere")) as broker, Agent(broker.port, tls=right) as agent:
        agent.until(lambda: agent.client.status().state == "waiting")
        assert "not trusted" in agent.client.status().fault and "127.0.0.1" in agent.client.status().fault
