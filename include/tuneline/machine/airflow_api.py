"""Airflow's REST API (version 2), as tasks and the stack on one machine call it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import date, datetime
from functools import cached_property
from typing import Any
from urllib.parse import quote

import httpx

from tuneline.errors import RetryableError, UserError

_PAUSE_SECONDS = 2.0
_LONGEST_NOTE = 1000


class AirflowApi:
    """A client that logs in as a user, and again when its token has expired.

    Args:
        login: the user's name; without one `password` is a bearer token.
        password: returns the password; it is asked when it is needed.
        whose: whose login it is, for the message of a refused one.
        tries: how often a call is made while the API is broken or does not answer.
        hint: what a message ends with if it stays so.
        trust_env: False to ignore the proxies of the environment.
    """

    def __init__(
        self,
        url: str,
        login: str | None,
        password: Callable[[], str | None],
        *,
        whose: str,
        tries: int = 1,
        hint: str = "",
        trust_env: bool = True,
    ) -> None:
        self._login = login
        self._password, self._whose, self._tries, self._hint = password, whose, tries, hint
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=trust_env)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @cached_property
    def user(self) -> str:
        """Name of the user that runs are started as."""
        return self._login or str(self.call("GET", "/ui/auth/me").json()["username"])

    def call(
        self, method: str, path: str, *, ok: tuple[int, ...] = (), **body: Any
    ) -> httpx.Response:
        """Call the API.

        A call whose answer was lost may have been carried out, so what creates something by name
        accepts 409 as well.

        Args:
            path: path below ``/api/v2``, or one of `/ui` or `/auth`.
            ok: status codes that are accepted in addition to success.

        Raises:
            UserError: if the API refused the call or the login.
            RetryableError: if it stayed broken, or did not answer.
        """
        root = "" if path.startswith(("/ui/", "/auth/")) else "/api/v2"
        why = ""
        for tries_left in reversed(range(self._tries)):
            try:
                answer = self._request(method, root + path, body or None)
            except httpx.HTTPError as error:
                why = f"Airflow's API does not answer at {self._http.base_url} ({error})"
            else:
                if answer.is_success or answer.status_code in ok:
                    return answer
                why = f"Airflow's API: {method} {path}: {answer.status_code} {answer.text[:300]}"
                # SQLite locks its database for a moment now and then.
                if not answer.is_server_error:
                    raise UserError(why)
            if tries_left:
                time.sleep(_PAUSE_SECONDS)
        raise RetryableError(f"{why}{self._hint}")

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> None:
        """Start a run; one of that id that exists is left as it is."""
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        self.call("POST", f"/dags/{dag_id}/dagRuns", ok=(409,), **body)

    def state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run: queued, running, success or failed."""
        return str(self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}").json()["state"])

    def has_not_ended(self, dag_id: str, run_id: str) -> bool:
        """Return True if a run is queued or running; False for one that is not known."""
        answer = self.call("GET", f"/dags/{dag_id}/dagRuns/{run_id}", ok=(404,))
        return answer.is_success and answer.json()["state"] in ("queued", "running")

    def task_state(self, dag_id: str, run_id: str, task_id: str) -> str | None:
        """Return the state of a task of a run, None if it has none yet."""
        parts = (quote(part, safe="") for part in (dag_id, run_id, task_id))
        answer = self.call("GET", "/dags/{}/dagRuns/{}/taskInstances/{}".format(*parts), ok=(404,))
        return answer.json().get("state") if answer.is_success else None

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """Return a value that a task of a run has pushed, None if there is none."""
        place = "/dags/{}/dagRuns/{}/taskInstances/{}/xcomEntries/{}"
        parts = (quote(part, safe="") for part in (dag_id, run_id, task_id, key))
        answer = self.call("GET", place.format(*parts), ok=(404,))
        return answer.json()["value"] if answer.is_success else None

    def has_pool(self, name: str) -> bool:
        """Return True if there is a pool of that name."""
        return self.call("GET", f"/pools/{quote(name, safe='')}", ok=(404,)).is_success

    def has_fab_user(self, name: str) -> bool:
        """Return True if Airflow's FAB manager has a user of that name."""
        path = f"/auth/fab/v1/users/{quote(name, safe='')}"
        return self.call("GET", path, ok=(404,)).is_success

    def is_paused(self, dag_id: str) -> bool:
        """Return True if the DAG is paused, so that its runs stay queued."""
        return bool(self.call("GET", f"/dags/{dag_id}").json()["is_paused"])

    def unpause(self, dag_id: str) -> bool:
        """Return True if the DAG was paused, and let it run from now on."""
        paused = self.is_paused(dag_id)
        if paused:
            self.call("PATCH", f"/dags/{dag_id}", is_paused=False)
        return paused

    def note(self, dag_id: str, run_id: str, text: str) -> None:
        """Write the note of a run, which the UI shows next to it."""
        path = f"/dags/{dag_id}/dagRuns/{run_id}?update_mask=note"
        self.call("PATCH", path, note=text[:_LONGEST_NOTE])

    def backfills(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the last backfills of a DAG, the newest first."""
        answer = self.call("GET", f"/backfills?dag_id={dag_id}&order_by=-id&limit=50")
        return list(answer.json()["backfills"])

    def dry_run(self, request: Mapping[str, Any]) -> list[str]:
        """Return the logical dates of the runs that a backfill would make."""
        answer = self.call("POST", "/backfills/dry_run", **request).json()
        return [str(run["logical_date"]) for run in answer["backfills"]]

    def backfill(self, request: Mapping[str, Any]) -> bool:
        """Start a backfill; return False if another one of the DAG is active."""
        return self.call("POST", "/backfills", ok=(409,), **request).is_success

    def failed_days(self, dag_id: str, first: date, last: date) -> list[str]:
        """Return the days of backfilled runs that failed."""
        query = (
            f"logical_date_gte={first}T00:00:00Z&logical_date_lte={last}T23:59:59Z"
            "&state=failed&limit=100"
        )
        runs = self.call("GET", f"/dags/{dag_id}/dagRuns?{query}").json()["dag_runs"]
        return sorted(str(run["logical_date"])[:10] for run in runs)

    def health(self) -> dict[str, dict[str, Any]]:
        """Return the health of each component, nothing while the API does not answer."""
        try:
            answer = self._http.get("/api/v2/monitor/health")
        except httpx.HTTPError:
            return {}
        if answer.status_code != httpx.codes.OK:
            return {}
        return {name: entry for name, entry in answer.json().items() if entry}

    def beats_since(self, component: str, moment: datetime) -> bool:
        """Return True if a component is healthy and has sent a heartbeat after a moment.

        Airflow counts a crashed process as healthy for half a minute after its last heartbeat.
        """
        name = component.replace("-", "_")
        entry = self.health().get(name, {})
        beat = entry.get(f"latest_{name}_heartbeat")
        healthy = entry.get("status") == "healthy" and bool(beat)
        return healthy and datetime.fromisoformat(str(beat)) > moment

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """Send a request, after a login if it is needed."""
        answer = self._http.request(method, path, json=body)
        if answer.status_code != httpx.codes.UNAUTHORIZED:
            return answer
        self._http.headers["Authorization"] = f"Bearer {self._token()}"
        answer = self._http.request(method, path, json=body)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise self._refused(answer)
        return answer

    def _token(self) -> str:
        """Return the bearer token of the login."""
        if not self._login:
            return str(self._password())
        login = {"username": self._login, "password": self._password()}
        answer = self._http.post("/auth/token", json=login)
        if not answer.is_success:
            raise self._refused(answer)
        return str(answer.json()["access_token"])

    def _refused(self, answer: httpx.Response) -> UserError:
        what = "login" if self._login else "token"
        return UserError(
            f"Airflow's API at {self._http.base_url} refuses the {what} of {self._whose} "
            f"({answer.status_code})"
        )
