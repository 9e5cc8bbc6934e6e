"""What is kept on disk for the broker, and how much of it."""

from dataclasses import dataclass, replace
from typing import Literal

from edge_agent.core.params import param


@dataclass(frozen=True)
class OutboxParams:
    """What may wait while the broker is away. When full, crops go, then updates, then events, oldest first."""

    max_bytes: int = param(256_000_000, "Everything that waits, bytes", ge=65_536, restart=True)
    max_crop_bytes: int = param(128_000_000, "Of that, crops; beyond it the oldest crops go", ge=0, restart=True)
    memory_bytes: int = param(
        32_000_000, "What may wait in memory: with store memory, and while the disk cannot be written", ge=65_536,
        restart=True,
    )  # fmt: skip
    store: Literal["disk", "memory"] = param(
        "disk", "disk keeps what waits over a restart of agent and machine, in outbox.db in the state folder",
        restart=True,
    )  # fmt: skip
    synchronous: Literal["full", "normal"] = param(
        "full", "normal spares flash memory, and may lose the last messages when the power fails", restart=True
    )
    max_age_s: float = param(7 * 86_400.0, "Older events are given up, seconds", ge=60, restart=True)
    max_crop_age_s: float = param(86_400.0, "Older crops are given up, seconds", ge=60, restart=True)
    min_free_bytes: int = param(
        500_000_000, "Disk space left to others: when less is free, no more than 4 MB wait", ge=0, restart=True
    )

    def in_memory(self) -> "OutboxParams":
        """The same bounds, but no more bytes than memory may take."""
        return replace(
            self,
            max_bytes=min(self.max_bytes, self.memory_bytes),
            max_crop_bytes=min(self.max_crop_bytes, self.memory_bytes // 2),
        )
