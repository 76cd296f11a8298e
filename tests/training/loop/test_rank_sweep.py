"""Ranks are tried on the validation rows by the run's own steps; the smallest good one is taken."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests.lab.forked import forked_probe
from tests.lab.runs import broken, value
from tests.lab.training_runs import TrainingLab, make_rows

from tuneline.artifacts.training import PLAN, LoraSettings, Trial
from tuneline.cli import main
from tuneline.config import build_config
from tuneline.data.tables.rows import read_dataset
from tuneline.errors import TunelineError, UserError
from tuneline.evaluation.scoring.ledger import open_holdout
from tuneline.evidence import Verdict, conclude, measure
from tuneline.run import Run
from tuneline.step import execute, store_output
from tuneline.training import gradient_accumulation, lora_selection
from tuneline.training.loop import rank_sweep as sweep
from tuneline.training.loop.rank_sweep import choose, losses_of, measurements
from tuneline.training.train import hyperparameters

SWEEP = {"sweep_r": [2, 8], "sweep_share": 0.5, "epochs": 4, "r": 4, "rehearsal_rows": 8}


def with_holdout(lab):
    """Give a run a dataset that has a hold-out."""
    rows, weights = make_rows(train=36, validation=20)
    held = [replace(row, split="holdout") for row in rows[48:]]
    lab.leave_rows(rows[:48] + held, weights)
    return lab


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny_base):
    """A run whose two ranks were tried by the command line; its tests only read it."""
    lab = TrainingLab(tmp_path_factory.mktemp("swept"), tiny_base, {"training": SWEEP})
    with_holdout(lab)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gradient_accumulation, "in_process", forked_probe)
        assert main(["run", "sweep", "--run", lab.run.uri]) == 0
    return lab


def trial_run(lab, r):
    return Run.open(f"{lab.run.uri}/work/sweep/runs/r{r}")


def test_every_rank_is_trained_briefly_by_the_steps_of_the_run(swept, monkeypatch):
    monkeypatch.setattr(sweep, "execute", lambda *_: pytest.fail("trained again"))
    for r in (2, 8):
        run = trial_run(swept, r)
        training = run.config.training
        assert (training.r, training.alpha, training.sweep_r) == (r, 2 * r, [])
        assert (training.rehearsal_rows, training.tracking) == (0, [])
        # Half of four epochs over 36 rows, eight at a time.
        trained = json.loads(run.store.get_bytes(run.step_key("train", "run.json")))
        assert trained["steps"] == trained["steps_planned"] == 9
        assert run.find_evidence("gradient_accumulation").verdict != Verdict.FAIL
        trial, _ = sweep.read_trial(swept.run, r)
        assert losses_of(trial).mean < trial.loss_before - 0.1
        assert losses_of(trial).standard_error > 0
        assert len(trial.sums) == 12
        # The hold-out is not there, and nobody asked for it.
        path = swept.root / f"looked-at-{r}.parquet"
        run.store.get_file(run.step_key("distribution_balancing", "dataset.parquet"), path)
        assert {row.split for row in read_dataset(path, holdout=True)[0]} == {"train", "validation"}
        # A trial that is done is not trained again.
        assert sweep.try_rank(swept.run, r) == trial
    assert sweep.holdout_accesses(swept.run) == 0
    assert not list(swept.run.store.keys("ledger"))


def test_the_choice_is_documented_with_its_table(swept):
    evidence = swept.execute("lora_selection", lora_selection.run)
    assert evidence.verdict == Verdict.PASS
    choice = swept.document("lora_selection", "sweep.json")
    lora = LoraSettings.model_validate(swept.document("lora_selection", "lora.json"))
    assert (lora.r, lora.alpha) == (choice["r"], 2 * choice["r"])
    assert choice["r"] in (2, 8)
    assert [row["r"] for row in choice["table"]] == [2, 8]
    for row in choice["table"]:
        assert row["validation_loss_error"] > 0
        assert 0 < row["trainable_share"] < 1
        assert row["seconds"] > 0
    assert "within one standard error" in lora.reason
    assert "within one standard error" in evidence.summary
    assert value(evidence, "ranks_tried") == 2
    assert value(evidence, "holdout_rows_in_sweep") == 0
    assert {ref.name for ref in evidence.inputs} >= {"sweep/r2/trial.json", "sweep/r8/trial.json"}
    # What trains afterwards is told the chosen rank.
    swept.leave_plan()
    inputs = SimpleNamespace(lora=lora, plan=PLAN.find(swept.run), train=[], validation=[])
    told = hyperparameters(swept.context("train"), inputs)
    assert (told["r"], told["alpha"]) == (lora.r, lora.alpha)


def test_an_access_to_the_hold_out_from_a_trial_fails_the_item(swept):
    ctx = swept.context("sweep")
    ctx.run = trial_run(swept, 2)
    open_holdout(ctx, "score", "0" * 64)
    try:
        evidence = swept.execute("lora_selection", lora_selection.run)
        assert evidence.verdict == Verdict.FAIL
        assert broken(evidence) == {"holdout_accesses_in_sweep"}
    finally:
        sweep.home_of(swept.run).delete_prefix("ledger")


def plan_of(lab, uri):
    """Leave the plan of a trial without the probe's process."""
    trial = TrainingLab.__new__(TrainingLab)
    trial.run, trial.root = Run.open(uri), lab.root / "trial"
    trial.leave_plan()
    return trial.run.entry("gradient_accumulation")


def test_a_killed_trial_goes_on_with_the_step_it_was_in(lab, monkeypatch):
    run = lab(**SWEEP)
    carried_out = []

    def killed_in_training(step, uri):
        carried_out.append(step)
        if step == "gradient_accumulation":
            return plan_of(run, uri)
        if step == "train" and carried_out.count("train") == 1:
            raise KeyboardInterrupt
        return execute(step, uri)

    monkeypatch.setattr(sweep, "execute", killed_in_training)
    with pytest.raises(KeyboardInterrupt):
        sweep.try_rank(run.run, 2)
    trial = sweep.try_rank(run.run, 2)
    assert carried_out == ["lora_selection", "gradient_accumulation", "train", "train"]
    assert trial.usable


def test_a_trial_of_other_data_starts_anew(lab):
    run = lab(**SWEEP)
    [reference] = run.run.find_evidence("distribution_balancing").artifacts
    trial = sweep._open_trial(run.run, 2, reference)
    trial.store.put_bytes(trial.key("trial.json"), b"{}")
    assert sweep._open_trial(run.run, 2, reference).store.exists(trial.key("trial.json"))
    other = reference.model_copy(update={"sha256": "0" * 64})
    again = sweep._open_trial(run.run, 2, other)
    assert not again.store.exists(trial.key("trial.json"))
    assert again.meta["dataset_sha256"] == "0" * 64


def test_a_rank_that_does_not_fit_in_memory_is_left_out(lab, monkeypatch):
    run = lab(**SWEEP)

    def too_large(step, uri):
        assert step != "train"
        if step == "lora_selection":
            return execute(step, uri)
        ctx = sweep._context(Run.open(uri), run.root / "plan", step)
        peak = measure("measured_peak", 9.0, "GiB", "<=", 8.0)
        return store_output(ctx, ctx.conclude("micro-batch 1 takes 9 GiB, limit 8", [peak]))

    monkeypatch.setattr(sweep, "execute", too_large)
    trial = sweep.try_rank(run.run, 2)
    assert not trial.usable
    assert trial.excluded == "micro-batch 1 takes 9 GiB, limit 8"


def test_hold_out_rows_in_a_trial_stop_it_before_training(lab, monkeypatch):
    run = with_holdout(lab(**SWEEP))
    [reference] = run.run.find_evidence("distribution_balancing").artifacts
    dataset = run.artifact("distribution_balancing", "dataset.parquet")
    with monkeypatch.context() as leaking:
        # The fault: nothing is filtered.
        leaking.setattr(sweep, "HOLDOUT", "none-of-the-splits")
        leaking.setattr(sweep, "_holdout_rows", lambda _: 0)
        trial = sweep._open_trial(run.run, 2, reference)
        ctx = sweep._context(trial, run.root / "leak", "distribution_balancing")
        sweep._leave_rows(ctx, dataset, "x")
    monkeypatch.setattr(sweep, "execute", lambda *_: pytest.fail("trained"))
    with pytest.raises(TunelineError, match="8 rows of the hold-out are among the rows"):
        sweep.try_rank(run.run, 2)


def test_trials_that_are_missing_or_of_another_dataset_do_not_count(lab, swept, capsys):
    run = lab(**SWEEP)
    with pytest.raises(UserError, match="has not been tried; run `tuneline run sweep"):
        run.execute("lora_selection", lora_selection.run)
    for r in (2, 8):
        trial, _ = sweep.read_trial(swept.run, r)
        body = trial.model_dump_json().encode()
        sweep.home_of(run.run).put_bytes(f"runs/r{r}/trial.json", body)
    with pytest.raises(UserError, match="tried on another dataset"):
        run.execute("lora_selection", lora_selection.run)
    assert main(["run", "sweep", "--run", run.run.uri, "--r", "3"]) == 2
    assert "asks for [2, 8], not for r 3" in capsys.readouterr().err
    assert main(["run", "sweep", "--run", lab("none").run.uri]) == 0
    assert "asks for no sweep" in capsys.readouterr().out


def config(**training):
    return build_config({"data": {"source": "x.jsonl"}, "training": training})


@pytest.mark.parametrize(
    ("settings", "epochs", "max_steps", "alpha"),
    [
        ({"epochs": 2}, 0.5, None, 16),
        ({"epochs": 2, "max_steps": 40}, 0.5, 10, 16),
        ({"epochs": 2, "sweep_steps": 30}, 2, 30, 16),
        # Alpha keeps its ratio.
        ({"epochs": 2, "r": 16, "alpha": 32}, 0.5, None, 16),
        ({"epochs": 2, "r": 16, "alpha": 16}, 0.5, None, 8),
    ],
)
def test_the_budget_and_the_alpha_of_a_trial(settings, epochs, max_steps, alpha):
    trial = sweep.trial_config(config(sweep_r=[4, 8], **settings), 8).training
    assert (trial.epochs, trial.max_steps, trial.alpha) == (epochs, max_steps, alpha)


@pytest.mark.parametrize("ranks", [[8], [8, 8], [0, 8], [8, 1024]])
def test_ranks_that_make_no_sweep_are_refused(ranks):
    with pytest.raises(UserError, match="sweep_r"):
        config(sweep_r=ranks)


TARGETS = 40


def trial(r, means, loss_before=3.0, holdout_rows=0, excluded=None):
    """A trial with a mean loss for each validation row."""
    rows = {
        "sums": tuple(TARGETS * float(m) for m in means),
        "targets": (TARGETS,) * len(means),
        "weights": (1.0,) * len(means),
    }
    known = {"alpha": 2 * r, "dataset_sha256": "d", "steps": 10, "seconds": 2.0}
    faults = {"loss_before": loss_before, "holdout_rows": holdout_rows, "excluded": excluded}
    return Trial(r=r, **known, **rows, **faults)


def losses_by_row(seed=0, count=50):
    """Rows that differ from each other by far more than ranks do."""
    return 1.0 + 2.0 * np.random.default_rng(seed).random(count)


@pytest.mark.parametrize("seed", range(20))
def test_the_smaller_rank_is_kept_unless_every_row_shows_a_difference(seed):
    base = losses_by_row(seed)
    noise = np.random.default_rng(seed + 100).normal(0, 0.05, len(base))
    # Centred: the larger rank is better by half a standard error, whatever the seed.
    noise = noise - noise.mean() + 0.5 * 0.05 / np.sqrt(len(base))
    choice = choose([trial(8, base + noise), trial(32, base)])
    assert (choice.r, choice.best_r) == (8, 32)
    assert 0 < choice.excess <= choice.excess_error
    # Far less than rows differ from each other: unpaired, it could not be seen.
    worse = trial(8, base + 0.02 + np.random.default_rng(seed).normal(0, 0.01, len(base)))
    better = trial(32, base)
    assert losses_of(worse).mean - losses_of(better).mean < losses_of(better).standard_error
    choice = choose([worse, better])
    assert choice.r == choice.best_r == 32


def test_the_table_and_the_sentence_show_every_rank():
    base = losses_by_row()
    # The smaller of equals is chosen.
    choice = choose([trial(16, base), trial(8, base), trial(32, base)])
    assert (choice.r, choice.best_r, choice.excess) == (8, 8, 0.0)
    choice = choose([trial(8, base + 1), trial(16, base), trial(64, [], excluded="too large")])
    assert [row["r"] for row in choice.table] == [8, 16, 64]
    assert choice.table[0]["excess"] == pytest.approx(1.0)
    assert choice.table[2]["validation_loss"] is None
    assert "r 16 chosen by the smallest r whose validation loss is within" in choice.sentence
    assert "r 64: too large" in choice.sentence
    assert "largest tried" not in choice.sentence
    assert "it is the largest tried" in choose([trial(8, base + 1), trial(16, base)]).sentence
    with pytest.raises(UserError, match="no rank could be tried to the end"):
        choose([trial(8, [], excluded="out of memory")])


@pytest.mark.parametrize(
    ("change", "accesses", "names", "verdict"),
    [
        ({}, 0, set(), Verdict.PASS),
        ({"holdout_rows": 3}, 0, {"holdout_rows_in_sweep"}, Verdict.FAIL),
        ({}, 1, {"holdout_accesses_in_sweep"}, Verdict.FAIL),
        ({"excluded": "out of memory"}, 0, {"ranks_tried"}, Verdict.WARN),
        # No rank learned anything in the steps it was given.
        ({"loss_before": 0.5}, 0, {"best_validation_loss_in_sweep"}, Verdict.WARN),
    ],
)
def test_each_fault_of_a_sweep_turns_the_verdict(change, accesses, names, verdict):
    of_both = {} if "excluded" in change else change
    trials = [trial(8, losses_by_row(), **of_both), trial(16, losses_by_row(), **change)]
    found = measurements(trials, choose(trials), accesses)
    assert broken(found) == names
    assert conclude(found) == verdict
    by_name = {m.name: m for m in found}
    assert by_name["validation_loss_r8"].noise > 0
    assert by_name["validation_loss_above_best"].limit == 0.0
    assert by_name["sweep_seconds"].value == 4.0
