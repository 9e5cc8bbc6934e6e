"""Publishes Home Assistant's discovery messages, and clears the retained topics of what no longer exists."""

import random
from typing import Callable, Mapping, Optional, Sequence

from edge_agent.core.ports import MessageSink
from edge_agent.core.protocol.home_assistant import Device, HomeAssistantParams, Published, messages, removals
from edge_agent.core.protocol.messages import ONLINE, Message
from edge_agent.core.types import Moment
from edge_agent.mqtt.client_events import Received, Subscription
from edge_agent.mqtt.handlers import PublishHandler

BIRTH_DELAY_S = (1.0, 10.0)
"""Random delay before a restart of Home Assistant is answered, so that the nodes of a fleet do not answer at once."""
CHECK_S = 1.0
ENTITIES_FIRST_S = 3.0
"""Time for Home Assistant to remove an entity before the topics that it reads are cleared."""


class DiscoveryHandler(PublishHandler):
    """Publishes discovery, and clears retained topics of cameras, zones or names that no longer exist.

    Args:
        params: Settings.
        devices: The devices to publish.
        version: The agent's version.
        sink: Sends the messages.
        before: Topics retained by earlier runs, with their components.
        save: Stores the topics for the next start.
        jitter: Spreads the answers to a restart of Home Assistant.

    Attributes:
        subscriptions: Home Assistant's status topic. Some installations publish it retained, so the retain flag must
            distinguish an old message from a new one.
    """

    def __init__(
        self,
        params: HomeAssistantParams,
        devices: Sequence[Device],
        version: str,
        sink: MessageSink,
        before: Mapping[str, Mapping[str, str]],
        save: Callable[[Published], object],
        jitter: Optional[random.Random] = None,
    ) -> None:
        self.subscriptions = [Subscription(params.status_topic)] if params.enabled else []
        self._params, self._version, self._sink, self._save = params, version, sink, save
        self._before: Published = {topic: dict(components) for topic, components in before.items()}
        self._jitter = jitter or random.Random()
        self._birth_t: Optional[float] = None
        self._known: Published = {}
        self._saved: Optional[Published] = None
        self._next_check_t = float("-inf")
        self._entities_removed_t: Optional[float] = None
        self._discovered: Published = {}
        self.set_devices(devices)

    def set_devices(self, devices: Sequence[Device]) -> None:
        """Publish these devices, and the removal of those that were published before and are not among them."""
        before = self._discovered
        found, self._discovered = messages(devices, self._params, self._version, {**self._before, **before})
        self._sink.set_discovery([*found, *removals(before, self._discovered)])

    def received(self, message: Received, now: Moment) -> None:
        """Schedule a new publication when Home Assistant reports its start; a retained report is old and ignored."""
        ours = self._params.enabled and message.topic == self._params.status_topic
        if ours and message.payload == ONLINE and not message.retain and self._birth_t is None:
            self._birth_t = now.t + self._jitter.uniform(*BIRTH_DELAY_S)

    def tick(self, t: float) -> None:
        """Answer a start of Home Assistant when its delay is over, and update the record of retained topics."""
        if self._birth_t is not None and t >= self._birth_t:
            self._birth_t = None
            self._sink.republish()
        if t >= self._next_check_t:
            self._next_check_t = t + CHECK_S
            self._update(t)

    def _update(self, t: float) -> None:
        now: Published = {**{topic: {} for topic in self._sink.retained}, **self._discovered}
        if self._before:
            self._clear(t, removals(self._before, now))
        self._known.update(now)
        record: Published = {**self._before, **self._known}
        for topic, components in self._discovered.items():
            record[topic] = {**self._before.get(topic, {}), **components}
        if record != self._saved:
            self._save(record)
            self._saved = record

    def _clear(self, t: float, removed: Sequence[Message]) -> None:
        """Remove the entities first and their topics later: an empty state would be an error to an entity."""
        entities = [message for message in removed if message.topic.endswith("/config")]
        for message in entities:
            self._sink.retain(message)
        if not self._sink.is_acknowledged([message.topic for message in entities] + list(self._discovered)):
            return
        if self._entities_removed_t is None:
            self._entities_removed_t = t
        if t - self._entities_removed_t < ENTITIES_FIRST_S:
            return
        for message in removed:
            self._sink.retain(message)
        if self._sink.is_acknowledged(message.topic for message in removed):
            # The broker has cleared them, so the next start need not.
            self._before = {}
