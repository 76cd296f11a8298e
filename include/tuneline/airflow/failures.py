"""Why a pod failed, which task tries again, and what the run does without it."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import tenacity
from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryDecision, RetryPolicy, RetryRule
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from tuneline.catalogue import Item, Severity, get_step
from tuneline.errors import EXIT_USER, RetryableError, UserError, first_line
from tuneline.failures import ended_by_error
from tuneline.run import Run
from tuneline.step import leave_killed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import BaseOperator, Context

# URI of a run, which `prepare_run` leaves for all of its tasks.
RUN_URI = "{{ ti.xcom_pull(task_ids='prepare_run') }}"
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
    text = os.environ.get(name) or str(default)
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    _log.warning("%s is %r, not a positive number; %g seconds hold", name, text, default)
    return default


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


# A container waits for these while it starts; none of them is a problem.
_STARTING = {None, "", "ContainerCreating", "PodInitializing"}
_IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
# Phases of a pod that has not ended; one that is gone was last seen in one of them.
_UNENDED = {"Pending", "Running", "Unknown"}
DELETED = "retryable: the pod was deleted while it was running"
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError"}


def pending_reason(pod: Any) -> str | None:
    """Return the reason that a pod is not running yet, None if there is none."""
    status = pod.status
    for condition in status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return _unscheduled(pod, condition.message or condition.reason or "no reason given")
    for container in [*(status.init_container_statuses or []), *(status.container_statuses or [])]:
        waiting = container.state.waiting if container.state else None
        if waiting is None or waiting.reason in _STARTING:
            continue
        reason = f"{waiting.reason}: {_one_line(waiting.message)}"
        if waiting.reason in _IMAGE_REASONS:
            return (
                f"the image {container.image} can't be pulled ({reason}); check its name "
                "(pods.image, pods.gpu_image or pods.engine_image of the run, TUNELINE_IMAGE, "
                "TUNELINE_GPU_IMAGE or TUNELINE_ENGINE_IMAGE of Airflow) and the pull secret"
            )
        if waiting.reason in _CONFIG_REASONS:
            return f"the container can't be made ({reason}); check TUNELINE_POD_SECRETS"
        return f"the container waits ({reason})"
    return None


def _unscheduled(pod: Any, message: str) -> str:
    reason = _one_line(message)
    limits = _limits(pod)
    gpus = next((n for name, n in limits.items() if name.endswith("/gpu")), None)
    if gpus is not None and re.search(r"nvidia|gpu", reason, re.IGNORECASE):
        plural = "" if str(gpus) == "1" else "s"
        return (
            f"no node has {gpus} free GPU{plural} ({reason}); wait for one, add a GPU node or "
            "lower pods.gpus"
        )
    if "memory" in reason.lower():
        return (
            f"no node has {limits.get('memory')} of free memory ({reason}); add a node or lower "
            "pods.memory"
        )
    return f"no node takes the pod ({reason})"


def ending_reason(pod: Any) -> str | None:
    """Return `<kind>: <sentence>` for a pod that the cluster ended, None for any other pod."""
    status = getattr(pod, "status", None)
    reason = getattr(status, "reason", None)
    if reason == "DeadlineExceeded":
        return (
            "user_error: the pod ran past its deadline; raise pods.deadline_hours (for train: "
            "training.max_hours)"
        )
    if reason:
        message = _one_line(getattr(status, "message", None))
        return f"retryable: the cluster ended the pod ({reason}: {message})"
    if getattr(status, "phase", None) in _UNENDED and not _ended(pod):
        return DELETED
    return None


def out_of_memory(pod: Any) -> bool:
    """Return True if a container of the pod was killed for its memory."""
    return any(ended.reason == "OOMKilled" for ended in _ended(pod))


def exit_code(pod: Any) -> int | None:
    """Return the exit code of the pod's first container that ended."""
    return next((int(ended.exit_code) for ended in _ended(pod)), None)


def last_words(pod: Any) -> str:
    """Return the termination message of the pod's first container that ended."""
    return next((ended.message or "" for ended in _ended(pod)), "")


def memory_limit(pod: Any) -> str:
    """Return the memory limit of the pod's container, as a quantity."""
    return str(_limits(pod).get("memory", "unknown"))


def _ended(pod: Any) -> list[Any]:
    statuses = getattr(getattr(pod, "status", None), "container_statuses", None) or []
    return [c.state.terminated for c in statuses if getattr(c.state, "terminated", None)]


def _limits(pod: Any) -> dict[str, Any]:
    containers = getattr(getattr(pod, "spec", None), "containers", None) or []
    limits = (getattr(container.resources, "limits", None) for container in containers)
    return dict(next(filter(None, limits), {}))


def _one_line(message: str | None) -> str:
    return " ".join((message or "no message").split())


@patiently
@fail_plainly()
def judge(run_uri: str, item_ids: Sequence[str]) -> None:
    """Print the verdicts of items; fail the task for good if one of them stops the release.

    Raises:
        AirflowFailException: if a critical item failed or left no evidence.
        RetryableError: if the store stays out of reach.
    """
    from tuneline.verdicts import check_item

    stops = []
    for item_id in item_ids:
        status = check_item(run_uri, item_id)
        print(f"{item_id}: {status.verdict}: {status.summary} ({status.because})")
        if status.stops_release:
            stops.append(f"{item_id} (critical): {status.verdict}: {status.because}")
    if stops:
        raise AirflowFailException("; ".join(stops))


def goes_on_without(task: BaseOperator, context: Context, error: Exception) -> bool:
    """Decide if the run goes on although the pod of a step failed; leave evidence if it does.

    It does after the last try of an item that isn't critical and that no later step needs. A step
    that ends with the user's error has not begun: the run itself is wrong, or made for another
    version.

    Raises:
        TunelineError: if the evidence can't be stored.
    """
    item = _not_critical(task.task_id)
    pod = getattr(task, "remote_pod", None)
    if item is None or exit_code(pod) == EXIT_USER:
        return False
    tries_again = _tries_again(task, context, error)
    # A pod that never began says nothing about the next one.
    if tries_again and not (item.needed and exit_code(pod) is not None):
        return False
    ti = context["ti"]
    run_uri = str(ti.xcom_pull(task_ids="prepare_run"))
    identity = {n: getattr(ti, n) for n in ("dag_id", "run_id", "task_id", "try_number")}
    if not _left_by_this_try(run_uri, item.id, identity):
        leave_killed(run_uri, item.id, _reason(error, pod), identity)
    if tries_again or item.needed:
        # The last try of an item that later steps need reads that it was killed before.
        return False
    _log.error("%s failed; it is %s, so that the run goes on: %s", item.id, item.severity, error)
    return True


def _not_critical(step_id: str) -> Item | None:
    """Return the item of a task unless it is critical, None for any other task."""
    try:
        step = get_step(step_id)
    except UserError:
        return None
    return step if isinstance(step, Item) and step.severity != Severity.CRITICAL else None


def _tries_again(task: BaseOperator, context: Context, error: Exception) -> bool:
    ti = context["ti"]
    known: Any = {**context, "task": task}
    decision = StepRetryPolicy().evaluate(error, ti.try_number, ti.max_tries, known)
    return decision.action != RetryAction.FAIL and ti.try_number <= ti.max_tries


def _left_by_this_try(run_uri: str, item: str, identity: dict[str, Any]) -> bool:
    """Return True if the step itself has said why it failed."""
    evidence = Run.open(run_uri).find_evidence(item)
    return evidence is not None and ended_by_error(evidence) and evidence.airflow == identity


def _reason(error: Exception, pod: Any) -> str:
    """Return why the pod failed: its termination message, or how it ended."""
    if found := REASON.search(str(error)):
        return found.group(2)
    code = exit_code(pod)
    if code is None:
        return f"its pod failed: {first_line(error)}"
    return (
        f"its pod ended with exit code {code} and left no reason"
        f"{' (it was killed)' if code > 128 else ''}; the task's log has its last lines"
    )
