"""A training run in MLflow: at `MLFLOW_TRACKING_URI`, the stack's server, or the file it shows."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tuneline.artifacts.training import TrackedRun
from tuneline.errors import UserError
from tuneline.machine.checkout import stack_home
from tuneline.machine.mlflow_client import mlflow_client
from tuneline.training.tracking import local_mlflow
from tuneline.training.tracking.runs import Description, short_reason, without_password

# A resumed training finds its run again by this tag.
_KEY_TAG = "tuneline.training"
# Metrics of a step, as MLflow's entities.
Entry = list[Any]
# MLflow takes 1,000 metrics in a request; a step has about ten.
_STEPS_AT_ONCE = 90
# A curve that is a second late is still live; one request then carries several steps.
SEND_SECONDS = 1.0
# A server that is gone is asked again after 2, 4, 8, … seconds, at most after this many.
LONGEST_PAUSE_SECONDS = 30.0
# Longest wait at the end of training for entries that are still to be sent.
CLOSE_SECONDS = 15.0


class Place(NamedTuple):
    """MLflow's tracking URI, and the address of the server's pages; None without a server."""

    uri: str
    pages: str | None


def find_place() -> Place:
    """Return the server or file to log to; UserError if there is none, and no checkout."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        pages = os.environ.get("TUNELINE_TRACKING_URL") or uri
        return Place(uri, without_password(pages) if pages.startswith("http") else None)
    try:
        folder = stack_home() / local_mlflow.FOLDER
    except UserError:
        raise UserError("MLFLOW_TRACKING_URI is not set") from None
    url = local_mlflow.running_server(folder)
    if url:
        return Place(url, url)
    folder.mkdir(parents=True, exist_ok=True)
    return Place(local_mlflow.database_uri(folder), None)


def open_mlflow(
    description: Description, log: Callable[[str], None], run_id: str = ""
) -> tuple[TrackedRun, MlflowTracker | None]:
    """Open the run in MLflow; the same one (or `run_id`) for a training that is resumed.

    No tracker if MLflow can't be reached, which stops no training.
    """
    try:
        return _open(description, log, run_id)
    except Exception as error:  # whatever breaks, training goes on
        reason = short_reason(error)
        log(f"MLflow can't be reached ({reason}); training goes on without it")
        return TrackedRun("mlflow", "unreachable", reason=reason, key=description.key), None


def _open(
    description: Description, log: Callable[[str], None], run_id: str
) -> tuple[TrackedRun, MlflowTracker]:
    place = find_place()
    client = mlflow_client(place.uri)
    experiment = _experiment(client, description.project)
    run_id = run_id or _unfinished_run(client, experiment, description.key)
    resumed = bool(run_id)
    if not resumed:
        run_id = _create(client, experiment, description)
    else:
        client.update_run(run_id, status="RUNNING")
    # A database of any kind shows nothing by itself.
    tracked = TrackedRun(
        "mlflow",
        "online" if place.pages else "offline",
        run_id,
        f"{place.pages.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"
        if place.pages
        else None,
        reason="" if place.pages else "no page shows it: `make up`, or set TUNELINE_TRACKING_URL",
        key=description.key,
    )
    return tracked, MlflowTracker(client, tracked, log, resumed=resumed)


def _experiment(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            # Another pod may have made it a moment ago.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _unfinished_run(client: Any, experiment: str, key: str) -> str:
    """Return the id of the run of an interrupted training; empty if there is none."""
    of_key = f"tags.`{_KEY_TAG}` = '{key}' and attributes.status != 'FINISHED'"
    newest = ["attributes.start_time DESC"]
    found = client.search_runs([experiment], of_key, max_results=1, order_by=newest)
    return str(found[0].info.run_id) if found else ""


def _create(client: Any, experiment: str, description: Description) -> str:
    from mlflow.entities import Param

    made = client.create_run(
        experiment, run_name=description.name, tags={**description.tags, _KEY_TAG: description.key}
    )
    params = [Param(name, str(value)) for name, value in description.settings.items()]
    client.log_batch(made.info.run_id, params=params)
    return str(made.info.run_id)


class Sender:
    """A queue and the thread that empties it, so that training never waits for a server.

    A failed entry stays and is sent again. MLflow's own asynchronous logging drops it.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Entry]], None],
        log: Callable[[str], None],
        pause: float = SEND_SECONDS,
    ) -> None:
        """Start the thread; `send` takes entries in order and raises if refused, `log` lines."""
        self._send, self._log, self._pause = send, log, pause
        self._waiting: list[Entry] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Queue an entry."""
        with self._lock:
            self._waiting.append(entry)

    def close(self) -> int:
        """Send the remaining entries, for `CLOSE_SECONDS` at most; return how many are left."""
        self._deadline = time.monotonic() + CLOSE_SECONDS
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)
        with self._lock:
            return len(self._waiting)

    def _work(self) -> None:
        failures = 0
        while True:
            # The exponent is bounded, so that the power stays a float.
            pause = min(self._pause * 2 ** min(failures, 10), LONGEST_PAUSE_SECONDS)
            closing = self._closing.wait(pause)
            failures = self._empty(failures)
            if closing and (not failures or time.monotonic() > self._deadline):
                return
            if closing:
                time.sleep(self._pause)

    def _empty(self, failures: int) -> int:
        """Send all waiting entries, until a request fails."""
        while True:
            with self._lock:
                batch = self._waiting[:_STEPS_AT_ONCE]
            if not batch:
                return failures
            try:
                self._send(batch)
            except Exception as error:  # whatever breaks, training goes on
                if not failures:
                    reason = short_reason(error)
                    self._log(f"MLflow is lost ({reason}); training goes on, metrics wait")
                return failures + 1
            with self._lock:
                del self._waiting[: len(batch)]
            if failures:
                self._log("MLflow is back, what waited was sent")
            failures = 0


class MlflowTracker:
    """An open run in MLflow; see `Tracker`."""

    def __init__(
        self, client: Any, tracked: TrackedRun, log: Callable[[str], None], *, resumed: bool
    ) -> None:
        self._client, self._tracked, self._resumed = client, tracked, resumed
        self._sender = Sender(self._send, log)

    def steps_logged(self) -> tuple[int, int]:
        """See `Tracker`."""
        if not self._resumed:
            return -1, -1
        return self._last("train/loss"), self._last("eval/loss")

    def _last(self, name: str) -> int:
        try:
            history = self._client.get_metric_history(self._tracked.run_id, name)
        except Exception:  # a step shown twice is no reason to stop training
            return -1
        return max((metric.step for metric in history), default=-1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._sender.put([Metric(name, value, now, step) for name, value in metrics.items()])

    def _send(self, entries: Sequence[Entry]) -> None:
        metrics = [metric for entry in entries for metric in entry]
        self._client.log_batch(self._tracked.run_id, metrics=metrics)

    def close(self, *, failed: bool) -> TrackedRun:
        """See `Tracker`."""
        missed = self._sender.close()
        reason = self._tracked.reason
        try:
            self._client.set_terminated(self._tracked.run_id, "FAILED" if failed else "FINISHED")
        except Exception as error:  # its metrics are what counts
            reason = short_reason(error)
        return replace(self._tracked, missed=missed, reason=reason)
