"""Definitions behind the latency benchmark: times, rows of the table, loads, servers needed."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from tuneline.asking.load import Timing, timing_of
from tuneline.config.evaluation import LoadConfig
from tuneline.evaluation.latency.loads import (
    OpenLoop,
    arrivals,
    capacity,
    most_at_once,
    queue_growth,
    workload_of,
)
from tuneline.evaluation.latency.table import Objective, hardware_line, summarise, sustained, table
from tuneline.serving.client import ChatResult
from tuneline.serving.protocol import Usage

GOAL = Objective(max_ttft=1.0, max_tpot=0.1)


def timing(ttft=0.5, total=2.0, tokens=31, error=""):
    return Timing(ttft, total, 40, 20, tokens, error)


def level(concurrency, timings, seconds=4.0, goal=GOAL):
    return summarise(concurrency, timings, seconds, float(concurrency), goal)


GOOD, SLOW = [timing()] * 8, [timing(ttft=3)] * 8


def answer(text, finish, usage, chunks, **times):
    return ChatResult(text, finish, Usage(*usage), chunk_times=chunks, **times)


def test_tpot_is_vllms_definition():
    assert timing().tpot == pytest.approx((2.0 - 0.5) / 30)
    assert timing(tokens=1).tpot == 0.0


def test_time_and_tokens_are_the_engines_and_not_the_chunks():
    result = answer("ab", "length", (7, 5, 3), (0.2, 1.0), ttft=0.2, total=1.5)
    assert timing_of(result, 5) == Timing(0.2, 1.0, 7, 3, 5, gaps=(0.8,))
    uncounted = answer("ab", "stop", (), (0.2,), ttft=0.2, total=1.5)
    assert "counted no tokens" in timing_of(uncounted, 5).error
    # An answer that is too short is not the same work.
    short = answer("a", "stop", (7, 1, 0), (0.2,), ttft=0.2, total=0.3)
    assert timing_of(short, 5).error == "1 of 5 tokens were generated (finish reason stop)"
    # One whose tokens show no text was waited for to its end, and improves no time per token.
    unseen = timing_of(answer("", "length", (7, 5, 0), (), ttft=None, total=1.5), 5)
    assert (unseen.ok, unseen.ttft, unseen.output_tokens) == (True, 1.5, 5)
    assert not GOAL.met(unseen)
    assert level(1, [unseen, timing()]).tpot_p50 == timing().tpot
    # Chunks of several tokens: vLLM's ITL is AIPerf's inter-chunk latency.
    result = answer("abc", "length", (7, 8, 0), (0.2, 0.3, 0.9), ttft=0.2, total=1.0)
    row = level(1, [timing_of(result, 8)] * 6)
    assert row.metrics["inter_chunk_latency"]["max"] == pytest.approx(600)
    assert row.metrics["inter_token_latency"]["avg"] == pytest.approx(100)


def test_goodput_counts_requests_that_meet_both_limits():
    slow_start, slow_tokens = timing(ttft=1.5, total=2.0), timing(total=9.0)
    row = level(2, [timing(), timing(), slow_start, slow_tokens])
    assert row.goodput_per_s == pytest.approx(2 / 4)
    assert (row.within_share, row.requests_per_s, row.cached_share) == (0.5, 1.0, 0.5)
    assert row.tokens_per_s == pytest.approx(4 * 31 / 4)
    # The share that must be good is a setting.
    mixed = [timing()] * 9 + [timing(ttft=3)]
    assert level(1, mixed).within
    assert not level(1, mixed, goal=Objective(max_ttft=1.0, max_tpot=0.1, share=0.95)).within


def test_failed_requests_count_against_the_level_and_give_no_times():
    row = level(1, [timing(), timing(ttft=60, total=60, tokens=0, error="gone")])
    assert (row.failed, row.within_share, row.ttft_p50) == (1, 0.5, 0.5)
    # One request has no 95th percentile.
    assert math.isnan(row.ttft_p95)
    assert table([level(1, [timing(error="gone")])])[0]["ttft_p50"] is None


def test_the_highest_level_in_a_row_is_sustained():
    assert sustained([level(1, GOOD), level(2, GOOD), level(4, SLOW)]).concurrency == 2
    # A level that holds above one that does not is luck.
    assert sustained([level(1, GOOD), level(2, SLOW), level(4, GOOD)]).concurrency == 1
    assert sustained([level(1, SLOW)]) is None


def test_the_hardware_line_says_what_to_buy():
    line = hardware_line([level(1, GOOD), level(2, GOOD), level(8, SLOW)], "A box", GOAL)
    assert line == (
        "A box serves 2 requests at once within TTFT ≤ 1 s, TPOT ≤ 0.1 s (100% of 8 requests were; "
        "62 tokens/s); by calculation 8 at once need 4 such machines"
    )
    assert hardware_line([level(1, SLOW)], "A box", GOAL).endswith("for one request at a time")
    assert hardware_line([level(2, SLOW)], "A box", GOAL).endswith("for 2 requests at once")


def rows(tokens, prompts=None):
    """Return rows by the words of their answers; prompts without a system turn are numbers."""
    prompts = prompts or [[f"{number:03}"] for number in range(len(tokens))]
    return [
        SimpleNamespace(
            prompt=[{"role": "user", "content": text} for text in prompt], answer="w " * words
        )
        for words, prompt in zip(tokens, prompts, strict=True)
    ]


def split(texts):
    return [text.split() for text in texts]


def test_lengths_are_those_of_the_answers_and_the_end_token():
    made = workload_of(rows([3, 9, 1, 5]), split, cap=8)
    by_prompt = {request.messages[0]["content"]: request.tokens for request in made.requests}
    assert by_prompt == {"000": 4, "001": 8, "002": 2, "003": 6}
    assert (made.expected.p50, made.expected.longest, made.capped) == (5.0, 10, 1)


def test_every_stretch_has_the_lengths_of_the_whole():
    """Unsorted, a level of eight may get the long answers and the next one the short ones."""
    tokens = sorted(int(n) for n in np.random.default_rng(0).lognormal(3, 0.8, 200))
    made = workload_of(rows(tokens), split, cap=10_000)
    whole = np.median([request.tokens for request in made.requests])
    for start in range(0, 190, 10):
        stretch = np.median([request.tokens for request in made.take(start, 16)])
        assert 0.6 * whole < stretch < 1.6 * whole
    assert sorted(request.tokens for request in made.requests) == [n + 1 for n in tokens]
    # Requests go round, and the warm-up takes those that come last.
    around = [*made.requests[198:], *(one.again(1) for one in made.requests[:2])]
    assert made.take(198, 4) == around
    assert made.last(2) == [one.again(-1) for one in made.requests[198:]]


def test_a_prompt_that_comes_again_has_a_number_behind_what_it_shares():
    """Two tenants with system turns of their own; one question begins like another one."""
    prompts = [["Be brief.", "my invoice is wrong"], ["Be brief.", "my parcel"], ["Être bref.", ""]]
    made = workload_of(rows([1, 1, 1], prompts), split, cap=8)
    again = {
        tuple(turn["content"] for turn in one.messages): one.own_tokens for one in made.take(3, 3)
    }
    assert again == {
        ("Be brief.", "my 1 voice is wrong"): 3,
        ("Be brief.", "my 1 rcel"): 1,
        ("1 re bref.", ""): 2,
    }
    sent = [tuple(turn["content"] for turn in one.messages) for one in made.take(-3, 60)]
    assert len(set(sent)) == 60


def test_arrivals_are_seeded_have_the_declared_rate_and_the_bursts_of_a_poisson_process():
    times = arrivals(4000, 20.0, seed=1)
    assert times == arrivals(4000, 20.0, seed=1) != arrivals(4000, 20.0, seed=2)
    assert times == sorted(times)
    assert 0 <= min(times) < max(times) <= 200.0
    gaps = np.diff(times)
    assert np.mean(gaps) == pytest.approx(1 / 20, rel=0.01)
    # The standard deviation of an exponential distribution is its mean.
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)


def test_requests_under_way_and_the_growth_of_the_queue():
    """A server of one request a second gets two a second: the queue grows by half of each."""
    late = [(n * 0.5 + 1, n * 0.5) for n in range(20)]
    timings = [Timing(waited, waited, 1, 0, 2, arrived=at) for waited, at in late]
    assert queue_growth(timings) == pytest.approx(1.0)
    # At 9.5 s, when the last one arrives, the tenth is about to end.
    assert most_at_once(timings) == 11
    assert queue_growth([timing(), timing()]) == pytest.approx(0.0)


def run_at(rate, timings, seconds):
    return OpenLoop(rate, level(1, timings, seconds), 0.0, 0.0, 0.5)


def test_replicas_and_users_follow_from_what_was_sustained():
    load = LoadConfig(requests_per_s=10, headroom=0.25, requests_per_user_per_minute=2)
    # 8 good requests in 2 seconds.
    closed = [level(1, GOOD, 2.0)]
    found = capacity(load, closed, [run_at(12.5, SLOW, 4.0), run_at(2, GOOD, 4.0)])
    # 12.5 / 2 = 6.25 servers; 2 × 60 / 2 requests of a user = 60, and a quarter more each.
    assert (found.goodput, found.replicas, found.users) == (2.0, 7, 48)
    nothing = capacity(load, closed, [run_at(12.5, SLOW, 4.0)])
    assert (nothing.goodput, nothing.replicas) == (0.0, None)
    # Without a declared load the best level counts.
    found = capacity(LoadConfig(), [level(1, GOOD, 4.0), level(2, GOOD, 2.0)], [])
    assert (found.goodput, found.replicas) == (4.0, None)
    assert capacity(LoadConfig(), [level(1, SLOW)], []).users == 0


def test_a_load_that_holds_never_needs_more_than_the_declared_replicas():
    load = LoadConfig(requests_per_s=3, headroom=0.1, replicas=3)
    held = run_at(load.rate_of_a_replica, GOOD, 8.0)
    assert capacity(load, [level(1, GOOD, 100.0)], [held]).replicas == 3
    # Closed loops that sustain more need fewer.
    assert capacity(load, [level(1, GOOD, 2.0)], [held]).replicas == 1


def test_a_load_is_declared_once():
    with pytest.raises(ValueError, match="requests_per_s or users, not both"):
        LoadConfig(requests_per_s=1, users=5)
    assert LoadConfig(users=120, requests_per_user_per_minute=0.5).rate == 1.0
    assert LoadConfig().rate is LoadConfig().rate_of_a_replica is None
