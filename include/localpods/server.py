"""The server: it puts the parts together and answers on the loopback interface."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from localpods import __version__
from localpods.capacity import Capacity
from localpods.collection import Collection, Versions
from localpods.events import EventLog
from localpods.images import ImageMap
from localpods.job_routes import JobRoutes
from localpods.jobs import JobController
from localpods.lifecycle import Kubelet
from localpods.objects import LOOPBACK, Json, uid_of
from localpods.pod_routes import PodRoutes
from localpods.processes import birth_of
from localpods.replies import ApiError
from localpods.shutdown import stop_pods
from localpods.state import SetupError, StateDir, read_json, remove_tree, write_json

log = logging.getLogger("localpods")

_OPEN_PATHS = frozenset({"/readyz", "/livez", "/healthz", "/version"})
_TICK_S = 0.1
_EXPIRY_TICKS = 600
# The limit of a cluster's API server.
_BODY_LIMIT = 3 << 20
# The version of Kubernetes whose API this is.
_MAJOR, _MINOR = "1", "33"


@dataclass(frozen=True)
class Settings:
    """What a server is started with.

    Attributes:
        state: The state directory.
        images: The image map's file.
        port: The port; `None` for that of the last time, or any.
        capacity: What pods may request.
        kill_pods_on_exit: End all pods when the server ends.
        grace: Seconds that they have then.
    """

    state: StateDir
    images: Path
    port: int | None
    capacity: Capacity
    kill_pods_on_exit: bool
    grace: float


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        SetupError: It cannot start.
    """
    state = settings.state
    state.prepare()
    with state.locked():
        asyncio.run(_serve(settings))
        if settings.kill_pods_on_exit:
            stop_pods(state, settings.grace)


async def _serve(settings: Settings) -> None:
    state = settings.state
    cluster = Cluster(state, ImageMap(settings.images), settings.capacity)
    runner = web.AppRunner(
        cluster.application(state.token()),
        access_log=None,
        # A client that is gone ends its watch or log, and a server that ends does not wait.
        handler_cancellation=True,
        shutdown_timeout=0.5,
    )
    await runner.setup()
    port = await _listen(runner, state, settings.port)
    state.write_kubeconfig(port)
    write_json(
        state.server_file, {"pid": os.getpid(), "birth": birth_of(os.getpid()), "port": port}
    )
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    log.info("serving on http://%s:%d, kubeconfig %s", LOOPBACK, port, state.kubeconfig)
    try:
        await cluster.run(stopped)
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, state: StateDir, port: int | None) -> int:
    last = (read_json(state.server_file) or {}).get("port", 0)
    site = web.TCPSite(runner, LOOPBACK, last if port is None else port)
    try:
        await site.start()
    except OSError as error:
        if port is None and last:
            # Nobody asked for that port: clients read the new one from the kubeconfig.
            return await _listen(runner, state, 0)
        raise SetupError(f"cannot listen on {LOOPBACK}:{port}: {error.strerror}") from None
    return int(runner.addresses[0][1])


class Cluster:
    """All parts of the one-machine cluster."""

    def __init__(self, state: StateDir, images: ImageMap, capacity: Capacity) -> None:
        self._state = state
        versions = Versions()
        self._wake = asyncio.Event()
        self._rubbish: set[asyncio.Future[None]] = set()
        self.pods = Collection("Pod", "v1", "pods", versions, self._persist_pod)
        self.jobs = Collection("Job", "batch/v1", "jobs", versions, self._persist_job)
        self.events = EventLog(state.events_file, versions)
        for pod in state.load_pods():
            self.pods.load(pod)
        for job in state.load_jobs():
            self.jobs.load(job)
        self.kubelet = Kubelet(state, self.pods, self.events, images, capacity)
        self.controller = JobController(self.jobs, self.pods, self.events, self.kubelet)

    def application(self, token: str) -> web.Application:
        """Return the HTTP application.

        Args:
            token: The bearer token that requests must carry.
        """
        app = web.Application(
            middlewares=[_refusals, _authentication(token)], client_max_size=_BODY_LIMIT
        )
        for path in ("/readyz", "/livez", "/healthz"):
            app.router.add_get(path, _ready)
        app.router.add_get("/version", _version)
        PodRoutes(self._state, self.pods, self.events, self.kubelet).register(app.router)
        JobRoutes(self.jobs, self.controller).register(app.router)
        return app

    async def run(self, stopped: asyncio.Event) -> None:
        """Look after pods and jobs until told to stop."""
        ticks = 0
        while not stopped.is_set():
            self._wake.clear()
            self.kubelet.reconcile()
            self.controller.reconcile()
            ticks += 1
            if ticks % _EXPIRY_TICKS == 0:
                self.events.expire()
            await self._pause(stopped)

    async def _pause(self, stopped: asyncio.Event) -> None:
        """Wait for the next tick, or less when something was asked for."""
        waits = [asyncio.ensure_future(event.wait()) for event in (stopped, self._wake)]
        await asyncio.wait(waits, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _persist_pod(self, before: Json | None, after: Json | None) -> None:
        if after is not None:
            self._state.save_pod(after)
            if before is None:
                self._wake.set()
            return
        assert before is not None
        rubbish = self._state.drop_pod(uid_of(before))
        if rubbish is not None:
            loop = asyncio.get_running_loop()
            removal = loop.run_in_executor(None, remove_tree, rubbish)
            self._rubbish.add(removal)
            removal.add_done_callback(self._rubbish.discard)

    def _persist_job(self, before: Json | None, after: Json | None) -> None:
        if after is not None:
            self._state.save_job(after)
        elif before is not None:
            self._state.drop_job(uid_of(before))


def _authentication(token: str) -> Middleware:
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode()
        if request.path not in _OPEN_PATHS and not hmac.compare_digest(given, expected):
            raise ApiError(401, "Unauthorized", "Unauthorized: send the kubeconfig's token")
        return await handler(request)

    return check


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a `Status` object."""
    try:
        return await handler(request)
    except ApiError as error:
        refusal = error
    except web.HTTPNotFound:
        refusal = ApiError(404, "NotFound", "the server could not find the requested resource")
    except web.HTTPMethodNotAllowed:
        refusal = ApiError(405, "MethodNotAllowed", "the server does not allow this method")
    except web.HTTPRequestEntityTooLarge:
        refusal = ApiError(413, "RequestEntityTooLarge", f"at most {_BODY_LIMIT} bytes")
    except (ConnectionResetError, asyncio.CancelledError):
        # The client went away in the middle of a stream.
        raise
    except Exception:
        log.exception("%s %s", request.method, request.path)
        refusal = ApiError(500, "InternalError", "an internal error: see the log of localpods")
    return web.json_response(refusal.status(), status=refusal.code)


async def _ready(request: web.Request) -> web.Response:
    return web.Response(text="ok")


async def _version(request: web.Request) -> web.Response:
    return web.json_response(
        {
            "major": _MAJOR,
            "minor": _MINOR,
            "gitVersion": f"v{_MAJOR}.{_MINOR}.0+localpods-{__version__}",
            "gitCommit": "",
            "gitTreeState": "clean",
            "buildDate": "",
            "goVersion": "",
            "compiler": "",
            "platform": "local",
        }
    )
