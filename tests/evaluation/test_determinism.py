import itertools
import json

import pytest
from tests.evaluation.conftest import SPLITS
from tests.lab.data_runs import answer
from tests.lab.runs import broken, dataset_rows, value, values
from tests.lab.tiny_task import make_tokenizer, task_rows
from tests.lab.unsteady_engine import UnsteadyEngine

from tuneline.errors import RetryableError
from tuneline.evaluation.determinism import Repeats, identical_share, judge, prompts_for
from tuneline.evaluation.repeated_prompts.answers import (
    closed,
    first_difference,
    label_reach,
    shows_label,
    view_of,
)
from tuneline.serving.client import EngineClient
from tuneline.step import execute


def test_other_prose_is_the_same_structure_and_another_label_is_not():
    first, view = answer("login", "Yes."), view_of("intent", ())
    prose = Repeats("a", (first, first), (first, answer("login", "No.")))
    label = Repeats("b", (first, first), (first, answer("billing", "Yes.")))
    assert [m.ok for m in judge([prose], 1.0, view) if m.rule] == [True, True]
    assert identical_share([prose], "batched") == 0.5
    found = judge([prose, label], 1.0, view)
    assert broken(found) == {"identical_structure_batched"}
    assert {m.name: m.value for m in found}["identical_structure_batched"] == 0.75
    assert all(m.ok for m in judge([prose, label], 0.7, view) if m.rule)
    # Free text is compared as it is.
    text = Repeats("a", ("yes", "yes", "Yes"), ("yes",))
    assert broken(judge([text], 1.0, view_of(None, ()))) == {"identical_structure_alone"}
    assert first_difference(["a", "b", "c"], ["a", "x", "c"]) == (2, "b", "x")
    assert first_difference(["a"], ["a", "b"]) == (2, "the end of the answer", "b")


@pytest.mark.parametrize(("share", "prompts"), [(0.5, 5), (0.9, 29), (0.95, 59), (0.99, 299)])
def test_prompts_without_a_flip_that_show_a_share(share, prompts):
    """The chance that n prompts show no flip is share**n; five in a hundred are allowed."""
    assert prompts_for(share) == prompts
    assert share**prompts <= 0.05 < share ** (prompts - 1)


@pytest.mark.parametrize(
    ("cut", "whole"),
    [
        ('{"intent": "login", "reply": "We lo', '{"intent": "login", "reply": "We lo"}'),
        ('{"intent": "login", "reply": "a\\', '{"intent": "login", "reply": "a"}'),
        ('{"intent": "login", ', '{"intent": "login"}'),
        ('{"intent": "login", "rep', '{"intent": "login", "rep": null}'),
        ('{"intent": "login", "reply":', '{"intent": "login", "reply": null}'),
        ('{"tags": ["a", {"b": 1', '{"tags": ["a", {"b": 1}]}'),
        ("plain text {", "plain text {"),
        ('{"intent": "login"}', '{"intent": "login"}'),
    ],
)
def test_a_cut_answer_is_closed(cut, whole):
    assert closed(cut) == whole


@pytest.fixture
def unsteady(lab, tmp_path, monkeypatch):
    """Measure an engine whose fault is planted; the evidence and the run."""
    make_tokenizer().save_pretrained(tmp_path / "merged")

    def measure(fault, *, dies_after=None, rows=40, reply="", **evaluation):
        engine = UnsteadyEngine(fault, dies_after, reply)
        monkeypatch.setattr("tuneline.evaluation.repeated_prompts.asking.server_of", engine.serve)
        bench = lab(evaluation=evaluation)
        bench.leave_dataset(dataset_rows({"train": 4, "validation": rows}))
        model = tmp_path / "model.gguf"
        model.write_bytes(b"GGUF")
        bench.leave_shipped(model)
        files = {f"merged/{p.name}": p for p in (tmp_path / "merged").iterdir() if p.is_file()}
        bench.leave("export_candidate", {**files, "candidate.gguf": model})
        return bench, engine

    return measure


def test_a_steady_engine_passes_and_its_sentence_says_what_the_sample_supports(unsteady):
    bench, engine = unsteady(lambda _: False)
    evidence = bench.execute("determinism")
    assert evidence.verdict == "pass", evidence.summary
    # One prompt fewer would not show it.
    assert value(evidence, "prompts") == 29
    assert value(evidence, "prompts_that_repeat_alone_at_least") == 0.9019
    assert "at least 90.1 % of prompts keep theirs" in evidence.summary
    assert "not tried: apart (evaluation.determinism_forms is `shipped`)" in evidence.summary
    assert engine.starts == 2
    assert engine.slots == [4, 4]
    entries = bench.document("determinism", "repeats.json")
    counts = {(len(e["alone"]), len(e["batched"]), len(e["restarted"])) for e in entries}
    assert counts == {(2, 2, 1)}
    # Alone twice, after a restart once, and in batches twice with company for the last ones.
    assert engine.requests == 29 * 3 + 2 * (29 + 3)


def test_a_sample_that_is_too_small_decides_nothing(unsteady):
    bench, _ = unsteady(lambda _: False, rows=12)
    evidence = bench.execute("determinism")
    assert evidence.verdict == "inconclusive"
    assert "to show 90% takes 29 prompts without a flip" in evidence.summary


def test_answers_that_differ_in_batches_only(unsteady):
    bench, _ = unsteady(lambda asked: asked.together)
    evidence = bench.execute("determinism")
    found = values(evidence)
    assert evidence.verdict == "fail"
    assert found["identical_structure_alone"] == found["identical_structure_restarted"] == 1.0
    assert found["identical_structure_batched"] < 0.2
    assert found["first_token_became"] in ("o", "ot", "oth", "other")
    assert found["first_token_was"] in "billing login shipping"
    assert found["first_differing_token"] > 1
    assert "in a batch, token" in evidence.summary
    assert bench.document("determinism", "flips.json")["first"]["mode"] == "batched"


def test_answers_that_differ_after_a_restart_only(unsteady):
    bench, _ = unsteady(lambda asked: asked.start % 2 == 0)
    evidence = bench.execute("determinism")
    found = values(evidence)
    assert evidence.verdict == "fail"
    assert found["identical_structure_alone"] == found["identical_structure_batched"] == 1.0
    assert found["identical_structure_restarted"] == 0.0
    assert "after a restart, token" in evidence.summary


def test_a_flip_of_one_in_twenty_prompts(unsteady):
    first = []

    def fault(asked):
        first[:] = first or [asked.question]
        return asked.question == first[0] and asked.times % 2 == 1

    bench, _ = unsteady(fault, determinism_prompts=20)
    evidence = bench.execute("determinism")
    assert evidence.verdict == "fail"
    assert value(evidence, "prompts_that_flip") == 1
    assert value(evidence, "prompts_that_repeat_alone") == 0.95
    # At most 0.2161 of prompts flip where one of 20 did, by tables of Clopper and Pearson.
    assert value(evidence, "prompts_that_repeat_alone_at_least") == 0.7839
    assert "1 changed alone (at least 78.3 % keep their structure)" in evidence.summary


@pytest.mark.parametrize(
    ("tokens", "verdict", "names"),
    [
        (16, "inconclusive", {"labels_compared"}),
        (48, "fail", {"identical_structure_batched", "prompts_that_repeat_batched_at_least"}),
    ],
)
def test_a_label_that_is_not_compared_decides_nothing(unsteady, tokens, verdict, names):
    """It flips in batches, and stands behind thirty words."""
    bench, _ = unsteady(lambda asked: asked.together, reply="word " * 30, determinism_tokens=tokens)
    evidence = bench.execute("determinism")
    assert (evidence.verdict, broken(evidence)) == (verdict, names)
    assert value(evidence, "labels_compared") == (29 if verdict == "fail" else 0)


def test_the_share_of_an_answer_that_reaches_its_label():
    late = '{"reply": "login one two three four", "intent": "login", "more": "seven eight"}'
    end = late.index('"login"') + len('"login"')
    assert label_reach(late, "intent") == pytest.approx(end / len(late))
    assert label_reach('{"intent": "login", "reply": "one two"}', "intent") < 0.5
    assert label_reach("no JSON", "intent") == label_reach('{"a": 1}', "intent") == 1.0
    start = late.index('"login"')
    shown = [shows_label(late[: start + more], "intent") for more in (0, 4, 7, 12)]
    assert shown == [False, False, True, True]


def test_a_server_that_dies_leaves_its_answers_and_a_failed_item(unsteady):
    bench, _ = unsteady(lambda _: False, dies_after=40)
    with pytest.raises(RetryableError, match="can't be reached"):
        execute("determinism", bench.run.uri)
    evidence = bench.run.find_evidence("determinism")
    assert evidence.verdict == "fail"
    assert "partial results are kept: repeats.json" in evidence.summary
    entries = bench.document("determinism", "partial/repeats.json")
    assert sum(len(entry["alone"]) for entry in entries) == 40


@pytest.mark.parametrize(
    ("fault", "verdict", "names"),
    [
        # The third and fourth start are of the merged model, which answers otherwise.
        (lambda asked: asked.start > 2, "pass", set()),
        # A form that does not ship only warns.
        (
            lambda asked: asked.start > 2 and asked.together,
            "warn",
            {"identical_structure_merged_f16"},
        ),
    ],
)
def test_a_form_that_the_run_has_is_tried_if_asked_for(unsteady, fault, verdict, names):
    bench, engine = unsteady(fault, determinism_forms="all")
    quantised = {**bench.document("production_quantization", "choice.json"), "variant": "q8_0"}
    files = {"model.gguf": bench.root / "model.gguf", "choice.json": json.dumps(quantised)}
    bench.leave("production_quantization", files)
    evidence = bench.execute("determinism")
    assert (evidence.verdict, broken(evidence)) == (verdict, names), evidence.summary
    assert engine.starts == 4
    if verdict == "pass":
        assert value(evidence, "identical_structure_merged_f16") == 1.0
        assert value(evidence, "same_as_shipped_merged_f16") == 0.0
    assert "apart (" in value(evidence, "forms_not_tried")


def test_the_real_server_repeats_itself(scored_lab):
    bench = scored_lab(deployment={"context_tokens": 256})
    evidence = bench.execute("determinism")
    assert evidence.verdict == "pass", evidence.summary
    for mode in ("alone", "batched", "restarted"):
        assert value(evidence, f"identical_structure_{mode}") == 1.0
    repeats = bench.document("determinism", "repeats.json")
    assert [(len(e["alone"]), len(e["batched"])) for e in repeats] == [(2, 2)] * 29
    held = {row["row_id"] for row in task_rows(SPLITS)[-48:]}
    assert held.isdisjoint(entry["row_id"] for entry in repeats)


def test_an_engine_that_samples_fails(scored_lab, tiny_models, monkeypatch):
    """The fault is planted in the request: the real server samples, each time by another seed."""
    seeds = itertools.count()
    greedy = EngineClient.chat

    def hot(self, messages, **options):
        return greedy(self, messages, **{**options, "temperature": 2.0, "seed": next(seeds)})

    monkeypatch.setattr(EngineClient, "chat", hot)
    bench = scored_lab()
    merged = {f"merged/{p.name}": p for p in tiny_models.merged.iterdir() if p.is_file()}
    bench.leave("export_candidate", merged)
    evidence = bench.execute("determinism")
    assert evidence.verdict == "fail"
    assert value(evidence, "identical_bytes_alone") < 1.0
