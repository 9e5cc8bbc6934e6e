"""The publish thread's share of the composition root: outbox, broker client, publisher and its handlers."""

import platform
import time
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterator, List, Mapping, Sequence

from edge_agent import __version__
from edge_agent.app.factories import agent_description_of, command_rules_of, presence_parameters_of
from edge_agent.app.state import State
from edge_agent.config.settings import Settings
from edge_agent.core.ports import Clock, Outbox
from edge_agent.core.protocol.commands import MAX_BYTES, CommandGuard
from edge_agent.core.protocol.home_assistant import Device, decode_published, devices
from edge_agent.core.protocol.overrides import Overrides
from edge_agent.core.protocol.topics import Topics
from edge_agent.core.types import CameraReport, Moment, Presence, Sight
from edge_agent.host import jpeg
from edge_agent.host.identity import kernel_boot
from edge_agent.host.sensors import Sensors, board_model
from edge_agent.mqtt.camera_image import CameraImages
from edge_agent.mqtt.client import MqttClient, default_client_id
from edge_agent.mqtt.client_events import ClientEvent, Received
from edge_agent.mqtt.commands import CommandActions, CommandHandler
from edge_agent.mqtt.encoder import EventEncoder
from edge_agent.mqtt.handlers import DetectionsFeed, PublishHandler
from edge_agent.mqtt.home_assistant import DiscoveryHandler
from edge_agent.mqtt.publisher import Publisher, last_will
from edge_agent.mqtt.selftest import SELFTEST
from edge_agent.mqtt.tls import with_credential
from edge_agent.outbox.memory import MemoryOutbox
from edge_agent.outbox.sqlite import SqliteOutbox
from edge_agent.runtime.command_queue import CommandQueue
from edge_agent.runtime.publish_queue import PublishQueue

CLOSE_S, DISCONNECT_S = 1.5, 0.3
"""Time limits for the last acknowledgements, and for the client to disconnect."""


@dataclass(frozen=True)
class PublishContext:
    """What the publish thread's parts are built from.

    Attributes:
        settings: Checked.
        environ: For systemd's credentials.
        state: The state folder, and this start's number.
        clock: Both clocks.
        started: Time of the start.
    """

    settings: Settings
    environ: Mapping[str, str]
    state: State
    clock: Clock
    started: Moment


class Publishing:
    """Everything between publish queue and broker. Built without touching either; belongs to the publish thread.

    Args:
        context: Settings, state folder and clock.
        publish_queue: Receives client events.
        command_queue: Passes commands to the infer thread.
        actions: By name, what commands do in the rest of the agent.
        threshold: Returns the detection threshold in force.

    Attributes:
        overrides: Settings changed by earlier commands, within the bounds of the current settings.

    Raises:
        MissingPackage: Crops need a JPEG encoder and none is installed.
    """

    def __init__(
        self,
        context: PublishContext,
        publish_queue: PublishQueue,
        command_queue: CommandQueue,
        actions: Mapping[str, Callable[[], Dict[str, Any]]],
        threshold: Callable[[], Any],
    ) -> None:
        settings, state, clock = context.settings, context.state, context.clock
        self._publish_queue, self._clock, self._threshold = publish_queue, clock, threshold
        rules = command_rules_of(settings)
        topics = self._topics = Topics(settings.mqtt.base, settings.node)
        self._reserved_topics = frozenset({topics.response(SELFTEST), settings.home_assistant.status_topic})
        self.outbox = _outbox(settings, state, clock)
        self.client = MqttClient(
            with_credential(settings.mqtt, context.environ),
            settings.mqtt.client_id or default_client_id(f"edge-agent-{settings.node}"),
            last_will(topics),
            self._notify,
        )
        self._encoder = EventEncoder(
            topics,
            state.boot,
            settings.crops,
            jpeg.encoder() if settings.crops.enabled else None,
            settings.mqtt.max_packet_bytes,
        )
        self.publisher = Publisher(
            self._encoder,
            self.outbox,
            self.client,
            clock,
            [_starting(settings, name, context.started) for name in settings.cameras],
            presence_parameters_of(settings, threshold()),
        )
        overrides_file = state.file("overrides.json")
        self.overrides = overrides_file.load(Overrides.from_json, Overrides()).bounded(rules)
        self._guard = CommandGuard(rules)
        self._commands = CommandHandler(
            topics,
            self._guard,
            self.overrides,
            self.publisher,
            CommandActions(
                command_queue.submit,
                lambda overrides: overrides_file.save(overrides.to_json()),
                self._encoder.jpeg,
                actions,
            ),
        )
        retained_file = state.file("retained.json")
        self._discovery = DiscoveryHandler(
            settings.home_assistant,
            self._devices(settings),
            __version__,
            self.publisher,
            retained_file.load(decode_published, {}),
            retained_file.save,
        )
        for handler in (*self._camera_handlers(settings), self._commands, self._discovery):
            self.publisher.register(handler)

    @property
    def faults(self) -> List[str]:
        """Why messages are not stored or not accepted, as texts for the health message."""
        return [*self.publisher.faults, *self.outbox.faults]

    @property
    def command_counters(self) -> Mapping[str, Any]:
        """Counts of accepted and refused commands, for the health report."""
        return self._commands.counters

    def bounded_overrides(self, settings: Settings) -> Overrides:
        """Return the settings changed by commands, within the bounds of other settings."""
        return self._commands.overrides.bounded(command_rules_of(settings))

    def configure(self, settings: Settings, overrides: Overrides) -> None:
        """Apply other *live* settings."""
        self._guard.rules, self._commands.overrides = command_rules_of(settings), overrides
        self._encoder.crops = settings.crops
        self._discovery.set_devices(self._devices(settings))

    def threshold_changed(self, settings: Settings) -> Dict[str, Any]:
        """Publish the detection threshold in force beside presence."""
        self.publisher.set_parameters(presence_parameters_of(settings, self._threshold()))
        return {"threshold": self._threshold()}

    def open(self) -> None:
        """Open the outbox and start to connect."""
        self.outbox.open()
        self._discard_crops()
        self.client.start()

    def close(self) -> None:
        """Publish the last states, wait for acknowledgements, and disconnect."""
        self.publisher.close(self._clock(), self._publish_queue.take, CLOSE_S)
        self.client.close(DISCONNECT_S)
        self.outbox.close()

    def _discard_crops(self) -> None:
        """Discard crops of an earlier run where the settings or a command have turned crops off since."""
        rules = self._guard.rules
        if not rules.crops:
            self.publisher.discard_crops()
        for camera in rules.cameras:
            if not self._commands.overrides.is_on(camera, "crops", rules):
                self.publisher.discard_crops(camera)

    def _devices(self, settings: Settings) -> Sequence[Device]:
        board = board_model() or platform.machine()
        temperature = Sensors()().temperature_c is not None
        return devices(self._topics, agent_description_of(settings, __version__, board, temperature))

    def _camera_handlers(self, settings: Settings) -> Iterator[PublishHandler]:
        crops, profile = settings.crops, settings.mqtt.detections
        if crops.enabled and crops.image:
            yield CameraImages(
                self._topics, settings.cameras, self.publisher, self._encoder.jpeg, crops.image_ttl_s, self._clock
            )
        if profile != "off":
            yield DetectionsFeed(self._topics, profile, self.publisher)

    def _notify(self, event: ClientEvent) -> None:
        # Received payloads are cut to what a command may have, so that no number of messages fills the memory. A flood
        # of commands must not displace the echo of the self-test or Home Assistant's birth message.
        if isinstance(event, Received):
            cut = replace(event, payload=event.payload[: MAX_BYTES + 1], properties=())
            self._publish_queue.put_received(cut, event.topic if event.topic in self._reserved_topics else "")
        else:
            self._publish_queue.put(event)


def _outbox(settings: Settings, state: State, clock: Clock) -> Outbox:
    if settings.outbox.store == "memory":
        return MemoryOutbox(settings.outbox.in_memory(), time.monotonic)
    return SqliteOutbox(settings.outbox, state.folder, clock, kernel_boot(), state.boot, state.lock, state.fault)


def _starting(settings: Settings, camera: str, started: Moment) -> CameraReport:
    """Return the report before the first frame, so that no ON of an earlier run stays at the broker."""
    zones = dict.fromkeys(settings.cameras[camera].zones, Presence.UNKNOWN)
    return CameraReport(camera, Presence.UNKNOWN, Sight.STARTING, started, zones=zones)
