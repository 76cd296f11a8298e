import pytest
from tests.lab.waiting import wait_for

from tuneline.serving.gateway.attempt_status import AttemptStatus
from tuneline.serving.gateway.chain.upstream import Breaker, Circuit
from tuneline.serving.gateway.upstream_config import BreakerConfig

from .conftest import upstream_entry

LIMITS = BreakerConfig(failures=3, error_share=0.5, window_s=10, window_requests=6, open_s=5)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(LIMITS, clock)


def ask(breaker, outcome):
    assert breaker.passes
    breaker.end(outcome, trial=breaker.begin())


def test_failures_in_a_row_open_it_and_a_success_starts_anew(breaker):
    for outcome in (
        AttemptStatus.TIMEOUT,
        AttemptStatus.TIMEOUT,
        AttemptStatus.OK,
        AttemptStatus.TIMEOUT,
    ):
        ask(breaker, outcome)
    ask(breaker, AttemptStatus.DIED_MIDSTREAM)
    assert breaker.state is Circuit.CLOSED
    ask(breaker, AttemptStatus.UPSTREAM_5XX)
    assert breaker.state is Circuit.OPEN
    assert not breaker.passes
    assert breaker.retry_after_s() == 5


def test_a_share_of_failures_within_the_window_opens_it(breaker, clock):
    for outcome in (AttemptStatus.TIMEOUT, AttemptStatus.OK) * 2:
        ask(breaker, outcome)
    # Old ones no longer count: there are too few to judge.
    clock.now = 11
    for outcome in (
        AttemptStatus.OK,
        AttemptStatus.TIMEOUT,
        AttemptStatus.OK,
        AttemptStatus.TIMEOUT,
        AttemptStatus.OK,
    ):
        ask(breaker, outcome)
    assert breaker.state is Circuit.CLOSED
    ask(breaker, AttemptStatus.TIMEOUT)
    assert breaker.state is Circuit.OPEN


@pytest.mark.parametrize(
    "outcome",
    [
        AttemptStatus.LOW_CONFIDENCE,
        AttemptStatus.INVALID_JSON,
        AttemptStatus.CLIENT_ERROR,
        AttemptStatus.CONTEXT_OVERFLOW,
        AttemptStatus.CLIENT_ABORTED,
        AttemptStatus.BUDGET_SPENT,
        AttemptStatus.UPSTREAM_BUSY,
    ],
)
def test_what_is_not_the_servers_failure_opens_nothing(breaker, outcome):
    for _ in range(20):
        ask(breaker, outcome)
    assert breaker.state is Circuit.CLOSED


def opened(breaker):
    for _ in range(LIMITS.failures):
        ask(breaker, AttemptStatus.CONNECT_ERROR)
    return breaker


def test_half_open_one_request_tries_it(breaker, clock):
    opened(breaker)
    clock.now = 5
    assert breaker.state is Circuit.HALF_OPEN
    trial = breaker.begin()
    assert trial
    assert not breaker.passes
    breaker.end(AttemptStatus.TIMEOUT, trial=trial)
    assert breaker.state is Circuit.OPEN
    clock.now = 10
    ask(breaker, AttemptStatus.OK)
    assert breaker.state is Circuit.CLOSED
    ask(breaker, AttemptStatus.TIMEOUT)
    assert breaker.state is Circuit.CLOSED


def test_a_trial_that_says_nothing_lets_the_next_one_try(breaker, clock):
    opened(breaker)
    clock.now = 5
    ask(breaker, AttemptStatus.CLIENT_ABORTED)
    assert breaker.state is Circuit.HALF_OPEN
    assert breaker.passes


def test_requests_sent_before_it_opened_decide_nothing(breaker, clock):
    early = [breaker.begin() for _ in range(4)]
    for trial in early[:3]:
        breaker.end(AttemptStatus.TIMEOUT, trial=trial)
    breaker.end(AttemptStatus.OK, trial=early[3])
    assert breaker.state is Circuit.OPEN


def gateway_of(start, small, large, **limits):
    breaker = {"failures": 2, "open_s": 0.5, **limits}
    gateway = start(upstream_entry(small, breaker=breaker), large)
    gateway.wait_all_ready()
    return gateway


def circuit(gateway):
    return gateway.client.get("/v1/health/ready").json()["circuits"]["small"]


def test_an_open_circuit_is_passed_over_shown_and_tried_again(start, small, large):
    gateway = gateway_of(start, small, large, open_s=60)
    small.mode = "garbage"
    for _ in range(2):
        assert gateway.chat().headers["x-tuneline-fallback-reason"] == "bad_response"
    small.bodies.clear()
    small.mode = "ok"
    response = gateway.chat()
    assert response.headers["x-tuneline-fallback-reason"] == "circuit_open"
    assert response.headers["x-tuneline-skipped"] == "small=circuit_open"
    assert response.headers["x-tuneline-attempts"] == "large"
    assert small.requests() == []
    assert circuit(gateway) == "open"
    metrics = gateway.client.get("/metrics").text
    assert 'tuneline_gateway_circuit_open{upstream="small"} 1' in metrics
    assert 'tuneline_gateway_skipped_total{reason="circuit_open",upstream="small"} 1' in metrics


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_recovered_is_used_again(start, small, large, stream):
    gateway = gateway_of(start, small, large, open_s=0.05)
    small.mode = "garbage"
    for _ in range(2):
        gateway.chat()
    small.mode = "ok"
    wait_for(lambda: circuit(gateway) == "half_open")
    assert gateway.chat(stream=stream).headers["x-tuneline-served-by"] == "small"
    assert circuit(gateway) == "closed"


def test_with_every_circuit_open_the_client_is_told_when_to_come_back(calm, small):
    limits = {"failures": 1, "open_s": 60}
    gateway = calm(upstream_entry(small, breaker=limits))
    small.mode = "garbage"
    assert gateway.chat().status_code == 502
    response = gateway.chat()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "circuit_open"
    assert 0 < int(response.headers["retry-after"]) <= 60
    assert response.headers["x-tuneline-skipped"] == "small=circuit_open"
