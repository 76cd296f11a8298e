"""The server: it assembles the parts and answers on the loopback interface."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from localpods import discovery
from localpods.collection import Collection, Versions
from localpods.events import EventLog
from localpods.guard import start_guard
from localpods.images import ImageMap
from localpods.jobs import JobController, is_concluded, job_condition
from localpods.lifecycle import Kubelet
from localpods.objects import LOOPBACK, Json, describe, is_deleting, is_finished, uid_of
from localpods.pod_status import lost
from localpods.processes import kill_marked
from localpods.replies import ApiError
from localpods.routes import Routes
from localpods.state import SetupError, StateDir, read_json, remove_tree, write_json
from localpods.tls import server_context, write_kubeconfig

log = logging.getLogger("localpods")

_OPEN_PATHS = frozenset({"/readyz", "/livez", "/healthz", "/version"})
_HOSTS = frozenset({LOOPBACK, "localhost"})
_TICK_S = 0.1
# The limit of a cluster's API server.
_BODY_LIMIT = 3 << 20
_GUARD_LIMIT_S = 10.0


@dataclass(frozen=True)
class Settings:
    """The settings of a server.

    Attributes:
        state: the state folder.
        images: the file with the image map.
        port: the port; None for that of the last start, or any free one.
        gpus: the number of GPUs to hand out.
        grace: the seconds that pods have to end when the server ends.
    """

    state: StateDir
    images: Path
    port: int | None
    gpus: int
    grace: float


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then end all pods.

    Raises:
        SetupError: if it cannot start.
    """
    settings.state.prepare()
    with settings.state.locked():
        # Of a former server that was killed together with its guard.
        kill_marked(settings.state.pods)
        guard = start_guard(settings.state.pods)
        try:
            asyncio.run(_serve(settings))
        finally:
            guard.communicate(timeout=_GUARD_LIMIT_S)


async def _serve(settings: Settings) -> None:
    state = settings.state
    cluster = Cluster(state, ImageMap(settings.images), settings.gpus)
    runner = web.AppRunner(
        cluster.application(state.token()),
        access_log=None,
        # A client that is gone ends its watch or log, and a server that ends does not wait.
        handler_cancellation=True,
        shutdown_timeout=0.5,
    )
    await runner.setup()
    port = await _listen(runner, state, settings.port)
    write_kubeconfig(state, port)
    write_json(state.server_file, {"pid": os.getpid(), "port": port})
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGCHLD, cluster.kubelet.reaper.reap)
    log.info("serving on https://%s:%d, kubeconfig %s", LOOPBACK, port, state.kubeconfig)
    try:
        await cluster.run(stopped)
    finally:
        await cluster.kubelet.shut_down(settings.grace)
        await runner.cleanup()


async def _listen(runner: web.AppRunner, state: StateDir, port: int | None) -> int:
    last = (read_json(state.server_file) or {}).get("port", 0)
    wanted = last if port is None else port
    site = web.TCPSite(runner, LOOPBACK, wanted, ssl_context=server_context(state))
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

    def __init__(self, state: StateDir, images: ImageMap, gpus: int) -> None:
        self._state = state
        versions = Versions()
        self._removals: set[asyncio.Future[None]] = set()
        self._pods = Collection("Pod", "v1", "pods", versions, self._persist_pod)
        self._jobs = Collection("Job", "batch/v1", "jobs", versions, self._persist_job)
        events = EventLog(versions)
        self.kubelet = Kubelet(state, self._pods, events, images, gpus)
        self._controller = JobController(self._jobs, self._pods, events, self.kubelet)
        self._routes = Routes(state, self._pods, self._jobs, events, self.kubelet, self._controller)
        self._load()

    def application(self, token: str) -> web.Application:
        """Return the HTTP application.

        Args:
            token: the bearer token that requests must carry.
        """
        app = web.Application(
            middlewares=[_errors, _authentication(token)], client_max_size=_BODY_LIMIT
        )
        for path in ("/readyz", "/livez", "/healthz"):
            app.router.add_get(path, _ready)
        discovery.register(app.router)
        self._routes.register(app.router)
        return app

    async def run(self, stopped: asyncio.Event) -> None:
        """Take care of pods and jobs until the event is set."""
        while not stopped.is_set():
            self.kubelet.changed.clear()
            self.kubelet.reconcile()
            self._controller.reconcile()
            waits = [asyncio.ensure_future(e.wait()) for e in (stopped, self.kubelet.changed)]
            await asyncio.wait(waits, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    def _load(self) -> None:
        """Take over what a former server has saved; what it left unfinished has failed."""
        for pod in self._state.load_pods():
            if is_deleting(pod):
                self._persist_pod(pod, None)
                continue
            self._state.drop_temp(uid_of(pod))
            if not is_finished(pod):
                log.warning("pod %s: its server has ended", describe(pod))
                pod = {**pod, "status": lost(pod)}  # noqa: PLW2901
            self._pods.add(pod)
        for job in self._state.load_jobs():
            if not is_concluded(job):
                message = "the server that ran the job has ended"
                job["status"]["conditions"] = [job_condition("Failed", "NodeLost", message)]
            self._jobs.add(job)

    def _persist_pod(self, before: Json | None, after: Json | None) -> None:
        if after is not None:
            self._state.save_pod(after)
        elif before is not None and (folder := self._state.drop_pod(uid_of(before))):
            # Deleting large files must not delay the other requests.
            removal = asyncio.get_running_loop().run_in_executor(None, remove_tree, folder)
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)

    def _persist_job(self, before: Json | None, after: Json | None) -> None:
        if after is not None:
            self._state.save_job(after)
        elif before is not None:
            self._state.drop_job(uid_of(before))


def _authentication(token: str) -> Middleware:
    """Return a check of each request: not from a browser, and with the token.

    A web page does not know the token and its browser does not trust the certificate. Refusing
    every `Origin`, and host names other than those of this machine, also keeps it away from the
    paths that need no token.
    """
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if "Origin" in request.headers or urlsplit(f"//{request.host}").hostname not in _HOSTS:
            raise ApiError(403, "Forbidden", "requests of web pages are not answered")
        given = request.headers.get("Authorization", "").encode()
        if request.path not in _OPEN_PATHS and not hmac.compare_digest(given, expected):
            raise ApiError(401, "Unauthorized", "Unauthorized: send the kubeconfig's token")
        return await handler(request)

    return check


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every error into a `Status` object."""
    try:
        return await handler(request)
    except ApiError as caught:
        error = caught
    except web.HTTPNotFound:
        error = ApiError(404, "NotFound", "the server could not find the requested resource")
    except web.HTTPMethodNotAllowed:
        error = ApiError(405, "MethodNotAllowed", "the server does not allow this method")
    except web.HTTPRequestEntityTooLarge:
        error = ApiError(413, "RequestEntityTooLarge", f"at most {_BODY_LIMIT} bytes")
    except (ConnectionResetError, asyncio.CancelledError):
        # The client has disconnected in the middle of a stream.
        raise
    except Exception:
        log.exception("%s %s", request.method, request.path)
        error = ApiError(500, "InternalError", "an internal error: see the log of localpods")
    return web.json_response(error.status(), status=error.code)


async def _ready(request: web.Request) -> web.Response:
    return web.Response(text="ok")
