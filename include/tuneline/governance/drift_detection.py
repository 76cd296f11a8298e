"""drift_detection: production prompts can be compared with the training distribution.

The baseline is stored as a log would show it, and the detector is tried on it: validation prompts
must not be called drift; a topic that was held back, a label that rises and foreign questions must.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tuneline.artifacts.artifact import fault
from tuneline.artifacts.data import DATASET, SCRUBBED
from tuneline.asking.general_questions import load_questions
from tuneline.data.tables.rows import StoredRows, fetch_dataset, surrogates_of
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.governance.drift.prompts import MIN_WINDOW, UNDATED, Prompt, read_logs, read_reference
from tuneline.governance.drift.reference import BASELINE, DEFAULT_ALARMS, Baseline, Reference
from tuneline.governance.drift.rehearsal import Trial, divide, rehearse
from tuneline.governance.drift.watch import DriftReport, WatchState, compare, draw
from tuneline.step_context import StepContext

# Part of a night that must be called in 90 % of nights, and words for what is planted. A label may
# have a third of all rows already.
PLANTS = {
    "foreign": (0.1, "of foreign requests"),
    "topic": (0.2, "of a topic that was held back"),
    "labels": (0.4, "of a label that rises"),
}


def compare_files(
    reference: str,
    logs: Path,
    alarms: float = DEFAULT_ALARMS,
    *,
    state: Path | None = None,
    plot: Path | None = None,
) -> dict[str, Any]:
    """Compare a log file with a baseline or a dataset by path or URI, as `tuneline drift` does.

    Personal data that is left in either becomes placeholders first: in a dataset nobody knows which
    values are surrogates, in a raw log they are as people wrote them.

    Each day of the log is one look; days that the file `state` has seen are left out, and the state
    is written anew. `alarms` is the probability of a false alarm in a year of days.
    """
    before = None
    if state is not None and state.is_file():
        try:
            before = WatchState.model_validate_json(state.read_bytes())
        except ValidationError as error:
            why = f"can't be read as the state of a watch ({fault(error)})"
            raise UserError(f"{state} {why}; leave it out to start a new one") from None
    with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
        path = fetch_dataset(reference, Path(scratch))
        if path.suffix == ".json":
            baseline = Baseline.read(path)
        else:
            baseline = Baseline(languages=["en"], pii_model=True).of(read_reference(path))
    prompts = baseline.prompts
    known = {p.label for split in prompts.values() for p in split if p.label is not None}
    days = read_logs(logs, sorted(known))
    if before is not None:
        seen = {entry.day for entry in before.history}
        days = {day: asked for day, asked in days.items() if day == UNDATED or day not in seen}
        if not days:
            raise UserError(f"{state} has seen every day of {logs}; give the log of newer days")
    days = {day: baseline.as_logged(asked) for day, asked in days.items()}
    fitted = Reference.fit(prompts["train"], prompts["validation"], alarms=alarms)
    report = compare(fitted, days, before)
    if state is not None:
        state.write_text(report.state.model_dump_json(by_alias=True), encoding="utf-8")
    if plot is not None:
        draw(report, plot)
    return report.as_dict()


def judge(
    baseline: int, calm: DriftReport, alarmed: DriftReport, trials: Sequence[Trial]
) -> list[Measurement]:
    """Judge the detector by what it called drift."""
    found = [
        measure("baseline_prompts", baseline, "prompts"),
        measure("validation_called_drift", calm.drifted, "flag", "==", False),
        measure("foreign_called_drift", alarmed.drifted, "flag", "==", True),
    ]
    for trial in trials:
        if not trial.share:
            found.append(measure("clean_nights_called", trial.called, "nights", "<=", 1))
            continue
        name, most = f"planted_{trial.plant}_share_called", PLANTS[trial.plant][0]
        seen = trial.share if trial.shown else 1.0
        found.append(measure(name, seen, "share", "<=", most, on_breach="inconclusive"))
    return found


def run(ctx: StepContext) -> Evidence:
    """Store the baseline and try the detector on prompts whose answer is known."""
    settings = ctx.config.governance
    baseline = _baseline(ctx)
    prompts = baseline.prompts
    smallest = len(prompts["validation"])
    window = measure(
        "smallest_window", smallest, "prompts", ">=", MIN_WINDOW, on_breach="inconclusive"
    )
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
    foreign = baseline.as_logged(foreign)
    alarmed = compare(reference, {UNDATED: foreign})
    trials = list(rehearse(divide(prompts), foreign, settings.drift_p_value))
    # The last one of each plant is its result.
    results = list({trial.plant: trial for trial in trials}.values())
    ctx.write_json(
        "trial.json",
        {
            "validation": [m.as_dict() for m in calm.measures],
            "foreign": [m.as_dict() for m in alarmed.measures],
            "planted": [asdict(trial) for trial in trials],
        },
    )
    validation = "called drift (a false alarm)" if calm.drifted else "not called drift"
    seen = "called drift" if alarmed.drifted else "not called drift"
    return ctx.conclude(
        f"baseline of {len(prompts['train'])} prompts stored; validation prompts are {validation}, "
        f"{len(foreign)} foreign prompts are {seen}; {_power(results)}",
        judge(len(prompts["train"]), calm, alarmed, results),
    )


def _baseline(ctx: StepContext) -> Baseline:
    """Store the baseline of a run."""
    read = read_reference(DATASET.fetch(ctx), surrogates_of(StoredRows(SCRUBBED.fetch(ctx))))
    data = ctx.config.data
    baseline = Baseline(languages=data.languages, pii_model=bool(data.pii_ner)).of(read)
    ctx.write_json(BASELINE.name, baseline.model_dump(by_alias=True, exclude_none=True))
    return baseline


def _power(results: Sequence[Trial]) -> str:
    return "; ".join(
        f"{trial.share:.0%} {PLANTS[trial.plant][1]} in a night of {trial.prompts} "
        f"{'is' if trial.shown else 'is not shown to be'} seen in 90 % of nights"
        for trial in results
        if trial.share
    )
