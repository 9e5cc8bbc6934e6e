"""The receiving end of sd_notify: a datagram socket that records notifications."""

import socket
import threading
from pathlib import Path
from typing import Dict, List, Mapping


class ServiceManager:
    """Listens for the length of a block.

    Args:
        address: A path, or `@name` in the abstract namespace.

    Attributes:
        heard: Datagrams, oldest first.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: List[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @property
    def environ(self) -> Mapping[str, str]:
        """The service's environment variables for it."""
        return {"NOTIFY_SOCKET": self.address}

    def states(self) -> List[str]:
        """Names of the notifications that change the unit's state, without WATCHDOG and STATUS."""
        lines = [line for datagram in list(self.heard) for line in datagram.splitlines()]
        return [line.partition("=")[0] for line in lines if not line.startswith(("WATCHDOG", "STATUS", "MONOTONIC"))]

    def datagrams(self, name: str) -> List[Dict[str, str]]:
        """Those that assign `name`, as mappings."""
        parsed = [dict(line.split("=", 1) for line in datagram.splitlines()) for datagram in list(self.heard)]
        return [datagram for datagram in parsed if name in datagram]

    def __enter__(self) -> "ServiceManager":
        self._socket.bind("\0" + self.address[1:] if self.address.startswith("@") else self.address)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", self._socket.getsockname())
        self._thread.join(5)
        self._socket.close()
        if not self.address.startswith("@"):
            Path(self.address).unlink()

    def _listen(self) -> None:
        while True:
            datagram = self._socket.recv(65536)
            if not datagram:
                return
            self.heard.append(datagram.decode())
