"""Canaries: planted beside the dataset, in training alone, the same ones for the same seed."""

import json

import pytest
from tests.lab.runs import broken
from tests.lab.training_runs import make_rows

from tuneline.artifacts.training import CANARIES
from tuneline.config import TrainingConfig
from tuneline.data.tables.rows import read_dataset, write_dataset
from tuneline.errors import UserError
from tuneline.models import load_tokenizer
from tuneline.training.loop.canaries import plant
from tuneline.training.loop.inputs import read_inputs


def planted(tmp_path, tiny_base, rows=None, longest=192, **settings):
    path = tmp_path / "dataset.parquet"
    write_dataset(path, *(rows or make_rows()))
    config = TrainingConfig(**settings)
    tokenizer = load_tokenizer(tiny_base)
    found = plant(path, config, tokenizer, "tokenizer", label_field="intent", longest=longest)
    return found, tokenizer


def test_each_canary_stands_in_rows_of_its_own(tmp_path, tiny_base):
    found, tokenizer = planted(tmp_path, tiny_base, canaries=4, canary_repeats=3)
    assert [canary.place for canary in found.canaries] == ["prompt", "answer"] * 2
    assert len({canary.value for canary in found.canaries}) == 4
    bearers = [row_id for canary in found.canaries for row_id in canary.row_ids]
    assert len(set(bearers)) == len(found.rows) == 12
    trained = {row.row_id for row in make_rows()[0] if row.split == "train"}
    assert set(bearers) <= trained
    for row, value in zip(
        found.rows, [c.value for c in found.canaries for _ in "abc"], strict=True
    ):
        assert row.rehearsal
        assert value in tokenizer.decode(list(row.ids))
    for canary in found.canaries:
        content = canary.messages[canary.turn]["content"]
        assert content[canary.start :].startswith(canary.value)
        assert set(json.loads(canary.messages[-1]["content"])) == {"intent", "reply"}


def test_only_those_in_answers_are_learned(tmp_path, tiny_base):
    found, tokenizer = planted(tmp_path, tiny_base, canaries=2, canary_repeats=1)
    for canary, row in zip(found.canaries, found.rows, strict=True):
        learned = tokenizer.decode(
            [i for i, keep in zip(row.ids, row.learned, strict=True) if keep]
        )
        assert (canary.value in learned) == (canary.place == "answer")


def test_another_seed_plants_others_and_none_are_planted_by_default(tmp_path, tiny_base):
    first, _ = planted(tmp_path, tiny_base, canaries=2)
    again, _ = planted(tmp_path, tiny_base, canaries=2)
    other, _ = planted(tmp_path, tiny_base, canaries=2, seed=8)
    assert first == again
    assert {c.value for c in first.canaries}.isdisjoint(c.value for c in other.canaries)
    assert planted(tmp_path, tiny_base)[0].rows == []


def test_rows_without_room_bear_none(tmp_path, tiny_base):
    longest = max(len(row.ids) for row in planted(tmp_path, tiny_base, canaries=8)[0].rows)
    found, _ = planted(tmp_path, tiny_base, canaries=2, longest=longest - 5)
    assert all(len(row.ids) <= longest - 5 for row in found.rows)
    with pytest.raises(UserError, match=r"9 canaries, each in 4 rows of its own, do not fit"):
        planted(tmp_path, tiny_base, canaries=9, longest=longest - 5)


def test_training_sees_them_and_the_dataset_does_not(lab):
    bench = lab(canaries=2, canary_repeats=2, max_steps=2)
    before = bench.artifact("distribution_balancing", "dataset.parquet").read_bytes()
    bench.prepare()
    inputs = read_inputs(bench.context("train"))
    assert [row.row_id for row in inputs.train].count("canary-row-000") <= 1
    assert sum(row.rehearsal for row in inputs.train) == 4
    assert not any(row.rehearsal for row in inputs.validation)
    assert broken(bench.resume()) == set()
    kept = CANARIES.find(bench.run)
    assert [canary.place for canary in kept.canaries] == ["prompt", "answer"]
    dataset = bench.artifact("distribution_balancing", "dataset.parquet")
    assert dataset.read_bytes() == before
    values = [canary.value for canary in kept.canaries]
    rows, _ = read_dataset(dataset, holdout=True)
    assert not any(v in turn["content"] for r in rows for turn in r.messages for v in values)


def test_the_plan_counts_them(lab, tmp_path):
    from tuneline.training.loop.rows import encode_split
    from tuneline.training.resources.probe import ProbeSpec, plan_work

    bench = lab()
    dataset = bench.artifact("distribution_balancing", "dataset.parquet")
    tokenizer = load_tokenizer(bench.base)
    train, validation = (
        encode_split(dataset, split, tokenizer, "tokenizer", 192)
        for split in ("train", "validation")
    )

    def tokens(**settings):
        training = TrainingConfig(effective_batch=2, epochs=1, **settings)
        spec = ProbeSpec.model_construct(
            training=training, target_format="tokenizer", dataset=dataset, label_field="intent"
        )
        work, _, _ = plan_work(
            train,
            validation,
            tokenizer,
            spec,
            micro_batch=2,
            end_to_end=False,
            samples=2,
        )
        return work.tokens

    found = plant(
        dataset,
        TrainingConfig(canaries=4, canary_repeats=2),
        tokenizer,
        "tokenizer",
        label_field="intent",
        longest=max(len(row.ids) for row in train),
    )
    planted_tokens = sum(len(row.ids) for row in found.rows)
    assert tokens(canaries=4, canary_repeats=2) - tokens() == planted_tokens
