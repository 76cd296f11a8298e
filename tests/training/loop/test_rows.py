"""Rows are tokenised whole, learned where the assistant speaks, and seen in a fixed order."""

import math
from collections import Counter

import pytest
import torch
from tests.lab.training_runs import MAX_TOKENS, make_rows

from tuneline.data.tables.rows import write_dataset
from tuneline.errors import UserError
from tuneline.models import load_tokenizer
from tuneline.training.loop.rows import IGNORED, as_batch, encode_split, run_order, total_steps


@pytest.fixture
def tokenizer(tiny_base):
    return load_tokenizer(tiny_base)


def write(tmp_path, rows, weights):
    path = tmp_path / "dataset.parquet"
    write_dataset(path, rows, weights)
    return path


def test_only_the_answer_is_learned(tmp_path, tokenizer):
    rows, weights = make_rows()
    encoded = encode_split(
        write(tmp_path, rows, weights), "validation", tokenizer, "tokenizer", MAX_TOKENS
    )
    assert len(encoded) == 12
    for row, source in zip(encoded, rows[36:], strict=True):
        learned = tokenizer.decode([i for i in row.labels if i != IGNORED])
        assert learned == source.answer + "<|im_end|>"
        assert row.targets == sum(row.learned)
    assert [row.weight for row in encoded] == weights[36:]


@pytest.mark.parametrize(
    ("weight", "limit", "split", "message"),
    [
        (1.0, 20, "train", "tokens, the training context is 20"),
        (0.0, MAX_TOKENS, "train", "weight 0.0 is not positive"),
        (math.nan, MAX_TOKENS, "train", "weight nan is not positive"),
        (1.0, MAX_TOKENS, "holdout", "has no holdout rows"),
    ],
)
def test_rows_that_can_not_be_trained_on_are_refused(
    tmp_path, tokenizer, weight, limit, split, message
):
    rows, weights = make_rows(train=3, validation=1)
    path = write(tmp_path, rows, [weight, *weights[1:]])
    with pytest.raises(UserError, match=message):
        encode_split(path, split, tokenizer, "tokenizer", limit)


def batches_of(order, size=8):
    return [order[at : at + size] for at in range(0, len(order), size)]


def test_the_order_shows_every_row_before_any_twice_and_the_longest_batch_first():
    assert (total_steps(330, 8, 1.0, None), total_steps(330, 8, 2.5, None)) == (42, 104)
    assert (total_steps(330, 8, 1.0, 5), total_steps(3, 8, 0.1, None)) == (5, 1)
    lengths = [10 + (i * 37) % 90 for i in range(50)]
    order = run_order(lengths, 8, 13, seed=3)
    assert len(order) == 8 * 13
    # Two passes of 50 rows and four rows of a third.
    counts = Counter(order)
    assert set(counts) == set(range(50))
    assert sorted(set(counts.values())) == [2, 3]
    tokens = [sum(lengths[i] for i in batch) for batch in batches_of(order)]
    assert tokens[0] == max(tokens)
    assert order == run_order(lengths, 8, 13, seed=3) != run_order(lengths, 8, 13, seed=4)


def test_grouping_by_length_saves_padding():
    lengths = [10 + (i * 37) % 90 for i in range(200)]

    def padding(order):
        return sum(
            8 * max(lengths[i] for i in batch) - sum(lengths[i] for i in batch)
            for batch in batches_of(order)
        )

    assert padding(run_order(lengths, 8, 25, seed=1)) < 0.35 * padding(list(range(200)))


def test_rehearsal_rows_are_dealt_out_evenly():
    # Short and all alike, they would fill batches of their own if only length counted.
    lengths = [60 + (i * 37) % 40 for i in range(160)] + [30] * 32
    rehearsal = [False] * 160 + [True] * 32
    order = run_order(lengths, 4, 48, seed=2, rehearsal=rehearsal)
    assert sorted(order) == list(range(192))
    blind = run_order(lengths, 4, 48, seed=2)
    dealt, by_length = (
        max(sum(rehearsal[i] for i in batch) for batch in batches_of(o, 4)) for o in (order, blind)
    )
    assert dealt <= 2 < by_length == 4


def test_a_batch_is_padded_and_masked(tmp_path, tokenizer):
    path = write(tmp_path, *make_rows(train=4, validation=1))
    rows = encode_split(path, "train", tokenizer, "tokenizer", MAX_TOKENS)
    batch = as_batch(torch, rows, pad_id=0)
    longest = max(len(row.ids) for row in rows)
    assert batch["input_ids"].shape == (4, longest)
    for i, row in enumerate(rows):
        size = len(row.ids)
        assert batch["input_ids"][i, :size].tolist() == list(row.ids)
        assert batch["attention_mask"][i].sum() == size
        assert (batch["labels"][i, size:] == IGNORED).all()
    assert batch["weight"].tolist() == [row.weight for row in rows]
