"""drift_detection: production prompts can be compared with the training distribution.

The baseline is stored, and the detector is tried on it: validation prompts must not be called
drift; a topic that was held back, a label that rises and foreign questions must be.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneline.artifacts.data import DATASET
from tuneline.asking.general_questions import load_questions
from tuneline.data.tables.rows import fetch_dataset
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.governance.drift.prompts import MIN_WINDOW, UNDATED, Prompt, read_logs, read_reference
from tuneline.governance.drift.reference import DEFAULT_ALARMS, Reference, texts_of
from tuneline.governance.drift.rehearsal import Attempt, divide, rehearse, smallest_called
from tuneline.governance.drift.watch import DriftReport, WatchState, compare
from tuneline.step_context import StepContext

BASELINE_SCHEMA = "tuneline/drift-baseline/1"
# Part of a night at which a plant must be called. A label may have a third of all rows already.
PLANTS = {"topic": 0.4, "labels": 0.6}
# Prompts of a night in which it must; fewer only warn, since no detector sees much in them.
ENOUGH = 200


def compare_files(
    reference: str,
    logs: Path,
    alarms: float = DEFAULT_ALARMS,
    *,
    state: Path | None = None,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Compare a log file with a dataset by path or URI, as `tuneline drift` does.

    Each day of the log is one look; days that the file `state` has seen are left out, and the state
    is written anew. `alarms` is the probability of a false alarm in a year of days.
    """
    before = None
    if state is not None and state.is_file():
        try:
            before = WatchState.from_dict(json.loads(state.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{state} can't be read as the state of a watch: {error}") from None
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        prompts = read_reference(fetch_dataset(reference, Path(scratch)))
    known = {p.label for split in prompts.values() for p in split if p.label is not None}
    days = read_logs(logs, sorted(known))
    if before is not None:
        seen = {entry.day for entry in before.history}
        days = {day: asked for day, asked in days.items() if day == UNDATED or day not in seen}
        if not days:
            raise UserError(f"{state} has seen every day of {logs}; give the log of newer days")
    fitted = Reference.fit(prompts["train"], prompts["validation"], alarms=alarms)
    report = compare(fitted, days, before)
    if state is not None:
        state.write_text(json.dumps(report.state.as_dict()), encoding="utf-8")
    if plot is not None:
        from tuneline.governance.drift.watch import draw

        draw(report, plot)
    return report.as_dict()


def judge(
    baseline: int, calm: DriftReport, alarmed: DriftReport, attempts: Sequence[Attempt]
) -> list[Measurement]:
    """Judge the detector by what it called drift."""
    planted = {plant: smallest_called(attempts, plant) for plant in PLANTS}
    largest = {attempt.plant: attempt.prompts for attempt in attempts}
    return [
        measure("baseline_prompts", baseline, "prompts", ">=", MIN_WINDOW),
        measure("validation_called_drift", calm.drifted, "flag", "==", False),
        measure("foreign_called_drift", alarmed.drifted, "flag", "==", True),
        *(
            measure(
                f"planted_{plant}_share_called",
                share,
                "share",
                "<=",
                PLANTS[plant],
                on_breach="fail" if largest[plant] >= ENOUGH else "warn",
            )
            for plant, share in planted.items()
            if share is not None
        ),
        *(measure(f"validation_{m.name}", m.value, "score") for m in calm.measures),
        *(measure(f"validation_{m.name}_p", m.p_value, "probability") for m in calm.measures),
        *(measure(f"foreign_{m.name}_p", m.p_value, "probability") for m in alarmed.measures),
    ]


def run(ctx: StepContext) -> Evidence:
    """Store the baseline and try the detector on prompts whose answer is known."""
    settings = ctx.config.governance
    prompts = read_reference(DATASET.fetch(ctx))
    stored = {split: texts_of(rows) for split, rows in prompts.items()}
    ctx.write_json("baseline.json", {"schema": BASELINE_SCHEMA, "prompts": stored})
    smallest = len(prompts["validation"])
    window = measure("smallest_window", smallest, "prompts", ">=", MIN_WINDOW, on_breach="warn")
    if not window.ok:
        return ctx.conclude(
            f"the baseline is stored, but {smallest} validation prompts are too few to try the "
            f"detector (at least {MIN_WINDOW})",
            [window],
        )
    # The validation prompts of the clean night must not take part in its calibration.
    middle = smallest // 2
    calibrating, clean = prompts["validation"][:middle], prompts["validation"][middle:]
    reference = Reference.fit(prompts["train"], calibrating, alarms=settings.drift_p_value)
    calm = compare(reference, {UNDATED: clean})
    foreign = [Prompt(n, question.prompt) for n, question in enumerate(load_questions(), 1)]
    alarmed = compare(reference, {UNDATED: foreign})
    attempts = rehearse(divide(prompts), settings.drift_p_value)
    ctx.write_json(
        "trial.json",
        {
            "validation": [m.as_dict() for m in calm.measures],
            "foreign": [m.as_dict() for m in alarmed.measures],
            "planted": [attempt.as_dict() for attempt in attempts],
        },
    )
    validation = "called drift (a false alarm)" if calm.drifted else "not called drift"
    seen = "called drift" if alarmed.drifted else "not called drift"
    return ctx.conclude(
        f"baseline of {len(prompts['train'])} prompts stored; validation prompts are {validation}, "
        f"{len(foreign)} foreign prompts are {seen}{_planted(attempts)}",
        judge(len(prompts["train"]), calm, alarmed, attempts),
    )


def _planted(attempts: Sequence[Attempt]) -> str:
    words = {"topic": "a topic that was held back", "labels": "a label that rises"}
    found = ""
    for plant in PLANTS:
        share = smallest_called(attempts, plant)
        if share is not None:
            called = f"at {share:.0%} of a night" if share < 1 else "at no share"
            found += f", {words[plant]} is called {called}"
    return found
