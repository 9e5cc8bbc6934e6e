"""The publish thread's share of the composition root: outbox, broker client, publisher, and the desk around it."""

import platform
import time
from dataclasses import replace
from typing import Any, Callable, Dict, List, Mapping, Sequence

from edge_agent import __version__
from edge_agent.app.factories import decided_by, rules_of, site_of
from edge_agent.app.state import State
from edge_agent.config.settings import Settings
from edge_agent.core.ports import Clock, Outbox
from edge_agent.core.protocol.commands import MAX_BYTES, CommandGuard, CommandResult
from edge_agent.core.protocol.home_assistant import Device, decode_published, devices
from edge_agent.core.protocol.overrides import Overrides
from edge_agent.core.protocol.topics import Topics
from edge_agent.core.types import CameraReport, Moment, Presence, Sight
from edge_agent.host import jpeg
from edge_agent.host.identity import kernel_boot
from edge_agent.host.sensors import Sensors, board_model
from edge_agent.host.state_file import StateFile
from edge_agent.mqtt import commands, home_assistant
from edge_agent.mqtt.camera_image import FaceImages
from edge_agent.mqtt.client import MqttClient, default_client_id
from edge_agent.mqtt.client_events import ClientEvent, Received
from edge_agent.mqtt.commands import Commands
from edge_agent.mqtt.encoder import EventEncoder
from edge_agent.mqtt.home_assistant import Announcer
from edge_agent.mqtt.publisher import Publisher, last_will
from edge_agent.mqtt.selftest import SELFTEST
from edge_agent.mqtt.service import DetectionsFeed, MqttService
from edge_agent.mqtt.tls import with_credential
from edge_agent.outbox.memory import MemoryOutbox
from edge_agent.outbox.sqlite import SqliteOutbox
from edge_agent.runtime.command_queue import CommandQueue
from edge_agent.runtime.publish_queue import PublishQueue

CLOSE_S, GOODBYE_S = 1.5, 0.3
"""For what must still be acknowledged, and for the client's own farewell."""


class Publishing:
    """Everything between publish queue and broker. Built without touching either; belongs to the publish thread.

    Args:
        settings: Checked.
        environ: For systemd's credentials.
        state: Where things are kept, and this start's number.
        started: When.
        clock: Both clocks.
        publish_queue: Takes what the client notices.
        command_queue: The way to the infer thread, for commands.
        overrides: What commands have left, bounded by the settings; kept in `kept`.
        kept: Where they survive a restart.
        hooks: What commands ask of the rest of the agent, by name.
        threshold: The detection threshold in force.

    Raises:
        MissingPackage: The crops need a JPEG encoder and none is installed.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        state: State,
        started: Moment,
        clock: Clock,
        publish_queue: PublishQueue,
        command_queue: CommandQueue,
        overrides: Overrides,
        kept: StateFile,
        hooks: Mapping[str, Callable[[], Dict[str, Any]]],
        threshold: Callable[[], Any],
    ) -> None:
        self._publish_queue, self._clock, self._threshold = publish_queue, clock, threshold
        rules = rules_of(settings)
        topics = self._topics = Topics(settings.mqtt.base, settings.node)
        self._own_kind = frozenset({topics.response(SELFTEST), settings.home_assistant.status_topic})
        self.outbox = _outbox(settings, state, clock)
        self.client = MqttClient(
            with_credential(settings.mqtt, environ),
            settings.mqtt.client_id or default_client_id(f"edge-agent-{settings.node}"),
            last_will(topics),
            self._notify,
        )
        self._letters = EventEncoder(
            topics,
            state.boot,
            settings.crops,
            jpeg.encoder() if settings.crops.enabled else None,
            settings.mqtt.max_packet_bytes,
        )
        self.publisher = Publisher(
            topics,
            self.outbox,
            self.client,
            clock,
            self._letters,
            [_unseen(settings, name, started) for name in settings.cameras],
            state.boot,
            decided_by(settings, threshold()),
            [*commands.filters(topics, rules), *home_assistant.filters(settings.home_assistant)],
        )
        self._guard = CommandGuard(rules)
        self._commands = Commands(
            topics,
            self._guard,
            overrides,
            self.publisher,
            command_queue.submit,
            lambda overrides: kept.save(overrides.to_json()),
            self._letters.jpeg,
            hooks,
            clock,
        )
        known = state.memory("retained.json")
        self._announcer = Announcer(
            settings.home_assistant,
            self._devices(settings),
            __version__,
            self.publisher,
            known.load(decode_published, {}),
            known.save,
        )
        self.service = self._service(settings, topics)

    @property
    def faults(self) -> List[str]:
        """What keeps messages from being stored or taken, in words."""
        return [*self.publisher.faults, *self.outbox.faults]

    def bounded_overrides(self, settings: Settings) -> Overrides:
        """What commands have left, as far as other settings allow it."""
        return self._commands.overrides.bounded(rules_of(settings))

    def configure(self, settings: Settings, overrides: Overrides) -> None:
        """Take other *live* settings."""
        self._guard.rules, self._commands.overrides = rules_of(settings), overrides
        self._letters.crops = settings.crops
        self._announcer.announce(self._devices(settings))

    def threshold_changed(self, settings: Settings) -> Dict[str, Any]:
        """Say beside presence by which threshold it is decided now."""
        self.publisher.decided_by(decided_by(settings, self._threshold()))
        return {"threshold": self._threshold()}

    def open(self) -> None:
        """Open the outbox and begin to connect."""
        self.outbox.open()
        self._discard_crops()
        self.client.start()

    def close(self) -> None:
        """Say that nothing is seen any more, wait for acknowledgements, say goodbye."""
        self.service.finish()
        self.publisher.close(self._clock(), self._last_news, CLOSE_S)
        self.client.close(GOODBYE_S)
        self.outbox.close()

    def _last_news(self, timeout_s: float) -> Sequence[object]:
        """What still comes while closing; a command that was done meanwhile is kept and answered."""
        items = self._publish_queue.take(timeout_s)
        for item in items:
            if isinstance(item, CommandResult):
                self.service.notice(item)
        return [item for item in items if not isinstance(item, CommandResult)]

    def _discard_crops(self) -> None:
        """What an earlier run has left of crops that are off now: they are turned off by a restart, or by a command."""
        rules = self._guard.rules
        if not rules.crops:
            self.publisher.discard_crops()
        for camera in rules.cameras:
            if not self._commands.overrides.is_on(camera, "crops", rules):
                self.publisher.discard_crops(camera)

    def _devices(self, settings: Settings) -> Sequence[Device]:
        """What Home Assistant shall find."""
        board = board_model() or platform.machine()
        temperature = Sensors()().temperature_c is not None
        return devices(self._topics, site_of(settings, __version__, board, temperature))

    def _service(self, settings: Settings, topics: Topics) -> MqttService:
        """Commands, discovery, images and detections, around the publisher."""
        images = None
        if settings.crops.enabled and settings.crops.image:
            images = FaceImages(
                topics, settings.cameras, self.publisher, self._letters.jpeg, settings.crops.image_ttl_s, self._clock
            )
        profile = settings.mqtt.detections
        return MqttService(
            self.publisher,
            self._commands,
            self._announcer,
            images,
            None if profile == "off" else DetectionsFeed(topics, profile, self.publisher.stream),
            self._clock,
        )

    def _notify(self, notice: ClientEvent) -> None:
        # What strangers send is cut to what can be judged, so that no number of messages fills the memory. No flood of
        # commands may crowd out the echo of the self-test or Home Assistant's birth.
        if isinstance(notice, Received):
            cut = replace(notice, payload=notice.payload[: MAX_BYTES + 1], properties=())
            self._publish_queue.put_received(cut, notice.topic if notice.topic in self._own_kind else "")
        else:
            self._publish_queue.put(notice)


def _outbox(settings: Settings, state: State, clock: Clock) -> Outbox:
    if settings.outbox.store == "memory":
        return MemoryOutbox(settings.outbox.in_memory(), time.monotonic)
    return SqliteOutbox(settings.outbox, state.folder, clock, kernel_boot(), state.boot, state.lock, state.fault)


def _unseen(settings: Settings, camera: str, started: Moment) -> CameraReport:
    """What is true before the first frame; told at the first connect, so that nothing old stays ON."""
    zones = dict.fromkeys(settings.cameras[camera].zones, Presence.UNKNOWN)
    return CameraReport(camera, Presence.UNKNOWN, Sight.STARTING, started, zones=zones)
