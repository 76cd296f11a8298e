"""Carry out one step of a run: find its code, run it, store what it leaves.

A step's output is replaced as a whole. Its old evidence is deleted first and its new evidence
written last, so a step that died half-way has no evidence and counts as not run.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from tuneline.catalogue import get_step, is_helper
from tuneline.errors import EXIT_OK, RetryableError
from tuneline.evidence import Evidence, FileRef, Record, dump
from tuneline.machine.garbage import rare_collections
from tuneline.run import Run, StepContext


def execute(step: str, run_uri: str) -> Evidence | Record | None:
    """Run a step against a run and store its output.

    Args:
        step: id of an item or helper step.
        run_uri: URI of the run.

    Returns:
        The content of `evidence.json` (an item) or `record.json` (a helper step); None if
        another process of the same step stores it, as in distributed training.

    Raises:
        UserError: if the step, the run or its input is wrong.
        RetryableError: if the surroundings failed.
    """
    module = get_step(step).module
    run = Run.open(run_uri)
    with tempfile.TemporaryDirectory(prefix=f"tuneline-{step}-") as folder:
        root = Path(folder)
        context = StepContext(
            run, step, out=root / "out", quarantine=root / "quarantine", scratch=root / "scratch"
        )
        for path in (context.out, context.quarantine, context.scratch):
            path.mkdir()
        work: Callable[[StepContext], Evidence | Record | None] = importlib.import_module(
            module
        ).run
        try:
            with rare_collections():
                entry = work(context)
            return None if entry is None else store_output(context, entry)
        except OSError as error:
            if error.filename is None and error.errno is None:
                raise
            raise RetryableError(
                f"{step}: {error.strerror or error} ({error.filename or folder}); "
                "free the resource and run the step again"
            ) from error


def store_output(context: StepContext, entry: Evidence | Record) -> Evidence | Record:
    """Store the files of a step, then its evidence or record.

    Returns:
        The entry with its artifacts filled in, as stored.
    """
    run, step = context.run, context.step
    last = "record.json" if is_helper(step) else "evidence.json"
    folder = run.step_key(step)
    run.store.delete_prefix(folder)
    run.store.delete_prefix(run.key("quarantine", step))
    artifacts = [
        *_upload(context, context.out, folder, ""),
        *_upload(context, context.quarantine, run.key("quarantine", step), "quarantine/"),
    ]
    entry = entry.model_copy(update={"artifacts": artifacts})
    run.store.put_bytes(f"{folder}/{last}", dump(entry))
    return entry


def _upload(context: StepContext, root: Path, folder: str, label: str) -> list[FileRef]:
    refs = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        relative = path.relative_to(root).as_posix()
        ref = context.run.store.put_file(f"{folder}/{relative}", path)
        name = label + relative
        refs.append(ref.model_copy(update={"name": name, "rows": context.rows_of(name)}))
    return refs


def run_step(step: str, run_uri: str) -> int:
    """Run a step for the command line.

    Returns:
        The exit code of the contract: 0 if a verdict was reached, whatever it is.
        Errors are raised; `exits.guarded` turns them into an exit code.
    """
    entry = execute(step, run_uri)
    if entry is None:
        return EXIT_OK
    verdict = f"{entry.verdict}: " if isinstance(entry, Evidence) else ""
    print(f"{get_step(step).phase}/{step}: {verdict}{entry.summary}")
    return EXIT_OK
