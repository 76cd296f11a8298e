"""The served part of the core and batch API: pods, their logs, jobs, and events."""

from __future__ import annotations

import datetime

from aiohttp import web

from localpods.admission import admit_job, admit_pod
from localpods.collection import Collection
from localpods.events import EventLog
from localpods.jobs import JobController
from localpods.lifecycle import Kubelet
from localpods.lists import send_list_or_watch, send_object
from localpods.logs import LogQuery, log_time, read_log
from localpods.objects import Json, is_finished, key_of, seconds_since, uid_of
from localpods.replies import (
    ApiError,
    bad_request,
    flag,
    patched,
    read_object,
    whole_number,
)
from localpods.state import StateDir

_PODS = "/api/v1/namespaces/{namespace}/pods"
_JOBS = "/apis/batch/v1/namespaces/{namespace}/jobs"


class Routes:
    """The handlers of requests."""

    def __init__(
        self,
        state: StateDir,
        pods: Collection,
        jobs: Collection,
        events: EventLog,
        kubelet: Kubelet,
        controller: JobController,
    ) -> None:
        self._state = state
        self._pods = pods
        self._jobs = jobs
        self._events = events.collection
        self._kubelet = kubelet
        self._controller = controller

    def register(self, router: web.UrlDispatcher) -> None:
        """Add the routes to a router."""
        for path in ("/api/v1/pods", _PODS):
            router.add_get(path, self._list_pods)
        for path in ("/api/v1/events", "/api/v1/namespaces/{namespace}/events"):
            router.add_get(path, self._list_events)
        for path in ("/apis/batch/v1/jobs", _JOBS):
            router.add_get(path, self._list_jobs)
        router.add_post(_PODS, self._create_pod)
        router.add_post(_JOBS, self._create_job)
        for path in (f"{_PODS}/{{name}}", f"{_PODS}/{{name}}/status"):
            router.add_get(path, self._get_pod)
        for path in (f"{_JOBS}/{{name}}", f"{_JOBS}/{{name}}/status"):
            router.add_get(path, self._get_job)
        router.add_patch(f"{_PODS}/{{name}}", self._patch_pod)
        router.add_patch(f"{_JOBS}/{{name}}", self._patch_job)
        router.add_delete(f"{_PODS}/{{name}}", self._delete_pod)
        router.add_delete(f"{_JOBS}/{{name}}", self._delete_job)
        router.add_get(f"{_PODS}/{{name}}/log", self._log)

    async def _list_pods(self, request: web.Request) -> web.StreamResponse:
        return await send_list_or_watch(request, self._pods)

    async def _list_jobs(self, request: web.Request) -> web.StreamResponse:
        return await send_list_or_watch(request, self._jobs)

    async def _list_events(self, request: web.Request) -> web.StreamResponse:
        return await send_list_or_watch(request, self._events)

    async def _create_pod(self, request: web.Request) -> web.Response:
        pod = self._pods.add(admit_pod(await read_object(request), _namespace(request)))
        # At once: the operator looks at the phase in the reply, and only seconds later again.
        self._kubelet.sync(pod)
        return web.json_response(self._pods.current(pod), status=201)

    async def _create_job(self, request: web.Request) -> web.Response:
        job = self._jobs.add(admit_job(await read_object(request), _namespace(request)))
        self._controller.sync(job)
        return web.json_response(self._jobs.current(job), status=201)

    async def _get_pod(self, request: web.Request) -> web.Response:
        return send_object(request, self._pods, _named(request, self._pods))

    async def _get_job(self, request: web.Request) -> web.Response:
        return send_object(request, self._jobs, _named(request, self._jobs))

    async def _patch_pod(self, request: web.Request) -> web.Response:
        return await _patch(request, self._pods)

    async def _patch_job(self, request: web.Request) -> web.Response:
        return await _patch(request, self._jobs)

    async def _delete_pod(self, request: web.Request) -> web.Response:
        options = await read_object(request)
        pod = _named(request, self._pods)
        _check_preconditions(pod, options)
        return web.json_response(self._kubelet.delete(pod, _grace(request, options)))

    async def _delete_job(self, request: web.Request) -> web.Response:
        options = await read_object(request)
        policy = request.query.get("propagationPolicy") or options.get("propagationPolicy")
        if policy not in (None, "Background", "Foreground"):
            raise bad_request(f"propagationPolicy {policy} is not supported on this machine")
        job = _named(request, self._jobs)
        _check_preconditions(job, options)
        return web.json_response(self._controller.delete(job, _grace(request, options)))

    async def _log(self, request: web.Request) -> web.StreamResponse:
        pod = _named(request, self._pods)
        name = _container(pod, request.query.get("container"))
        if flag(request, "previous"):
            raise bad_request(f'previous terminated container "{name}" not found')
        run = self._kubelet.run_of(pod, name)
        if not is_finished(pod) and (run is None or not (run.started_at or run.exit)):
            raise bad_request(
                f'container "{name}" in pod "{pod["metadata"]["name"]}" is waiting to start'
            )
        query = LogQuery(
            follow=flag(request, "follow"),
            timestamps=flag(request, "timestamps"),
            since=_since(request),
            tail=whole_number(request, "tailLines"),
            limit=whole_number(request, "limitBytes"),
        )
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)

        def ended() -> bool:
            return run is None or run.exit is not None or self._pods.find(*key_of(pod)) is None

        async for piece in read_log(
            self._state.container_dir(uid_of(pod), name) / "log", query, ended
        ):
            await response.write(piece)
        return response


def _namespace(request: web.Request) -> str:
    return request.match_info["namespace"]


def _named(request: web.Request, collection: Collection) -> Json:
    return collection.get(_namespace(request), request.match_info["name"])


async def _patch(request: web.Request, collection: Collection) -> web.Response:
    patch = await read_object(request)
    changed = collection.put(patched(_named(request, collection), patch))
    return send_object(request, collection, changed)


def _check_preconditions(obj: Json, options: Json) -> None:
    """Refuse to delete another object than the client has seen under the name."""
    wanted = (options.get("preconditions") or {}).get("uid")
    if wanted not in (None, uid_of(obj)):
        raise ApiError(409, "Conflict", "the object does not have the UID of the preconditions")


def _grace(request: web.Request, options: Json) -> float | None:
    """Read the grace period of a delete request, from the query or the body."""
    grace = whole_number(request, "gracePeriodSeconds")
    if grace is None:
        grace = options.get("gracePeriodSeconds")
    if grace is not None and not isinstance(grace, int):
        raise bad_request(f"gracePeriodSeconds: {grace!r} is not a whole number")
    return None if grace is None else float(max(0, grace))


def _container(pod: Json, name: str | None) -> str:
    spec = pod["spec"]
    names = [str(c["name"]) for c in [*(spec.get("initContainers") or []), *spec["containers"]]]
    if not name and len(spec["containers"]) > 1:
        raise bad_request(
            f"a container name must be specified for pod {pod['metadata']['name']}, choose "
            f"one of: [{' '.join(names)}]"
        )
    name = name or names[-1]
    if name not in names:
        raise bad_request(f"container {name} is not valid for pod {pod['metadata']['name']}")
    return name


def _since(request: web.Request) -> str | None:
    seconds: float | None = whole_number(request, "sinceSeconds")
    if text := request.query.get("sinceTime"):
        try:
            seconds = seconds_since(datetime.datetime.fromisoformat(text).isoformat())
        except (ValueError, TypeError):
            raise bad_request(f"sinceTime: {text!r} is not an RFC 3339 time") from None
    return None if seconds is None else log_time(seconds)
