"""paho's client with bounded input, the MQTT 5 properties that the agent sends, and reason codes."""

from typing import Any, List, Optional, Sequence, Tuple, Union

from paho.mqtt.client import Client
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.core.protocol.messages import Message
from edge_agent.mqtt.client_events import Subscription

INBOUND_BYTES = 65_536
CREDENTIALS = frozenset({0x86, 0x87, 0x8A, 0x8C})
"""CONNACK: bad user name or password, not authorized, banned, bad authentication method."""
UNSUPPORTED_VERSION = 0x84
RETAIN_NOT_SUPPORTED = 0x9A
QOS_NOT_SUPPORTED = 0x9B
TAKEN_OVER = 0x8E
FATAL = frozenset({0x90, 0x95, 0x99})
"""PUBACK: topic name invalid, packet too large, payload format invalid."""
NO_RETAIN = (
    "it keeps no retained messages, and without them nobody can see presence; allow them there (mosquitto: "
    "retain_available true), or use another broker"
)
NO_QOS = (
    "it takes QoS 0 only, and events must be acknowledged; allow QoS 1 there (mosquitto: max_qos 2), or use another"
)


class BoundedClient(Client):
    """Keeps only the beginning of a packet, because MQTT 3.1.1 has no Maximum Packet Size.

    A cut message is acknowledged, and refused for its length later. If the connection were dropped instead, one
    retained message could keep the agent offline forever.
    """

    def set_keepalive(self, seconds: int) -> None:
        """Apply the keepalive that the broker asks for; paho 2.1 ignores it."""
        self._keepalive = seconds

    def _sock_recv(self, bufsize: int) -> bytes:
        del self._in_packet["packet"][INBOUND_BYTES:]
        return super()._sock_recv(min(bufsize, INBOUND_BYTES))


def connect_properties() -> Properties:
    """Return the properties of CONNECT: the largest packet that the agent accepts."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = INBOUND_BYTES
    return properties


def publish_properties(message: Message) -> Properties:
    """Return the properties of a message's PUBLISH."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if message.content_type is not None:
        properties.ContentType = message.content_type
    if message.expiry_s is not None:
        properties.MessageExpiryInterval = message.expiry_s
    if message.properties:
        properties.UserProperty = list(message.properties)
    return properties


def subscribe_options(wanted: Sequence[Subscription], version: str) -> List[Tuple[str, Union[int, SubscribeOptions]]]:
    """Return the argument of paho's `subscribe`."""
    if version != "5":
        return [(one.topic, 1) for one in wanted]
    return [(one.topic, SubscribeOptions(qos=1, retainAsPublished=one.as_published)) for one in wanted]


def missing_feature(code: int, properties: Any) -> Optional[str]:
    """Return which feature the broker lacks that the agent needs, from its CONNACK; None when it has all.

    Args:
        code: Reason code.
        properties: Properties of the CONNACK, or None. A feature that is not mentioned is available.
    """
    if code == RETAIN_NOT_SUPPORTED or getattr(properties, "RetainAvailable", 1) == 0:
        return NO_RETAIN
    if code == QOS_NOT_SUPPORTED or getattr(properties, "MaximumQoS", 2) == 0:
        return NO_QOS
    return None
