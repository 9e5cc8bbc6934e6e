"""Starts a broker on loopback for the demo: mosquitto where it is installed, else iotcore of the extra `demo`."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

from edge_agent.errors import InputError, MissingPackage

START_S = 10.0


@dataclass(frozen=True)
class BrokerAddress:
    """A broker's address and the newest MQTT version that it supports."""

    host: str
    port: int
    protocol: str
    name: str


def find_mosquitto() -> Optional[str]:
    """The path of mosquitto, or None. Debian installs it in /usr/sbin, which is not in every user's PATH."""
    return shutil.which("mosquitto", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")))


def free_port() -> int:
    """A free TCP port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def local_broker() -> Iterator[BrokerAddress]:
    """Run a broker inside a `with` block.

    Raises:
        MissingPackage: No broker is installed; the hint names the package to install.
    """
    mosquitto = find_mosquitto()
    if mosquitto is not None:
        with _mosquitto(mosquitto) as address:
            yield address
        return
    try:
        from iotcore import Broker
    except ImportError:
        raise MissingPackage(
            "no MQTT broker found", "sudo apt-get install mosquitto, or name a broker with --broker mqtt://HOST:PORT"
        ) from None
    port = free_port()
    # With the default limit of 20 kB the broker would disconnect a client that publishes a crop.
    with Broker(port=port, listen="127.0.0.1", max_payload_size=2_000_000):
        yield BrokerAddress("127.0.0.1", port, "3.1.1", "iotcore (embedded)")


@contextmanager
def _mosquitto(program: str) -> Iterator[BrokerAddress]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="edge-agent-broker-") as folder:
        config = Path(folder) / "mosquitto.conf"
        lines = ("allow_anonymous true", "persistence false", "set_tcp_nodelay true", "log_type error")
        config.write_text("\n".join((f"listener {port} 127.0.0.1", *lines, "")))
        process = subprocess.Popen([program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _wait_until_listening(process, port)
            yield BrokerAddress("127.0.0.1", port, "5", "mosquitto")
        finally:
            process.terminate()
            process.communicate(timeout=START_S)


def _wait_until_listening(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    output = process.communicate()[1] if process.poll() is not None else b""
    raise InputError(
        f"mosquitto did not start listening on port {port}", output.decode("utf-8", "replace").strip()[-200:]
    )
