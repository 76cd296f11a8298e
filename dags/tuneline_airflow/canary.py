"""The task that waits for the canary of what a run has released, and bears its outcome.

The follower beside the gateway tries the version and decides; the task reads what it has written
into the release log. It waits deferred, in the triggerer, and holds no slot meanwhile.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowSkipException,
    TaskDeferralTimeout,
)

from tuneline.errors import RetryableError
from tuneline.run import Run
from tuneline_airflow.canary_trigger import CanaryDecided
from tuneline_airflow.pods import RUN_URI
from tuneline_airflow.rest import note_run
from tuneline_airflow.retries import fail_plainly, seconds_from, worker_retry_policy

if TYPE_CHECKING:
    from airflow.sdk import Context

# What to do where nothing was decided; the sentence of the state goes before.
_ADVICE = {
    "not_begun": "within {begin_hours:g} h; see that `tuneline follow` runs for this store and "
    "what its `--status` says, then clear this task",
    "overdue": "and its {hours:g} h are over, so its follower has ended or can't write to the "
    "store; start `tuneline follow` again in its folder, then clear this task",
}


class AwaitCanary(BaseOperator):
    """Wait for the canary of a run's version: promoted, or withdrawn, which fails the task."""

    template_fields = ("run_uri",)

    def __init__(self, *, task_id: str = "canary", **kwargs: Any) -> None:
        super().__init__(task_id=task_id, retries=3, retry_policy=worker_retry_policy, **kwargs)
        self.run_uri = RUN_URI

    def execute(self, context: Context) -> Any:
        """Skip the task if no canary was asked for, end it if it is decided, else wait."""
        # Reading releases takes imports that the DAG processor has no use for.
        from tuneline.governance.release.canary import SLACK, canary_state, why_none

        with fail_plainly():
            run = Run.open(self.run_uri)
            asked, name = run.config.governance.canary, run.config.name
            if why := why_none(run.store, name, run.run_id, asked):
                raise AirflowSkipException(why)
            state = canary_state(run.store, name, run.run_id)
        if state.outcome not in ("due", "under_way"):
            return self.decided(context, {"outcome": state.outcome, "told": state.told})
        print(f"waiting for a follower: {state.told}")
        begin, whole = timedelta(hours=asked.begin_hours), timedelta(hours=asked.hours)
        trigger = CanaryDecided(
            store=run.store.uri,
            name=name,
            version=run.run_id,
            begin_by=time.time() + begin.total_seconds(),
            hours=asked.hours,
            slack_seconds=SLACK.total_seconds(),
            not_before=time.time(),
            seconds=seconds_from("TUNELINE_WAIT_SECONDS"),
        )
        # The trigger has times of its own; this one is for a triggerer that is not there.
        timeout = begin + whole + 2 * SLACK
        return self.defer(trigger=trigger, method_name="decided", timeout=timeout)

    def decided(self, context: Context, event: dict[str, str]) -> str:
        """Bear the outcome that the trigger has found; the sentence is the task's XCom.

        Raises:
            AirflowFailException: if the version was withdrawn, or nothing was decided.
            RetryableError: if the store could not be read until the end.
        """
        outcome, told = event["outcome"], event["told"]
        if outcome == "unreadable":
            raise RetryableError(told)
        if outcome in _ADVICE:
            with fail_plainly():
                asked = Run.open(self.run_uri).config.governance.canary
            told = f"{told} {_ADVICE[outcome].format(**asked.model_dump())}"
        note_run(context, told)
        if outcome != "promoted":
            raise AirflowFailException(told)
        return told

    def resume_execution(
        self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context
    ) -> Any:
        """Go on after the wait; say what to do if no triggerer has ended it."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            raise AirflowFailException(
                "the wait for the canary was never ended; see that `airflow triggerer` runs and "
                "has the DAGs' folder on its PYTHONPATH, then clear this task"
            ) from None
