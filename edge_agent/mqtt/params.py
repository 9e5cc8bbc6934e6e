"""Broker settings."""

from dataclasses import dataclass
from typing import Literal, Optional

from edge_agent.core.params import param
from edge_agent.core.protocol.messages import DetectionsProfile


@dataclass(frozen=True)
class TlsParams:
    """Encryption and trust. The broker's host name is always checked."""

    enabled: bool = param(False, "Use TLS 1.2 or newer (usual port 8883)", restart=True)
    ca_file: Optional[str] = param(
        None, "PEM file of the trusted certificate authorities; the system's own when unset", restart=True
    )
    cert_file: Optional[str] = param(None, "PEM file of this agent's client certificate", restart=True)
    key_file: Optional[str] = param(
        None, "PEM file of the client certificate's key; unset when cert_file contains it", restart=True
    )
    alpn: Optional[str] = param(
        None, "ALPN protocol name for brokers that share a port, e.g. x-amzn-mqtt-ca on 443", min_length=1,
        max_length=255, pattern=r"^[\x21-\x7e]+$", restart=True,
    )  # fmt: skip


@dataclass(frozen=True)
class MqttParams:
    """The broker and the connection to it."""

    host: str = param("localhost", "Broker's host name or address", min_length=1, restart=True)
    port: int = param(1883, "Broker's TCP port", ge=1, le=65535, restart=True)
    base: str = param("edge-agent", "First level(s) of every topic", min_length=1, max_length=200, restart=True)
    protocol: Literal["5", "3.1.1"] = param(
        "5", "MQTT version; falls back to 3.1.1 automatically, which does not report refused messages", restart=True
    )
    transport: Literal["tcp", "websockets"] = param(
        "tcp", "websockets passes proxies that allow only HTTP (usual port 80, with TLS 443)", restart=True
    )
    websocket_path: str = param(
        "/mqtt", "Path of the broker's websocket endpoint", pattern=r"^/[\x21-\x7e]*$", max_length=500, restart=True
    )
    username: Optional[str] = param(None, "User name", restart=True)
    password_file: Optional[str] = param(
        None, "File whose first line is the password; read at every connect. When unset, systemd's credential "
        "mqtt-password, if there is one", restart=True,
    )  # fmt: skip
    client_id: Optional[str] = param(
        None, "MQTT client id; derived from the node's and the machine's id when unset. Two clients with the "
        "same id disconnect each other", min_length=1, max_length=128, restart=True,
    )  # fmt: skip
    keepalive_s: int = param(
        30, "Seconds of silence after which the connection is checked; a lower value detects a dead broker sooner",
        ge=5, le=3600, restart=True,
    )  # fmt: skip
    connect_timeout_s: float = param(
        10.0, "Seconds that the broker has to accept a connection, and to answer CONNECT", gt=0, le=120, restart=True
    )
    ack_timeout_s: float = param(
        30.0, "Seconds without acknowledgement after which the connection is closed as dead", gt=0, le=600, restart=True
    )
    retry_min_s: float = param(
        1.0, "Upper limit of the first random delay before reconnecting", gt=0, le=60, restart=True
    )
    retry_max_s: float = param(
        60.0, "Largest upper limit of the random delay, which doubles with each failure; raise it for brokers with "
        "many clients", gt=0, le=3600, restart=True,
    )  # fmt: skip
    max_packet_bytes: int = param(
        1_000_000, "Maximum size of a message; the broker may announce a lower one", ge=10_000,
        le=268_435_455, restart=True,
    )  # fmt: skip
    detections: DetectionsProfile = param(
        "off",
        "Publish the detections of every frame, in the agent's own format or in that of DeepStream or Axis",
        restart=True,
    )
    tls: TlsParams = param(factory=TlsParams, description="Encryption")
