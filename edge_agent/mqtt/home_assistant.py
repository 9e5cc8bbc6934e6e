"""Makes Home Assistant find the agent, and makes everybody forget what is no longer there. Publish thread only."""

import random
from typing import Callable, Iterable, List, Mapping, Optional, Protocol, Sequence

from edge_agent.core.protocol.home_assistant import Device, HomeAssistantParams, Published, messages, removals
from edge_agent.core.protocol.messages import ONLINE, Message
from edge_agent.mqtt.client_events import Received, Subscription

BIRTH_DELAY_S = (1.0, 10.0)
"""So that a fleet does not answer a restart of Home Assistant all at once."""
LOOK_S = 1.0
ENTITIES_FIRST_S = 3.0
"""That Home Assistant has to drop an entity before the topics that it reads are cleared."""


def filters(params: HomeAssistantParams) -> List[Subscription]:
    """Where Home Assistant says that it has started; some make it say so retained, so the flag tells old from new."""
    return [Subscription(params.status_topic)] if params.enabled else []


class MessageSink(Protocol):
    """What the announcer needs of `mqtt.publisher`."""

    def is_told(self, topics: Iterable[str]) -> bool:
        """True when the broker has acknowledged these retained topics in this session."""

    @property
    def retained(self) -> Sequence[str]:
        """The topics that the broker retains of ours."""

    def discovery(self, messages: Sequence[Message]) -> None:
        """What other systems shall find of us."""

    def retain(self, message: Message) -> None:
        """A retained topic has a value."""

    def republish(self) -> None:
        """Tell the whole retained truth again."""


class Announcer:
    """Publishes discovery, and clears what earlier runs have left retained: of cameras, zones or names that have gone.

    Args:
        params: Whether and how.
        devices: What there is to find.
        version: The agent's.
        speaker: Sends.
        before: What was retained at the last start; see `core.discovery.Published`.
        save: Remembers it for the next start.
        jitter: Spreads answers to Home Assistant's restart.
    """

    def __init__(
        self,
        params: HomeAssistantParams,
        devices: Sequence[Device],
        version: str,
        speaker: MessageSink,
        before: Mapping[str, Mapping[str, str]],
        save: Callable[[Published], object],
        jitter: Optional[random.Random] = None,
    ) -> None:
        self._params, self._version, self._speaker, self._save = params, version, speaker, save
        self._before: Published = {topic: dict(components) for topic, components in before.items()}
        self._jitter = jitter or random.Random()
        self._birth_t: Optional[float] = None
        self._known: Published = {}
        self._saved: Optional[Published] = None
        self._next_look_t = float("-inf")
        self._entities_gone_t: Optional[float] = None
        self._discovered: Published = {}
        self.announce(devices)

    def announce(self, devices: Sequence[Device]) -> None:
        """From now on this is what there is to find; what no longer is, is said to have gone."""
        before = self._discovered
        found, self._discovered = messages(devices, self._params, self._version, {**self._before, **before})
        self._speaker.discovery([*found, *removals(before, self._discovered)])

    def received(self, notice: Received, t: float) -> None:
        """Home Assistant has started, perhaps. What a broker remembers of that is old, and answered at connect."""
        ours = self._params.enabled and notice.topic == self._params.status_topic
        if ours and notice.payload == ONLINE and not notice.retain and self._birth_t is None:
            self._birth_t = t + self._jitter.uniform(*BIRTH_DELAY_S)

    def tick(self, t: float) -> None:
        """Answer a birth when its time has come, and keep the record of what is retained."""
        if self._birth_t is not None and t >= self._birth_t:
            self._birth_t = None
            self._speaker.republish()
        if t >= self._next_look_t:
            self._next_look_t = t + LOOK_S
            self._look(t)

    def _look(self, t: float) -> None:
        now: Published = {**{topic: {} for topic in self._speaker.retained}, **self._discovered}
        if self._before:
            self._clear(t, removals(self._before, now))
        self._known.update(now)
        record: Published = {**self._before, **self._known}
        for topic, components in self._discovered.items():
            record[topic] = {**self._before.get(topic, {}), **components}
        if record != self._saved:
            self._save(record)
            self._saved = record

    def _clear(self, t: float, gone: Sequence[Message]) -> None:
        """First what makes entities, and only then what they read: an empty state would be a fault in their eyes."""
        entities = [message for message in gone if message.topic.endswith("/config")]
        for message in entities:
            self._speaker.retain(message)
        if not self._speaker.is_told([message.topic for message in entities] + list(self._discovered)):
            return
        if self._entities_gone_t is None:
            self._entities_gone_t = t
        if t - self._entities_gone_t < ENTITIES_FIRST_S:
            return
        for message in gone:
            self._speaker.retain(message)
        if self._speaker.is_told(message.topic for message in gone):
            # From here on the broker knows, and need not be told at the next start.
            self._before = {}
