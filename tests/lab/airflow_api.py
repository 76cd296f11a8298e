"""The part of Airflow's REST API that DAGs call, with its status codes and its fields."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from tests.lab.http_server import Handler, serving


class AirflowRecords:
    """What the API knows, and what it was asked to do."""

    password = "s3cret"

    def __init__(self) -> None:
        self.backfills: list[dict[str, Any]] = []
        self.runs: dict[tuple[str, str], str] = {}
        self.notes: dict[tuple[str, str], str] = {}
        self.confs: dict[tuple[str, str], Any] = {}
        self.paused: set[str] = set()
        self.pools = {"gpu"}
        # Those of FAB; None if the caller may not list them.
        self.users: set[str] | None = None
        self.failures: list[int] = []
        self.failed_days: list[str] = []
        self.lose_answer = False
        self.tasks: dict[tuple[str, str, str], str] = {}
        self.xcoms: dict[tuple[str, ...], Any] = {}

    def connection(self, url: str) -> str:
        """Return the connection of tasks to the API at an address."""
        login = {"login": "admin", "password": self.password}
        return json.dumps({"conn_type": "http", "host": url, **login})

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Answer a request to `/api/v2`."""
        if self.failures:
            return self.failures.pop(0), {"detail": "Database is locked."}
        path, _, query = path.partition("?")
        if path == "/backfills" and method == "GET":
            return 200, {"backfills": self.backfills[::-1]}
        if path == "/backfills/dry_run":
            return 200, {"backfills": [{"logical_date": f"{d}T00:15:00Z"} for d in _days(body)]}
        if path == "/backfills":
            return self._backfill(body)
        if "/taskInstances/" in path:
            return self._of_task(path)
        place, _, name = path[1:].partition("/")
        return self._of_pool(name) if place == "pools" else self._of_dag(method, path, query, body)

    def of_user(self, name: str) -> tuple[int, Any]:
        """Answer whether FAB has a user."""
        if self.users is None:
            return 403, {"detail": "forbidden"}
        return (200, {"username": name}) if name in self.users else (404, {})

    def _of_pool(self, name: str) -> tuple[int, Any]:
        return (200, {"name": name}) if name in self.pools else (404, {"detail": "not found"})

    def _of_dag(self, method: str, path: str, query: str, body: Any) -> tuple[int, Any]:
        dag, run = re.fullmatch(r"/dags/([^/]+)(?:/dagRuns(?:/([^/]+))?)?", path).groups()
        if "logical_date_gte" in query:
            found = [{"logical_date": f"{day}T00:15:00Z"} for day in self.failed_days]
            return 200, {"dag_runs": found}
        if method == "POST":
            return self._trigger(dag, body)
        if run is None:
            if method == "PATCH":
                self.paused.discard(dag)
            return 200, {"is_paused": dag in self.paused}
        if method == "PATCH":
            self.notes[dag, run] = body["note"]
            return 200, {}
        if (dag, run) not in self.runs:
            return 404, {"detail": "not found"}
        return 200, {"state": self.runs[dag, run]}

    def _of_task(self, path: str) -> tuple[int, Any]:
        *place, key = re.fullmatch(
            r"/dags/([^/]+)/dagRuns/([^/]+)/taskInstances/([^/]+)(?:/xcomEntries/([^/]+))?", path
        ).groups()
        place = [unquote(part) for part in place]
        known = self.xcoms.get((*place, key)) if key else self.tasks.get(tuple(place))
        return (404, {}) if known is None else (200, {"value" if key else "state": known})

    def _backfill(self, body: Any) -> tuple[int, Any]:
        if any(b["completed_at"] is None for b in self.backfills):
            return 409, {"detail": "There is already a running backfill"}
        made = {**body, "id": len(self.backfills) + 1, "completed_at": None}
        self.backfills.append(made)
        if self.lose_answer:
            self.lose_answer = False
            return 500, {"detail": "the answer was lost"}
        return 200, made

    def _trigger(self, dag: str, body: Any) -> tuple[int, Any]:
        key = (dag, body["dag_run_id"])
        if key in self.runs:
            return 409, {"detail": "exists"}
        self.runs[key] = "queued"
        self.confs[key] = body["conf"]
        return 200, {}


@contextmanager
def airflow_api() -> Iterator[tuple[str, AirflowRecords]]:
    """Serve the API within the block; its URL, and what it knows."""
    records = AirflowRecords()

    class Api(Handler):
        def respond(self) -> None:
            body = json.loads(self.body() or b"null")
            if self.path == "/auth/token":
                right = body["password"] == records.password
                status, said = (201, {"access_token": "t0ken"}) if right else (401, {})
            elif self.headers.get("Authorization") != "Bearer t0ken":
                status, said = 401, {}
            elif self.path == "/ui/auth/me":
                status, said = 200, {"id": "1", "username": "admin"}
            elif self.path.startswith("/auth/fab/v1/users/"):
                status, said = records.of_user(self.path.rpartition("/")[2])
            else:
                path = self.path.removeprefix("/api/v2")
                status, said = records.answer(self.command, path, body)
            self.answer(json.dumps(said).encode(), status)

        do_GET = do_POST = do_PATCH = respond

    with serving(Api) as url:
        yield url, records


def _days(body: Any) -> list[str]:
    from datetime import date, timedelta

    first, last = (date.fromisoformat(body[name][:10]) for name in ("from_date", "to_date"))
    return [str(first + timedelta(days=n)) for n in range((last - first).days + 1)]
