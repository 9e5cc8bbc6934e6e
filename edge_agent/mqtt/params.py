"""What a user says of the broker, its security, and the outbox."""

from dataclasses import dataclass
from typing import Literal, Optional

from edge_agent.core.params import param
from edge_agent.core.protocol.messages import DetectionsProfile


@dataclass(frozen=True)
class TlsParams:
    """Encryption, and who may be trusted. The broker's host name is always checked."""

    enabled: bool = param(False, "Speak TLS 1.2 or newer to the broker (usual port 8883)", restart=True)
    ca_file: Optional[str] = param(
        None, "PEM file of the authorities that may vouch for the broker; the system's own when unset", restart=True
    )
    cert_file: Optional[str] = param(None, "PEM file of this agent's client certificate", restart=True)
    key_file: Optional[str] = param(
        None, "PEM file of the client certificate's key; unset when cert_file holds it too", restart=True
    )
    alpn: Optional[str] = param(
        None, "Protocol name for brokers that share a port, e.g. x-amzn-mqtt-ca on 443", min_length=1, max_length=255,
        pattern=r"^[\x21-\x7e]+$", restart=True,
    )  # fmt: skip


@dataclass(frozen=True)
class MqttParams:
    """The broker, and how to reach it."""

    host: str = param("localhost", "Broker's host name or address", min_length=1, restart=True)
    port: int = param(1883, "Broker's TCP port", ge=1, le=65535, restart=True)
    base: str = param("edge-agent", "First level(s) of every topic", min_length=1, max_length=200, restart=True)
    protocol: Literal["5", "3.1.1"] = param(
        "5", "MQTT version; 3.1.1 is fallen back to by itself, and cannot tell what the broker refused", restart=True
    )
    transport: Literal["tcp", "websockets"] = param(
        "tcp", "websockets passes proxies that let only HTTP through (usual port 80, with TLS 443)", restart=True
    )
    websocket_path: str = param(
        "/mqtt", "Where the broker takes websockets", pattern=r"^/[\x21-\x7e]*$", max_length=500, restart=True
    )
    username: Optional[str] = param(None, "Name to log in with", restart=True)
    password_file: Optional[str] = param(
        None, "File whose first line is the password; read anew at every connect. When unset, systemd's credential "
        "mqtt-password, where there is one", restart=True,
    )  # fmt: skip
    client_id: Optional[str] = param(
        None, "MQTT client id; from the node's and the machine's id when unset. Two clients of one id oust each other",
        min_length=1, max_length=128, restart=True,
    )  # fmt: skip
    keepalive_s: int = param(
        30, "Seconds of silence after which the connection is probed; less notices a dead broker sooner", ge=5, le=3600,
        restart=True,
    )  # fmt: skip
    connect_timeout_s: float = param(
        10.0, "Seconds that the broker has to take a connection, and to answer it", gt=0, le=120, restart=True
    )
    ack_timeout_s: float = param(
        30.0, "Seconds without acknowledgement after which the connection counts as dead", gt=0, le=600, restart=True
    )
    retry_min_s: float = param(
        1.0, "Upper end of the first, random delay before reconnecting", gt=0, le=60, restart=True
    )
    retry_max_s: float = param(
        60.0, "Upper end that the random delay doubles up to; more spares a broker with many clients", gt=0, le=3600,
        restart=True,
    )  # fmt: skip
    max_packet_bytes: int = param(
        1_000_000, "Larger messages are not sent, even where the broker announces no limit of its own", ge=10_000,
        le=268_435_455, restart=True,
    )  # fmt: skip
    detections: DetectionsProfile = param(
        "off", "Publish every frame's detections, in the agent's own words or as DeepStream or Axis would", restart=True
    )
    tls: TlsParams = param(factory=TlsParams, description="Encryption")
