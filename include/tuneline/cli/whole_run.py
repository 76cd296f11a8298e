"""`tuneline run all`: the whole checklist on one machine, without Airflow.

The steps, gates and verdicts are those of the DAG, one after the other. Nobody is asked, so a run
that needs a person's answer is refused before it begins. A second call with the same run id goes
on after the steps whose evidence is up to date, and measures again what stopped the first.
"""

from __future__ import annotations

import subprocess
import sys
import time

from tuneline.catalogue import DATA_ORDER, RUN_ORDER, Item, Severity, get_step, is_helper
from tuneline.errors import EXIT_FAILED, EXIT_OK, EXIT_RETRY, EXIT_USER, UserError
from tuneline.failures import ended_by_error
from tuneline.run import Run
from tuneline.terminal import to_stderr

_TRIES = 3
# Seconds before the second try; twice as long before the third.
_PAUSE_S = 10.0
# The step that draws pairs of answers for people, and the one that moves the release pointer.
_FOR_PEOPLE, _RELEASE = "prepare_review", "promote"


def run_all(run: Run) -> int:
    """Carry out every step of a run up to the release.

    Returns:
        0 if it was released, 1 if an item stopped it or a step was killed, otherwise the exit code
        of a step that has failed.
    """
    steps = [step.id for step in RUN_ORDER if step.id != _FOR_PEOPLE]
    for number, step in enumerate(steps, 1):
        if _is_done(run, step):
            continue
        to_stderr(f"=== {step} ({number} of {len(steps)}): {get_step(step).title}")
        if (first := _before(run, step)) and (code := _carry_out(run, "tuneline", "run", first)):
            return _exit_code(code)
        began = time.monotonic()
        code = _carry_out(run, *get_step(step).command)
        if code and not _goes_on_without(run, step, code):
            return _exit_code(code)
        if stops := _verdict(run, step, time.monotonic() - began):
            to_stderr(f"=== stopped: {stops}")
            return EXIT_FAILED
    return EXIT_OK


def _before(run: Run, step: str) -> str:
    """Return the action whose parts are pods of the DAG before a step; empty without one."""
    if step == "lora_selection" and run.config.training.sweep_r:
        return "sweep"
    return "answer" if step == "holdout_performance" and run.config.evaluation.shards > 1 else ""


def refuse_questions(run: Run) -> None:
    """Refuse a run that asks people, naming the settings that do."""
    from tuneline.governance.release.approvals import is_needed

    questions = {"approval": is_needed(run), "evaluation.review": run.config.evaluation.review}
    if asked := [name for name, wanted in questions.items() if wanted]:
        raise UserError(
            f"{run.uri} needs answers of people ({', '.join(asked)}), and `tuneline run all` "
            "can't ask anyone; start the run in Airflow, or change these settings"
        )


def _is_done(run: Run, step: str) -> bool:
    """Return True if a step need not be carried out again."""
    from tuneline.verdicts import Freshness, status

    known = Freshness(run)
    if step == _RELEASE or known.entry(step) is None or known.stale(step):
        return False
    if step in DATA_ORDER and not run.store.exists(run.step_key(step, "gate.json")):
        return False
    found = None if is_helper(step) else run.find_evidence(step)
    return found is None or not (ended_by_error(found) or status(run, step).stops_release)


def _goes_on_without(run: Run, step: str, code: int) -> bool:
    """Return True if a step that failed stops nothing, as in the DAG; its evidence says why."""
    from tuneline.step import leave_killed

    item = get_step(step)
    if not isinstance(item, Item) or item.severity == Severity.CRITICAL or code == EXIT_USER:
        return False
    if not ended_by_error(run.find_evidence(step)):
        why = f"its process ended with exit code {code} and left no reason; its output has the rest"
        leave_killed(run.uri, step, why, {})
    return not item.needed


def _exit_code(code: int) -> int:
    """Return the exit code of a command; a process that was killed has a negative one."""
    return code if code > 0 else EXIT_FAILED


def _carry_out(run: Run, *command: str) -> int:
    """Run a step in its own process, again if another try may help; return its exit code."""
    for tried in range(1, _TRIES + 1):
        program = [sys.executable, "-m", "tuneline.cli", *command[1:], "--run", run.uri]
        code = subprocess.run(program, check=False).returncode
        if code != EXIT_RETRY or tried == _TRIES:
            break
        time.sleep(_PAUSE_S * tried)
    return code


def _verdict(run: Run, step: str, seconds: float) -> str | None:
    """Print the verdict of an item; return why an item stops the release, None if none does."""
    from tuneline.data.gates.run_gate import run_gate
    from tuneline.evidence import Verdict
    from tuneline.verdicts import checklist

    if step in DATA_ORDER:
        run_gate(run, step)
    rows = {row.item: row for row in checklist(run)}
    if not is_helper(step):
        found = rows[step]
        print(f"{step:<26} {found.verdict:<14} {seconds:6.1f} s  {found.summary}", flush=True)
    # A step may judge an item again that passed before.
    stopping = [
        row for row in rows.values() if row.stops_release and row.verdict != Verdict.NOT_RUN
    ]
    return "; ".join(f"{row.item} (critical): {row.because}" for row in stopping) or None
