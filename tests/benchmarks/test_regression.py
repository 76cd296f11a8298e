import json
import shutil

import pytest
from benchmarks.contest.contest import Contest
from benchmarks.contest.options import Options
from benchmarks.contest.trial import Sample
from benchmarks.regression import counted, find_kept, keep, planned
from benchmarks.training.adapters import RECIPES, with_scrambled_words, with_shuffled_answers
from benchmarks.training.rows import sample_conversations

from benchmarks import regression
from tuneline.errors import UserError


def entry(forgets, verdict, drop=0.0, ratio=1.0):
    return {
        "forgets": forgets,
        "verdict": verdict,
        "drop": drop,
        "perplexity_ratio": ratio,
        "questions": 160,
        "cpu_seconds": 90.0,
    }


def test_every_recipe_is_taken_in_turn_and_half_of_the_adapters_forget():
    order = planned(6)
    assert [recipe.forgets for recipe, _ in order] == [False, True, False] * 3
    assert {recipe.name for recipe, _ in order} == {recipe.name for recipe in RECIPES}
    assert len({(recipe.name, seed) for recipe, seed in order}) == 9
    # What is decided already is not asked again by a call for more.
    assert set(order) <= set(planned(40))


def test_shuffled_labels_keep_rows_and_answers_and_part_them():
    plain, shuffled = sample_conversations(40, 3), with_shuffled_answers(40, 3)
    assert [turns[:-1] for turns in plain] == [turns[:-1] for turns in shuffled]
    answers = [[turns[-1]["content"] for turns in rows] for rows in (plain, shuffled)]
    assert sorted(answers[0]) == sorted(answers[1])
    assert sum(a == b for a, b in zip(*answers, strict=True)) < 20


def test_scrambled_answers_differ_by_seed_and_share_no_row_with_the_task():
    first, second = with_scrambled_words(8, 1), with_scrambled_words(8, 2)
    assert first != second
    assert all(len(turns[-1]["content"].split()) == 24 for turns in first)


def test_alarms_and_what_is_inconclusive_are_counted_apart_with_exact_intervals():
    found = [entry(False, "pass")] * 5 + [entry(False, "inconclusive", 0.04)]
    found += [entry(True, "fail", 0.2, 9.0), entry(True, "fail", 0.3, "not measured: …")]
    results = {result.metric: result for result in counted(found)}
    alarms = results["alarms_harmless"]
    assert (alarms.value, alarms.min, alarms.runs) == (0.0, 0.0, 6)
    # Clopper and Pearson: 1 - 0.025 ** (1 / 6).
    assert alarms.max == pytest.approx(0.4593, abs=1e-3)
    assert results["inconclusive_harmless"].value == pytest.approx(1 / 6, abs=1e-4)
    caught = results["alarms_forgetful"]
    assert (caught.value, caught.max) == (1.0, 1.0)
    assert caught.min == pytest.approx(0.1581, abs=1e-3)
    assert results["drop_forgetful"].value == 0.25
    assert results["perplexity_ratio_forgetful"].runs == 1


def test_what_was_decided_is_not_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(regression, "KEPT", tmp_path / "bench" / "regression.jsonl")
    asked = []

    def decided(recipe, seed, options):
        asked.append((recipe.name, seed))
        return entry(recipe.forgets, "fail" if recipe.forgets else "pass")

    monkeypatch.setattr(regression, "_decided", decided)
    monkeypatch.setattr("tuneline.models.resolve", lambda *_, **__: type("B", (), {"digest": "d"}))
    regression.run(Options(tmp_path, lambda _: None, runs=2))
    assert len(asked) == 3
    report = regression.run(Options(tmp_path, lambda _: None, runs=4))
    assert len(asked) == len(set(asked)) == 6
    assert report.value("base_regression", "alarms_forgetful") == 1.0
    # Other settings are another measurement.
    regression.run(Options(tmp_path, lambda _: None, runs=2, rows=100))
    assert len(asked) == 9


def test_a_kept_line_is_found_by_all_of_its_key(tmp_path):
    path = tmp_path / "kept.jsonl"
    keep(path, {"key": {"seed": 1, "rate": 1e-4}, "verdict": "pass"})
    assert find_kept(path, {"seed": 1, "rate": 1e-4})["verdict"] == "pass"
    assert find_kept(path, {"seed": 1, "rate": 1e-3}) is None
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 1


def test_rows_of_ones_own_are_refused(tmp_path):
    with pytest.raises(UserError, match="takes no --input"):
        regression.run(Options(tmp_path, lambda _: None, input=tmp_path / "rows.jsonl"))


@pytest.mark.long
def test_a_real_adapter_that_was_trained_on_noise_is_caught(tmp_path, monkeypatch):
    monkeypatch.setattr(regression, "KEPT", tmp_path / "regression.jsonl")
    report = regression.run(Options(tmp_path / "work", print, runs=1, rows=160))
    assert report.value("base_regression", "alarms_forgetful") == 1.0
    assert report.value("base_regression", "alarms_harmless") == 0.0


def test_the_item_decides_on_the_model_that_was_trained(tiny_models, tmp_path, monkeypatch):
    """All but the training: a run of its own, the exported bytes, the item's own evidence."""
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TUNELINE_THREADS", "1")
    monkeypatch.setattr(regression, "BASE", str(tiny_models.base))
    given = {False: tiny_models.base_gguf, True: tiny_models.candidate_gguf}
    (tmp_path / "work").mkdir()

    def train(contest, system, job):
        shutil.copy(given[system.name == "rate too high"], job["gguf"])
        return Sample("0", 1, 2.0, 2.0, 1.0, {"last_loss": 3.0})

    monkeypatch.setattr(Contest, "run", train)
    options = Options(tmp_path / "work", lambda _: None, rows=40)
    by_name = {recipe.name: recipe for recipe in RECIPES}
    same = regression._decided(by_name["other seed"], 1, options)
    other = regression._decided(by_name["rate too high"], 1, options)
    assert (same["drop"], same["perplexity_ratio"], same["last_loss"]) == (0.0, 1.0, 3.0)
    assert "drop" not in same["broken"]
    assert other["perplexity_ratio"] != 1.0
    assert same["questions"] == other["questions"] == 40
    assert same["cpu_seconds"] > 0
    assert not list((tmp_path / "work").iterdir())
