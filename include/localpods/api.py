"""The served part of the core and batch API: pods, their logs, jobs, and events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from localpods.admission import admit_job, admit_pod
from localpods.collection import Collection, Selector, version_of
from localpods.containers import log_time, read_log
from localpods.jobs import JobController
from localpods.kubelet import Kubelet
from localpods.objects import (
    Json,
    bad_request,
    describe,
    is_deleting,
    is_finished,
    key_of,
    patched,
    seconds_since,
    uid_of,
)
from localpods.state import StateDir

_COLUMNS = ("Name", "Ready", "Status", "Age")

_PODS = "/api/v1/namespaces/{namespace}/pods"
_JOBS = "/apis/batch/v1/namespaces/{namespace}/jobs"


def as_table(pods: list[Json], version: int) -> Json:
    """Return a `Table` of pods, which kubectl shows as it is."""
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": str(version)},
        "columnDefinitions": [
            {"name": name, "type": "string", "format": "", "description": "", "priority": 0}
            for name in _COLUMNS
        ],
        "rows": [{"cells": _cells(pod), "object": pod} for pod in pods],
    }


def _cells(pod: Json) -> list[str]:
    status = pod["status"]
    containers = status.get("containerStatuses") or []
    ready = sum(container["ready"] for container in containers)
    # An error says more than the phase; a success is called `Completed`.
    reasons = (s.get("reason") for container in containers for s in container["state"].values())
    shown = status.get("reason") or next(filter(None, reasons), status["phase"])
    count = f"{ready}/{len(pod['spec']['containers'])}"
    shown = "Terminating" if is_deleting(pod) else shown
    minutes, seconds = divmod(round(seconds_since(pod["metadata"]["creationTimestamp"])), 60)
    age = f"{minutes}m" if minutes > 1 else f"{60 * minutes + seconds}s"
    return [pod["metadata"]["name"], count, shown, age]


def send_object(request: web.Request, collection: Collection, obj: Json) -> web.Response:
    """Reply with one object."""
    if _wants_table(request, collection):
        obj = as_table([obj], collection.version)
    return web.json_response(obj)


async def send_list_or_watch(request: web.Request, collection: Collection) -> web.StreamResponse:
    """Reply to a list request or a watch; without a namespace it asks for all."""
    namespace = request.match_info.get("namespace")
    labels, fields = (request.query.get(f"{name}Selector", "") for name in ("label", "field"))
    selector = Selector(labels, fields, collection.kind)
    if flag(request, "watch"):
        return await _watch(request, collection, namespace, selector)
    found = collection.select(namespace, selector)
    if _wants_table(request, collection):
        return web.json_response(as_table(found, collection.version))
    # Of the API that is asked: /api/v1/… or /apis/batch/v1/….
    version = "batch/v1" if request.path.startswith("/apis/batch/") else "v1"
    metadata = {"resourceVersion": str(collection.version)}
    kind = f"{collection.kind}List"
    return web.json_response(
        {"kind": kind, "apiVersion": version, "metadata": metadata, "items": found}
    )


async def _watch(
    request: web.Request, collection: Collection, namespace: str | None, selector: Selector
) -> web.StreamResponse:
    # 0 asks for any state, such as the present one.
    since = whole_number(request, "resourceVersion") or None
    as_tables = _wants_table(request, collection)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(whole_number(request, "timeoutSeconds")):
            async for change, obj in collection.watch(namespace, selector, since):
                shown = as_table([obj], version_of(obj)) if as_tables else obj
                line = json.dumps({"type": change, "object": shown})
                await response.write(f"{line}\n".encode())
    return response


def _wants_table(request: web.Request, collection: Collection) -> bool:
    return collection.kind == "Pod" and "as=Table" in request.headers.get("Accept", "")


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


def flag(request: web.Request, name: str) -> bool:
    """Read a boolean query parameter; the Python client sends `True` with a capital letter."""
    return request.query.get(name, "").lower() in {"true", "1"}


def whole_number(request: web.Request, name: str) -> int | None:
    """Read a query parameter that is a whole number of at least 0."""
    text = request.query.get(name, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        raise bad_request(f"query parameter {name}: {text!r} is not a whole number")
    return int(text)


async def read_object(request: web.Request) -> Json:
    """Read a request's body, a JSON object; an empty body counts as an empty object."""
    raw = await request.read()
    if raw.startswith(b"k8s\x00"):
        raise bad_request("protobuf is not supported, only JSON: use `kubectl create -f`")
    try:
        body = json.loads(raw) if raw.strip() else {}
    except ValueError as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object")
    return body
