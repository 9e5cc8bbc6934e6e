"""The password: from a file, or from systemd."""

from dataclasses import replace
from pathlib import Path
from typing import Mapping, Optional

from edge_agent.errors import BrokerError
from edge_agent.mqtt.params import MqttParams

CREDENTIAL = "mqtt-password"
"""Name of the systemd credential: `LoadCredential=mqtt-password:/etc/edge-agent/mqtt-password` in the unit."""


def with_credential(params: MqttParams, environ: Mapping[str, str]) -> MqttParams:
    """`params`, reading systemd's credential where they name a user and no file, and the unit has loaded one."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder or params.username is None or params.password_file is not None:
        return params
    path = Path(folder) / CREDENTIAL
    # An empty line is how the unit says that there is none.
    return replace(params, password_file=str(path)) if path.is_file() and path.read_bytes().strip() else params


def password(path: Optional[str]) -> Optional[str]:
    """The file's first line.

    Raises:
        BrokerError: It cannot be read; its content is not in the message.
    """
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise BrokerError(f"password_file {path}: {reason}", "expected a file that this user may read") from None
