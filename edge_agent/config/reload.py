"""New settings for a running agent: taken whole, or not at all."""

import logging
from typing import Any, Callable, Dict, List

from edge_agent.config.settings import Settings, changes, require_cameras
from edge_agent.errors import ConfigError

log = logging.getLogger(__name__)

SHOWN = 5


class Reloader:
    """Callable: read the settings, and take them when they can be used. One thread only.

    Args:
        settings: Those that the agent was started with.
        read: Reads and checks them.
        apply: Takes others, of which only *live* ones have changed; ConfigError when it cannot, and has not.
        restart: Ends the agent in order, because others have changed too; whoever watches it starts it anew.

    Attributes:
        settings: In force.
        faults: Why the newest ones were refused, for health; empty when they were not.
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
        """Names of what has changed, and whether that needs a restart, which then has been asked for.

        Raises:
            ConfigError: The new settings cannot be used, and the old ones stay.
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
            log.warning("%s; those in force stay", "; ".join(self.faults), extra={"EVENT": "settings-refused"})
            raise
        self.faults = []
        if restart:
            text = "new settings need a restart: %s; stopping, to be started anew"
            log.warning(text, ", ".join(restart), extra={"EVENT": "restart-needed"})
            self._restart()
        else:
            self.settings = settings
            changed = ", ".join(live) if live else "nothing has changed"
            log.info("settings read again: %s", changed, extra={"EVENT": "settings-read"})
        return {"changed": sorted(live + restart), "restart": bool(restart)}
