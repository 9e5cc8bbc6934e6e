"""A flood of commands must not crowd out other messages; with the real wiring and a real broker."""

from types import SimpleNamespace

import pytest

from edge_agent.app.publishing import PublishContext, Publishing
from edge_agent.app.state import claim
from edge_agent.config.settings import load_settings
from edge_agent.core.protocol.messages import Message
from edge_agent.host.clock import SystemClock
from edge_agent.mqtt.client_events import Connected, Received
from edge_agent.runtime.command_queue import CommandQueue
from edge_agent.runtime.publish_queue import MAX_RECEIVED, PublishQueue
from tests.fakes.agent import environment
from tests.fakes.broker import Broker, eventually, needs_mosquitto
from tests.fakes.mqtt_agent import Agent

pytestmark = needs_mosquitto
FLOOD = 200


@pytest.fixture
def publishing(tmp_path):
    """The publish thread's parts at a broker; the test acts as that thread."""
    with Broker(tmp_path) as broker:
        settings = {
            "NODE": "n", "CAMERAS__A__URI": "test://still", "MQTT__HOST": "127.0.0.1", "MQTT__PORT": broker.port,
            "MQTT__PROTOCOL": "3.1.1", "CROPS__ENABLED": "false",
        }  # fmt: skip
        clock, publish_queue, state = SystemClock(), PublishQueue(), claim(tmp_path / "state")
        made = Publishing(
            PublishContext(load_settings(environment(settings)), {}, state, clock, clock()), publish_queue,
            CommandQueue(publish_queue.put, lambda value: None), {}, lambda: 0.5,
        )  # fmt: skip
        made.open()
        yield SimpleNamespace(port=broker.port, publish_queue=publish_queue, publisher=made.publisher)
        made.close()


def test_a_flood_of_commands_crowds_out_neither_the_echo_nor_home_assistants_birth(publishing):
    taken = []

    def take():
        taken.extend(publishing.publish_queue.take(0.01))
        return taken

    eventually(lambda: any(isinstance(item, Connected) for item in take()), "connected")
    publishing.publisher.handle(next(item for item in taken if isinstance(item, Connected)))
    with Agent(publishing.port, node="other", reports=()) as other:
        other.until(other.settled)
        session = next(notice.session for notice in other.notices if isinstance(notice, Connected))

        def flood():
            for _ in range(FLOOD):
                other.client.publish(Message("edge-agent/n/request/ping", b"{}"), session)

        flood()
        eventually(lambda: publishing.publish_queue.lost_received == FLOOD - MAX_RECEIVED, "it is full")
        publishing.publisher.pump()
        other.client.publish(Message("homeassistant/status", b"online"), session)
        flood()
        eventually(lambda: publishing.publish_queue.lost_received >= 2 * FLOOD - MAX_RECEIVED, "all have come")
        heard = [item.topic for item in take() if isinstance(item, Received)]
    assert heard.count("edge-agent/n/request/ping") == MAX_RECEIVED
    assert "homeassistant/status" in heard and "edge-agent/n/response/selftest" in heard
