"""The real base model in the candidate's place: nothing was tuned, so nothing may be lost."""

import pytest
from tests.lab.runs import Lab, values
from tests.lab.tiny_task import task_rows

from tuneline.harness.served_models import untuned as untuned_model

pytestmark = [pytest.mark.model, pytest.mark.long]


@pytest.fixture
def untuned(tmp_path):
    """A run whose shipped bytes are the base model's own."""
    lab = Lab(tmp_path, {"evaluation": {"regression_questions": 120, "max_new_tokens": 16}})
    lab.leave_dataset(task_rows({"train": 10, "validation": 8, "holdout": 4}))
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
