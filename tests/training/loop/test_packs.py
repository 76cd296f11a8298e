"""Rows of a step are shared out in few packs of limited length, none lost, none twice."""

import random

import pytest
import torch
from transformers import DataCollatorWithFlattening

from tuneline.artifacts.training import Plan
from tuneline.training.loop.flat_batch import flatten
from tuneline.training.loop.packs import (
    BatchShape,
    collate_share,
    cut_share,
    pack_run,
    pack_step,
    share_columns,
)
from tuneline.training.loop.rows import EncodedRow, as_batch


def make_row(number, length, learned_from=1):
    ids = tuple(100 * number + i for i in range(length))
    learned = tuple(i >= learned_from for i in range(length))
    return EncodedRow(f"row-{number}", ids, learned, 1.0 + number % 3, number % 4 == 0)


def flat(packs):
    return sorted(i for share in packs for pack in share for i in pack)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_packs_hold_every_row_once_and_are_equally_many_on_all_processes(processes):
    draw = random.Random(3)
    for _ in range(200):
        lengths = [draw.randrange(2, 200) for _ in range(processes * draw.randrange(1, 9))]
        limit = draw.randrange(20, 900)
        packs = pack_step(lengths, processes, limit)
        assert flat(packs) == list(range(len(lengths)))
        assert len(packs) == processes
        assert len({len(share) for share in packs}) == 1
        for pack in (pack for share in packs for pack in share):
            assert pack
            assert len(pack) == 1 or sum(lengths[i] for i in pack) <= limit


def test_few_packs_are_made_and_their_loads_are_level():
    packs = pack_step([60, 10, 10, 50, 30, 20, 20, 40], 1, 125)
    assert sorted(sum([60, 10, 10, 50, 30, 20, 20, 40][i] for i in p) for p in packs[0]) == [
        120,
        120,
    ]
    # Whatever the limit is, a row is never cut.
    assert [len(share) for share in pack_step([60, 10, 10, 50], 2, 5)] == [2, 2]


def test_steps_keep_their_rows_whatever_the_limit_is():
    lengths = [5, 9, 3, 7, 8, 2, 4, 6]
    for limit in (9, 12, 100):
        steps = pack_run(lengths, 4, 2, limit)
        assert [flat(step) for step in steps] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_smaller_micro_batch_after_memory_ran_out_makes_shorter_packs():
    known = {"accumulation": 1, "world_size": 1, "effective_batch": 8, "threads": 1}
    known |= {"device": "cpu", "precision": "fp32", "estimate": {}, "pack_tokens": 800}
    assert Plan(micro_batch=8, **known).pack_limit == 800
    assert Plan(micro_batch=2, planned_micro_batch=8, **known).pack_limit == 200


def test_a_share_comes_back_from_the_loader_pack_by_pack():
    rows = [make_row(n, 3 + n) for n in range(6)]
    steps = [[[[0, 2], [1]]], [[[5], [3, 4]]]]
    columns = share_columns(rows, steps)
    entries = [{name: columns[name][i] for name in columns} for i in range(2)]
    batches = [cut_share(collate_share(torch, [entry], 0)) for entry in entries]
    for step, found in zip(steps, batches, strict=True):
        for pack, batch in zip(step[0], found, strict=True):
            assert batch["weight"].tolist() == [rows[i].weight for i in pack]
            assert batch["rehearsal"].tolist() == [rows[i].rehearsal for i in pack]
            for i, ids, mask in zip(pack, batch["input_ids"], batch["attention_mask"], strict=True):
                assert ids[mask.bool()].tolist() == list(rows[i].ids)


@pytest.mark.parametrize("limits", [True, False])
def test_a_flat_batch_is_that_of_transformers_collator(limits):
    rows = [make_row(1, 5), make_row(2, 1), make_row(3, 7, learned_from=0), make_row(4, 2)]
    batch = as_batch(torch, rows, 0)
    laid = flatten(batch, variable_lengths=limits)
    theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=limits)(
        [{"input_ids": list(row.ids), "labels": row.labels} for row in rows]
    )
    assert laid.features.keys() == theirs.keys()
    for name, cells in theirs.items():
        assert torch.equal(torch.as_tensor(laid.features[name]), torch.as_tensor(cells)), name
    # Its values go back to the rows that they were predicted for.
    following = laid.features["input_ids"][:, 1:]
    restored = laid.restore(following)
    mask = batch["attention_mask"][:, 1:].bool()
    assert torch.equal(restored, torch.where(mask, batch["input_ids"][:, 1:], 0))


def test_shares_of_padding_and_packing_are_counted():
    lengths = [10, 2, 4, 4]
    padded = BatchShape.padded(lengths, 4, 2, end_to_end=False)
    assert padded.summary() == {
        "packed_share": 0.0,
        "padding_share": round(8 / 28, 4),
        "tokens_per_step": 20.0,
        "micro_batches_per_step": 2.0,
    }
    assert BatchShape.padded(lengths, 4, 2, end_to_end=True).padding_share == 0
    packed = BatchShape.packed(lengths, [[[[0], [1, 2, 3]]]])
    assert packed.summary() == {
        "packed_share": 0.75,
        "padding_share": 0.0,
        "tokens_per_step": 20.0,
        "micro_batches_per_step": 2.0,
    }
