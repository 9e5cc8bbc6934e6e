"""The ready-made bridge between two real brokers, over mTLS and through a link that is cut."""

import json
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.fakes import certificates
from tests.fakes.agent import AgentProcess
from tests.fakes.broker import VERSIONS, Broker, Gate, Listener, eventually, needs_mosquitto

READY_MADE = certificates.ROOT / "config" / "mosquitto"
STATE = "bridges/berlin/state"
NODE = "berlin/edge-agent/n"

pytestmark = [
    needs_mosquitto,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs certificates: apt-get install openssl"),
]


class Sites(NamedTuple):
    """A site's broker, the central one, and the link between them."""

    site: Broker
    central: Broker
    link: Gate
    certs: Path


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    certificates.make(folder, "127.0.0.1", "berlin", "operations", "monitor")
    return folder


def ready_made(name: str, changes: Dict[str, str]) -> str:
    """A shipped file with changes; each change must apply."""
    text = (READY_MADE / name).read_text("utf-8")
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture
def sites(tmp_path: Path, certs: Path, request: Any) -> Iterator[Sites]:
    """Both shipped configurations with changed folders and addresses; a parameter adds lines to the site's."""
    shutil.copy(READY_MADE / "central-acl", certs / "acl")
    folders = [tmp_path / name for name in ("central", "site")]
    for folder in folders:
        folder.mkdir()
    listener = {"/etc/mosquitto/edge-agent": str(certs), "listener 8883\n": "listener PORT 127.0.0.1\n"}
    with Broker(folders[0], ready_made("mosquitto.conf", listener)) as central:
        link = Gate(central.port)
        bridge = ready_made(
            "bridge.conf",
            {"/etc/mosquitto/edge-agent/central": str(certs), "central.example.org:8883": f"127.0.0.1:{link.port}"},
        )
        # The tests' brokers have no bound in flight, which a bridge would announce as 0: no MQTT 5 broker takes that.
        own = "max_inflight_messages 20\nset_tcp_nodelay true\n" + getattr(
            request, "param", "max_queued_messages 10000\n"
        )
        with Broker(folders[1], own + bridge, persistence=True) as site:
            yield Sites(site, central, link, certs)
        link.close()


def listening(sites: Sites, name: str, *filters: str) -> Listener:
    """At the central broker."""
    listener = Listener(sites.central, *filters, tls=certificates.client(sites.certs, name))
    listener.faults = Ignored()
    return listener


class Ignored(List[str]):
    """The schemas cover an agent's own topics, without a site's prefix."""

    def append(self, fault: str) -> None:
        """Ignore the fault."""


def publish(broker: Broker, *messages: Any, tls: Any = None, content_type: str = "") -> List[bool]:
    """Publish (topic, payload, retain) in order with QoS 1; return whether the broker accepted each."""
    taken: Dict[int, bool] = {}
    client = Client(CallbackAPIVersion.VERSION2, protocol=VERSIONS["5"])
    if tls is not None:
        client.tls_set_context(tls)
    client.on_publish = lambda _, __, mid, reason, ___: taken.update({mid: not reason.is_failure})
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    eventually(client.is_connected)
    properties = Properties(PacketTypes.PUBLISH)
    if content_type:
        properties.ContentType = content_type
    for topic, payload, retain in messages:
        client.publish(topic, payload, 1, retain, properties)
    eventually(lambda: len(taken) == len(messages))
    client.disconnect()
    client.loop_stop()
    return [taken[mid] for mid in sorted(taken)]


def event(number: int) -> Any:
    return ("edge-agent/n/door/events", b"event %d" % number, False)


def numbers(listener: Listener) -> List[int]:
    """In the order of their first arrival: QoS 1 may deliver one twice; a consumer detects this by (boot, seq)."""
    return list(dict.fromkeys(int(payload.split()[1]) for payload in listener.payloads(f"{NODE}/door/events")))


@pytest.mark.slow
def test_an_agent_is_seen_and_commanded_across_the_bridge(sites: Sites) -> None:
    settings = {"CAMERAS__DOOR__URI": "test://one?fps=30", "MQTT__PORT": sites.site.port, "PRESENCE__DELAY_ON_S": 0}
    operations = certificates.client(sites.certs, "operations")
    with listening(sites, "operations", "#") as central, listening(sites, "monitor", "#") as monitor:
        eventually(lambda: central.last(STATE) == b"1", "the bridge is up")
        with AgentProcess(settings) as agent:
            eventually(lambda: central.last(f"{NODE}/availability") == b"online")
            eventually(lambda: central.last(f"{NODE}/door/presence") == b"ON")
            eventually(lambda: central.payloads(f"{NODE}/door/events"))
            ping = (f"{NODE}/request/ping", b'{"transaction": "t1"}', False)
            assert publish(sites.central, ping, tls=operations) == [True]
            eventually(lambda: central.payloads(f"{NODE}/response/ping"), "the answer")
            assert json.loads(central.last(f"{NODE}/response/ping") or b"")["transaction"] == "t1"
            monitored = certificates.client(sites.certs, "monitor")
            refused = (f"{NODE}/door/detection/set", b"OFF", False)
            assert publish(sites.central, refused, tls=monitored) == [False]
            # A topic that no line of the bridge imports does not reach the site, from any publisher.
            lie = (f"{NODE}/door/presence", b"OFF", False)
            assert publish(sites.central, lie, tls=operations) == [False]
            assert publish(sites.central, (f"{NODE}/door/detection/set", b"OFF", False), tls=operations) == [True]
            eventually(lambda: central.last(f"{NODE}/door/detection/state") == b"OFF")
            agent.kill()
        eventually(lambda: central.last(f"{NODE}/availability") == b"offline", "the last will crosses")
        assert not any("/crops/" in topic and not topic.endswith("/state") for topic in central.topics())
        assert monitor.payloads(f"{NODE}/door/events") == central.payloads(f"{NODE}/door/events")


def test_events_of_a_cut_link_arrive_in_order(sites: Sites) -> None:
    with listening(sites, "operations", "#") as central:
        eventually(lambda: central.last(STATE) == b"1")
        publish(sites.site, ("edge-agent/n/availability", b"online", True), *map(event, range(50)))
        eventually(lambda: len(numbers(central)) == 50)
        sites.link.shut()
        eventually(lambda: central.last(STATE) == b"0", "the central broker reports the bridge as disconnected")
        publish(sites.site, *map(event, range(50, 150)), ("edge-agent/n/availability", b"offline", True))
        assert central.last(f"{NODE}/availability") == b"online", "no last will fires: what was true then stays"
        sites.site.stop()  # in order: what waits is kept
        sites.site.start()
        publish(sites.site, *map(event, range(150, 200)))
        sites.link.open()
        eventually(lambda: len(numbers(central)) == 200, "all come")
        assert numbers(central) == list(range(200))
        eventually(lambda: central.last(f"{NODE}/availability") == b"offline")
    with listening(sites, "operations", "#") as late:
        eventually(lambda: late.last(f"{NODE}/availability") == b"offline", "retained at the central broker")
        eventually(lambda: late.last(STATE) == b"1")
        assert all(heard.retain for heard in late.heard)


@pytest.mark.slow
@pytest.mark.parametrize("sites", ["max_queued_messages 20\n"], indirect=True)
def test_retained_state_is_right_even_when_the_queue_was_full(sites: Sites) -> None:
    truth = "edge-agent/n/door/presence"
    with listening(sites, "operations", "#") as central:
        eventually(lambda: central.last(STATE) == b"1")
        publish(sites.site, (truth, b"OFF", True))
        eventually(lambda: central.last(f"{NODE}/door/presence") == b"OFF")
        sites.link.shut()
        eventually(lambda: central.last(STATE) == b"0")
        publish(sites.site, *map(event, range(200)), (truth, b"ON", True))
        sites.link.open()
        eventually(lambda: central.last(f"{NODE}/door/presence") == b"ON", "sent again at the connect")
        came = numbers(central)
        assert 20 <= len(came) < 200
        assert came == list(range(len(came))), "the oldest were kept, the newest are lost"


def test_mqtt_5_properties_cross_the_bridge_and_crops_only_when_enabled(sites: Sites) -> None:
    with listening(sites, "operations", "#") as central:
        eventually(lambda: central.last(STATE) == b"1")
        publish(sites.site, ("edge-agent/n/door/crops/1", b"image", False), content_type="image/jpeg")
        publish(sites.site, ("edge-agent/n/info", b"{}", True), content_type="application/json")
        eventually(lambda: central.payloads(f"{NODE}/info"))
        (info,) = [heard for heard in central.heard if heard.topic == f"{NODE}/info"]
        assert info.properties.ContentType == "application/json"
        assert not any("/crops/" in topic for topic in central.topics())
