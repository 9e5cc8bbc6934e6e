"""Handlers that a publisher calls: their base class, and the detections of every frame."""

from typing import Sequence

from edge_agent.core.ports import MessageSink
from edge_agent.core.protocol.commands import CommandResult
from edge_agent.core.protocol.messages import DetectionsProfile, Message, encode_detections, to_json
from edge_agent.core.protocol.topics import Topics
from edge_agent.core.types import Moment, Outcome
from edge_agent.mqtt.client_events import Received, Subscription


class PublishHandler:
    """Base class of the parts that publish beside presence and events. Each method ignores its argument by default.

    All methods are called on the publish thread, by the publisher that the handler is registered with.

    Attributes:
        subscriptions: Topic filters that the publisher subscribes to at every connect.
    """

    subscriptions: Sequence[Subscription] = ()

    def outcome(self, outcome: Outcome) -> None:
        """Handle an outcome of the infer thread; its events are stored already."""

    def received(self, message: Received, now: Moment) -> None:
        """Handle a message that arrived for any of the subscriptions of the agent."""

    def done(self, result: CommandResult) -> None:
        """Handle the result of a command that the infer thread has run."""

    def tick(self, t: float) -> None:
        """Do what is due at `t`, monotonic seconds."""

    def finish(self) -> None:
        """Prepare for the end of the agent, before the last states are published."""


class DetectionsFeed(PublishHandler):
    """Publishes the detections of every frame on `C/detections`.

    Args:
        topics: Topics of the node.
        profile: Format of the payload; not "off".
        sink: Sends the messages.
    """

    def __init__(self, topics: Topics, profile: DetectionsProfile, sink: MessageSink) -> None:
        self._topics, self._profile, self._sink = topics, profile, sink

    def outcome(self, outcome: Outcome) -> None:
        """Publish the detections of one frame, or drop them when the broker's window is full."""
        if outcome.info is None or outcome.detections is None:
            return
        payload = encode_detections(self._profile, outcome.detections, outcome.info, self._topics.node)
        topic = self._topics.camera(outcome.camera).detections
        self._sink.send_now(Message(topic, to_json(payload), qos=0, kind="detections", content_type="application/json"))
