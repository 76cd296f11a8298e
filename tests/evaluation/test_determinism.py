import itertools
import json

import pytest
from tests.evaluation.conftest import SPLITS
from tests.lab.runs import broken, value
from tests.lab.tiny_task import task_rows

from tuneline.errors import UserError
from tuneline.evaluation.determinism import Repeats, identical_share, judge
from tuneline.serving.client.client import EngineClient


def answer(intent, reply):
    return json.dumps({"intent": intent, "reply": reply})


def test_other_prose_is_the_same_structure_and_another_label_is_not():
    first = answer("login", "Yes.")
    prose = Repeats("a", (first, first), (first, answer("login", "No.")))
    label = Repeats("b", (first, first), (first, answer("billing", "Yes.")))
    assert [m.ok for m in judge([prose], "intent", 1.0) if m.rule] == [True, True]
    assert identical_share([prose], "batched") == 0.5
    found = judge([prose, label], "intent", 1.0)
    assert broken(found) == {"identical_structure_batched"}
    assert {m.name: m.value for m in found}["identical_structure_batched"] == 0.75
    assert all(m.ok for m in judge([prose, label], "intent", 0.7) if m.rule)


def test_free_text_is_compared_as_it_is():
    one = Repeats("a", ("yes", "yes", "Yes"), ("yes",))
    assert broken(judge([one], None, 1.0)) == {"identical_structure_alone"}


def test_the_real_server_repeats_itself(scored_lab):
    bench = scored_lab(deployment={"context_tokens": 256})
    evidence = bench.execute("determinism")
    assert evidence.verdict == "pass"
    assert value(evidence, "identical_structure_alone") == 1.0
    assert value(evidence, "identical_structure_batched") == 1.0
    repeats = bench.document("determinism", "repeats.json")
    assert [len(entry["alone"]) for entry in repeats] == [3, 3, 3, 3]
    assert [len(entry["batched"]) for entry in repeats] == [3, 3, 3, 3]
    held = {row["row_id"] for row in task_rows(SPLITS)[-48:]}
    assert held.isdisjoint(entry["row_id"] for entry in repeats)


def test_an_engine_that_samples_fails(scored_lab, monkeypatch):
    """The fault is planted in the request: the real server samples, each time by another seed."""
    seeds = itertools.count()
    greedy = EngineClient.chat

    def hot(self, messages, **options):
        return greedy(self, messages, **{**options, "temperature": 2.0, "seed": next(seeds)})

    monkeypatch.setattr(EngineClient, "chat", hot)
    evidence = scored_lab().execute("determinism")
    assert evidence.verdict == "fail"
    assert value(evidence, "identical_bytes_alone") < 1.0


def test_too_few_validation_rows_are_the_users_error(scored_lab):
    bench = scored_lab(rows=task_rows({"train": 20, "validation": 1, "holdout": 5}))
    with pytest.raises(UserError, match="at least 2 validation rows"):
        bench.execute("determinism")
