"""What is asked of the root helper (systemd/recovery): an empty file in a folder that it watches."""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = Path("/run/edge-agent-requests")


class Requests:
    """Leaves requests.

    Args:
        folder: Made by systemd-tmpfiles, writable for the agent's group.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._path = folder / "restart-nvargus"
        self._failing = False

    def restart_nvargus(self) -> bool:
        """Ask for NVIDIA's camera daemon to be restarted; False when the request cannot be left."""
        try:
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o660))
        except OSError as error:
            level = logging.DEBUG if self._failing else logging.WARNING
            log.log(level, "%s: %s; enable edge-agent-nvargus.path", self._path, error.strerror)
            self._failing = True
            return False
        self._failing = False
        return True
