"""Rehearsal: prompts of its own, answers of the base, ends in whole sentences."""

import json

import pytest
from tests.lab.runs import Lab

from tuneline.asking.general_questions import load_suite
from tuneline.errors import UserError
from tuneline.serving.engines.llama_cpp.engine import LlamaCpp
from tuneline.training.loop import rehearsal


def test_no_prompt_is_or_resembles_a_question_that_measures_forgetting():
    asked, measured = rehearsal.prompts(), [q.prompt for q in load_suite()]
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
    assert rehearsal.whole_sentences(answer) == whole


def test_a_resumed_run_rehearses_the_same_rows(tmp_path, monkeypatch):
    lab = Lab(tmp_path, {"training": {"rehearsal_rows": 2}})
    answers = iter([["First. and", "Second."], ["Other.", "Other."]])
    monkeypatch.setattr(rehearsal, "base_of", lambda ctx: None)
    monkeypatch.setattr(LlamaCpp, "untuned", lambda *_: None)
    monkeypatch.setattr(rehearsal, "ask_kept", lambda *_: (next(answers), False))
    first = rehearsal.conversations(lab.context("train"), 2)
    again = rehearsal.conversations(lab.context("train"), 2)
    assert first == again
    assert [turns[-1]["content"] for turns in first] == ["First.", "Second."]


def test_more_rows_than_prompts_is_the_users_error(tmp_path):
    lab = Lab(tmp_path, {})
    with pytest.raises(UserError, match=r"rehearsal_rows: 1000 rows are asked for"):
        rehearsal.conversations(lab.context("train"), 1000)


@pytest.mark.model
def test_the_base_answers_become_rows_that_learn_the_answer_only(tmp_path):
    from tuneline.models import load_tokenizer, resolve

    lab = Lab(tmp_path, {"training": {"rehearsal_rows": 2}})
    ctx = lab.context("train")
    tokenizer = load_tokenizer(resolve(lab.run.config.base_model).path)
    rows = rehearsal.rehearsal_rows(ctx, tokenizer)
    said = json.loads((ctx.out / "rehearsal.json").read_text())
    assert len(rows) == len(said) >= 1
    learned = [i for i, keep in zip(rows[0].ids, rows[0].learned, strict=True) if keep]
    assert tokenizer.decode(learned).strip().startswith(said[0][-1]["content"][:20])
