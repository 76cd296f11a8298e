"""The processes that train together: start them, what one asks of the others, why one failed.

    python -m tuneline.training.loop.processes RUN_URI FOLDER

They communicate over NCCL on GPUs and gloo on CPUs; a single process is a group of one. `tuneline
run train` becomes torchrun's agent of its node, which starts this module for each process; its file
for last words says which one failed and why. Each pod of an Indexed Job starts the same command:
Kubernetes sets its index (`JOB_COMPLETION_INDEX`), the operator that makes the job the address of
pod 0 (`TUNELINE_RENDEZVOUS`, host:port).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from tuneline.config import PipelineConfig
from tuneline.errors import RetryableError, TunelineError, UserError, first_line

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
    """One process, by its rank from 0, among all that train together.

    `local_rank` is the one on its node, also the number of its GPU; no `backend` if it is alone.
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
        """Return this process's part of a list, as long as every other's; True if an item counts.

        All compute a sharded model together: without an item left one computes the first again.
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
        return max(self.gather(value))

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
        """Make sure that all processes have the same value; RetryableError if they have not."""
        values = self.gather(value)
        if any(other != value for other in values):
            listed = ", ".join(f"process {rank}: {other}" for rank, other in enumerate(values))
            raise RetryableError(f"the processes differ in {what} ({listed}); run the step again")
        return value


ALONE = ProcessGroup()


@contextmanager
def lost_processes_are_retryable() -> Iterator[None]:
    """Turn the error of a broken connection into a RetryableError: another process has ended."""
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


INDEX = "JOB_COMPLETION_INDEX"
RENDEZVOUS = "TUNELINE_RENDEZVOUS"

# Nodes start one after the other; a cluster may have to provision one with a GPU first.
_MEETING_SECONDS = 30 * 60
# Lines of a failed process's log that are shown.
_LOG_LINES = 30


@dataclass(frozen=True)
class Node:
    """This node, by its number from 0, among those that train together, and the processes of each.

    `rendezvous` is host:port of node 0; on a single node, port 0 takes any free one.
    """

    index: int
    nodes: int
    processes: int
    rendezvous: str

    @classmethod
    def of(cls, config: PipelineConfig, environment: Mapping[str, str] = os.environ) -> Node:
        """Describe this node; UserError if several are configured, and nothing says which it is."""
        nodes, processes = config.pods.nodes, config.processes_per_node
        if nodes == 1:
            return cls(0, 1, processes, "127.0.0.1:0")
        index, rendezvous = environment.get(INDEX, ""), environment.get(RENDEZVOUS, "")
        host, _, port = rendezvous.rpartition(":")
        if not (index.isdigit() and int(index) < nodes and host and port.isdigit()):
            raise UserError(
                f"pods.nodes is {nodes}: start this command on each node, with {INDEX} set to its "
                f"number (0 to {nodes - 1}; here {index or 'unset'}) and {RENDEZVOUS} to host:port "
                f"of number 0 (here {rendezvous or 'unset'})"
            )
        return cls(int(index), nodes, processes, rendezvous)


def must_launch(config: PipelineConfig, environment: Mapping[str, str] = os.environ) -> bool:
    """Return True if this process has to start the training processes and is not one of them."""
    return config.world_size > 1 and "RANK" not in environment


def launch(
    node: Node, run_uri: str, scratch: Path, threads: int, worker: Sequence[str] = ()
) -> None:
    """Run this node's training processes to their end, each of `threads` CPU threads.

    UserError if there are fewer GPUs than processes, or a process found its input wrong;
    RetryableError if one was killed or lost another, or the nodes did not meet; else TunelineError.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and gpus < node.processes:
        raise UserError(
            f"{node.processes} training processes on a node with {gpus} GPUs; set pods.gpus and "
            "training.processes to what a node has"
        )
    # Accelerate sets torch's threads by this, and takes all cores in each process without it.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    words, logs = scratch / "last-words", scratch / "logs"
    words.mkdir(parents=True, exist_ok=True)
    worker = list(worker) or ["-m", "tuneline.training.loop.processes"]
    command = [sys.executable, *worker, run_uri, str(words)]
    try:
        elastic_launch(_settings(node, logs), command[0])(*command[1:])
    except ChildFailedError as failed:
        raise _reason(failed, words, logs) from None
    except SignalException as stopped:
        raise RetryableError(
            f"node {node.index} of {node.nodes} was asked to stop (signal {stopped.sigval:d}); "
            "training resumes from the last checkpoint"
        ) from None
    except torch.distributed.DistStoreError as error:
        raise RetryableError(
            f"node {node.index} of {node.nodes} did not meet the others at {node.rendezvous} "
            f"within {_MEETING_SECONDS // 60} minutes ({first_line(error)[:200]})"
        ) from None


def _settings(node: Node, logs: Path) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import Std
    from torch.distributed.launcher.api import LaunchConfig

    meeting: dict[str, Any] = {"timeout": _MEETING_SECONDS}
    if node.nodes > 1:
        meeting["rank"] = node.index
    return LaunchConfig(
        min_nodes=node.nodes,
        max_nodes=node.nodes,
        nproc_per_node=node.processes,
        run_id="train",
        rdzv_backend="static" if node.nodes > 1 else "c10d",
        rdzv_endpoint=node.rendezvous,
        rdzv_configs=meeting,
        local_addr="127.0.0.1" if node.nodes == 1 else None,
        # A dead process takes the state of the others along; the step is run again instead.
        max_restarts=0,
        # The first process of the node writes to the log at once, the others when they fail.
        logs_specs=DefaultLogsSpecs(
            log_dir=str(logs), redirects=dict.fromkeys(range(1, node.processes), Std.ALL)
        ),
    )


def _reason(failed: Any, words: Path, logs: Path) -> TunelineError:
    """Return the error of the process that failed first, not of those that it took along."""
    errors: list[TunelineError] = []
    # The agent itself ends the others by SIGTERM.
    ended = {r: f for r, f in failed.failures.items() if f.exitcode != -signal.SIGTERM}
    for rank, failure in (ended or failed.failures).items():
        message = last_words(words, rank)
        kind, _, sentence = (message.read_text() if message.exists() else "").partition(": ")
        if kind == "user_error":
            return UserError(sentence)
        if kind == "retryable":
            # It may only have lost the process that failed: the errors of others come first.
            errors.append(RetryableError(sentence))
            continue
        # Those of the node's first process are in the log already.
        for log in logs.glob(f"*/attempt_0/{failure.local_rank}/stderr.log"):
            lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            print(f"[train] the last lines of process {rank}:", *lines, sep="\n", file=sys.stderr)
        said = sentence or f"it ended with exit code {failure.exitcode}; see its log"
        found = TunelineError(f"training process {rank} failed: {said}")
        if failure.exitcode < 0:
            found = RetryableError(
                f"training process {rank} was killed by signal {-failure.exitcode} (9 is what a "
                "kernel sends when memory runs out: then set a smaller training.micro_batch); "
                "training resumes from the last checkpoint"
            )
        errors.insert(0, found)
    return errors[0]


def last_words(folder: Path, rank: int) -> Path:
    """Return the file in which a process leaves the reason of its failure."""
    return folder / f"rank-{rank}.txt"


def main(run_uri: str, folder: Path) -> int:
    """Run the step as one of several processes and return its exit code."""
    os.environ["TERMINATION_MESSAGE_PATH"] = str(last_words(folder, int(os.environ["RANK"])))
    from tuneline.step import run_step
    from tuneline.terminal import guarded

    return guarded(lambda: run_step("train", run_uri))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
