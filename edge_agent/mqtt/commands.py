"""Commands and switches from the broker: judged, handed to who does them, answered. Used by the publish thread only."""

import hashlib
import logging
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Tuple

from edge_agent.core.ports import Clock
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
from edge_agent.core.types import Crop
from edge_agent.errors import EdgeAgentError
from edge_agent.mqtt.client_events import Received, Subscription

log = logging.getLogger(__name__)

LOG_EVERY_S = 60.0
IN_INFER_THREAD = ("set_threshold", "snapshot", *SWITCHES)


def filters(topics: Topics, rules: CommandRules) -> List[Subscription]:
    """Topics that commands come by; none when they are turned off. A retained one must be known as such at once."""
    switches = [topics.camera(camera).switch_set(name) for camera in rules.cameras for name in SWITCHES]
    wanted = [topics.commands, *switches] if rules.params.enabled else []
    return [Subscription(topic, as_published=True) for topic in wanted]


class MessageSink(Protocol):
    """What commands need of `mqtt.publisher`."""

    def retain(self, message: Message) -> None:
        """A retained topic has a value."""

    def say(self, message: Message) -> None:
        """Send once."""

    def republish(self) -> None:
        """Tell the whole retained truth again."""


class Commands:
    """Answers every command that is let through to here, once.

    Args:
        topics: Where to.
        guard: Judges; its rules name the cameras.
        overrides: What earlier commands have changed.
        speaker: Sends.
        submit: Hands a command to the infer thread; False when too many wait.
        save: Keeps the overrides over a restart.
        encode: A snapshot as JPEG; None when it cannot be made small enough.
        actions: What `reload` and `restart` do, and what is to be done after `set_threshold`; what they return becomes
            the answer's result.
        clock: Both clocks.

    Attributes:
        overrides: What is kept.
    """

    def __init__(
        self,
        topics: Topics,
        guard: CommandGuard,
        overrides: Overrides,
        speaker: MessageSink,
        submit: Callable[[Command], bool],
        save: Callable[[Overrides], object],
        encode: Callable[[Crop], Optional[bytes]],
        actions: Mapping[str, Callable[[], Mapping[str, Any]]],
        clock: Clock,
    ) -> None:
        self.overrides = overrides
        self._topics, self._guard, self._speaker, self._submit, self._save = topics, guard, speaker, submit, save
        self._encode, self._actions, self._clock = encode, actions, clock
        self._logged_t: Dict[str, float] = {}
        self._requests = topics.command("")
        self._switches: Dict[str, Tuple[str, str]] = {}
        for camera in guard.rules.cameras:
            for name in SWITCHES:
                self._switches[topics.camera(camera).switch_set(name)] = (camera, name)
                self._show_switch(camera, name)

    @property
    def counters(self) -> Dict[str, Any]:
        """For health."""
        return {"accepted": self._guard.accepted, "refused": dict(self._guard.refused)}

    def received(self, notice: Received) -> None:
        """A message from the broker; one that is no command is ignored."""
        now = self._clock()
        if notice.topic in self._switches:
            verdict = self._guard.check_switch(*self._switches[notice.topic], notice.payload, notice.retain, now)
        elif notice.topic.startswith(self._requests):
            name = notice.topic[len(self._requests) :]
            verdict = self._guard.check_command(name, notice.payload, notice.retain, now)
        else:
            return
        if isinstance(verdict, RefusedCommand):
            self._refuse(verdict, now.t)
        else:
            self._do(verdict)

    def done(self, done: CommandResult) -> None:
        """The infer thread has done a command, or could not."""
        command = done.command
        if done.error is not None:
            self._answer(command.name, command.transaction, error=done.error, reason="failed")
        elif command.name in SWITCHES and command.camera is not None:
            log.info("%s: %s switched %s", command.camera, command.name, "on" if command.arguments["on"] else "off")
            self._keep(self.overrides.with_switch(command.camera, command.name, command.arguments["on"]))
            self._show_switch(command.camera, command.name)
        elif command.name == "set_threshold":
            self._keep(self.overrides.with_threshold(command.arguments["value"]))
            result = self._actions[command.name]()
            log.info("detection threshold is %s", result["threshold"])
            self._answer(command.name, command.transaction, result)
        elif done.crop is not None:
            self._show_snapshot(command, done.crop)

    def _do(self, command: Command) -> None:
        if command.name in IN_INFER_THREAD:
            if not self._submit(command):
                self._guard.forget(command)
                self._answer(command.name, command.transaction, error="too many commands wait", reason="busy")
            return
        result: Mapping[str, Any] = {"ts": timestamp(self._clock().at)}
        try:
            if command.name in self._actions:
                result = self._actions[command.name]()
            elif command.name == "republish":
                self._speaker.republish()
        except EdgeAgentError as error:
            log.warning("%s: %s", command.name, error)
            self._answer(command.name, command.transaction, error=str(error)[:500], reason="failed")
            return
        self._answer(command.name, command.transaction, result)

    def _refuse(self, refusal: RefusedCommand, t: float) -> None:
        first = t - self._logged_t.get(refusal.reason, -LOG_EVERY_S) >= LOG_EVERY_S
        if first:
            self._logged_t[refusal.reason] = t
        level = logging.WARNING if first else logging.DEBUG
        log.log(level, "command %s refused (%s): %s", refusal.name, refusal.reason, refusal.error)
        if refusal.answer:
            self._answer(refusal.name, refusal.transaction, error=refusal.error, reason=refusal.reason)

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
        self._speaker.say(Message(topic, to_json(payload), kind="response", content_type="application/json"))

    def _show_switch(self, camera: str, name: str) -> None:
        on = self.overrides.is_on(camera, name, self._guard.rules)
        topic = self._topics.camera(camera).switch_state(name)
        self._speaker.retain(Message(topic, b"ON" if on else b"OFF", retain=True))

    def _show_snapshot(self, command: Command, crop: Crop) -> None:
        jpeg = self._encode(crop)
        if jpeg is None or command.camera is None or command.transaction is None:
            self._answer(command.name, command.transaction, error="the picture cannot be made small", reason="failed")
            return
        topic = self._topics.camera(command.camera).crop(command.transaction)
        sha256 = hashlib.sha256(jpeg).hexdigest()
        properties = (("transaction", command.transaction), ("sha256", sha256))
        self._speaker.say(Message(topic, jpeg, kind="image", content_type="image/jpeg", properties=properties))
        result = {"topic": topic, "sha256": sha256, "bytes": len(jpeg), "ts": timestamp(crop.info.moment.at)}
        self._answer(command.name, command.transaction, result)

    def _keep(self, overrides: Overrides) -> None:
        if overrides != self.overrides:
            self.overrides = overrides
            self._save(overrides)
