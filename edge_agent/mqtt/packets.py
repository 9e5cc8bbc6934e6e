"""What the packets of MQTT 5 say beside topic and payload, both ways."""

from typing import Any, List, Optional, Sequence, Tuple, Union

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.core.protocol.messages import Message
from edge_agent.mqtt.bounded import INBOUND_BYTES
from edge_agent.mqtt.notices import Subscription

CREDENTIALS = frozenset({0x86, 0x87, 0x8A, 0x8C})
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


def connect_properties() -> Properties:
    """How much may come in."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = INBOUND_BYTES
    return properties


def publish_properties(message: Message) -> Properties:
    """What belongs to `message`."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if message.content_type is not None:
        properties.ContentType = message.content_type
    if message.expiry_s is not None:
        properties.MessageExpiryInterval = message.expiry_s
    if message.properties:
        properties.UserProperty = list(message.properties)
    return properties


def subscribe_options(wanted: Sequence[Subscription], version: str) -> List[Tuple[str, Union[int, SubscribeOptions]]]:
    """What paho's `subscribe` takes."""
    if version != "5":
        return [(one.topic, 1) for one in wanted]
    return [(one.topic, SubscribeOptions(qos=1, retainAsPublished=one.as_published)) for one in wanted]


def unfit(code: int, properties: Any) -> Optional[str]:
    """Why the agent cannot work with this broker, by its CONNACK; None when it can.

    Args:
        code: Reason code.
        properties: Of the CONNACK, or None. What a broker does not mention, it has.
    """
    if code == RETAIN_NOT_SUPPORTED or getattr(properties, "RetainAvailable", 1) == 0:
        return NO_RETAIN
    if code == QOS_NOT_SUPPORTED or getattr(properties, "MaximumQoS", 2) == 0:
        return NO_QOS
    return None
