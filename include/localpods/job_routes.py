"""The part of the batch API (batch/v1) that is served: jobs."""

from __future__ import annotations

from aiohttp import web

from localpods.admission import admit_job
from localpods.collection import Collection
from localpods.jobs import JobController
from localpods.objects import Json, key_of
from localpods.pod_routes import grace_of
from localpods.replies import bad_request, patched, read_object, send_json
from localpods.selectors import JOB_FIELDS
from localpods.watching import send_list_or_watch

_POLICIES = {"Background", "Foreground", "Orphan"}


class JobRoutes:
    """Handlers of requests on jobs."""

    def __init__(self, jobs: Collection, controller: JobController) -> None:
        self._jobs = jobs
        self._controller = controller

    def register(self, router: web.UrlDispatcher) -> None:
        """Add the routes to a router."""
        base = "/apis/batch/v1/namespaces/{namespace}/jobs"
        router.add_get("/apis/batch/v1/jobs", self._list)
        router.add_get(base, self._list)
        router.add_post(base, self._create)
        router.add_get(base + "/{name}", self._get)
        router.add_get(base + "/{name}/status", self._get)
        router.add_patch(base + "/{name}", self._patch)
        router.add_delete(base + "/{name}", self._delete)

    def _job(self, request: web.Request) -> Json:
        return self._jobs.get(request.match_info["namespace"], request.match_info["name"])

    async def _list(self, request: web.Request) -> web.StreamResponse:
        return await send_list_or_watch(request, self._jobs, JOB_FIELDS)

    async def _create(self, request: web.Request) -> web.Response:
        job = admit_job(await read_object(request), request.match_info["namespace"])
        job = self._jobs.add(job)
        # At once: the operator looks for the pods as soon as it has the answer.
        self._controller.sync(job)
        return send_json(self._jobs.get(*key_of(job)), 201)

    async def _get(self, request: web.Request) -> web.Response:
        return send_json(self._job(request))

    async def _patch(self, request: web.Request) -> web.Response:
        patch = await read_object(request)
        return send_json(self._jobs.put(patched(self._job(request), patch)))

    async def _delete(self, request: web.Request) -> web.Response:
        options = await read_object(request)
        given = request.query.get("propagationPolicy") or options.get("propagationPolicy")
        policy = given or "Background"
        if policy not in _POLICIES:
            raise bad_request(f"propagationPolicy: {policy!r} is none of {sorted(_POLICIES)}")
        job = self._job(request)
        return send_json(self._controller.delete(job, policy, grace_of(request, options)))
