"""The processes that train together, as seen by one of them.

A single process is a group of one: every call below then returns at once. Several are started by
torchrun, which gives each its rank; they communicate over NCCL on GPUs and over gloo on CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from tuneline.errors import RetryableError, first_line

T = TypeVar("T")

# Longest wait of a process for the others: an upload of a checkpoint may lie between two steps.
_PATIENCE = timedelta(minutes=30)

# Errors of gloo and NCCL when the process at the other end has ended.
_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket closed",
    "timed out waiting",
    "remote process exited",
    "nccl communicator was aborted",
    "application timeout caused pair closure",
)


@dataclass(frozen=True)
class ProcessGroup:
    """One process among those that train together.

    Attributes:
        rank: rank of this process, from 0.
        world_size: number of processes on all nodes.
        local_rank: rank of this process on its node; also the number of its GPU.
        nodes: number of pods or machines.
        backend: "gloo", "nccl", or None for a single process.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    nodes: int = 1
    backend: str | None = None

    @classmethod
    def join(cls, torch: Any, environment: Mapping[str, str] = os.environ) -> ProcessGroup:
        """Join the other processes that torchrun has started; without it, a group of one."""
        if "RANK" not in environment:
            return cls()
        rank, world, local, nodes = (
            int(environment[name])
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_WORLD_SIZE")
        )
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(local)
        with lost_processes_are_retryable():
            torch.distributed.init_process_group(
                # The values to agree on lie in host memory.
                "cpu:gloo,cuda:nccl" if backend == "nccl" else "gloo",
                timeout=_PATIENCE,
            )
        return cls(rank, world, local, nodes, backend)

    @property
    def is_main(self) -> bool:
        """True for the process that saves, tracks and reports."""
        return self.rank == 0

    def leave(self) -> None:
        """Leave the group; none of its methods may be called afterwards."""
        if self.world_size > 1:
            import torch

            torch.distributed.destroy_process_group()

    def share(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """Return this process's part of a list, as long as that of every other process.

        Returns:
            Items, each with True if it counts. All processes compute a sharded model together, so
            a process without an item left computes the first one again, which does not count.
        """
        rounds = -(-len(items) // self.world_size)
        mine = range(self.rank, rounds * self.world_size, self.world_size)
        return [(items[i], True) if i < len(items) else (items[0], False) for i in mine]

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return element-wise sums over all processes, in float64."""
        if self.world_size == 1:
            return list(values)
        import torch

        total = torch.tensor(list(values), dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return list(total.tolist())

    def largest(self, value: int) -> int:
        """Return the largest value of all processes."""
        return int(max(self.gather(value) or [value]))

    def gather(self, value: T) -> list[T]:
        """Return the value of every process, by rank."""
        if self.world_size == 1:
            return [value]
        import torch

        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, value)
        return found

    def follow(self, flags: Sequence[bool]) -> list[bool]:
        """Return the decisions of rank 0 everywhere: rules that look at a clock may differ."""
        if self.world_size == 1:
            return list(flags)
        import torch

        decided = torch.tensor(list(flags), dtype=torch.uint8)
        torch.distributed.broadcast(decided, 0)
        return [bool(flag) for flag in decided.tolist()]

    def agree(self, what: str, value: T) -> T:
        """Make sure that all processes have the same value.

        Raises:
            RetryableError: if they have not.
        """
        values = self.gather(value)
        if any(other != value for other in values):
            listed = ", ".join(f"process {rank}: {other}" for rank, other in enumerate(values))
            raise RetryableError(f"the processes differ in {what} ({listed}); run the step again")
        return value


ALONE = ProcessGroup()


@contextmanager
def lost_processes_are_retryable() -> Iterator[None]:
    """Turn the error of a broken connection into one that is worth another try.

    Raises:
        RetryableError: if another process has ended; its log says why.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if any(words in text for words in _LOST):
            rank = os.environ.get("RANK", "0")
            raise RetryableError(
                f"training process {rank} lost the connection to another one, which ended or "
                f"can't be reached ({first_line(error)[:200]}); training resumes from the "
                "last checkpoint"
            ) from error
        raise
