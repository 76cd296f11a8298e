"""Carry out one step of a run: find its code, run it, store what it leaves.

A step's output is replaced as a whole. Its old evidence is deleted first and its new evidence
written last, so a step that was killed while it stored its output counts as not run.

Errors have the severity of their item. An item that raises leaves evidence that fails and says
why, with its partial results; the error itself stops the run only if the item is critical, if
later steps need what it did not leave, or if another try may help. A helper step that raises
leaves nothing.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tuneline.artifacts.governance import keep_packages
from tuneline.catalogue import Severity, get_step, is_helper
from tuneline.config import read_policy
from tuneline.environment import airflow_identity, other_code, own_code, unknown_code
from tuneline.errors import EXIT_OK, RetryableError, StepNotRun, TunelineError, UserError
from tuneline.evidence import Evidence, FileRef, Record, dump
from tuneline.failures import (
    explain,
    failed,
    keep_partial_only,
    killed_before,
    kind_of,
    one_line,
    set_partial,
)
from tuneline.machine.memory import rare_collections
from tuneline.run import Run
from tuneline.step_context import StepContext
from tuneline.store import at_work_in


def execute(step: str, run_uri: str) -> Evidence | Record | None:
    """Run a step against a run and store its output.

    Returns:
        The content of `evidence.json` (an item) or `record.json` (a helper step); None if
        another process of the same step stores it, as in distributed training. The evidence of
        an item that isn't critical states the error that its step raised, if it raised one.

    Raises:
        UserError: if the run is wrong or a step before this one was not run; for a helper step
            or an item that the run can't do without, also if its input is wrong.
        RetryableError: if the surroundings failed.
    """
    name = get_step(step).module
    run = Run.open(run_uri, step)
    refuse_other_policy(run)
    with _context(run, step) as context:
        _refuse_other_code(context)
        try:
            module = importlib.import_module(name)
            with _resources(context), rare_collections(), at_work_in(run.store):
                entry: Evidence | Record | None = _given_up(context) or module.run(context)
        except StepNotRun:
            raise
        except Exception as error:
            if is_helper(step):
                raise
            stored, lacking = _store_error(context, error)
            critical = context.item.severity == Severity.CRITICAL
            if critical or lacking or isinstance(error, RetryableError):
                raise
            return stored
        with _resources(context):
            return None if entry is None else store_output(context, entry)


@contextmanager
def apart(run: Run, name: str) -> Iterator[StepContext]:
    """Surround what a pod of its own does for a step, which then judges it; no evidence is left."""
    refuse_other_policy(run)
    with _context(run, name) as context:
        _refuse_other_code(context)
        with _resources(context), rare_collections(), at_work_in(run.store):
            yield context


def refuse_other_policy(run: Run) -> None:
    """Refuse a production step whose image has another policy than the DAG that made the run."""
    if run.config.profile != "production":
        return
    here, recorded = read_policy(), run.policy
    if here.sha256 != recorded.sha256:
        raise UserError(
            f"{run.uri} was made under the policy {recorded.sha256[:12]} (version "
            f"{recorded.version}), this image has {here.sha256[:12]} (version {here.version}); use "
            "an image that was built from the same config/policy.yaml"
        )


def _refuse_other_code(context: StepContext) -> None:
    """Refuse other code than that of the DAG in production, before any work; warn on a laptop."""
    dag = context.run.meta.get("code")
    if not dag:
        return
    own = own_code()
    if context.config.profile != "production":
        if why := other_code(dag, own):
            context.log(f"warning: {why}")
        return
    why = (
        unknown_code(dag, "the code of the DAG that made the run")
        or other_code(dag, own)
        or unknown_code(own, "the code of this step")
    )
    if why:
        raise UserError(f"{context.step} is not carried out under profile: production: {why}")


@contextmanager
def _context(run: Run, step: str) -> Iterator[StepContext]:
    """Make the folders of a step at work, and remove them at its end."""
    with tempfile.TemporaryDirectory(prefix=f"tuneline-{step}-") as folder:
        root = Path(folder)
        context = StepContext(
            run, step, out=root / "out", quarantine=root / "quarantine", scratch=root / "scratch"
        )
        for path in (context.out, context.quarantine, context.scratch):
            path.mkdir()
        try:
            yield context
        finally:
            with suppress(TunelineError, OSError):
                run.end_progress(step)


@contextmanager
def _resources(context: StepContext) -> Iterator[None]:
    """Translate errors of disk and network, which another try may not meet."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        raise RetryableError(
            f"{context.step}: {error.strerror or error} "
            f"({error.filename or context.scratch.parent}); free the resource and run the step "
            "again"
        ) from error


def _store_error(context: StepContext, error: Exception) -> tuple[Evidence | Record, bool]:
    """Store failed evidence of an item whose step raised, with its partial results."""
    if not isinstance(error, TunelineError):
        traceback.print_exception(error)
    why = explain(error)
    context.log(f"not measured to its end: {why}")
    set_partial(context.out)
    set_partial(context.quarantine)
    instead = _fall_back(context)
    with _resources(context):
        stored = store_output(context, failed(context, why, kind_of(error), instead))
    return stored, context.item.needed and not instead


def _fall_back(context: StepContext) -> str:
    """Have an item leave the plainest form of what later steps need, if its module knows one."""
    try:
        module = importlib.import_module(context.item.module)
        plain: Callable[[StepContext], str] | None = getattr(module, "fall_back", None)
        return "" if plain is None else plain(context)
    except Exception as error:
        context.log(f"nothing can be left in its place: {explain(error)}")
        for root in (context.out, context.quarantine):
            keep_partial_only(root)
        return ""


def _given_up(context: StepContext) -> Evidence | None:
    """Return evidence in place of a last try that would be killed as the ones before it."""
    last = os.environ.get("TUNELINE_AIRFLOW_LAST_TRY") == "True"
    if not last or is_helper(context.step) or not context.item.needed:
        return None
    why = killed_before(context.run.find_evidence(context.step), airflow_identity())
    instead = "" if why is None else _fall_back(context)
    return failed(context, str(why), "killed", instead) if instead else None


def leave_killed(run_uri: str, item: str, why: str, airflow: Mapping[str, Any]) -> Evidence:
    """Store the evidence of an item whose step was killed, or never began."""
    with _context(Run.open(run_uri), item) as context:
        entry = failed(context, one_line(why), "killed")
        store_output(context, entry.model_copy(update={"airflow": dict(airflow)}))
    return entry


def store_output(context: StepContext, entry: Evidence | Record) -> Evidence | Record:
    """Store the files of a step, then its evidence or record; return it with its artifacts."""
    run, step = context.run, context.step
    last = "record.json" if is_helper(step) else "evidence.json"
    folder = run.step_key(step)
    run.store.delete_prefix(folder)
    run.store.delete_prefix(run.key("quarantine", step))
    artifacts = [
        *_upload(context, context.out, folder, ""),
        *_upload(context, context.quarantine, run.key("quarantine", step), "quarantine/"),
    ]
    keep_packages(run, entry.environment)
    entry = entry.model_copy(update={"artifacts": artifacts})
    # After a power cut an entry is there only with the files that it names.
    run.store.flush()
    run.store.put_bytes(f"{folder}/{last}", dump(entry))
    run.store.flush()
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
    """Run a step for the command line; 0 if a verdict was reached, whatever it is."""
    entry = execute(step, run_uri)
    if entry is None:
        return EXIT_OK
    verdict = f"{entry.verdict}: " if isinstance(entry, Evidence) else ""
    print(f"{get_step(step).phase}/{step}: {verdict}{entry.summary}")
    return EXIT_OK
