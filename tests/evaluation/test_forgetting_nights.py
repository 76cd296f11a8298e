"""Forgetting adds up over nights, and is held against the base of the first release."""

import re
import shutil

import pytest
from tests.lab.nights import release
from tests.lab.runs import Lab, broken, dataset_rows, values

from tuneline.asking.general_questions import Question, load_questions
from tuneline.errors import UserError
from tuneline.evaluation import base_regression

QUESTIONS, LOST_A_NIGHT = 60, 6
# With so few questions, limits between the loss of one night and that of two.
LIMITS = {
    "max_regression": 0.15,
    "max_category_regression": 0.4,
    "regression_to_see": 0.4,
    # What says nothing holds every text impossible.
    "max_perplexity_ratio": 1e307,
}


@pytest.fixture
def ask_anything(monkeypatch):
    """Plant questions; `pattern(number)` is what a right answer to each must hold."""

    def plant(pattern):
        planted = [
            Question(q.id, q.category, q.prompt, {"kind": "regex", "pattern": pattern(n)}, 24)
            for n, q in enumerate(load_questions()[:QUESTIONS])
        ]
        monkeypatch.setattr(base_regression, "load_suite", lambda: planted)

    return plant


def first_night(bench, merged, base):
    """Release what the first night made of the base, with its merged model among its artifacts."""
    night = Lab(bench.root, {"base_model": str(base)}, "night-1")
    files = {f"merged/{path.name}": path for path in merged.iterdir()}
    night.leave("export_candidate", files)
    release(night, {})


def answers_of_base(lab):
    """What the base of a run answers, without the space around it."""
    lab.execute("base_regression")
    return [entry["base"].strip() for entry in lab.lines("base_regression", "answers.jsonl")]


def test_two_nights_that_each_lose_little_lose_too_much_together(
    scored_lab, ask_anything, tiny_models, silent_gguf, tmp_path
):
    # The first night trained the base, the second trained the merged model of the first, at
    # another place. What the second made says nothing.
    merged = tmp_path / "copied"
    shutil.copytree(tiny_models.merged, merged)
    bench = scored_lab(model=silent_gguf, base_model=str(merged), evaluation=LIMITS)
    look = Lab(tmp_path, {"base_model": str(tiny_models.base), "evaluation": LIMITS}, "look")
    look.leave_dataset(dataset_rows({"train": 1}))
    look.leave_shipped(silent_gguf)
    ask_anything(lambda _: "")
    first, second = answers_of_base(look), answers_of_base(bench)
    changed = [n for n in range(QUESTIONS) if first[n] != second[n] and first[n]][:LOST_A_NIGHT]
    silenced = [n for n in range(QUESTIONS) if n not in changed and first[n] and second[n]]
    silenced = silenced[:LOST_A_NIGHT]
    assert len(changed) == len(silenced) == LOST_A_NIGHT

    def pattern(number):
        if number in changed:
            return rf"\A{re.escape(first[number])}\Z"
        # Any answer at all is right, or even none.
        return r"(?s)." if number in silenced else ""

    ask_anything(pattern)
    alone = bench.execute("base_regression")
    # The loss is allowed, and shown.
    assert (alone.verdict, broken(alone)) == ("warn", {"drop_lower"})
    assert values(alone)["drop"] == pytest.approx(LOST_A_NIGHT / QUESTIONS, abs=1e-4)
    assert values(alone)["releases_since_that_base"] == 0

    first_night(bench, tiny_models.merged, tiny_models.base)
    together = bench.execute("base_regression")
    found = values(together)
    assert together.verdict == "fail"
    assert "drop" in broken(together)
    assert found["drop"] == pytest.approx(2 * LOST_A_NIGHT / QUESTIONS, abs=1e-4)
    assert found["base_descends_from_the_first"] is True
    assert found["measured_against"] == str(tiny_models.base)
    assert found["releases_since_that_base"] == 1
    assert f"the first base {tiny_models.base}, 1 release back," in together.summary


def test_a_base_that_comes_from_elsewhere_fails(scored_lab, ask_anything, tiny_models):
    ask_anything(lambda _: "")
    bench = scored_lab(base_model=str(tiny_models.merged), evaluation=LIMITS)
    # The first release was made from another base, and merged to other weights than this run's.
    first_night(bench, tiny_models.base, tiny_models.base)
    evidence = bench.execute("base_regression")
    assert (evidence.verdict, broken(evidence)) == ("fail", {"base_descends_from_the_first"})


def test_a_first_base_that_changed_at_its_address_is_refused(
    scored_lab, ask_anything, tiny_models, tmp_path
):
    ask_anything(lambda _: "")
    base = tmp_path / "moving"
    shutil.copytree(tiny_models.base, base)
    bench = scored_lab(base_model=str(tiny_models.merged), evaluation=LIMITS)
    first_night(bench, tiny_models.merged, base)
    (base / "config.json").write_text((base / "config.json").read_text() + " ")
    with pytest.raises(UserError, match=r"has the digest .* now and had .*put that model back"):
        bench.execute("base_regression")


def test_nights_on_one_base_are_measured_against_it(scored_lab, ask_anything, tiny_models):
    ask_anything(lambda _: "")
    bench = scored_lab(evaluation=LIMITS)
    previous = None
    for count, version in enumerate((None, "night-1", "night-2", "night-3")):
        if version is not None:
            night = Lab(bench.root, {"base_model": str(tiny_models.base)}, version)
            release(night, {}, previous=previous)
            previous = version
        if count in (0, 3):
            evidence = bench.execute("base_regression")
            assert evidence.verdict == "pass", broken(evidence)
            assert values(evidence)["measured_against"] == str(tiny_models.base)
            assert values(evidence)["releases_since_that_base"] == count


def test_a_line_that_does_not_reach_its_first_release_warns(scored_lab, ask_anything, tiny_models):
    ask_anything(lambda _: "")
    bench = scored_lab(evaluation=LIMITS)
    night = Lab(bench.root, {"base_model": str(tiny_models.base)}, "night-2")
    release(night, {}, previous="night-1")
    evidence = bench.execute("base_regression")
    assert (evidence.verdict, broken(evidence)) == ("warn", {"manifests_lead_to_first"})
