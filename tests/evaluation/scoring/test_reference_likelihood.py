"""The likelihood of expected answers: what counts, the numbers, and what is not told."""

import math

import pytest
from tests.evaluation.test_free_text import Notes, evaluate
from tests.lab.runs import broken

from tuneline.data.rendering.renderer import RenderedExample
from tuneline.evaluation.scoring.reference_likelihood import Likelihoods, logprob_gain
from tuneline.serving.engines.llama_cpp.engine import LlamaCpp
from tuneline.statistics import RowLosses


def values(measurements):
    return {m.name: m.value for m in measurements}


def test_only_the_last_answer_counts():
    mask = [False, True, True, False, False, True, True, False]
    row = RenderedExample("", list(range(8)), mask)
    assert row.last_answer() == [False] * 5 + [True, True, False]
    assert RenderedExample("", [1, 2], [False, True]).last_answer() == [False, True]
    assert not any(RenderedExample("", [1, 2], [False, False]).last_answer())


def test_the_gain_is_of_tokens_and_its_interval_of_rows():
    likely = Likelihoods(base=(-4.0, None, -30.0), tuned=(-2.0, None, -10.0), tokens=(2, None, 10))
    found = values(likely.measurements())
    assert found["expected_answer_rows"] == 2
    assert found["expected_answer_tokens"] == 12
    assert found["base_expected_answer_logprob"] == pytest.approx(-34 / 12, abs=1e-4)
    assert found["tuned_expected_answer_logprob"] == pytest.approx(-1.0)
    assert found["expected_answer_logprob_gain"] == pytest.approx(22 / 12, abs=1e-4)
    # Rows gain 1 and 2 nats a token: residuals of -5/3 and 5/3 around the common ratio.
    error = math.sqrt(2 / 1 * 2 * (5 / 3) ** 2) / 12
    assert found["expected_answer_logprob_gain_lower"] == pytest.approx(
        22 / 12 - 1.959964 * error, abs=1e-3
    )
    assert likely.columns["expected_tokens"] == (2, None, 10)
    assert "gain +1.833" in likely.sentence()


def test_a_pair_of_equal_models_gains_nothing():
    same = RowLosses((3.0, 5.0, 9.0), (2, 4, 5), (1.0, 1.0, 1.0))
    gain = logprob_gain(same, same)
    assert (gain.value, gain.lower, gain.upper) == (0.0, 0.0, 0.0)


def test_an_answer_that_a_model_holds_impossible_is_no_number():
    likely = Likelihoods((-math.inf, -1.0), (-1.0, -1.0), (1, 1))
    found = values(likely.measurements())
    assert found["base_expected_answer_logprob"] == "an expected answer is impossible for a model"
    assert found["tuned_expected_answer_logprob"] == -1.0


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("TUNELINE_THREADS", "1")
        yield Notes(tmp_path_factory.mktemp("notes"))


@pytest.fixture(scope="module")
def taught(notes):
    return notes.teach([row["messages"] for row in notes.rows if row["split"] == "train"], 20)


def by_transformers(notes, messages):
    """The log-probability of the last answer by transformers alone, and its tokens."""
    import torch

    model = type(notes.model).from_pretrained(notes.base, dtype=torch.float32)
    apply = notes.tokenizer.apply_chat_template
    whole = notes.tokenizer(apply(messages, tokenize=False))["input_ids"]
    asked = notes.tokenizer(apply(messages[:-1], tokenize=False, add_generation_prompt=True))[
        "input_ids"
    ]
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    end = max(at for at, token in enumerate(whole) if token == notes.tokenizer.eos_token_id)
    places = range(len(asked), end + 1)
    return sum(float(logits[at - 1, whole[at]]) for at in places), len(places)


def test_the_engine_that_ships_tells_what_transformers_computes(notes, taught, tmp_path):
    import pyarrow.parquet as pq

    evidence, found = evaluate(notes, tmp_path, taught)
    path = tmp_path / "store/runs/test/evaluation/holdout_performance/answers.parquet"
    table = {row["row_id"]: row for row in pq.read_table(path).to_pylist()}
    assert found["expected_answer_rows"] == len(table)
    messages = {row["row_id"]: row["messages"] for row in notes.rows}
    for row_id, row in list(table.items())[:3]:
        expected, tokens = by_transformers(notes, messages[row_id])
        assert row["base_expected_logprob"] == pytest.approx(expected, rel=0.01)
        assert row["expected_tokens"] == tokens
    assert found["expected_answer_logprob_gain_lower"] > 0.5
    assert "mean log-probability" in evidence.summary


def test_an_engine_that_tells_none_is_named(notes, taught, tmp_path, monkeypatch):
    monkeypatch.setattr(LlamaCpp, "losses", lambda *_: None)
    monkeypatch.setenv("TUNELINE_CACHE", str(tmp_path / "cache"))
    evidence, found = evaluate(notes, tmp_path, taught)
    said = "llama_cpp does not tell the probabilities of given tokens"
    assert found["expected_answer_logprob"] == f"not measured: {said}"
    assert said in evidence.summary
    assert "expected_answer_logprob" not in broken(evidence)
