"""Start the processes of a training on several GPUs or nodes, and find out why one failed.

The command of the pod stays `tuneline run train`: where several processes are configured, it
becomes torchrun's agent of its node. On one node the processes meet on loopback. On several nodes
each pod of an Indexed Job starts the same command; Kubernetes sets its index
(`JOB_COMPLETION_INDEX`), and the operator that makes the job sets the address of pod 0
(`TUNELINE_RENDEZVOUS`, host:port).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.config import PipelineConfig
from tuneline.errors import RetryableError, TunelineError, UserError, first_line
from tuneline.training.processes.worker import last_words

INDEX = "JOB_COMPLETION_INDEX"
RENDEZVOUS = "TUNELINE_RENDEZVOUS"

# Nodes start one after the other; a cluster may have to provision one with a GPU first.
_MEETING_SECONDS = 30 * 60
# Lines of a failed process's log that are shown.
_LOG_LINES = 30


@dataclass(frozen=True)
class Node:
    """This node among those that train together.

    Attributes:
        index: index of this node, from 0.
        nodes: number of nodes.
        processes: number of processes on each node.
        rendezvous: host:port of node 0; on a single node, port 0 takes any free one.
    """

    index: int
    nodes: int
    processes: int
    rendezvous: str

    @classmethod
    def of(cls, config: PipelineConfig, environment: Mapping[str, str] = os.environ) -> Node:
        """Describe this node from the configuration and the job.

        Raises:
            UserError: if several nodes are configured, and nothing says which one this is.
        """
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
    """Run this node's training processes to their end.

    Args:
        node: this node.
        run_uri: URI of the run.
        scratch: folder for logs and last words.
        threads: number of CPU threads of each process.
        worker: arguments of Python that start a worker; if empty, the module `worker` beside
            this one.

    Raises:
        UserError: if there are fewer GPUs than processes, or a process found its input wrong.
        RetryableError: if a process was killed or lost another one, or the nodes did not meet.
        TunelineError: if a process failed otherwise.
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
    worker = list(worker) or ["-m", "tuneline.training.processes.worker"]
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
            log_dir=str(logs),
            redirects=dict.fromkeys(range(1, node.processes), Std.ALL),
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
        _show_log(rank, logs, failure.local_rank)
        if failure.exitcode < 0:
            found: TunelineError = RetryableError(
                f"training process {rank} was killed by signal {-failure.exitcode} (9 is what a "
                "kernel sends when memory runs out: then set a smaller training.micro_batch); "
                "training resumes from the last checkpoint"
            )
        else:
            said = sentence or f"it ended with exit code {failure.exitcode}; see its log"
            found = TunelineError(f"training process {rank} failed: {said}")
        errors.insert(0, found)
    return errors[0]


def _show_log(rank: int, logs: Path, local_rank: int) -> None:
    """Print the last lines of a process; those of the node's first are in the log already."""
    for log in logs.glob(f"*/attempt_0/{local_rank}/stderr.log"):
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        print(f"[train] the last lines of process {rank}:", file=sys.stderr)
        print("\n".join(lines), file=sys.stderr, flush=True)
