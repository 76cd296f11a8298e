"""Tasks that wait for a backfill, another run or a canary, and hold no worker meanwhile.

They look, and if it is not yet time they leave their slot until the next look (`reschedule`).
Whatever they wait for is found again by what it was named, so a worker that dies between two
looks, or between asking and hearing the answer, starts nothing twice.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator
from airflow.sdk.bases.sensor import PokeReturnValue
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from tuneline.airflow.failures import RUN_URI, fail_plainly, seconds_from, worker_retry_policy
from tuneline.airflow.rest import connected_api, note_run
from tuneline.errors import RetryableError, TunelineError
from tuneline.machine.airflow_api import AirflowApi
from tuneline.run import Run

if TYPE_CHECKING:
    from airflow.sdk import Context

    from tuneline.config.governance import ReleaseCanaryConfig
    from tuneline.governance.release.canary import CanaryState

_ENDED = ("success", "failed")
# State of a task that waits for its next look.
BETWEEN_LOOKS = "up_for_reschedule"


class _Waiting(BaseSensorOperator):
    """A sensor that leaves its slot between two looks."""

    def __init__(
        self, *, task_id: str, hours: float, wait_factor: int = 1, retries: int = 3, **kwargs: Any
    ) -> None:
        super().__init__(
            task_id=task_id,
            mode="reschedule",
            poke_interval=wait_factor * seconds_from("TUNELINE_WAIT_SECONDS"),
            timeout=timedelta(hours=hours).total_seconds(),
            retries=retries,
            retry_policy=worker_retry_policy,
            **kwargs,
        )


class BackfillDays(_Waiting):
    """Start a backfill of another DAG over some days, and wait for its end.

    One backfill of a DAG runs at a time, so it first waits for another one.

    Args:
        days: template of the first and the last day, `YYYY-MM-DD..YYYY-MM-DD`; empty
            skips the task.
        conf: conf of each of its runs.
        hours: the longest wait, hours.
    """

    template_fields = ("days",)

    def __init__(
        self,
        *,
        task_id: str,
        target: str,
        days: str,
        conf: dict[str, Any],
        hours: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(task_id=task_id, hours=hours, **kwargs)
        self.backfilled = target
        self.days = days
        self.conf = conf

    @fail_plainly()
    def poke(self, context: Context) -> bool:
        """Start the backfill if it is its turn; return True if it has ended."""
        if not self.days:
            raise AirflowSkipException("no days to backfill")
        first, last = (date.fromisoformat(day) for day in self.days.split(".."))
        # By this name the backfill is found again after a crash.
        asked_by = f"{context['dag_run'].dag_id}/{context['dag_run'].run_id}"
        api = connected_api()
        known = api.backfills(self.backfilled)
        own = [b for b in known if (b["dag_run_conf"] or {}).get("asked_by") == asked_by]
        if not own:
            return self._start(api, known, first, last, asked_by)
        if own[0]["completed_at"] is None:
            return False
        failed = api.failed_days(self.backfilled, first, last)
        if failed:
            raise AirflowException(
                f"the backfill of {self.backfilled} ended with failed days: "
                f"{', '.join(failed)}; clear their runs, then this task"
            )
        print(f"backfill {own[0]['id']} of {self.backfilled} over {self.days} has ended")
        return True

    def _start(
        self, api: AirflowApi, known: list[dict[str, Any]], first: date, last: date, asked_by: str
    ) -> bool:
        active = [b["id"] for b in known if b["completed_at"] is None]
        if active:
            print(f"backfill {active[0]} of {self.backfilled} is still running; waiting for it")
            return False
        if api.unpause(self.backfilled):
            print(f"{self.backfilled} was paused; it runs now, since its days are needed")
        request = {
            "dag_id": self.backfilled,
            "from_date": f"{first}T00:00:00Z",
            "to_date": f"{last}T23:59:59Z",
            "dag_run_conf": {**self.conf, "asked_by": asked_by},
            "reprocess_behavior": "completed",
            # A day is deduplicated against the days before it.
            "max_active_runs": 1,
        }
        days = [moment[:10] for moment in api.dry_run(request)]
        if not days:
            raise AirflowSkipException(f"{self.backfilled} has no runs in {self.days}")
        print(f"backfilling {self.backfilled} over {', '.join(days)}")
        api.backfill(request)
        return False


class RunEnds(_Waiting):
    """Wait for the end of a run of another DAG; its failure is not this task's.

    A run whose last task waits has done its work; only the canary is still to be decided.

    Args:
        hours: the longest wait, hours.
    """

    template_fields = ("run_id",)

    def __init__(
        self, *, task_id: str, target: str, run_id: str, hours: float, last: str, **kwargs: Any
    ) -> None:
        super().__init__(task_id=task_id, hours=hours, **kwargs)
        self.awaited = target
        self.run_id = run_id
        self.last = last

    @fail_plainly()
    def poke(self, context: Context) -> bool:
        """Return True if the run has ended."""
        api = connected_api()
        state = api.state(self.awaited, self.run_id)
        print(f"{self.awaited} {self.run_id}: {state}")
        if state in _ENDED:
            return True
        return api.task_state(self.awaited, self.run_id, self.last) == BETWEEN_LOOKS


# What to do where nothing was decided; the sentence of the state goes before.
_ADVICE = {
    "not_begun": "within {begin_hours:g} h; see that `tuneline follow` runs for this store and "
    "what its `--status` says, then clear this task",
    "overdue": "and its {hours:g} h are over, so its follower has ended or can't write to the "
    "store; start `tuneline follow` again in its folder, then clear this task",
}


class AwaitCanary(_Waiting):
    """Wait for the canary of a run's version: promoted, or withdrawn, which fails the task.

    It reads the release log, and its limits count from the first look, so that a cleared task has
    them whole again. A store that can't be read costs one of its retries.
    """

    template_fields = ("run_uri",)

    def __init__(self, *, task_id: str = "canary", **kwargs: Any) -> None:
        # The longest limits of a configuration: a day to begin, a week to decide.
        # An hour of tries, five minutes apart, for a store that is away.
        super().__init__(task_id=task_id, hours=8 * 24 + 1, wait_factor=5, retries=12, **kwargs)
        self.run_uri = RUN_URI

    def poke(self, context: Context) -> PokeReturnValue | bool:
        """Skip the task if no canary was asked for; return the outcome once there is one.

        Raises:
            AirflowFailException: if the version was withdrawn, or nothing was decided in time.
            RetryableError: if the store can't be read now.
        """
        # Reading releases takes imports that the DAG processor has no use for.
        from tuneline.governance.release.canary import canary_state, why_none

        try:
            run = Run.open(self.run_uri)
            asked, name = run.config.governance.canary, run.config.name
            if why := why_none(run.store, name, run.run_id, asked):
                raise AirflowSkipException(why)
            state = canary_state(run.store, name, run.run_id)
        except RetryableError:
            raise
        except TunelineError as error:
            raise AirflowFailException(str(error)) from None
        told = state.told
        if state.outcome in ("due", "under_way"):
            advice = _missed(state, asked, context["ti"].get_first_reschedule_date(context))
            if advice is None:
                print(f"waiting for a follower: {told}")
                return False
            told = f"{told} {advice.format(**asked.model_dump())}"
        note_run(context, told)
        if state.outcome != "promoted":
            raise AirflowFailException(told)
        return PokeReturnValue(is_done=True, xcom_value=told)


def _missed(
    state: CanaryState, asked: ReleaseCanaryConfig, first_look: datetime | None
) -> str | None:
    """Return what to do about a canary that is not decided in time, None while there is time."""
    from tuneline.governance.release.canary import SLACK

    now = datetime.now(UTC)
    first_look = first_look or now
    if state.began is None:
        over = now > first_look + timedelta(hours=asked.begin_hours)
        return _ADVICE["not_begun"] if over else None
    ends = max(state.began + timedelta(hours=asked.hours), first_look) + SLACK
    return _ADVICE["overdue"] if now > ends else None
