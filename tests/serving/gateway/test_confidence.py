import json

import pytest

from tuneline.serving.gateway.chain.acceptance import is_low
from tuneline.serving.gateway.protocol import mean_logprob, token_logprobs
from tuneline.serving.gateway.upstream_config import LowConfidenceConfig

MEAN = LowConfidenceConfig(min_mean_logprob=-1.0)
WEAKEST = LowConfidenceConfig(min_mean_logprob=-1.0, min_token_logprob=-3.0)


def test_mean_and_weakest_token_decide():
    assert not is_low([-0.5, -1.5], MEAN)
    assert is_low([-0.5, -1.6], MEAN)
    assert not is_low([-0.1] * 50 + [-4.0], MEAN)
    assert is_low([-0.1] * 50 + [-4.0], WEAKEST)
    assert mean_logprob([-0.5, -1.5]) == pytest.approx(-1.0)


def test_unknown_is_not_low():
    assert mean_logprob([]) is None
    assert not is_low([], WEAKEST)


@pytest.mark.parametrize(
    "choice",
    [None, {}, {"logprobs": None}, {"logprobs": {"content": None}}, {"logprobs": {"content": [1]}}],
)
def test_absent_logprobs_are_none_at_all(choice):
    assert token_logprobs(choice) == []


def test_logprobs_are_read_from_llama_cpp_and_openai_shapes():
    content = [{"id": 1, "token": "a", "logprob": -0.25, "top_logprobs": []}, {"logprob": -2}]
    assert token_logprobs({"logprobs": {"content": content}}) == [-0.25, -2.0]


def test_a_number_that_no_ledger_takes_is_no_confidence():
    content = [{"logprob": json.loads(value)} for value in ("-1e999", "1e999", "-0.5")]
    assert token_logprobs({"logprobs": {"content": content}}) == [-0.5]
