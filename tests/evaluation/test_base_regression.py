import json

import pytest

from tuneline.errors import UserError
from tuneline.evaluation import base_regression
from tuneline.evaluation.base_regression import by_category, choose_questions, judge
from tuneline.harness.general_questions import Question, load_questions
from tuneline.harness.intervals import paired


def verdict(base, tuned, limit=None):
    return [m.name for m in judge(paired(base, tuned), limit) if m.ok is False]


def test_a_model_that_forgot_fails_and_one_that_kept_passes():
    base = [True] * 70 + [False] * 70
    same = [True] * 66 + [False] * 4 + [True] * 5 + [False] * 65
    forgot = [True] * 45 + [False] * 95
    assert verdict(base, base) == []
    assert verdict(base, same) == []
    assert verdict(base, forgot) == ["drop"]


def test_the_allowed_drop_follows_from_the_noise():
    base = [True] * 70 + [False] * 70
    tuned = [True] * 60 + [False] * 10 + [True] * 8 + [False] * 62
    drop = judge(paired(base, tuned), None)[0]
    assert drop.value == pytest.approx(2 / 140, abs=1e-4)
    assert drop.limit == pytest.approx(2 * drop.noise, abs=2e-4)
    assert drop.noise == pytest.approx((19 / 142**2) ** 0.5, rel=0.02)


def test_a_limit_tighter_than_the_noise_is_refused():
    base = [True] * 10 + [False] * 10
    tuned = [True] * 6 + [False] * 4 + [True] * 4 + [False] * 6
    with pytest.raises(UserError, match="tighter than the measured noise"):
        judge(paired(base, tuned), 0.02)


def test_too_few_questions_to_see_a_loss_warn():
    measurements = judge(paired([True, False] * 6, [False, True] * 6), None)
    breach = next(m for m in measurements if m.ok is False)
    assert (breach.name, breach.on_breach) == ("detectable_drop", "warn")


def test_questions_are_taken_evenly_over_categories():
    questions = [Question(f"{c}{n}", c, "?", {}, 8) for c in "ab" for n in range(5)]
    assert [q.id for q in choose_questions(questions, 3)] == ["a0", "b0", "a1"]
    assert choose_questions(questions, None) == questions
    table = by_category(questions, [True] * 10, [True] * 5 + [False] * 5)
    assert [(row.category, row.questions, row.change) for row in table] == [
        ("a", 5, 0.0),
        ("b", 5, -1.0),
    ]


def test_both_models_are_really_asked(scored_lab, monkeypatch):
    """The tiny models know nothing general; what they know is planted as the question set."""
    prompts = load_questions()[:20]
    # The base of the test answers everything with its JSON, so `{` counts as right here.
    known = [
        Question(q.id, q.category, q.prompt, {"kind": "regex", "pattern": r"\{"}, 24)
        for q in prompts
    ]
    monkeypatch.setattr(base_regression, "load_questions", lambda: known)
    bench = scored_lab()
    evidence = bench.execute("base_regression", base_regression.run)
    found = {m.name: m.value for m in evidence.measurements}
    assert found["questions"] == 20
    reader = bench.context("prepare_review")
    lines = reader.input("base_regression", "answers.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert all(entry["base"] and entry["tuned"] for entry in entries)
    assert found["base_share"] == sum(entry["base_right"] for entry in entries) / 20
    again = bench.execute("base_regression", base_regression.run)
    assert {m.name: m.value for m in again.measurements} == {
        **found,
        "base_answers_from_cache": True,
    }
