import pytest
from tests.lab.runs import broken, value, values

from tuneline.errors import UserError
from tuneline.evaluation import base_regression
from tuneline.evaluation.base_regression import by_category, choose_questions, judge
from tuneline.harness.general_questions import Question, load_questions
from tuneline.harness.intervals import paired


def test_a_model_that_forgot_fails_and_one_that_kept_passes():
    base = [True] * 70 + [False] * 70
    same = [True] * 66 + [False] * 4 + [True] * 5 + [False] * 65
    forgot = [True] * 45 + [False] * 95
    assert broken(judge(paired(base, base), None)) == set()
    assert broken(judge(paired(base, same), None)) == set()
    assert broken(judge(paired(base, forgot), None)) == {"drop"}


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


@pytest.fixture
def known_questions(monkeypatch):
    """Plant the question set: the tiny models know nothing but to answer with their JSON."""
    known = [
        Question(q.id, q.category, q.prompt, {"kind": "regex", "pattern": r"\{"}, 24)
        for q in load_questions()[:24]
    ]
    monkeypatch.setattr(base_regression, "load_questions", lambda: known)


def test_both_models_are_really_asked(scored_lab, known_questions):
    bench = scored_lab()
    evidence = bench.execute("base_regression")
    assert value(evidence, "questions") == 24
    entries = bench.lines("base_regression", "answers.jsonl")
    assert all(entry["base"] and entry["tuned"] for entry in entries)
    right = sum(entry["base_right"] for entry in entries)
    assert value(evidence, "base_share") == pytest.approx(right / 24, abs=1e-4)
    again = bench.execute("base_regression")
    assert values(again) == {**values(evidence), "base_answers_from_cache": True}


def test_a_candidate_that_has_forgotten_everything_fails(scored_lab, known_questions, silent_gguf):
    evidence = scored_lab(model=silent_gguf).execute("base_regression")
    assert evidence.verdict == "fail"
    assert broken(evidence) == {"drop"}
    assert value(evidence, "tuned_share") == 0.0
    assert "is more than the allowed" in evidence.summary
