import math

import pytest

from tuneline.asking.load import Timing, timing_of
from tuneline.evaluation.latency.table import (
    Objective,
    hardware_line,
    summarise,
    sustained,
    table,
)
from tuneline.serving.client import ChatResult
from tuneline.serving.engines.server import Counters
from tuneline.serving.protocol import Usage

GOAL = Objective(max_ttft=1.0, max_tpot=0.1)


def timing(ttft=0.5, total=2.0, tokens=31, error=""):
    return Timing(ttft, total, 40, 20, tokens, error)


def level(concurrency, timings, seconds=4.0):
    return summarise(concurrency, timings, seconds, float(concurrency), GOAL)


def test_tpot_is_vllms_definition():
    assert timing().tpot == pytest.approx((2.0 - 0.5) / 30)
    assert timing(tokens=1).tpot == 0.0


def test_time_and_tokens_are_the_engines_and_not_the_chunks():
    result = ChatResult("ab", "length", Usage(7, 5, 3), ttft=0.2, total=1.5, chunk_times=(0.2, 1.0))
    assert timing_of(result, 5) == Timing(0.2, 1.0, 7, 3, 5, gaps=(0.8,))
    uncounted = ChatResult("ab", "stop", Usage(), ttft=0.2, total=1.5, chunk_times=(0.2,))
    assert "counted no tokens" in timing_of(uncounted, 5).error


def test_an_answer_that_is_too_short_is_not_the_same_work():
    short = ChatResult("a", "stop", Usage(7, 1, 0), ttft=0.2, total=0.3, chunk_times=(0.2,))
    assert timing_of(short, 5).error == "1 of 5 tokens were generated (finish reason stop)"


def test_an_answer_whose_tokens_show_no_text_was_waited_for_to_its_end():
    unseen = timing_of(ChatResult("", "length", Usage(7, 5, 0), ttft=None, total=1.5), 5)
    assert (unseen.ok, unseen.ttft, unseen.output_tokens) == (True, 1.5, 5)
    assert not GOAL.met(unseen)
    # It has no time between tokens that would improve the others'.
    assert level(1, [unseen, timing()]).tpot_p50 == timing().tpot


def test_goodput_counts_requests_that_meet_both_limits():
    slow_start, slow_tokens = timing(ttft=1.5, total=2.0), timing(total=9.0)
    row = level(2, [timing(), timing(), slow_start, slow_tokens])
    assert row.goodput_per_s == pytest.approx(2 / 4)
    assert row.within_share == 0.5
    assert row.requests_per_s == 1.0
    assert row.tokens_per_s == pytest.approx(4 * 31 / 4)
    assert row.cached_share == 0.5


def test_failed_requests_count_against_the_level_and_give_no_times():
    row = level(1, [timing(), timing(ttft=60, total=60, tokens=0, error="gone")])
    assert (row.failed, row.within_share, row.ttft_p50) == (1, 0.5, 0.5)
    # One request bears no 95th percentile.
    assert math.isnan(row.ttft_p95)
    nothing = level(1, [timing(error="gone")])
    assert table([nothing])[0]["ttft_p50"] is None


def test_the_highest_level_in_a_row_is_sustained():
    good, bad = [timing()] * 8, [timing(ttft=3)] * 8
    assert sustained([level(1, good), level(2, good), level(4, bad)]).concurrency == 2
    # A level that holds above one that does not is luck.
    assert sustained([level(1, good), level(2, bad), level(4, good)]).concurrency == 1
    assert sustained([level(1, bad)]) is None


def test_the_hardware_line_says_what_to_buy():
    good, bad = [timing()] * 8, [timing(ttft=3)] * 8
    line = hardware_line([level(1, good), level(2, good), level(8, bad)], "A box", GOAL)
    assert line == (
        "A box serves 2 requests at once within TTFT ≤ 1 s, TPOT ≤ 0.1 s (100% of 8 requests were; "
        "62 tokens/s); by calculation 8 at once need 4 such machines"
    )
    assert hardware_line([level(1, bad)], "A box", GOAL).endswith("for one request at a time")
    assert hardware_line([level(2, bad)], "A box", GOAL).endswith("for 2 requests at once")


def test_the_batch_comes_from_the_engines_counters():
    before = Counters(0, 0, steps=10.0, step_requests=10.0)
    after = Counters(0, 0, steps=30.0, step_requests=60.0)
    assert after.batch_since(before) == pytest.approx((60 - 10) / 20)
    assert after.batch_since(after) == 0.0


def test_a_p95_stands_where_enough_requests_bear_it():
    times = [timing(ttft=0.1 + n / 1000, total=2.0) for n in range(72)]
    row = level(4, times)
    assert row.ttft_p95 == pytest.approx(0.1 + 0.95 * 0.071)
    lower, upper = row.metrics["time_to_first_token"]["intervals"]["p95"]
    assert lower < 1000 * row.ttft_p95 < upper == pytest.approx(171)
    assert table([level(4, times[1:])])[0]["ttft_p95"] is None


def test_metrics_have_the_names_and_units_of_aiperf():
    row = level(1, [timing()] * 6)
    assert row.metrics["time_to_first_token"]["p50"] == pytest.approx(500)
    assert row.metrics["inter_token_latency"]["avg"] == pytest.approx(50)
    assert row.metrics["request_latency"]["p50"] == pytest.approx(2000)
    assert row.metrics["output_token_throughput"] == {"unit": "tokens/sec", "avg": 6 * 31 / 4}
    assert row.metrics["goodput"] == {"unit": "requests/sec", "avg": 1.5}
    assert row.metrics["output_sequence_length"]["p95"] == 31


def test_gaps_between_chunks_are_apart_from_the_time_per_token():
    """Chunks of several tokens: vLLM's ITL is AIPerf's inter-chunk latency."""
    times = (0.2, 0.3, 0.9)
    result = ChatResult("abc", "length", Usage(7, 8, 0), ttft=0.2, total=1.0, chunk_times=times)
    row = level(1, [timing_of(result, 8)] * 6)
    assert row.metrics["inter_chunk_latency"]["max"] == pytest.approx(600)
    assert row.metrics["inter_token_latency"]["avg"] == pytest.approx(100)


def test_the_share_that_must_be_good_is_a_setting():
    mixed = [timing()] * 9 + [timing(ttft=3)]
    assert level(1, mixed).within
    strict = Objective(max_ttft=1.0, max_tpot=0.1, share=0.95)
    assert not summarise(1, mixed, 4.0, 1.0, strict).within
