"""The part of the core API (v1) that is served: pods, their logs and exec, and events."""

from __future__ import annotations

import asyncio
import datetime
import json
import time

from aiohttp import web

from localpods.admission import admit_pod
from localpods.collection import Collection
from localpods.environment import PodPaths
from localpods.events import EventLog
from localpods.exec_socket import serve_exec
from localpods.lifecycle import Kubelet
from localpods.logs import LogQuery, read_log
from localpods.objects import Json, is_finished, key_of, log_instant, phase_of, uid_of
from localpods.pod_status import runs_process
from localpods.replies import (
    ApiError,
    bad_request,
    flag,
    patched,
    read_object,
    send_json,
    whole_number,
)
from localpods.selectors import EVENT_FIELDS, POD_FIELDS
from localpods.state import StateDir
from localpods.watching import send_list_or_watch

# How long the answer to a create request waits for the pod to run, and how often it looks.
_START_S = 2.0
_START_TICK_S = 0.02


class PodRoutes:
    """Handlers of requests on pods and events."""

    def __init__(
        self, state: StateDir, pods: Collection, events: EventLog, kubelet: Kubelet
    ) -> None:
        self._state = state
        self._pods = pods
        self._events = events
        self._kubelet = kubelet

    def register(self, router: web.UrlDispatcher) -> None:
        """Add the routes to a router."""
        base = "/api/v1/namespaces/{namespace}"
        router.add_get("/api/v1/pods", self._list_pods)
        router.add_get("/api/v1/events", self._list_events)
        router.add_get(base + "/events", self._list_events)
        router.add_get(base + "/pods", self._list_pods)
        router.add_post(base + "/pods", self._create)
        router.add_get(base + "/pods/{name}", self._get)
        router.add_get(base + "/pods/{name}/status", self._get)
        router.add_patch(base + "/pods/{name}", self._patch)
        router.add_delete(base + "/pods/{name}", self._delete)
        router.add_get(base + "/pods/{name}/log", self._log)
        router.add_get(base + "/pods/{name}/exec", self._exec)

    def _pod(self, request: web.Request) -> Json:
        return self._pods.get(request.match_info["namespace"], request.match_info["name"])

    async def _list_pods(self, request: web.Request) -> web.StreamResponse:
        return await send_list_or_watch(request, self._pods, POD_FIELDS)

    async def _list_events(self, request: web.Request) -> web.StreamResponse:
        return await send_list_or_watch(request, self._events.collection, EVENT_FIELDS)

    async def _create(self, request: web.Request) -> web.Response:
        pod = admit_pod(await read_object(request), request.match_info["namespace"])
        self._pods.add(pod)
        return send_json(await self._started(pod), 201)

    async def _started(self, pod: Json) -> Json:
        """Give a new pod a moment to start, and return it as it is then.

        The operator looks at it right after, and when it is still pending not before another
        five seconds, which is many times what a local process takes to start.
        """
        limit = time.monotonic() + _START_S
        while True:
            current = self._pods.find(*key_of(pod))
            if current is None:
                return pod
            self._kubelet.sync(current)
            current = self._pods.find(*key_of(pod)) or current
            waits = not self._kubelet.is_starting(current)
            if phase_of(current) != "Pending" or waits or time.monotonic() > limit:
                return current
            await asyncio.sleep(_START_TICK_S)

    async def _get(self, request: web.Request) -> web.Response:
        return send_json(self._pod(request))

    async def _patch(self, request: web.Request) -> web.Response:
        patch = await read_object(request)
        pod = self._pod(request)
        return send_json(self._pods.put(patched(pod, patch)))

    async def _delete(self, request: web.Request) -> web.Response:
        options = await read_object(request)
        pod = self._pod(request)
        grace = grace_of(request, options)
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted not in (None, uid_of(pod)):
            raise ApiError(409, "Conflict", "the pod has another UID than the preconditions say")
        return send_json(self._kubelet.delete(pod, grace))

    async def _log(self, request: web.Request) -> web.StreamResponse:
        pod = self._pod(request)
        container = _container(pod, request.query.get("container"))
        if flag(request, "previous"):
            raise bad_request(f'previous terminated container "{container["name"]}" not found')
        run = self._kubelet.run_of(pod, container["name"])
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        query = LogQuery(
            follow=flag(request, "follow"),
            timestamps=flag(request, "timestamps"),
            since=_since(request),
            tail=whole_number(request, "tailLines"),
            limit=whole_number(request, "limitBytes"),
        )
        if run is None or not (run.started or run.exit):
            if is_finished(pod):
                # It failed before this container's turn came.
                await response.prepare(request)
                return response
            raise bad_request(
                f'container "{container["name"]}" in pod "{pod["metadata"]["name"]}" is waiting '
                "to start"
            )
        await response.prepare(request)

        def ended() -> bool:
            return run.exit is not None or self._pods.find(*key_of(pod)) is None

        if runs_process(container):
            async for piece in read_log(run.log, query, ended):
                await response.write(piece)
        return response

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        pod = self._pod(request)
        container = str(_container(pod, request.query.get("container"))["name"])
        run = self._kubelet.run_of(pod, container)
        if run is None or run.started is None or run.exit is not None:
            raise bad_request(
                f'cannot exec in container "{container}" of pod "{pod["metadata"]["name"]}": '
                "it is not running"
            )
        if request.headers.get("Upgrade", "").lower() != "websocket":
            raise bad_request("exec needs an upgrade to a websocket")
        xcom = PodPaths.of(self._state, uid_of(pod)).xcom
        return await serve_exec(
            request, container, xcom, lambda: self._kubelet.end_sidecar(pod, container)
        )


def grace_of(request: web.Request, options: Json) -> float | None:
    """Read the grace period of a delete request, from the query or the body."""
    grace = whole_number(request, "gracePeriodSeconds")
    if grace is None:
        given = options.get("gracePeriodSeconds")
        if given is not None and not isinstance(given, int):
            raise bad_request(f"gracePeriodSeconds: {json.dumps(given)} is not a whole number")
        grace = given
    return None if grace is None else float(max(0, grace))


def _container(pod: Json, name: str | None) -> Json:
    spec = pod["spec"]
    containers = [*(spec.get("initContainers") or []), *spec["containers"]]
    names = [str(container["name"]) for container in containers]
    if not name:
        if len(spec["containers"]) > 1:
            raise bad_request(
                f"a container name must be specified for pod {pod['metadata']['name']}, choose "
                f"one of: [{' '.join(names)}]"
            )
        name = str(spec["containers"][0]["name"])
    if name not in names:
        raise bad_request(f"container {name} is not valid for pod {pod['metadata']['name']}")
    return containers[names.index(name)]


def _since(request: web.Request) -> str | None:
    seconds = whole_number(request, "sinceSeconds")
    if seconds is not None:
        return log_instant(seconds)
    text = request.query.get("sinceTime")
    if not text:
        return None
    try:
        instant = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise bad_request(f"sinceTime: {text!r} is not an RFC 3339 instant") from None
    ago = datetime.datetime.now(datetime.UTC) - instant.astimezone(datetime.UTC)
    return log_instant(ago.total_seconds())
