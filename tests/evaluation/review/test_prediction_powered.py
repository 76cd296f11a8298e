"""Coverage of the combined win rate, by simulation with people and judges that are made up here."""

import numpy as np
import pytest

from tuneline.evaluation.review.prediction_powered import LEAST_PAIRS, prediction_powered

SCORES = [0.0, 0.5, 1.0]
TRIALS = 400


def trial(rng, pairs, judged, people, agrees, bias):
    """Votes of people on some pairs and of a judge on all.

    The judge repeats what people would say with a probability, else votes by its own bias.
    """
    truth = rng.choice(SCORES, p=people, size=pairs + judged)
    own = rng.choice(SCORES, p=bias, size=pairs + judged)
    judge = np.where(rng.random(pairs + judged) < agrees, truth, own)
    return prediction_powered(truth[:pairs], judge[:pairs], judge[pairs:], 0.05)


PEOPLE = {"even": (0.4, 0.2, 0.4), "tuned": (0.2, 0.1, 0.7), "tuned by far": (0.05, 0.05, 0.9)}
JUDGES = {
    "random": (0.0, (0.4, 0.2, 0.4)),
    "fair": (0.6, (0.4, 0.2, 0.4)),
    "biased": (0.6, (0.05, 0.05, 0.9)),
    "near people": (0.95, (0.4, 0.2, 0.4)),
}


@pytest.mark.parametrize("pairs", [LEAST_PAIRS, 60])
@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("people", PEOPLE)
def test_the_interval_holds_the_true_rate(pairs, people, judge):
    rng = np.random.default_rng(11)
    true = PEOPLE[people][2] + PEOPLE[people][1] / 2
    rates = [trial(rng, pairs, 300, PEOPLE[people], *JUDGES[judge]).win_rate for _ in range(TRIALS)]
    covered = np.mean([rate.lower <= true <= rate.upper for rate in rates])
    # 92 % with a judge that is strongly biased, less two standard errors of 400 trials.
    assert covered >= (0.89 if judge == "biased" else 0.917)


def test_a_good_judge_narrows_the_interval_and_a_random_one_widens_it_little():
    def width(agrees, weightless):
        rng = np.random.default_rng(3)
        found = [trial(rng, 30, 500, PEOPLE["tuned"], agrees, PEOPLE["even"]) for _ in range(100)]
        assert (np.mean([rate.weight for rate in found]) < 0.2) == weightless
        return np.mean([rate.win_rate.upper - rate.win_rate.lower for rate in found])

    assert width(0.9, False) < 0.7 * width(0.0, True)


def test_a_judge_that_always_prefers_one_side_says_nothing():
    people = [1.0, 0.0] * 10
    found = prediction_powered(people, [1.0] * 20, [1.0] * 100, 0.05)
    assert found.weight == 0.0
    assert found.win_rate.value == pytest.approx(0.5)


def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="20 pairs"):
        prediction_powered([1.0] * 19, [1.0] * 19, [1.0] * 50, 0.05)
