"""`tuneline run all`: the whole checklist on one machine, without Airflow.

The steps, gates and verdicts are those of the DAG, one after the other. Nobody is asked, so a run
that needs a person's answer is refused before it begins. A second call with the same run id goes
on after the steps whose evidence is up to date.
"""

from __future__ import annotations

import subprocess
import sys
import time

from tuneline.catalogue import DATA_ORDER, RUN_ORDER, get_step, is_helper
from tuneline.errors import EXIT_FAILED, EXIT_OK, EXIT_RETRY, UserError
from tuneline.progress import to_stderr
from tuneline.run import Run

_TRIES = 3
# The step that draws pairs of answers for people, and the one that moves the release pointer.
_FOR_PEOPLE, _RELEASE = "prepare_review", "promote"


def run_all(run: Run) -> int:
    """Carry out every step of a run up to the release.

    Returns:
        0 if it was released, 1 if an item stopped it, the exit code of a step that has failed.

    Raises:
        UserError: if the run asks people.
    """
    from tuneline.freshness import Freshness

    _refuse_questions(run)
    steps = [step.id for step in RUN_ORDER if step.id != _FOR_PEOPLE]
    for number, step in enumerate(steps, 1):
        known = Freshness(run)
        if step == _RELEASE or known.entry(step) is None or known.stale(step):
            to_stderr(f"=== {step} ({number} of {len(steps)}): {get_step(step).title}")
            if step == "lora_selection" and run.config.training.sweep_r:
                _carry_out(run, "tuneline", "run", "sweep")
            began = time.monotonic()
            if code := _carry_out(run, *get_step(step).command):
                return code
            if stops := _verdict(run, step, time.monotonic() - began):
                to_stderr(f"=== stopped: {stops}")
                return EXIT_FAILED
    return EXIT_OK


def _refuse_questions(run: Run) -> None:
    from tuneline.governance.release.approvals import is_needed
    from tuneline.human_answers import critical_waivers

    questions = {
        "approval": is_needed(run),
        "evaluation.review": run.config.evaluation.review,
        "waivers of critical items": bool(critical_waivers(run)),
    }
    if asked := [name for name, wanted in questions.items() if wanted]:
        raise UserError(
            f"{run.uri} needs answers of people ({', '.join(asked)}), and `tuneline run all` asks "
            "nobody; start the run in Airflow, or change these settings"
        )


def _carry_out(run: Run, *command: str) -> int:
    """Run a step in its own process, again if another try may help; return its exit code."""
    for _ in range(_TRIES):
        program = [sys.executable, "-m", "tuneline.cli", *command[1:], "--run", run.uri]
        code = subprocess.run(program, check=False).returncode
        if code != EXIT_RETRY:
            break
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
