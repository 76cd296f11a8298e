"""The real base model in the candidate's place: nothing was tuned, so nothing may be lost."""

import pytest
from tests.lab.runs import Lab, values
from tests.lab.tiny_task import task_rows

from tuneline.asking.models import untuned as untuned_model

# Some two minutes of processor time on two cores, much more beside other work.
pytestmark = [pytest.mark.model, pytest.mark.long, pytest.mark.timeout(3600)]
# Prompts that show a share of 80 % if none flips.
PROMPTS, TO_SHOW = 14, 0.8


@pytest.fixture
def untuned(tmp_path):
    """A run whose shipped bytes are the base model's own."""
    settings = {
        "regression_questions": 120,
        "regression_texts": 12,
        "max_new_tokens": 16,
        "identical_share_to_show": TO_SHOW,
    }
    lab = Lab(tmp_path, {"evaluation": settings})
    lab.leave_dataset(task_rows({"train": 10, "validation": PROMPTS, "holdout": 4}))
    lab.leave_shipped(untuned_model(lab.context("base_regression")).path)
    return lab


def test_the_base_has_not_forgotten_what_it_knows(untuned):
    evidence = untuned.execute("base_regression")
    found = values(evidence)
    # Answers in batches may part at a near-tie, so a question or two either way are no loss.
    assert abs(found["drop"]) <= 0.02
    assert found["perplexity_ratio"] == 1.0
    assert evidence.verdict != "fail"
    # Neither hopeless nor perfect, so that a loss would show.
    assert 0.25 < found["base_share"] < 0.9


def test_the_real_model_repeats_itself(untuned):
    evidence = untuned.execute("determinism")
    assert evidence.verdict == "pass", evidence.summary
    assert values(evidence)["prompts_that_repeat_batched_at_least"] >= TO_SHOW
