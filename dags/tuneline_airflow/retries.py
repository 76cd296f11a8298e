"""Policies that decide which failed tasks get another try."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import tenacity
from airflow.sdk import (
    ExceptionRetryPolicy,
    RetryAction,
    RetryDecision,
    RetryPolicy,
    RetryRule,
)
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from tuneline.errors import RetryableError, UserError
from tuneline_airflow.pod_reasons import exit_code

if TYPE_CHECKING:
    from airflow.sdk import Context

_log = logging.getLogger(__name__)

# `tuneline` leaves "<kind>: <sentence>" as the container's termination message, and the operator
# puts that message into the exception that it raises. `StepPod` adds a message of the same form
# where the container could not.
REASON = re.compile(r"^(user_error|retryable|error): (.*)", re.MULTILINE)

# Durations that variables may state (docs/reference/environment.md).
_SECONDS = {
    "TUNELINE_POD_POLL_SECONDS": 5.0,
    "TUNELINE_RETRY_SECONDS": 20.0,
    "TUNELINE_WAIT_SECONDS": 60.0,
}

# Exit codes of the contract: 1 is a failure of the step, 2 the user's error.
HOPELESS_EXIT_CODES = (1, 2)


def seconds_from(name: str) -> float:
    """Return the duration that a variable states, in seconds.

    A value that is not a positive number is logged and replaced by the default: these
    variables are read while a DAG file is imported, where an error would hide the DAG.
    """
    default = _SECONDS[name]
    text = os.environ.get(name)
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        _log.warning("%s is %r, not a positive number; %g seconds hold", name, text, default)
        return default
    return seconds


def retry_delay() -> timedelta:
    """Return the delay between a failed step and its next try (`TUNELINE_RETRY_SECONDS`)."""
    return timedelta(seconds=seconds_from("TUNELINE_RETRY_SECONDS"))


class StepRetryPolicy(RetryPolicy):
    """Retry failures of the surroundings, never those of the user or the step.

    The operator raises the same exception for every exit code. The reason is therefore read from
    the container's termination message and, if the container was killed and left none, from the
    pod's last status.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,
        context: Context | None = None,
    ) -> RetryDecision:
        """Decide by the reason that the pod left; see `RetryPolicy.evaluate`."""
        if found := REASON.search(str(exception)):
            kind, sentence = found.groups()
            if kind == "retryable":
                return RetryDecision.retry(reason=sentence)
            return RetryDecision.fail(reason=sentence)
        code = exit_code(getattr(context.get("task"), "remote_pod", None)) if context else None
        if code in HOPELESS_EXIT_CODES:
            return RetryDecision.fail(reason=f"the step ended with exit code {code}; see its log")
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Describe the policy in the serialised DAG."""
        return {"__type": type(self).__name__}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> StepRetryPolicy:
        """Rebuild the policy; it has no settings."""
        return cls()


@contextmanager
def fail_plainly() -> Iterator[None]:
    """Fail a task for good with one sentence if the user's error comes up; also a decorator."""
    try:
        yield
    except UserError as error:
        raise AirflowFailException(str(error)) from None


@contextmanager
def asking_again() -> Iterator[None]:
    """Fail a task if an answer of a person can't be taken; its next try asks again."""
    try:
        yield
    except UserError as error:
        raise AirflowException(str(error)) from None


# For tasks in the worker: only an unreachable store is worth another try.
worker_retry_policy = ExceptionRetryPolicy(
    rules=[RetryRule(exception="tuneline.errors.RetryableError", action=RetryAction.RETRY)],
    default=RetryAction.FAIL,
)

# For what a task reads after its pod has worked for hours: a store that is away for a moment must
# not have that work done again.
patiently = tenacity.retry(
    retry=tenacity.retry_if_exception_type(RetryableError),
    stop=tenacity.stop_after_attempt(3),
    wait=lambda _: seconds_from("TUNELINE_RETRY_SECONDS"),
    reraise=True,
)
