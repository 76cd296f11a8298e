"""The rule takes the smallest rank that is as good as the best, as far as the rows can tell."""

import numpy as np
import pytest
from tests.lab.runs import broken

from tuneline.artifacts.training import Trial
from tuneline.errors import UserError
from tuneline.evidence import Verdict, conclude
from tuneline.training.sweep.rank_choice import choose, losses_of, measurements

TARGETS = 40


def trial(r, means, **settings):
    """A trial with a mean loss for each validation row."""
    return Trial(
        **{
            "r": r,
            "alpha": 2 * r,
            "dataset_sha256": "d",
            "holdout_rows": 0,
            "steps": 10,
            "loss_before": 3.0,
            "sums": tuple(TARGETS * float(m) for m in means),
            "targets": (TARGETS,) * len(means),
            "weights": (1.0,) * len(means),
            "seconds": 2.0,
            **settings,
        }
    )


def rows(seed=0, count=50):
    """Rows that differ from each other by far more than ranks do."""
    return 1.0 + 2.0 * np.random.default_rng(seed).random(count)


def test_the_smaller_of_equals_is_chosen():
    base = rows()
    choice = choose([trial(16, base), trial(8, base), trial(32, base)])
    assert (choice.r, choice.best_r, choice.excess) == (8, 8, 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_a_difference_within_the_noise_of_rows_keeps_the_smaller_rank(seed):
    base = rows(seed)
    noise = np.random.default_rng(seed + 100).normal(0, 0.05, len(base))
    # Centred: the larger rank is better by half a standard error, whatever the seed.
    noise = noise - noise.mean() + 0.5 * 0.05 / np.sqrt(len(base))
    choice = choose([trial(8, base + noise), trial(32, base)])
    assert (choice.r, choice.best_r) == (8, 32)
    assert 0 < choice.excess <= choice.excess_error


@pytest.mark.parametrize("seed", range(20))
def test_a_difference_that_every_row_shows_takes_the_larger_rank(seed):
    base = rows(seed)
    better = trial(32, base)
    worse = trial(8, base + 0.02 + np.random.default_rng(seed).normal(0, 0.01, len(base)))
    # Far less than rows differ from each other: unpaired, it could not be seen.
    assert losses_of(worse).mean - losses_of(better).mean < losses_of(better).standard_error
    choice = choose([worse, better])
    assert choice.r == choice.best_r == 32


def test_the_table_and_the_sentence_show_every_rank():
    base = rows()
    choice = choose([trial(8, base + 1), trial(16, base), trial(64, [], excluded="too large")])
    assert [row["r"] for row in choice.table] == [8, 16, 64]
    assert choice.table[0]["excess"] == pytest.approx(1.0)
    assert choice.table[2]["validation_loss"] is None
    assert "r 16 chosen by the smallest r whose validation loss is within" in choice.sentence
    assert "r 64: too large" in choice.sentence
    assert "largest tried" not in choice.sentence
    assert "it is the largest tried" in choose([trial(8, base + 1), trial(16, base)]).sentence


def test_what_the_choice_rests_on_passes_when_all_is_well():
    trials = [trial(8, rows() + 1), trial(16, rows())]
    found = measurements(trials, choose(trials), accesses=0)
    assert conclude(found) == Verdict.PASS
    by_name = {m.name: m for m in found}
    assert by_name["validation_loss_r8"].noise > 0
    assert by_name["validation_loss_above_best"].limit == 0.0
    assert by_name["sweep_seconds"].value == 4.0


@pytest.mark.parametrize(
    ("change", "accesses", "names", "verdict"),
    [
        ({"holdout_rows": 3}, 0, {"holdout_rows_in_sweep"}, Verdict.FAIL),
        ({}, 1, {"holdout_accesses_in_sweep"}, Verdict.FAIL),
        ({"excluded": "out of memory"}, 0, {"ranks_tried"}, Verdict.WARN),
        # No rank learned anything in the steps it was given.
        ({"loss_before": 0.5}, 0, {"best_validation_loss_in_sweep"}, Verdict.WARN),
    ],
)
def test_each_fault_of_a_sweep_turns_the_verdict(change, accesses, names, verdict):
    excluded = "excluded" in change
    trials = [trial(8, rows(), **({} if excluded else change)), trial(16, rows(), **change)]
    found = measurements(trials, choose(trials), accesses)
    assert broken(found) == names
    assert conclude(found) == verdict


def test_no_trial_is_no_choice():
    with pytest.raises(UserError, match="no rank could be tried to the end"):
        choose([trial(8, [], excluded="out of memory")])
