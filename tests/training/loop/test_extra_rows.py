"""Canaries and rehearsal answers are trained on besides the dataset."""

import json

import pytest
from pydantic import ValidationError
from tests.lab.runs import Lab, broken
from tests.lab.training_runs import make_rows

from tuneline.artifacts.training import CANARIES
from tuneline.asking.general_questions import load_suite
from tuneline.config import TrainingConfig, build_config
from tuneline.data.tables.rows import read_dataset, write_dataset
from tuneline.errors import UserError
from tuneline.models import load_tokenizer, resolve
from tuneline.serving.engines.llama_cpp.engine import LlamaCpp
from tuneline.training.loop import extra_rows
from tuneline.training.loop.extra_rows import plant
from tuneline.training.loop.rows import encode_split
from tuneline.training.resources.probe import plan_work
from tuneline.training.train import read_inputs


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
    copied = [row_id for canary in found.canaries for row_id in canary.row_ids]
    assert len(set(copied)) == len(found.rows) == 12
    assert set(copied) <= {row.row_id for row in make_rows()[0] if row.split == "train"}
    for number, row in enumerate(found.rows):
        canary = found.canaries[number // 3]
        assert row.rehearsal
        assert canary.value in tokenizer.decode(list(row.ids))
        learned = [i for i, keep in zip(row.ids, row.learned, strict=True) if keep]
        # Only those in answers are learned.
        assert (canary.value in tokenizer.decode(learned)) == (canary.place == "answer")
    for canary in found.canaries:
        content = canary.messages[canary.turn]["content"]
        assert content[canary.start :].startswith(canary.value)
        assert set(json.loads(canary.messages[-1]["content"])) == {"intent", "reply"}


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
    with pytest.raises(UserError, match=r"9 canaries, each in 4 extra rows, do not fit"):
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


def test_the_plan_counts_them(lab):
    bench = lab()
    dataset = bench.artifact("distribution_balancing", "dataset.parquet")
    tokenizer = load_tokenizer(bench.base)
    train, validation = (
        encode_split(dataset, split, tokenizer, "tokenizer", 192)
        for split in ("train", "validation")
    )

    def tokens(**settings):
        training = {"effective_batch": 2, "epochs": 1, **settings}
        sections = {"data": {"source": "x", "label_field": "intent"}, "training": training}
        known = {"micro_batch": 2, "end_to_end": False, "samples": 2}
        config = build_config(sections)
        return plan_work(train, validation, tokenizer, config, dataset, **known)[0].tokens

    settings = {"canaries": 4, "canary_repeats": 2}
    longest = max(len(row.ids) for row in train)
    where = {"label_field": "intent", "longest": longest}
    found = plant(dataset, TrainingConfig(**settings), tokenizer, "tokenizer", **where)
    assert tokens(**settings) - tokens() == sum(len(row.ids) for row in found.rows)


def test_no_prompt_is_or_resembles_a_question_that_measures_forgetting():
    asked, measured = extra_rows.prompts(), [q.prompt for q in load_suite()]
    assert len(asked) == len(set(asked)) >= 60
    grams = lambda text: {text.lower()[n : n + 5] for n in range(len(text) - 4)}  # noqa: E731
    for prompt in asked:
        for question in measured:
            a, b = grams(prompt), grams(question)
            assert len(a & b) / len(a | b) < 0.8, (prompt, question)


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        ("The moon is far. It is", "The moon is far."),
        ("Yes!", "Yes!"),
        ("It costs 3.5", ""),
        ("no end", ""),
        ("One. Two? Three", "One. Two?"),
    ],
)
def test_answers_end_in_whole_sentences(answer, whole):
    assert extra_rows.whole_sentences(answer) == whole


def test_a_resumed_run_rehearses_the_same_rows(tmp_path, monkeypatch):
    lab = Lab(tmp_path, {"training": {"rehearsal_rows": 2}})
    answers = iter([["First. and", "Second."], ["Other.", "Other."]])
    monkeypatch.setattr(extra_rows, "base_of", lambda ctx: None)
    monkeypatch.setattr(LlamaCpp, "untuned", lambda *_: None)
    monkeypatch.setattr(extra_rows, "ask_kept", lambda *_: (next(answers), False))
    first = extra_rows.conversations(lab.context("train"), 2)
    again = extra_rows.conversations(lab.context("train"), 2)
    assert first == again
    assert [turns[-1]["content"] for turns in first] == ["First.", "Second."]
    most = len(extra_rows.prompts())
    assert TrainingConfig(rehearsal_rows=most)
    with pytest.raises(ValidationError, match=r"rehearsal_rows"):
        TrainingConfig(rehearsal_rows=most + 1)


@pytest.mark.model
def test_the_base_answers_become_rows_that_learn_the_answer_only(tmp_path):
    lab = Lab(tmp_path, {"training": {"rehearsal_rows": 2}})
    ctx = lab.context("train")
    tokenizer = load_tokenizer(resolve(lab.run.config.base_model).path)
    rows = extra_rows.rehearsal_rows(ctx, tokenizer)
    said = json.loads((ctx.out / "rehearsal.json").read_text())
    assert len(rows) == len(said) >= 1
    learned = [i for i, keep in zip(rows[0].ids, rows[0].learned, strict=True) if keep]
    assert tokenizer.decode(learned).strip().startswith(said[0][-1]["content"][:20])
