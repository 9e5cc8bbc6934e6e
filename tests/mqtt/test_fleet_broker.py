"""The ready-made mosquitto configuration, mosquitto and the real agent: authentication and access control."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.core.protocol.home_assistant import (
    AgentDescription,
    CameraDescription,
    HomeAssistantParams,
    devices,
    messages,
)
from edge_agent.core.protocol.topics import Topics
from scripts.lib.topics import all_topics
from tests.fakes import certificates
from tests.fakes.agent import AgentProcess
from tests.fakes.broker import VERSIONS, Broker, Listener, eventually, needs_mosquitto

READY_MADE = certificates.ROOT / "config" / "mosquitto"
NAMES = ("lobby", "yard", "homeassistant", "monitor")

pytestmark = [
    needs_mosquitto,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs certificates: apt-get install openssl"),
]


class Ignored(List[str]):
    """Payloads of this module are no JSON."""

    def append(self, fault: str) -> None:
        """Ignore the fault."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of a fleet, and in stranger/ of another."""
    folder = tmp_path_factory.mktemp("certs")
    certificates.make(folder, "127.0.0.1", *NAMES)
    certificates.make(folder, "127.0.0.1", "old")
    certificates.expire(folder, "old")
    certificates.make(folder / "stranger", "127.0.0.1", "lobby")
    return folder


@pytest.fixture
def certs(tmp_path: Path, made: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "certs"))


def fleet_config(certs: Path) -> str:
    """The shipped file, with only folder and port changed."""
    text = (READY_MADE / "mosquitto.conf").read_text("utf-8")
    shutil.copy(READY_MADE / "acl", certs / "acl")
    assert "listener 8883\n" in text
    return text.replace("/etc/mosquitto/edge-agent", str(certs)).replace("listener 8883\n", "listener PORT 127.0.0.1\n")


@pytest.fixture
def broker(tmp_path: Path, certs: Path) -> Iterator[Broker]:
    with Broker(tmp_path, fleet_config(certs)) as running:
        yield running


def agent_settings(broker: Broker, certs: Path, name: str = "lobby", **more: Any) -> Dict[str, Any]:
    return {
        "NODE": name,
        "CAMERAS__DOOR__URI": "test://one?fps=30",
        "MQTT__PORT": broker.port,
        "PRESENCE__DELAY_ON_S": 0,
        "HEALTH__INTERVAL_S": 1,
        **certificates.settings(certs, name),
        **more,
    }


def health(listener: Listener, node: str = "lobby") -> Dict[str, Any]:
    value: Dict[str, Any] = json.loads(listener.last(f"edge-agent/{node}/health") or b"{}")
    return value


def publish_as(broker: Broker, certs: Path, name: str, *topics: str, version: str = "5") -> List[bool]:
    """Return whether the broker acknowledged each topic without a failure; on 3.1.1 it always does."""
    taken: Dict[int, bool] = {}
    client = Client(CallbackAPIVersion.VERSION2, protocol=VERSIONS[version])
    client.tls_set_context(certificates.client(certs, name))
    client.on_publish = lambda _, __, mid, reason, ___: taken.update({mid: not reason.is_failure})
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    eventually(client.is_connected)
    for topic in topics:
        client.publish(topic, b"ON", qos=1)
    eventually(lambda: len(taken) == len(topics))
    client.disconnect()
    client.loop_stop()
    return [taken[mid] for mid in sorted(taken)]


@pytest.mark.slow
def test_each_client_reads_and_publishes_only_permitted_topics(broker: Broker, certs: Path) -> None:
    with Listener(broker, "#", tls=certificates.client(certs, "monitor")) as monitor, Listener(
        broker, "edge-agent/#", tls=certificates.client(certs, "homeassistant")
    ) as home, Listener(broker, "#", tls=certificates.client(certs, "yard")) as yard:
        with AgentProcess(agent_settings(broker, certs)) as agent:
            eventually(lambda: monitor.last("edge-agent/lobby/door/presence") == b"ON")
            eventually(lambda: monitor.payloads("edge-agent/lobby/door/events"))
            eventually(lambda: health(monitor).get("mqtt", {}).get("certificate_until"))
            link = health(monitor)["mqtt"]
            assert link["publish_verified"] is None and re.match(r"20\d\d-", link["broker_certificate_until"])
            agent.stop()
        assert monitor.last("edge-agent/lobby/availability") == b"offline"
        assert any("/crops/" in topic for topic in home.topics())
        assert not any("/crops/" in topic for topic in monitor.topics())
        assert not any("lobby" in topic for topic in yard.topics())
        assert "refuses" not in agent.log and "refused" not in agent.log


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_a_node_can_publish_only_below_its_own_name(broker: Broker, certs: Path, version: str) -> None:
    own = ["edge-agent/lobby/door/availability", "homeassistant/device/edge-agent_lobby/config"]
    others = ["edge-agent/yard/door/availability", "edge-agent/availability", "lobby/x", "homeassistant/status"]
    with Listener(broker, "edge-agent/#", "homeassistant/#", tls=certificates.client(certs, "homeassistant")) as home:
        home.faults = Ignored()
        seen = publish_as(broker, certs, "lobby", *others, *own, version=version)
        assert seen == [version == "3.1.1"] * len(others) + [True] * len(own)
        eventually(lambda: len(home.heard) == len(own))
        assert home.topics() == own


def discovered(node: str, style: Any) -> List[str]:
    topics = Topics("edge-agent", node)
    site = AgentDescription("1", "board", (CameraDescription("door", "Door", ("desk",)),), image=True, temperature=True)
    found, _ = messages(devices(topics, site), HomeAssistantParams(style=style), "1", {})
    return [message.topic for message in found]


def test_every_topic_that_an_agent_publishes_is_its_own_and_no_others(broker: Broker, certs: Path) -> None:
    """All that `core.topics` can name, and both styles of discovery."""
    topics = [name for name in all_topics() if name.startswith("edge-agent/")]
    own = [name for name in topics if "/request/" not in name and not name.endswith("/set")]
    assert len(own) >= 15
    made = [*discovered("lobby", "device"), *discovered("lobby", "components")]
    assert len({len(name.split("/")) for name in made}) == 2, "of both styles"
    others = [name.replace("/lobby/", "/yard/") for name in own]
    assert all(publish_as(broker, certs, "lobby", *own, *made))
    assert not any(publish_as(broker, certs, "lobby", *others, "homeassistant/status"))
    assert not any(publish_as(broker, certs, "monitor", *own, *made))


def test_every_topic_that_an_agent_listens_to_reaches_it_and_no_other(broker: Broker, certs: Path) -> None:
    asked = [name for name in all_topics() if "/request/" in name or name.endswith("/set")]
    asked += [f"edge-agent/lobby/{name}" for name in ("door/detection/set", "request/ping")]
    filters = ["homeassistant/status", "edge-agent/lobby/request/+", "edge-agent/lobby/door/+/set"]
    with Listener(broker, *filters, tls=certificates.client(certs, "lobby")) as lobby, Listener(
        broker, *filters, tls=certificates.client(certs, "yard")
    ) as yard:
        lobby.faults = yard.faults = Ignored()
        assert all(publish_as(broker, certs, "homeassistant", *asked, "homeassistant/status"))
        for name in ("yard", "monitor"):
            assert not any(publish_as(broker, certs, name, *asked))
        eventually(lambda: len(lobby.heard) == len(asked) + 1)
        assert sorted(lobby.topics()) == sorted([*asked, "homeassistant/status"])
        eventually(lambda: yard.topics() == ["homeassistant/status"])


def test_an_agent_with_another_name_reports_the_refusal(broker: Broker, certs: Path) -> None:
    with Listener(broker, "edge-agent/#", tls=certificates.client(certs, "monitor")) as monitor:
        with AgentProcess(agent_settings(broker, certs, NODE="gate")) as agent:
            eventually(lambda: "the broker refuses edge-agent/gate/door/presence: Not authorized" in agent.log)
        assert monitor.heard == []


@pytest.mark.slow
def test_on_311_the_selftest_reports_the_refusal(broker: Broker, certs: Path) -> None:
    with AgentProcess(agent_settings(broker, certs, NODE="gate"), version="3.1.1") as agent:
        eventually(lambda: "no echo on edge-agent/gate/response/selftest" in agent.log)


def expired_own(certs: Path) -> None:
    replace(certs, "lobby", certs, "old")


def unknown_own(certs: Path) -> None:
    replace(certs, "lobby", certs / "stranger", "lobby")


def replace(to: Path, name: str, source: Path, other: str) -> None:
    for suffix in (".key", ".pem"):
        (to / f"{name}.new").write_bytes((source / f"{other}{suffix}").read_bytes())
        (to / f"{name}.new").rename(to / f"{name}{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            unknown_own,
            "the broker refused our certificate: it was signed by an authority that the broker does not know",
        ),
        (expired_own, "the broker refused our certificate: it has expired"),
    ],
)
def test_a_wrong_client_certificate_is_refused_and_may_be_replaced(
    broker: Broker, certs: Path, made: Path, spoil: Any, words: str
) -> None:
    spoil(certs)
    with AgentProcess(agent_settings(broker, certs, MQTT__RETRY_MAX_S=600)) as agent, Listener(
        broker, "edge-agent/#", tls=certificates.client(certs, "monitor")
    ) as monitor:
        eventually(lambda: words in agent.log)
        assert monitor.heard == []
        replace(certs, "lobby", made, "lobby")
        eventually(lambda: health(monitor).get("state") == "ok", "it comes in without a restart")
        link = health(monitor)["mqtt"]
        assert words in link["last_fault"] and (link["connected"], link["fault"]) == (True, "")


def no_own(certs: Path) -> Dict[str, Any]:
    return {"MQTT__TLS__CERT_FILE": "", "MQTT__TLS__KEY_FILE": ""}


def wrong_ca(certs: Path) -> Dict[str, Any]:
    return {"MQTT__TLS__CA_FILE": certs / "stranger" / "ca.pem"}


def expired_broker(certs: Path) -> Dict[str, Any]:
    certificates.expire(certs, "broker")
    return {}


def future_broker(certs: Path) -> Dict[str, Any]:
    certificates.postpone(certs, "broker")
    return {}


def wrong_name_broker(certs: Path) -> Dict[str, Any]:
    certificates.make(certs, "elsewhere.example.org")
    return {}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_own, "the broker wants one"),
        (wrong_ca, "the broker's certificate is not trusted"),
        (expired_broker, "the broker's certificate has expired"),
        (future_broker, "the broker's certificate is not valid yet; this machine's clock"),
        (wrong_name_broker, "certificate is not valid for '127.0.0.1'"),
    ],
)
def test_tls_faults_are_reported_and_nothing_is_published(tmp_path: Path, certs: Path, spoil: Any, words: str) -> None:
    wrong = spoil(certs)
    with Broker(tmp_path, fleet_config(certs)) as broker, AgentProcess(agent_settings(broker, certs, **wrong)) as agent:
        eventually(lambda: words in agent.log, words)
        assert "connected to" not in agent.log
        assert "PUBLISH" not in broker.log.read_text("utf-8")
        agent.stop()


@pytest.mark.slow
def test_a_renewed_certificate_is_used_without_a_restart(broker: Broker, certs: Path) -> None:
    with Listener(broker, "edge-agent/lobby/#", tls=certificates.client(certs, "monitor")) as monitor:
        with AgentProcess(agent_settings(broker, certs)) as agent:
            eventually(lambda: health(monitor).get("mqtt", {}).get("certificate_until"))
            before = health(monitor)["mqtt"]["certificate_until"]
            certificates.make(certs, "127.0.0.1", "lobby", days=5)
            eventually(lambda: health(monitor)["mqtt"]["certificate_until"] != before)
            assert "certificates were renewed" in agent.log
            assert monitor.payloads("edge-agent/lobby/availability").count(b"offline") == 0
            eventually(lambda: "expires in 4 days" in " ".join(health(monitor)["reasons"]))
            assert health(monitor)["state"] == "degraded"
            (certs / "lobby.key").write_text("no key")
            eventually(lambda: "renewed certificates are not used" in agent.log)
            assert agent.log.count("connected to") == 2


def test_no_secret_is_logged_or_published(tmp_path: Path, certs: Path) -> None:
    """Covers a password from systemd that is refused once, and a private key."""
    secret = "correct-horse-battery"
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "mqtt-password").write_text("wrong-horse\n")
    passwords = tmp_path / "passwords"
    hashed = hashlib.pbkdf2_hmac("sha512", secret.encode(), b"salt" * 3, 101)
    salt64, hash64 = (base64.b64encode(part).decode() for part in (b"salt" * 3, hashed))
    passwords.write_text(f"lobby:$7$101${salt64}${hash64}\n")
    config = fleet_config(certs).replace("use_identity_as_username true", f"password_file {passwords}")
    with Broker(tmp_path, config.replace("acl_file", "#")) as broker:
        login = {"username": "lobby", "password": secret}
        settings = agent_settings(broker, certs, MQTT__USERNAME="lobby", LOG_LEVEL="debug")
        agent = AgentProcess(settings, environ={"CREDENTIALS_DIRECTORY": str(credentials)})
        with Listener(broker, "#", tls=certificates.client(certs, "monitor"), **login) as listener, agent:
            eventually(lambda: "refused:" in agent.log)
            (credentials / "mqtt-password").write_text(f"{secret}\n")
            eventually(lambda: listener.last("edge-agent/lobby/health"))
            agent.stop()
            key = (certs / "lobby.key").read_text("ascii").splitlines()[1]
            seen = agent.log + "".join(str((heard.payload, heard.properties)) for heard in listener.heard)
            assert not [word for word in (secret, "wrong-horse", key) if word in seen]
