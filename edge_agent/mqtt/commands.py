"""Runs the commands and switches that arrive from the broker, and answers them."""

import hashlib
import logging
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from edge_agent.core.ports import MessageSink
from edge_agent.core.protocol.commands import (
    SWITCHES,
    Command,
    CommandGuard,
    CommandResult,
    CommandRules,
    RefusedCommand,
)
from edge_agent.core.protocol.messages import RESPONSE_SCHEMA, Message, timestamp, to_json
from edge_agent.core.protocol.overrides import Overrides
from edge_agent.core.protocol.topics import Topics
from edge_agent.core.types import Crop, Moment
from edge_agent.errors import EdgeAgentError
from edge_agent.mqtt.client_events import Received, Subscription
from edge_agent.mqtt.handlers import PublishHandler

log = logging.getLogger(__name__)

LOG_EVERY_S = 60.0
IN_INFER_THREAD = ("set_threshold", "snapshot", *SWITCHES)


@dataclass(frozen=True)
class CommandActions:
    """Calls into the rest of the agent.

    Attributes:
        submit: Passes a command to the infer thread; returns False when its queue is full.
        save: Stores the overrides, so that they survive a restart.
        encode: Returns a snapshot as JPEG; None when it cannot be made small enough.
        run: By name, what `reload` and `restart` do, and what follows `set_threshold`; returns the answer's result.
    """

    submit: Callable[[Command], bool]
    save: Callable[[Overrides], object]
    encode: Callable[[Crop], Optional[bytes]]
    run: Mapping[str, Callable[[], Mapping[str, Any]]]


class CommandHandler(PublishHandler):
    """Checks commands, runs them or passes them to the infer thread, and answers each one once.

    Args:
        topics: Topics of the node.
        guard: Checks commands; its rules name the cameras.
        overrides: Changes made by earlier commands.
        sink: Sends the answers.
        actions: Calls into the rest of the agent.

    Attributes:
        overrides: Changes made by commands, as they are stored.
        subscriptions: Topics of commands and switches; empty when the settings disable commands.
    """

    def __init__(
        self, topics: Topics, guard: CommandGuard, overrides: Overrides, sink: MessageSink, actions: CommandActions
    ) -> None:
        self.overrides = overrides
        self.subscriptions = subscriptions(topics, guard.rules)
        self._topics, self._guard, self._sink, self._actions = topics, guard, sink, actions
        self._logged_t: Dict[str, float] = {}
        self._commands = topics.command("")
        self._switches: Dict[str, Tuple[str, str]] = {}
        for camera in guard.rules.cameras:
            for name in SWITCHES:
                self._switches[topics.camera(camera).switch_set(name)] = (camera, name)
                self._publish_switch(camera, name)

    @property
    def counters(self) -> Dict[str, Any]:
        """Counts of accepted and refused commands, for the health report."""
        return {"accepted": self._guard.accepted, "refused": dict(self._guard.refused)}

    def received(self, message: Received, now: Moment) -> None:
        """Run or refuse the command in a message; other messages are ignored."""
        if message.topic in self._switches:
            camera, switch = self._switches[message.topic]
            checked = self._guard.check_switch(camera, switch, message.payload, message.retain, now)
        elif message.topic.startswith(self._commands):
            name = message.topic[len(self._commands) :]
            checked = self._guard.check_command(name, message.payload, message.retain, now)
        else:
            return
        if isinstance(checked, RefusedCommand):
            self._refuse(checked, now.t)
        else:
            self._run(checked, now)

    def done(self, result: CommandResult) -> None:
        """Answer a command that the infer thread has run, and store what it changed."""
        command = result.command
        if result.error is not None:
            self._answer(command.name, command.transaction, error=result.error, reason="failed")
        elif command.name in SWITCHES and command.camera is not None:
            on = command.arguments["on"]
            log.info("%s: %s switched %s", command.camera, command.name, "on" if on else "off")
            self._save(self.overrides.with_switch(command.camera, command.name, on))
            self._publish_switch(command.camera, command.name)
            if command.name == "crops" and not on:
                self._sink.discard_crops(command.camera)
        elif command.name == "set_threshold":
            self._save(self.overrides.with_threshold(command.arguments["value"]))
            answer = self._actions.run[command.name]()
            log.info("detection threshold set to %s", answer["threshold"])
            self._answer(command.name, command.transaction, answer)
        elif result.crop is not None:
            self._publish_snapshot(command, result.crop, result.result)

    def _run(self, command: Command, now: Moment) -> None:
        if command.name in IN_INFER_THREAD:
            if not self._actions.submit(command):
                self._guard.forget(command)
                self._answer(command.name, command.transaction, error="too many commands wait", reason="busy")
            return
        result: Mapping[str, Any] = {"ts": timestamp(now.at)}
        try:
            if command.name in self._actions.run:
                result = self._actions.run[command.name]()
            elif command.name == "republish":
                self._sink.republish()
        except EdgeAgentError as error:
            log.warning("%s: %s", command.name, error)
            self._answer(command.name, command.transaction, error=str(error)[:500], reason="failed")
            return
        self._answer(command.name, command.transaction, result)

    def _refuse(self, refused: RefusedCommand, t: float) -> None:
        first = t - self._logged_t.get(refused.reason, -LOG_EVERY_S) >= LOG_EVERY_S
        if first:
            self._logged_t[refused.reason] = t
        level = logging.WARNING if first else logging.DEBUG
        log.log(level, "command %s refused (%s): %s", refused.name, refused.reason, refused.error)
        if refused.answer:
            self._answer(refused.name, refused.transaction, error=refused.error, reason=refused.reason)

    def _answer(
        self,
        name: str,
        transaction: Optional[str],
        result: Optional[Mapping[str, Any]] = None,
        error: Optional[str] = None,
        reason: Optional[str] = None,
    ) -> None:
        payload = {
            "schema": RESPONSE_SCHEMA, "name": name, "transaction": transaction,
            "status": "ok" if error is None else "error", "error": error, "reason": reason,
            "result": dict(result or {}),
        }  # fmt: skip
        topic = self._topics.response(name)
        self._sink.send(Message(topic, to_json(payload), kind="response", content_type="application/json"))

    def _publish_switch(self, camera: str, name: str) -> None:
        on = self.overrides.is_on(camera, name, self._guard.rules)
        topic = self._topics.camera(camera).switch_state(name)
        self._sink.retain(Message(topic, b"ON" if on else b"OFF", retain=True))

    def _publish_snapshot(self, command: Command, crop: Crop, more: Mapping[str, Any]) -> None:
        jpeg = self._actions.encode(crop)
        if jpeg is None or command.camera is None or command.transaction is None:
            self._answer(command.name, command.transaction, error="the image cannot be made small", reason="failed")
            return
        topic = self._topics.camera(command.camera).crop(command.transaction)
        sha256 = hashlib.sha256(jpeg).hexdigest()
        properties = (("transaction", command.transaction), ("sha256", sha256))
        self._sink.send(Message(topic, jpeg, kind="image", content_type="image/jpeg", properties=properties))
        result = {"topic": topic, "sha256": sha256, "bytes": len(jpeg), "ts": timestamp(crop.info.moment.at)}
        self._answer(command.name, command.transaction, {**result, **more})

    def _save(self, overrides: Overrides) -> None:
        if overrides != self.overrides:
            self.overrides = overrides
            self._actions.save(overrides)


def subscriptions(topics: Topics, rules: CommandRules) -> List[Subscription]:
    """Return the topics of commands and switches; none when the settings disable commands."""
    if not rules.params.enabled:
        return []
    switches = [topics.camera(camera).switch_set(name) for camera in rules.cameras for name in SWITCHES]
    # A retained command must be recognised as one even while it is new.
    return [Subscription(topic, as_published=True) for topic in (topics.commands, *switches)]
