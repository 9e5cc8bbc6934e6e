"""All MQTT topics of the agent and its cameras."""

import re
import unicodedata
from typing import FrozenSet

from edge_agent.errors import ConfigError

ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
RESERVED_CAMERAS: FrozenSet[str] = frozenset({"availability", "info", "health", "request", "response"})
_BASE = re.compile(r"[^+#$/\x00][^+#\x00]*")


def slug(name: str) -> str:
    """An id derived from any name: "Café Lobby.local" -> "cafe-lobby-local"; "node" when nothing remains."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii").lower()
    return re.sub(r"[^a-z0-9_]+", "-", ascii_name).strip("-_")[:63].rstrip("-_") or "node"


def check_id(what: str, value: str) -> str:
    """Return `value` if it is a valid topic level.

    Raises:
        ConfigError: It is not.
    """
    if not ID.fullmatch(value):
        raise ConfigError(
            [f"{what} {value!r} is not an id"],
            f"1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit, e.g. {slug(value)}",
        )
    return value


class Topics:
    """Topics of one agent, below `B = <base>/<node>`.

    Args:
        base: First level or levels, e.g. "edge-agent".
        node: Id of the agent.

    Raises:
        ConfigError: One of them is not valid in a topic.
    """

    def __init__(self, base: str, node: str) -> None:
        if not _BASE.fullmatch(base) or base.endswith("/"):
            raise ConfigError(
                [f"MQTT base topic {base!r} cannot be used"],
                "no +, #, leading or trailing /, leading $; e.g. edge-agent",
            )
        self.node = check_id("node", node)
        self.root = f"{base}/{node}"
        self.availability = f"{self.root}/availability"
        self.info = f"{self.root}/info"
        self.health = f"{self.root}/health"
        self.commands = f"{self.root}/request/+"

    def camera(self, camera: str) -> "CameraTopics":
        """Topics of one camera.

        Raises:
            ConfigError: The id is invalid or reserved.
        """
        if camera in RESERVED_CAMERAS:
            raise ConfigError(
                [f"camera {camera!r}: this name is reserved"], f"reserved: {', '.join(sorted(RESERVED_CAMERAS))}"
            )
        return CameraTopics(f"{self.root}/{check_id('camera', camera)}")

    def command(self, name: str) -> str:
        return f"{self.root}/request/{name}"

    def response(self, name: str) -> str:
        return f"{self.root}/response/{name}"


class CameraTopics:
    """Topics of one camera, `C = B/<camera>`."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.availability = f"{root}/availability"
        self.presence = f"{root}/presence"
        self.attributes = f"{root}/presence/attributes"
        self.face_count = f"{root}/face_count"
        self.events = f"{root}/events"
        self.image = f"{root}/face/image"
        self.image_attributes = f"{root}/face/image/attributes"
        self.detections = f"{root}/detections"

    def zone(self, zone: str) -> str:
        """Topic of a zone's presence.

        Raises:
            ConfigError: The name is not a valid topic level.
        """
        return f"{self.root}/zones/{check_id('zone', zone)}/presence"

    def crop(self, event_id: str) -> str:
        """Topic of a crop by its event id, or of a snapshot by its transaction."""
        return f"{self.root}/crops/{event_id}"

    def switch_set(self, name: str) -> str:
        return f"{self.root}/{name}/set"

    def switch_state(self, name: str) -> str:
        return f"{self.root}/{name}/state"
