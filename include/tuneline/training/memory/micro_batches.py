"""The micro-batches that reach an effective batch exactly."""

from __future__ import annotations


def micro_batches(effective_batch: int, world_size: int) -> list[int]:
    """Return the micro-batches that divide the effective batch exactly, largest first."""
    share = effective_batch // world_size
    if share * world_size != effective_batch:
        return []
    return [size for size in range(share, 0, -1) if share % size == 0]
