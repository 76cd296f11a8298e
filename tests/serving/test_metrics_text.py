"""Metrics in Prometheus' text format."""

import pytest

from tuneline.serving.metrics_text import read_metrics

TEXT = """\
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="a model } of mine"} 3.0
vllm:generation_tokens_total{engine="1",model_name="m"} 4.0 1795678347595
vllm:steps_bucket{le="1.0"} 2.0
vllm:steps_bucket{le="+Inf"} 5.0
vllm:steps_count{engine="0"} 5.0

llamacpp:n_decode_total 17
"""


def test_series_of_one_name_are_added_up():
    assert read_metrics(TEXT) == {
        "vllm:generation_tokens_total": 7.0,
        "vllm:steps_count": 5.0,
        "llamacpp:n_decode_total": 17.0,
    }


def test_what_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="could not convert"):
        read_metrics("<html lang=en>\n")
