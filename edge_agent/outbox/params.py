"""Outbox settings."""

from dataclasses import dataclass, replace
from typing import Literal

from edge_agent.core.params import param


@dataclass(frozen=True)
class OutboxParams:
    """Limits of the outbox. When it is full, crops are dropped first, then updates, then events, the oldest first."""

    max_bytes: int = param(256_000_000, "Size of all queued messages, bytes", ge=65_536, restart=True)
    max_crop_bytes: int = param(
        128_000_000, "Size of queued crops, bytes; beyond it the oldest crops are discarded", ge=0, restart=True
    )
    memory_bytes: int = param(
        32_000_000, "Size of the queue in memory, bytes: with store memory, or if the disk is not writable", ge=65_536,
        restart=True,
    )  # fmt: skip
    store: Literal["disk", "memory"] = param(
        "disk", "disk keeps queued messages over restarts of agent and machine, in outbox.db in the state folder",
        restart=True,
    )  # fmt: skip
    synchronous: Literal["full", "normal"] = param(
        "full", "normal writes less to flash memory, but may lose the last messages when the power fails", restart=True
    )
    max_age_s: float = param(7 * 86_400.0, "Age at which events are discarded, seconds", ge=60, restart=True)
    max_crop_age_s: float = param(86_400.0, "Age at which crops are discarded, seconds", ge=60, restart=True)
    min_free_bytes: int = param(
        500_000_000, "Disk space left free, bytes; when less is free, at most 4 MB are queued", ge=0, restart=True
    )

    def in_memory(self) -> "OutboxParams":
        """Return the same limits, bounded by `memory_bytes`."""
        return replace(
            self,
            max_bytes=min(self.max_bytes, self.memory_bytes),
            max_crop_bytes=min(self.max_crop_bytes, self.memory_bytes // 2),
        )
