"""On MQTT 3.1.1 a broker acknowledges messages that it discards; a missing echo reveals this."""

import json
import signal
from pathlib import Path
from typing import Any, List

import pytest

from edge_agent.mqtt.client_events import Received, Subscription
from edge_agent.mqtt.selftest import ECHO_S, INTERVAL_S, SelfTest
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto
from tests.fakes.mqtt_agent import Agent, event

ECHO = "edge-agent/lobby/response/selftest"
DENY = "user nobody\ntopic readwrite #\n"
ALLOW = "topic readwrite edge-agent/#\n"


def probe(test: SelfTest, t: float) -> bytes:
    message = test.due(t)
    assert message is not None
    return message.payload


def test_mqtt_5_needs_no_probe() -> None:
    test = SelfTest(ECHO, 1)
    assert test.connected("5", 0.0) == [] and test.due(100.0) is None and test.verified is None


def test_a_probe_at_connect_and_one_each_interval() -> None:
    test = SelfTest(ECHO, 1)
    assert test.connected("3.1.1", 10.0) == [Subscription(ECHO)]
    probes: List[bytes] = []
    for t in range(10, 10 + 3 * int(INTERVAL_S)):
        message = test.due(float(t))
        if message is not None:
            assert (message.qos, message.retain) == (1, False)
            probes.append(message.payload)
            test.received(Received(ECHO, message.payload, False))
    assert len(set(probes)) == len(probes) == 3 and test.verified is True


def test_the_echo_counts_from_the_acknowledgement() -> None:
    test = SelfTest(ECHO, 1)
    test.connected("3.1.1", 0.0)
    probe(test, 0.0)
    test.due(50.0)
    assert test.verified is None, "a slow link is no verdict"
    test.probe_acknowledged(50.0)
    test.due(50.0 + ECHO_S)
    assert test.verified is None
    test.due(50.1 + ECHO_S)
    assert test.verified is False and "discards" in test.faults[0]


def test_only_the_right_echo_passes() -> None:
    test = SelfTest(ECHO, 2)
    test.connected("3.1.1", 0.0)
    payload = probe(test, 0.0)
    other = SelfTest(ECHO, 1)
    other.connected("3.1.1", 0.0)
    assert test.received(Received(ECHO, probe(other, 0.0), False)) and test.verified is None
    assert test.received(Received(ECHO, payload, retain=True)) and test.verified is None
    assert not test.received(Received("edge-agent/lobby/request/ping", payload, False)) and test.verified is None
    assert test.received(Received(ECHO, payload, False)) and test.verified is True
    assert test.faults == []


def answered(test: SelfTest, t: float) -> int:
    """Echo the probe that is due, and return its size."""
    payload = probe(test, t)
    test.probe_acknowledged(t)
    test.received(Received(ECHO, payload[:4097], False))
    return len(payload)


def test_a_probe_is_as_large_as_the_acknowledged_message_and_each_size_is_proven_once() -> None:
    test = SelfTest(ECHO, 1)
    test.connected("3.1.1", 0.0)
    small = answered(test, 0.0)
    test.message_acknowledged(50_000)
    assert answered(test, 60.0) == 50_000 and test.verified is True
    test.message_acknowledged(40_000)
    assert answered(test, 120.0) == small


def test_a_size_limit_is_distinguished_from_an_access_list_and_cleared_when_raised() -> None:
    test = SelfTest(ECHO, 1)
    test.connected("3.1.1", 0.0)
    answered(test, 0.0)
    test.message_acknowledged(50_000)
    assert len(probe(test, 60.0)) == 50_000
    test.probe_acknowledged(60.0)
    assert len(probe(test, 61.0 + ECHO_S)) < 1_000, "a small one at once"
    assert test.verified is False and "50000 bytes" in test.faults[0]
    test.disconnected()
    test.connected("3.1.1", 70.0)
    answered(test, 70.0)
    assert test.verified is False, "small ones pass; the limit stands"
    test.message_acknowledged(50_000)
    answered(test, 130.0)
    assert test.verified is True and test.faults == []


def test_a_lost_connection_is_no_result() -> None:
    test = SelfTest(ECHO, 1)
    test.connected("3.1.1", 0.0)
    probe(test, 0.0)
    test.probe_acknowledged(0.1)
    test.disconnected()
    assert test.due(100.0) is None and test.verified is None
    test.connected("3.1.1", 100.0)
    assert test.due(100.0) is not None


@needs_mosquitto
@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_an_access_list_that_is_broken_and_repaired(tmp_path: Path, version: str) -> None:
    acl = tmp_path / "acl"
    acl.write_text(ALLOW)
    with Broker(tmp_path, f"acl_file {acl}") as broker, Agent(broker.port, protocol=version) as agent:

        def verified() -> Any:
            """As a subscriber reads it in the health message."""
            agent.report_health()
            agent.step()
            health = watcher.last("edge-agent/lobby/health")
            return json.loads(health)["mqtt"]["publish_verified"] if health else "nothing"

        with Listener(broker, ECHO, version=version) as listener, Listener(broker, version=version) as watcher:
            agent.until(agent.settled)
            if version == "5":
                agent.put(event(1))
                agent.until(agent.settled)
                agent.until(lambda: verified() is None)
                assert listener.heard == []
                return
            agent.until(lambda: verified() is True)
            eventually(lambda: len(listener.heard) == 1)
            acl.write_text(DENY)
            reload(broker)
            agent.skipped_s += INTERVAL_S
            agent.until(lambda: agent.publisher._selftest._acked_t is not None, "the probe is acknowledged")
            agent.put(event(1))
            agent.until(agent.settled, "an event is acknowledged, and discarded")
            agent.skipped_s += ECHO_S
            agent.until(lambda: agent.publisher._selftest.verified is False)
            agent.until(lambda: any(ECHO in fault for fault in agent.publisher.faults))
            acl.write_text(ALLOW)
            reload(broker)
            agent.skipped_s += INTERVAL_S
            agent.until(lambda: agent.publisher.faults == [])
            agent.until(lambda: verified() is True)
            eventually(lambda: len(listener.heard) == 2)


def reload(broker: Broker) -> None:
    """Wait until the broker has read its access list again."""
    before = broker.log.read_text("utf-8").count("Reloading config")
    broker.send_signal(signal.SIGHUP)
    eventually(lambda: broker.log.read_text("utf-8").count("Reloading config") > before)


@needs_mosquitto
def test_a_size_limit_that_discards_silently_is_reported_on_3_1_1(tmp_path: Path) -> None:
    """`message_size_limit` is not announced: the broker acknowledges and discards."""
    with Broker(tmp_path, "message_size_limit 1500") as broker, Agent(broker.port, protocol="3.1.1") as agent:
        agent.until(agent.settled)
        agent.until(lambda: agent.publisher._selftest.verified is True)
        agent.put(event(1, "end", crop=True, side=600))
        agent.until(agent.settled, "a crop is acknowledged, and discarded")
        agent.skipped_s += INTERVAL_S
        agent.until(lambda: agent.publisher._selftest._acked_t is not None, "the probe is acknowledged")
        agent.skipped_s += ECHO_S
        agent.until(lambda: any("discards messages of" in fault for fault in agent.publisher.faults))
