"""The requests, their arrivals, and what a load needs in servers."""

from types import SimpleNamespace

import numpy as np
import pytest
from tests.evaluation.latency.test_table import GOAL, level, timing

from tuneline.asking.load import Timing
from tuneline.config.evaluation import LoadConfig
from tuneline.evaluation.latency.loads import (
    OpenLoop,
    arrivals,
    capacity,
    most_at_once,
    queue_growth,
    workload_of,
)


def rows(count):
    return [SimpleNamespace(prompt=[{"role": "user", "content": str(n)}]) for n in range(count)]


def test_lengths_are_those_of_the_answers_and_the_end_token():
    made = workload_of(rows(4), [3, 9, 1, 5], cap=8)
    by_prompt = {request.messages[0]["content"]: request.tokens for request in made.requests}
    assert by_prompt == {"0": 4, "1": 8, "2": 2, "3": 6}
    assert (made.expected.p50, made.expected.longest, made.capped) == (5.0, 10, 1)


def test_every_stretch_has_the_lengths_of_the_whole():
    """Unsorted, a level of eight may get the long answers and the next one the short ones."""
    tokens = sorted(int(n) for n in np.random.default_rng(0).lognormal(3, 0.8, 200))
    made = workload_of(rows(200), tokens, cap=10_000)
    whole = np.median([request.tokens for request in made.requests])
    for start in range(0, 190, 10):
        stretch = np.median([request.tokens for request in made.take(start, 16)])
        assert 0.6 * whole < stretch < 1.6 * whole
    assert sorted(request.tokens for request in made.requests) == [n + 1 for n in tokens]


def test_requests_go_round_and_the_warm_up_takes_those_that_come_last():
    made = workload_of(rows(5), [1, 2, 3, 4, 5], cap=9)
    assert made.take(3, 4) == [*made.requests[3:], *made.requests[:2]]
    assert made.last(2) == list(made.requests[3:])


GOOD, SLOW = [timing()] * 8, [timing(ttft=3)] * 8


def run_at(rate, timings, seconds):
    return OpenLoop(rate, level(1, timings, seconds), 0.0, 0.0)


def test_arrivals_are_seeded_have_the_declared_rate_and_the_bursts_of_a_poisson_process():
    times = arrivals(4000, 20.0, seed=1)
    assert times == arrivals(4000, 20.0, seed=1) != arrivals(4000, 20.0, seed=2)
    assert times == sorted(times)
    assert min(times) >= 0
    assert max(times) <= 200.0
    gaps = np.diff(times)
    assert np.mean(gaps) == pytest.approx(1 / 20, rel=0.01)
    # The standard deviation of an exponential distribution is its mean.
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)


def test_requests_under_way_and_the_growth_of_the_queue():
    """A server of one request a second gets two a second: the queue grows by half of each."""
    timings = [
        Timing(ttft=n * 0.5 + 1, total=n * 0.5 + 1, prompt_tokens=1, cached_tokens=0,
               output_tokens=2, arrived=n * 0.5)
        for n in range(20)
    ]  # fmt: skip
    assert queue_growth(timings) == pytest.approx(1.0)
    # At 9.5 s, when the last one arrives, the tenth is about to end.
    assert most_at_once(timings) == 11
    assert queue_growth([timing(), timing()]) == pytest.approx(0.0)


def test_replicas_and_users_follow_from_what_was_sustained():
    load = LoadConfig(requests_per_s=10, headroom=0.25, requests_per_user_per_minute=2)
    # 8 good requests in 2 seconds.
    found = capacity(load, [level(1, GOOD, 2.0)], [run_at(12.5, SLOW, 4.0), run_at(2, GOOD, 4.0)])
    assert found.goodput == 2.0
    assert found.replicas == 7  # 12.5 / 2 = 6.25
    assert found.users == 48  # 2 × 60 / 2 requests of a user = 60, and a quarter more each
    nothing = capacity(load, [level(1, GOOD, 2.0)], [run_at(12.5, SLOW, 4.0)])
    assert (nothing.goodput, nothing.replicas) == (0.0, None)


def test_a_load_that_holds_never_needs_more_than_the_declared_replicas():
    load = LoadConfig(requests_per_s=3, headroom=0.1, replicas=3)
    slow_closed = [level(1, GOOD, 100.0)]
    held = run_at(load.rate_of_a_replica, GOOD, 8.0)
    assert capacity(load, slow_closed, [held]).replicas == 3
    # Closed loops that sustain more need fewer.
    assert capacity(load, [level(1, GOOD, 2.0)], [held]).replicas == 1


def test_without_a_declared_load_the_best_level_counts():
    found = capacity(LoadConfig(), [level(1, GOOD, 4.0), level(2, GOOD, 2.0)], [])
    assert (found.goodput, found.replicas) == (4.0, None)
    assert capacity(LoadConfig(), [level(1, SLOW)], []).users == 0
    assert GOAL.share == 0.9


def test_a_load_is_declared_once():
    with pytest.raises(ValueError, match="requests_per_s or users, not both"):
        LoadConfig(requests_per_s=1, users=5)
    assert LoadConfig(users=120, requests_per_user_per_minute=0.5).rate == 1.0
    assert LoadConfig().rate is LoadConfig().rate_of_a_replica is None
