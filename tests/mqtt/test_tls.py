"""Certificate files, ALPN, websockets and passwords."""

import shutil
import socket
import ssl
import subprocess
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import List, Optional

import pytest

from edge_agent.errors import BrokerError
from edge_agent.mqtt.params import MqttParams, TlsParams
from edge_agent.mqtt.tls import context, expiry_faults, explain, password, signature, valid_until, with_credential
from tests.fakes import certificates
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto
from tests.fakes.mqtt_agent import Agent, event
from tests.fakes.websocket import WebsocketGateway

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs certificates: apt-get install openssl"
)
NOW = datetime(2026, 11, 22, 17, 5, 12, tzinfo=timezone.utc)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    certificates.make(folder, "127.0.0.1", "lobby")
    certificates.make(folder, "127.0.0.1", "late")
    certificates.postpone(folder, "late")
    return folder


@needs_openssl
@pytest.mark.parametrize("name", ["ca", "broker", "lobby", "late"])
def test_not_after_equals_that_of_openssl(certs: Path, name: str) -> None:
    path = str(certs / f"{name}.pem")
    command = ["openssl", "x509", "-in", path, "-noout", "-enddate"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    wanted = datetime.strptime(printed, "notAfter=%b %d %H:%M:%S %Y GMT").replace(tzinfo=timezone.utc)
    assert valid_until(path) == wanted


@needs_openssl
@pytest.mark.parametrize(("until", "year"), [("20491231235959Z", 2049), ("20500101000000Z", 2050)])
def test_both_forms_of_time(tmp_path: Path, certs: Path, until: str, year: int) -> None:
    """From 2050 on years have four digits."""
    folder = Path(shutil.copytree(certs, tmp_path / "certs"))
    certificates.postpone(folder, "lobby", until)
    found = valid_until(str(folder / "lobby.pem"))
    assert found is not None and found.year == year


@needs_openssl
def test_a_file_without_a_certificate_has_no_expiry(tmp_path: Path, certs: Path) -> None:
    path = tmp_path / "x.pem"
    assert valid_until(str(path)) is None
    good = (certs / "lobby.pem").read_text("ascii")
    lines = good.splitlines()
    for bad in ("", "hello", good[:-5], "\n".join(lines[:3] + lines[-1:]), good.replace(lines[1], "AAAA")):
        path.write_text(bad)
        assert valid_until(str(path)) is None
    path.write_bytes(b"\xff\xfe")
    assert valid_until(str(path)) is None


def test_the_expiry_is_reported_once_a_day() -> None:
    def faults(**left: int) -> List[str]:
        return expiry_faults(NOW + timedelta(**left), NOW)

    assert expiry_faults(None, NOW) == faults(days=15) == []
    assert faults(days=3, hours=5) == ["our TLS certificate expires in 3 days, on 2026-11-25"]
    assert faults(days=1) == ["our TLS certificate expires in 1 day, on 2026-11-23"]
    assert faults(hours=2) == ["our TLS certificate expires within a day, on 2026-11-22"]
    assert faults(days=-2) == ["our TLS certificate has expired on 2026-11-20"]


def test_a_replaced_file_changes_the_signature(tmp_path: Path) -> None:
    path = tmp_path / "a"
    seen = [signature([str(path), None])]
    path.write_text("1")
    seen.append(signature([str(path), None]))
    (tmp_path / "b").write_text("2")
    (tmp_path / "b").replace(path)
    seen.append(signature([str(path), None]))
    assert len(set(seen)) == 3 and signature([str(path)]) == seen[-1] and signature([None]) == ()


@needs_openssl
def test_an_encrypted_key_is_an_error_without_a_prompt(tmp_path: Path, certs: Path) -> None:
    key = tmp_path / "locked.key"
    command = ["openssl", "pkey", "-in", str(certs / "lobby.key"), "-aes256", "-passout", "pass:1234", "-out", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(BrokerError, match="cannot be used"):
        context(TlsParams(True, str(certs / "ca.pem"), str(certs / "lobby.pem"), str(key)))


@needs_openssl
@pytest.mark.parametrize(("offer", "chosen"), [("mqtt", "mqtt"), (None, None)])
def test_alpn_is_offered_when_set(certs: Path, offer: Optional[str], chosen: Optional[str]) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certs / "broker.pem", certs / "broker.key")
    server.set_alpn_protocols(["x", "mqtt"])
    seen: List[Optional[str]] = []

    def serve() -> None:
        sock, _ = listening.accept()
        with server.wrap_socket(sock, server_side=True) as secure:
            seen.append(secure.selected_alpn_protocol())

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        with Agent(listening.getsockname()[1], tls=TlsParams(True, str(certs / "ca.pem"), alpn=offer)) as agent:
            agent.until(lambda: seen)
        thread.join(5)
    assert seen == [chosen]


@needs_mosquitto
def test_websockets_carry_everything(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker, Listener(broker, "edge-agent/#") as listener:
        gateway = WebsocketGateway(broker.port, "/hidden")
        with Agent(gateway.port, transport="websockets", websocket_path="/hidden") as agent:
            agent.put(event(1), event(2, "end", crop=True, side=600))
            agent.until(agent.settled)
            eventually(lambda: len(listener.payloads("edge-agent/lobby/door/events")) == 2)
            (crop,) = [heard.payload for heard in listener.heard if "/crops/" in heard.topic]
            assert len(crop) > 65_536, "a frame of each length"
        gateway.close()


@needs_mosquitto
@pytest.mark.filterwarnings("ignore:.*socket.*:pytest.PytestUnraisableExceptionWarning")
def test_a_wrong_websocket_path_is_reported(tmp_path: Path) -> None:
    """The warning filter is needed because paho leaves such a socket to the garbage collector."""
    with Broker(tmp_path) as broker:
        gateway = WebsocketGateway(broker.port)
        with Agent(gateway.port, transport="websockets", websocket_path="/wrong") as agent:
            agent.until(lambda: agent.client.status().state == "waiting")
            assert "WebSocket handshake error" in agent.client.status().fault and gateway.refused
        gateway.close()


def test_a_password_is_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "password"
    assert password(None) is None
    for text, wanted in (("secret", "secret"), ("secret\r\nx", "secret"), (" a b \n", " a b "), ("", "")):
        path.write_bytes(text.encode())
        assert password(str(path)) == wanted
    path.write_bytes(b"\xffsecret")
    for wrong in (path, tmp_path / "none"):
        with pytest.raises(BrokerError) as raised:
            password(str(wrong))
        assert str(wrong) in str(raised.value) and "secret" not in str(raised.value)


def test_the_credential_of_systemd_is_the_default_password_file(tmp_path: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    user = MqttParams(username="lobby")
    assert with_credential(user, environ) == with_credential(user, {}) == user
    (tmp_path / "mqtt-password").write_text("x")
    assert with_credential(user, environ).password_file == str(tmp_path / "mqtt-password")
    explicit = MqttParams(username="lobby", password_file="mine")
    assert with_credential(explicit, environ) == explicit
    assert with_credential(MqttParams(), environ) == MqttParams()


def test_a_wrong_clock_is_distinguished_from_an_expired_certificate() -> None:
    def verification(code: int) -> str:
        error = ssl.SSLCertVerificationError(1, "failed")
        error.verify_code, error.verify_message = code, "self-signed certificate"
        return explain(error, "h", 1)

    assert "not valid yet; this machine's clock" in verification(9)
    assert "has expired" in verification(10)
    assert "not trusted: self-signed certificate" in verification(18)
