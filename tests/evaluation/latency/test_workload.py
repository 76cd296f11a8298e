from types import SimpleNamespace

import numpy as np

from tuneline.evaluation.latency.loads import workload_of


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
