from types import SimpleNamespace

import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowException

from tuneline.errors import RetryableError, UserError
from tuneline_airflow.failures import StepRetryPolicy, seconds_from, worker_retry_policy


def pod(code=None):
    terminated = None if code is None else SimpleNamespace(exit_code=code)
    container = SimpleNamespace(state=SimpleNamespace(terminated=terminated))
    return SimpleNamespace(status=SimpleNamespace(container_statuses=[container]))


def decide(message, remote_pod=None):
    context = {"task": SimpleNamespace(remote_pod=remote_pod)}
    return StepRetryPolicy().evaluate(AirflowException(message), 1, 2, context)


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        ("user_error", RetryAction.FAIL),
        ("error", RetryAction.FAIL),
        ("retryable", RetryAction.RETRY),
    ],
)
def test_the_termination_message_decides(kind, action):
    decision = decide(f"Pod tl-1 returned a failure.\n{kind}: the reason, in a sentence")
    assert decision.action == action
    assert decision.reason == "the reason, in a sentence"


@pytest.mark.parametrize("code", [1, 2])
def test_without_a_message_the_exit_code_of_a_broken_step_is_final(code):
    decision = decide("Pod tl-1 returned a failure.", pod(code))
    assert decision.action == RetryAction.FAIL
    assert str(code) in decision.reason


@pytest.mark.parametrize(
    ("message", "ended"),
    [
        *(("Pod tl-1 returned a failure.", pod(code)) for code in (75, 137, 143, None)),
        # In the middle of a line it is no reason.
        ("Pod tl-1 returned a failure.\nsaid user_error: once", pod(137)),
        ("Pod took too long to start", None),
    ],
)
def test_what_was_killed_or_never_started_is_tried_again(message, ended):
    assert decide(message, ended).action == RetryAction.DEFAULT


def test_what_is_no_error_of_a_pod_is_tried_again():
    decision = StepRetryPolicy().evaluate(ConnectionError("no route"), 1, 2)
    assert decision.action == RetryAction.DEFAULT


def test_the_policy_survives_serialisation():
    policy = StepRetryPolicy()
    again = StepRetryPolicy.deserialize(policy.serialize())
    assert isinstance(again, StepRetryPolicy)


def test_worker_tasks_retry_only_when_the_surroundings_failed():
    assert worker_retry_policy.evaluate(RetryableError("s3"), 1, 2).action == RetryAction.RETRY
    assert worker_retry_policy.evaluate(UserError("typo"), 1, 2).action == RetryAction.FAIL
    assert worker_retry_policy.evaluate(KeyError("bug"), 1, 2).action == RetryAction.FAIL


@pytest.mark.parametrize(("value", "seconds"), [("", 20), ("1.5", 1.5), ("soon", 20), ("-3", 20)])
def test_a_duration_falls_back_to_its_default(monkeypatch, caplog, value, seconds):
    monkeypatch.setenv("TUNELINE_RETRY_SECONDS", value)
    assert seconds_from("TUNELINE_RETRY_SECONDS") == seconds
    assert bool(caplog.records) == (value in ("soon", "-3"))
