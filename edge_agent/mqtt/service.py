"""All that the publish thread does with what comes to it: the publisher, and who else has a say."""

from typing import Any, Callable, Mapping, Optional, Union

from edge_agent.core.ports import Clock
from edge_agent.core.protocol.commands import CommandResult
from edge_agent.core.protocol.messages import DetectionsProfile, Message, encode_detections, to_json
from edge_agent.core.protocol.topics import Topics
from edge_agent.core.types import Outcome
from edge_agent.mqtt.camera_image import FaceImages
from edge_agent.mqtt.client_events import Received
from edge_agent.mqtt.commands import Commands
from edge_agent.mqtt.home_assistant import Announcer
from edge_agent.mqtt.publisher import Publisher


class DetectionsFeed:
    """`C/detections`: every frame's faces, opt-in.

    Args:
        topics: Where to.
        profile: In whose words; not "off".
        stream: Sends a message now or never.
    """

    def __init__(self, topics: Topics, profile: DetectionsProfile, stream: Callable[[Message], None]) -> None:
        self._topics, self._profile, self._stream = topics, profile, stream

    def outcome(self, outcome: Outcome) -> None:
        """Tell one frame's."""
        if outcome.info is None or outcome.detections is None:
            return
        payload = encode_detections(self._profile, outcome.detections, outcome.info, self._topics.node)
        topic = self._topics.camera(outcome.camera).detections
        self._stream(Message(topic, to_json(payload), qos=0, kind="detections", content_type="application/json"))


class MqttService:
    """What the publish stage calls; passes everything on to those whom it concerns.

    Args:
        publisher: Truth and outbox.
        commands: Commands and switches.
        announcer: Discovery.
        images: None when they are off.
        feed: Likewise.
        clock: Both clocks.
    """

    def __init__(
        self,
        publisher: Publisher,
        commands: Commands,
        announcer: Announcer,
        images: Optional[FaceImages],
        feed: Optional[DetectionsFeed],
        clock: Clock,
    ) -> None:
        self._publisher, self._commands, self._announcer = publisher, commands, announcer
        self._images, self._feed, self._clock = images, feed, clock

    @property
    def connected(self) -> bool:
        """True while a session with the broker is established."""
        return self._publisher.connected

    @property
    def commands_counters(self) -> Mapping[str, Any]:
        """For health."""
        return self._commands.counters

    def outcome(self, outcome: Outcome) -> None:
        """Keep what must be sent."""
        self._publisher.outcome(outcome)
        follower: Union[FaceImages, DetectionsFeed, None]
        for follower in (self._images, self._feed):
            if follower is not None:
                follower.outcome(outcome)

    def notice(self, notice: object) -> None:
        """Something from the broker client, or from the infer thread about a command."""
        if isinstance(notice, CommandResult):
            self._commands.done(notice)
            camera = notice.command.camera
            switched = notice.command.name == "crops" and notice.error is None and camera is not None
            if switched and camera is not None and not notice.command.arguments["on"]:
                self._publisher.discard_crops(camera)
                if self._images is not None:
                    self._images.clear(camera)
            return
        if isinstance(notice, Received):
            self._commands.received(notice)
            self._announcer.received(notice, self._clock().t)
        self._publisher.notice(notice)

    def info(self, info: Mapping[str, object]) -> None:
        """What the agent is, from now on."""
        self._publisher.info(info)

    def health(self, health: Mapping[str, object]) -> None:
        """How the agent is, now."""
        self._publisher.health(health)

    def pump(self) -> None:
        """Let time pass, then send what can be sent."""
        t = self._clock().t
        if self._images is not None:
            self._images.tick(t)
        self._announcer.tick(t)
        self._publisher.pump()

    def finish(self) -> None:
        """Before the goodbye."""
        if self._images is not None:
            self._images.clear_all()
