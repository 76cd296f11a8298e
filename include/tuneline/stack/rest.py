"""A client for the part of Airflow's REST API that the stack needs."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import httpx

from tuneline.errors import TunelineError
from tuneline.stack import airflow
from tuneline.stack.layout import LOOPBACK, Layout

# On a busy machine Airflow may answer late, or find its database locked by another process.
_TRIES, _PAUSE_SECONDS = 4, 2.0


class Airflow:
    """A client that logs in as the stack's user, and again when its token has expired."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._http = httpx.Client(
            base_url=f"http://{LOOPBACK}:{layout.ui_port}", timeout=30, trust_env=False
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

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
        return (
            entry.get("status") == "healthy"
            and bool(beat)
            and datetime.fromisoformat(str(beat)) > moment
        )

    def call(
        self, method: str, path: str, *, ok: tuple[int, ...] = (), **json_body: Any
    ) -> httpx.Response:
        """Call the API, again if it broke or did not answer.

        A call whose answer was lost may have been carried out, so what creates something by name
        accepts 409 as well.

        Args:
            method: HTTP method.
            path: path below ``/api/v2``.
            ok: status codes that are accepted in addition to success.
            json_body: fields of the body.

        Raises:
            TunelineError: if the API refused or did not answer; the message says why.
        """
        for tries_left in reversed(range(_TRIES)):
            try:
                answer = self._request(method, path, json_body)
            except httpx.HTTPError as error:
                if not tries_left:
                    raise TunelineError(
                        f"Airflow does not answer at {self._http.base_url} ({error}); "
                        f"see {self._layout.log_of('api-server')}"
                    ) from error
            else:
                if answer.is_success or answer.status_code in ok:
                    return answer
                if not (answer.is_server_error and tries_left):
                    break
            time.sleep(_PAUSE_SECONDS)
        raise TunelineError(f"Airflow: {method} {path}: {answer.status_code} {answer.text}")

    def _request(self, method: str, path: str, body: dict[str, Any]) -> httpx.Response:
        """Send a request, after a login if it is needed."""
        path = f"/api/v2{path}"
        answer = self._http.request(method, path, json=body or None)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            self._log_in()
            answer = self._http.request(method, path, json=body or None)
        return answer

    def _log_in(self) -> None:
        login = {"username": airflow.USER, "password": airflow.password(self._layout)}
        answer = self._http.post("/auth/token", json=login)
        if not answer.is_success:
            raise TunelineError(
                f"Airflow at {self._http.base_url} refuses the login ({answer.status_code}); "
                "is it another Airflow?"
            )
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
