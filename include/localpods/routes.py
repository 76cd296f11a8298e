"""The served part of the core and batch API: pods, their logs, jobs, and events."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from aiohttp import web

from localpods.admission import admit_job, admit_pod
from localpods.collection import Collection
from localpods.jobs import JobController
from localpods.lifecycle import Kubelet
from localpods.lists import send_list_or_watch, send_object
from localpods.logs import log_time, read_log
from localpods.objects import Json, describe, is_finished, key_of, uid_of
from localpods.replies import bad_request, flag, patched, read_object, whole_number
from localpods.state import StateDir

_PODS = "/api/v1/namespaces/{namespace}/pods"
_JOBS = "/apis/batch/v1/namespaces/{namespace}/jobs"


@dataclass(frozen=True)
class Routes:
    """The handlers of requests."""

    state: StateDir
    pods: Collection
    jobs: Collection
    events: Collection
    kubelet: Kubelet
    controller: JobController

    def register(self, router: web.UrlDispatcher) -> None:
        """Add the routes to a router."""
        for collection, everywhere, path in (
            (self.pods, "/api/v1/pods", _PODS),
            (self.jobs, "/apis/batch/v1/jobs", _JOBS),
            (self.events, "/api/v1/events", "/api/v1/namespaces/{namespace}/events"),
        ):
            listing = partial(send_list_or_watch, collection=collection)
            router.add_get(everywhere, listing)
            router.add_get(path, listing)
            for named in (f"{path}/{{name}}", f"{path}/{{name}}/status"):
                router.add_get(named, partial(_get, collection=collection))
            router.add_patch(f"{path}/{{name}}", partial(_patch, collection=collection))
        router.add_post(_PODS, self._create_pod)
        router.add_post(_JOBS, self._create_job)
        router.add_delete(f"{_PODS}/{{name}}", self._delete_pod)
        router.add_delete(f"{_JOBS}/{{name}}", self._delete_job)
        router.add_get(f"{_PODS}/{{name}}/log", self._log)

    async def _create_pod(self, request: web.Request) -> web.Response:
        pod = self.pods.add(admit_pod(await read_object(request), request.match_info["namespace"]))
        # At once: the operator looks at the phase in the reply, and only seconds later again.
        self.kubelet.sync(pod)
        return web.json_response(self.pods.current(pod), status=201)

    async def _create_job(self, request: web.Request) -> web.Response:
        job = self.jobs.add(admit_job(await read_object(request), request.match_info["namespace"]))
        self.controller.sync(job)
        return web.json_response(self.jobs.current(job), status=201)

    async def _delete_pod(self, request: web.Request) -> web.Response:
        options = await read_object(request)
        pod = _named(request, self.pods)
        return web.json_response(self.kubelet.delete(pod, _grace(request, options)))

    async def _delete_job(self, request: web.Request) -> web.Response:
        options = await read_object(request)
        policy = request.query.get("propagationPolicy") or options.get("propagationPolicy")
        if policy not in (None, "Background", "Foreground"):
            raise bad_request(f"propagationPolicy {policy} is not supported on this machine")
        job = _named(request, self.jobs)
        return web.json_response(self.controller.delete(job, _grace(request, options)))

    async def _log(self, request: web.Request) -> web.StreamResponse:
        pod = _named(request, self.pods)
        name = _container(pod, request.query.get("container"))
        run = self.kubelet.run_of(pod, name)
        if not is_finished(pod) and (run is None or not (run.started_at or run.exit)):
            raise bad_request(f'container "{name}" of {describe(pod)} is waiting to start')
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)

        def ended() -> bool:
            return run is None or run.exit is not None or self.pods.find(*key_of(pod)) is None

        seconds = whole_number(request, "sinceSeconds")
        pieces = read_log(
            self.state.container_dir(uid_of(pod), name) / "log",
            ended,
            follow=flag(request, "follow"),
            timestamps=flag(request, "timestamps"),
            since="" if seconds is None else log_time(seconds),
            tail=whole_number(request, "tailLines"),
        )
        async for piece in pieces:
            await response.write(piece)
        return response


def _named(request: web.Request, collection: Collection) -> Json:
    return collection.get(request.match_info["namespace"], request.match_info["name"])


async def _get(request: web.Request, collection: Collection) -> web.Response:
    return send_object(request, collection, _named(request, collection))


async def _patch(request: web.Request, collection: Collection) -> web.Response:
    patch = await read_object(request)
    changed = collection.put(patched(_named(request, collection), patch))
    return send_object(request, collection, changed)


def _grace(request: web.Request, options: Json) -> float | None:
    """Read the grace period of a delete request, from the query or the body."""
    grace = whole_number(request, "gracePeriodSeconds")
    given = options.get("gracePeriodSeconds") if grace is None else grace
    if given is not None and not isinstance(given, int):
        raise bad_request(f"gracePeriodSeconds: {given!r} is not a whole number")
    return given


def _container(pod: Json, name: str | None) -> str:
    names = [str(container["name"]) for container in pod["spec"]["containers"]]
    if name not in names and (name or len(names) > 1):
        raise bad_request(f"a container must be named, one of: [{' '.join(names)}]")
    return name or names[0]
