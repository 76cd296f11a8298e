"""Try several LoRA ranks briefly, on the validation rows, never the hold-out; choose one.

**Trials** take the run's own steps in a small run, `<run>/work/sweep/runs/r<rank>`, with fewer
epochs, without tracking or rehearsal, on a copy of the dataset without the hold-out. One that was
killed goes on; one of other data or settings starts anew.

**Choice**: the smallest rank whose validation loss lies within one standard error of the lowest
(Breiman et al., "Classification and Regression Trees", 1984, 3.4.3), of the difference row by row.
In few steps a larger rank gets further, so a choice at the upper edge says so.
"""

from __future__ import annotations

import gc
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tuneline.artifacts.data import DATASET
from tuneline.artifacts.training import ADAPTER, CHECKPOINTS, LORA, TRAINED, Trial, trial_key
from tuneline.config import PipelineConfig
from tuneline.data.tables.rows import HOLDOUT
from tuneline.errors import TunelineError, UserError
from tuneline.evidence import Evidence, FileRef, Measurement, Verdict, measure
from tuneline.failures import ended_by_error
from tuneline.run import Run
from tuneline.serving.engines.limits import ranks_asked
from tuneline.statistics import RowLosses
from tuneline.step import execute, store_output
from tuneline.step_context import StepContext
from tuneline.store import NotThere, Store, open_store
from tuneline.training.loop.token_loss import Validation


def home_of(run: Run) -> Store:
    """Open the store in which the trials of a run are runs."""
    return open_store(f"{run.uri}/work/sweep")


def trial_config(config: PipelineConfig, r: int) -> PipelineConfig:
    """Derive the configuration of a trial from the run's: short, and of one rank."""
    training = config.training
    steps = training.sweep_steps
    share = 1.0 if steps else training.sweep_share
    if steps is None and training.max_steps is not None:
        steps = max(1, round(training.max_steps * share))
    changed = training.model_copy(
        update={
            "r": r,
            "alpha": training.alpha_for(r),
            "sweep_r": [],
            "warm_start": "none",
            "epochs": training.epochs * share,
            "max_steps": steps,
            "evaluations": 1,
            "rehearsal_rows": 0,
            "canaries": 0,
            "tracking": [],
        }
    )
    # A trial is one pod, also of a run that trains on several nodes.
    pods = config.pods.model_copy(update={"nodes": 1})
    return config.model_copy(update={"training": changed, "pods": pods, "waivers": []})


def try_rank(run: Run, r: int) -> Trial:
    """Train one rank briefly, measure it on the validation rows and store its result.

    UserError if the run does not ask for this rank, or its data phase is not done.
    """
    asked = ranks_asked(run)
    if r not in asked:
        raise UserError(
            f"training.sweep_r of {run.uri} asks for {asked or 'no sweep'}, not for r {r}"
        )
    with tempfile.TemporaryDirectory(prefix=f"tuneline-sweep-{r}-") as folder:
        above = _context(run, Path(folder) / "above")
        dataset = DATASET.fetch(above)
        reference = above.inputs[f"{DATASET.step}/{DATASET.name}"]
        trial = _open_trial(run, r, reference)
        with suppress(NotThere):
            return read_trial(run, r)[0]
        if not _done(trial, DATASET.step):
            _leave_rows(_context(trial, Path(folder) / "rows", DATASET.step), dataset, run.uri)
        ctx = _context(trial, Path(folder) / "trial")
        result = _carry_out(ctx, r, reference)
        run.store.put_bytes(trial_key(run, r), result.model_dump_json(indent=1).encode())
        return result


def read_trial(run: Run, r: int) -> tuple[Trial, FileRef]:
    """Read the result of one rank, and a reference to its file; NotThere if it was not tried."""
    with tempfile.TemporaryDirectory(prefix="tuneline-sweep-") as folder:
        path = Path(folder) / "trial.json"
        reference = run.store.get_file(trial_key(run, r), path)
        return Trial.model_validate_json(path.read_text()), reference


def read_trials(ctx: StepContext) -> list[Trial]:
    """Read the results of all ranks that the run asks for, noted among the step's inputs.

    UserError if a rank has not been tried, or was tried on other rows than the run's.
    """
    artifacts = {ref.name: ref.sha256 for ref in ctx.entry(DATASET.step).artifacts}
    trials = []
    for r in ctx.config.training.sweep_r:
        try:
            trial, reference = read_trial(ctx.run, r)
        except NotThere:
            raise UserError(
                f"r {r} of training.sweep_r has not been tried; "
                f"run `tuneline run sweep --run {ctx.run.uri}`"
            ) from None
        if trial.dataset_sha256 != artifacts.get(DATASET.name):
            raise UserError(
                f"r {r} was tried on another dataset than {ctx.run.uri} has now; "
                f"run `tuneline run sweep --run {ctx.run.uri}` again"
            )
        name = f"sweep/r{r}/trial.json"
        ctx.inputs[name] = reference.model_copy(update={"name": name})
        trials.append(trial)
    return trials


def holdout_accesses(run: Run) -> int:
    """Count the entries of trials in a ledger of the hold-out; they write to their own store's."""
    return sum(1 for _ in home_of(run).keys("ledger/holdout"))


def _context(run: Run, folder: Path, step: str = "sweep") -> StepContext:
    out, quarantine, scratch = (folder / name for name in ("out", "quarantine", "scratch"))
    for path in (out, quarantine, scratch):
        path.mkdir(parents=True)
    return StepContext(run, step, out=out, quarantine=quarantine, scratch=scratch)


def _open_trial(run: Run, r: int, dataset: FileRef) -> Run:
    """Open the run of a trial; one of other data or settings is dropped first."""
    home, prefix = home_of(run), f"runs/r{r}"
    config = trial_config(run.config, r)
    try:
        there = Run.open(home.uri_of(prefix))
        same = there.meta.get("dataset_sha256") == dataset.sha256 and there.config == config
    except UserError:
        same = False
    if not same:
        home.delete_prefix(prefix)
    meta = {"trial_of": run.uri, "dataset_sha256": dataset.sha256}
    return Run.create(home.uri, f"r{r}", config, meta)


def _done(run: Run, step: str) -> bool:
    try:
        entry = run.entry(step)
    except UserError:
        return False
    return not (isinstance(entry, Evidence) and ended_by_error(entry))


def _leave_rows(ctx: StepContext, dataset: Path, above: str) -> None:
    """Leave the rows of a run in its trial, without the hold-out."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(dataset)
    kept = table.filter(pc.not_equal(table["split"], HOLDOUT))
    path = DATASET.path(ctx)
    pq.write_table(kept, path)
    evidence = ctx.conclude(
        f"training and validation rows of {above}, for choosing r; the hold-out is left out",
        [
            measure("rows", kept.num_rows, "rows", ">", 0),
            measure("holdout_rows", _holdout_rows(path), "rows", "==", 0),
        ],
        rows={DATASET.name: kept.num_rows},
    )
    store_output(ctx, evidence)


def _holdout_rows(dataset: Path) -> int:
    import pyarrow.parquet as pq

    return pq.read_table(dataset, columns=["split"])["split"].to_pylist().count(HOLDOUT)


def _carry_out(ctx: StepContext, r: int, dataset: FileRef) -> Trial:
    """Run the steps of a trial and measure the adapter that they leave."""
    held = _holdout_rows(DATASET.fetch(ctx))
    if held:
        raise TunelineError(
            f"{held} rows of the hold-out are among the rows for choosing r; nothing was trained"
        )
    started = time.monotonic()
    for step in ("lora_selection", "gradient_accumulation"):
        if not _done(ctx.run, step):
            execute(step, ctx.run.uri)
    lora = LORA.read(ctx)
    known: dict[str, Any] = {
        "r": r,
        "alpha": lora.alpha,
        "dataset_sha256": dataset.sha256,
        "holdout_rows": held,
        "trainable_share": lora.trainable_parameters / lora.total_parameters,
    }
    plan = ctx.run.find_evidence("gradient_accumulation")
    if plan is not None and plan.verdict == Verdict.FAIL:
        return Trial(**known, excluded=plan.summary)
    if not _done(ctx.run, "train"):
        execute("train", ctx.run.uri)
        gc.collect()
    known |= {"steps": TRAINED.read(ctx).steps, "loss_before": CHECKPOINTS.read(ctx).losses.get(0)}
    losses = Validation.of(ctx).losses_of_adapter(ADAPTER.fetch(ctx))
    known["seconds"] = round(time.monotonic() - started, 1)
    if not math.isfinite(losses.mean):
        return Trial(**known, excluded="its validation loss is not a number")
    return Trial(**known, sums=losses.sums, targets=losses.targets, weights=losses.weights)


def run_trials(run_uri: str, ranks: Sequence[int] = ()) -> list[str]:
    """Try ranks, by default all that the run asks for, and return a line for each."""
    run = Run.open(run_uri)
    asked = list(ranks) or ranks_asked(run)
    if not asked:
        return ["training.sweep_r asks for no sweep: r is taken as it is"]
    return [_line(try_rank(run, r)) for r in asked]


def _line(trial: Trial) -> str:
    if trial.excluded:
        return f"r {trial.r}: {trial.excluded}"
    losses = losses_of(trial)
    return (
        f"r {trial.r}: validation loss {losses.mean:.4f} ± {losses.standard_error:.4f} after "
        f"{trial.steps} steps, {trial.trainable_share:.2%} of the parameters train, "
        f"{trial.seconds:.0f} s"
    )


RULE = (
    "the smallest r whose validation loss is within one standard error (paired by row) of the "
    "lowest"
)


def losses_of(trial: Trial) -> RowLosses:
    """Return the loss of every validation row of a trial."""
    return RowLosses(trial.sums, trial.targets, trial.weights)


class Choice(BaseModel):
    """`sweep.json`: the rank taken, and the table that it was taken from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int
    rule: str
    best_r: int
    excess: float
    excess_error: float
    table: list[dict[str, Any]]

    @property
    def sentence(self) -> str:
        """The choice with the losses behind it, for a person."""
        losses = ", ".join(
            f"r {row['r']}: {row['excluded']}"
            if row["excluded"]
            else f"r {row['r']}: {row['validation_loss']:.4f} ± {row['validation_loss_error']:.4f}"
            for row in self.table
        )
        largest = self.r == max(row["r"] for row in self.table)
        edge = "; it is the largest tried, and short trials favour large ranks" if largest else ""
        return f"r {self.r} chosen by {RULE} ({losses}){edge}"


def choose(trials: Sequence[Trial]) -> Choice:
    """Choose a rank by `RULE`; UserError if no trial can be chosen."""
    losses = {t.r: losses_of(t) for t in trials if t.usable}
    if not losses:
        why = "; ".join(f"r {t.r}: {t.excluded}" for t in trials)
        raise UserError(f"training.sweep_r: no rank could be tried to the end ({why})")
    best_r = min(losses, key=lambda r: (losses[r].mean, r))
    lowest = losses[best_r]
    excess = {
        r: (found.mean - lowest.mean, found.log_ratio_error(lowest)) for r, found in losses.items()
    }
    chosen = min(r for r, (above, error) in excess.items() if above <= error)
    above, error = excess[chosen]
    table = []
    for trial in trials:
        found, (over, noise) = losses.get(trial.r), excess.get(trial.r, (None, None))
        row = {
            "r": trial.r,
            "alpha": trial.alpha,
            "excluded": trial.excluded,
            "validation_loss": found.mean if found else None,
            "validation_loss_error": found.standard_error if found else None,
            "excess": over,
            "excess_error": noise,
            "loss_before": trial.loss_before if found else None,
            "trainable_share": trial.trainable_share,
            "steps": trial.steps,
            "seconds": trial.seconds,
        }
        table.append(row)
    return Choice(r=chosen, rule=RULE, best_r=best_r, excess=above, excess_error=error, table=table)


def measurements(trials: Sequence[Trial], choice: Choice, accesses: int) -> list[Measurement]:
    """Measure what the choice rests on; `accesses` of the trials to the hold-out."""
    usable = [(t, losses_of(t)) for t in trials if t.usable]
    best, lowest = next(pair for pair in usable if pair[0].r == choice.best_r)
    above, error, before = choice.excess, choice.excess_error, best.loss_before
    lowest_loss = "best_validation_loss_in_sweep"
    return [
        measure("ranks_tried", len(usable), "ranks", "==", len(trials), on_breach="warn"),
        *(_measured_loss(t.r, losses) for t, losses in usable),
        measure("validation_loss_above_best", above, "nats", "<=", error, noise=error),
        measure("best_r", choice.best_r, "rank"),
        measure(lowest_loss, lowest.mean, "nats", "<", before, on_breach="warn"),
        measure("holdout_rows_in_sweep", sum(t.holdout_rows for t in trials), "rows", "==", 0),
        measure("holdout_accesses_in_sweep", accesses, "accesses", "==", 0),
        measure("sweep_seconds", round(sum(t.seconds for t in trials), 1), "s"),
    ]


def _measured_loss(r: int, losses: RowLosses) -> Measurement:
    noise = round(losses.standard_error, 6)
    return measure(f"validation_loss_r{r}", round(losses.mean, 6), "nats", noise=noise)
