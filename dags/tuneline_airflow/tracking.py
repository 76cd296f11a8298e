"""The task that sends offline runs to their trackers and never fails a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowSkipException

from tuneline.artifacts.training import unsynced
from tuneline.errors import TunelineError
from tuneline.run import Run
from tuneline_airflow.pods import StepPod, run_uri_of

if TYPE_CHECKING:
    from airflow.sdk import Context


class SyncPod(StepPod):
    """A pod that is started only if a run was not tracked live.

    The pod finds out whether there is a key, since workers never see one. No task waits for this
    one, and an error skips it, since a release does not depend on a tracker.
    """

    def execute(self, context: Context) -> Any:
        """Run the pod, or skip the task."""
        run_uri = run_uri_of(context)
        try:
            waiting = unsynced(Run.open(run_uri))
        except TunelineError as error:
            raise AirflowSkipException(_later(run_uri, error)) from None
        if not waiting:
            raise AirflowSkipException("nothing to sync: each tracker got the run live")
        try:
            return super().execute(context)
        except AirflowSkipException:
            raise
        except AirflowException as error:
            raise AirflowSkipException(_later(run_uri, error)) from None


def _later(run_uri: str, error: Exception) -> str:
    return f"not synced; `tuneline run sync-tracking --run {run_uri}` does it later: {error}"
