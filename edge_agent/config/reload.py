"""Applies new settings to a running agent, all of them or none."""

import logging
from typing import Any, Callable, Dict, List

from edge_agent.config.settings import Settings, changes, require_cameras
from edge_agent.errors import ConfigError

log = logging.getLogger(__name__)

SHOWN = 5


class Reloader:
    """Callable that reads the settings and applies them when they are valid. One thread only.

    Args:
        settings: The settings at the start.
        read: Reads and validates the settings.
        apply: Applies settings of which only *live* ones have changed; raises ConfigError when it has applied none.
        restart: Stops the agent, so that the service manager starts it with the new settings.

    Attributes:
        settings: In force.
        faults: Why the newest settings were refused, for health; empty when they were applied.
    """

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        apply: Callable[[Settings], None],
        restart: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.faults: List[str] = []
        self._read, self._apply, self._restart = read, apply, restart

    def __call__(self) -> Dict[str, Any]:
        """Names of the changed settings, and whether they need a restart, which then has been requested.

        Raises:
            ConfigError: The new settings are invalid; the old ones stay in force.
        """
        try:
            settings = self._read()
            require_cameras(settings)
            live, restart = changes(self.settings, settings)
            if not restart:
                self._apply(settings)
        except ConfigError as error:
            more = len(error.faults) - SHOWN
            self.faults = [f"settings refused: {fault}" for fault in error.faults[:SHOWN]]
            self.faults += [f"settings refused: and {more} more"] if more > 0 else []
            log.warning(
                "%s; the current settings stay in force", "; ".join(self.faults), extra={"EVENT": "settings-refused"}
            )
            raise
        self.faults = []
        if restart:
            text = "new settings need a restart: %s; stopping, to be started again"
            log.warning(text, ", ".join(restart), extra={"EVENT": "restart-needed"})
            self._restart()
        else:
            self.settings = settings
            changed = ", ".join(live) if live else "nothing has changed"
            log.info("settings read again: %s", changed, extra={"EVENT": "settings-read"})
        return {"changed": sorted(live + restart), "restart": bool(restart)}
