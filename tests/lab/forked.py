"""Processes that start with torch imported already, which saves each of them seconds."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tuneline.training.resources.probe import ProbeReport, ProbeSpec

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "tuneline.cli",
        "tuneline.training.train",
        "tuneline.training.loop.trainer",
        "tuneline.training.loop.callbacks",
        "tuneline.training.resources.spending",
        "tuneline.training.resources.probe",
    ]
)


def fork(work: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Start a function of a module in a process; what it returns is the exit code."""
    process = _context.Process(target=_call, args=(work, arguments), daemon=True)
    process.start()
    return process


def _call(work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sys.exit(work(*arguments))


def start_training(run_uri: str, log: Path, environment: Mapping[str, str] | None = None) -> Any:
    """Start `tuneline run train`; its stderr goes to a file."""
    # The server keeps the environment of its start.
    known = {**os.environ, **(environment or {})}
    return fork(_train, run_uri, str(log), known)


def _train(run_uri: str, log: str, environment: Mapping[str, str]) -> int:
    os.environ.clear()
    os.environ.update(environment)
    with Path(log).open("wb") as file:
        os.dup2(file.fileno(), 2)
    from tuneline.cli import main

    return main(["run", "train", "--run", run_uri])


def forked_probe(spec: ProbeSpec, scratch: Path) -> ProbeReport:
    """Do what `gradient_accumulation.in_process` does, without its import of torch."""
    report = scratch / "probed.json"
    process = fork(_probe, spec, report)
    process.join()
    assert process.exitcode == 0
    return ProbeReport.read(report)


def _probe(spec: ProbeSpec, report: Path) -> None:
    from tuneline.training.resources.probe import measure_step

    measure_step(spec, report)
