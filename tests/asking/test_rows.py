import pytest
from tests.lab.runs import Lab, dataset_rows

from tuneline.asking.rows import spread, trial_prompts, validation_rows
from tuneline.errors import UserError


@pytest.fixture
def context(tmp_path):
    """Make the context of a step over a dataset with rows of the given splits."""

    def make(**sizes):
        lab = Lab(tmp_path, {})
        lab.leave_dataset(dataset_rows(sizes))
        return lab.context("determinism")

    return make


def test_validation_rows_are_drawn_evenly_and_never_from_another_split(context):
    ctx = context(train=9, validation=12, holdout=6)
    rows = validation_rows(ctx)
    assert len(rows) == 12
    assert {row.split for row in rows} == {"validation"}
    drawn = validation_rows(ctx, 6)
    assert drawn == rows[:6]
    assert sorted(row.label for row in drawn) == sorted(["billing", "login", "shipping"] * 2)


def test_too_few_validation_rows_name_the_setting(context):
    ctx = context(train=9, validation=1, holdout=6)
    assert len(validation_rows(ctx)) == 1
    with pytest.raises(UserError, match=r"at least 2 validation rows, the dataset has 1; raise"):
        validation_rows(ctx, need=2)
    with pytest.raises(UserError, match=r"data\.validation_share"):
        trial_prompts(context(train=9, holdout=6), 3)


def test_trial_prompts_repeat_a_small_split(context):
    ctx = context(train=9, validation=2)
    prompts = trial_prompts(ctx, 5)
    assert len(prompts) == 5
    assert prompts[:2] == prompts[2:4]
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)


def test_the_draw_depends_on_the_seed_and_hardly_on_added_rows(context):
    rows = validation_rows(context(train=3, validation=30))
    few = [row for row in rows if row.row_id != rows[-1].row_id]
    assert spread(rows, 9, 1) != spread(rows, 9, 2)
    kept = {row.row_id for row in spread(rows, 9, 1)} & {r.row_id for r in spread(few, 9, 1)}
    assert len(kept) >= 8
