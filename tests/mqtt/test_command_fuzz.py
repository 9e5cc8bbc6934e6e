"""A hundred thousand messages to the command handler: none raises, and every answer is bounded."""

import json
from random import Random
from typing import Any, Dict, List, Mapping

import pytest

from edge_agent.core.protocol.commands import COMMANDS, Command, CommandGuard, CommandResult
from edge_agent.core.protocol.messages import Message
from edge_agent.core.protocol.overrides import Overrides
from edge_agent.core.protocol.topics import Topics
from edge_agent.errors import ConfigError
from edge_agent.mqtt.client_events import Received
from edge_agent.mqtt.commands import CommandActions, CommandHandler
from tests.core.protocol.test_commands import RULES, mutated
from tests.fakes.clock import FakeClock
from tests.fakes.schemas import validate_message

TOPICS = Topics("edge-agent", "lobby")
NAMES = (*COMMANDS, "unknown", "", "a/b", "x" * 70, "A b", "\u00e9", "\ufffd")
SWITCHES = tuple(
    TOPICS.camera(camera).switch_set(name) for camera in ("door", "x") for name in ("detection", "crops", "y")
)


class RecordingSink:
    """Records the answers."""

    def __init__(self) -> None:
        self.sent: List[Message] = []

    def retain(self, message: Message) -> None:
        """A switch's state."""

    def send(self, message: Message) -> None:
        """An answer."""
        self.sent.append(message)

    def republish(self) -> None:
        """All retained topics."""

    def discard_crops(self, camera: str) -> None:
        """Crops that wait."""


def refuse() -> Dict[str, Any]:
    raise ConfigError(["EDGE_AGENT_NODE: expected an id"], "see config/README.md")


@pytest.mark.slow
def test_no_message_raises_in_the_handler_and_all_answers_are_bounded() -> None:
    random, clock, guard, sink = Random(1), FakeClock(), CommandGuard(RULES), RecordingSink()
    waiting: List[Command] = []

    def submit(command: Command) -> bool:
        waiting.append(command)
        return random.random() < 0.9

    actions: Mapping[str, Any] = {"reload": refuse, "restart": dict, "set_threshold": lambda: {"threshold": 0.5}}
    commands: Any = CommandHandler(
        TOPICS, guard, Overrides(), sink, CommandActions(submit, lambda overrides: None, lambda crop: None, actions)
    )
    judged = answered = 0
    for number in range(100_000):
        topic = random.choice((TOPICS.command(random.choice(NAMES)), random.choice(SWITCHES), "homeassistant/status"))
        payload = random.choice((mutated(random), random.choice((b"ON", b"OFF", b"on", b"ON\n", b"\xff\x00", b""))))
        now = clock.advance(random.choice((0.0, 0.3, 1.0)))
        commands.received(Received(topic, payload, random.random() < 0.02), now)
        for command in waiting:
            error = "no frame" if command.name == "snapshot" or random.random() < 0.1 else None
            commands.done(CommandResult(command, error=error))
        for message in sink.sent:
            assert len(message.payload) < 1024 and json.loads(message.payload)["status"] in ("ok", "error")
            if number % 50 == 0:
                validate_message(message.topic, message.payload)
        judged, answered = judged + (topic != "homeassistant/status"), answered + len(sink.sent)
        waiting.clear()
        sink.sent.clear()
    assert 1_000 < answered < judged
    assert guard.accepted > 1_000
    assert {"malformed", "oversized", "unknown", "invalid", "duplicate", "expired", "retained", "flooded"} <= set(
        guard.refused
    )
