"""The server: it assembles the parts and answers on the loopback interface."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hmac
import json
import logging
import os
import signal
import ssl
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import trustme
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from cryptography import x509

from localpods.api import Routes
from localpods.collection import Collection, EventLog, resource_versions
from localpods.containers import reap
from localpods.environment import ImageMap
from localpods.jobs import JobController, is_concluded, job_condition
from localpods.kubelet import Kubelet, lost
from localpods.objects import LOOPBACK, ApiError, describe, is_deleting, is_finished, uid_of
from localpods.processes import kill_marked, start_guard
from localpods.state import SetupError, StateDir, read_json, write_private

# A certificate that ends sooner than this is replaced at the start of the server.
_RENEWED_BEFORE = datetime.timedelta(days=365)
_BEGIN = "-----BEGIN CERTIFICATE-----"
_ISSUER = "localpods authority"

log = logging.getLogger("localpods")
# Replies to what kubectl asks before its first request: the API's version, groups and resources.
# Its OpenAPI documents hold no more than kubectl needs to leave the validation of a file to the
# server (`kubectl create -f`).
_DOCUMENTS = json.loads(resources.files("localpods").joinpath("discovery.json").read_text())
_OPEN_PATHS = frozenset({"/readyz", "/version"})
_HOSTS = frozenset({LOOPBACK, "localhost"})
_TICK_S = 0.1
# The limit of a cluster's API server.
_BODY_LIMIT = 3 << 20
_GUARD_LIMIT_S = 10.0


def server_context(state: StateDir) -> ssl.SSLContext:
    """Return the TLS context of the server; its certificate is created if there is none."""
    if not _is_valid(state):
        write_private(state.certificate, _create())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(state.certificate)
    return context


def write_kubeconfig(state: StateDir, port: int) -> None:
    """Write the kubeconfig that clients connect with; JSON is valid YAML."""
    cluster = {
        "server": f"https://{LOOPBACK}:{port}",
        "certificate-authority-data": base64.b64encode(_authority(state)).decode(),
    }
    name = "localpods"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": state.token()}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    }
    write_private(state.kubeconfig, json.dumps(config))


def _authority(state: StateDir) -> bytes:
    text = state.certificate.read_text(encoding="ascii")
    return text[text.rindex(_BEGIN) :].encode()


def _is_valid(state: StateDir) -> bool:
    try:
        end = x509.load_pem_x509_certificate(_authority(state)).not_valid_after_utc
    except (OSError, ValueError):
        return False
    return end - datetime.datetime.now(datetime.UTC) > _RENEWED_BEFORE


def _create() -> str:
    """Return a private key, its certificate and the certificate's authority, as PEM."""
    authority = trustme.CA(organization_name=_ISSUER, path_length=0)
    leaf = authority.issue_cert(LOOPBACK, "localhost")
    pems = (leaf.private_key_pem, *leaf.cert_chain_pems, authority.cert_pem)
    return "".join(pem.bytes().decode() for pem in pems)


def serve(state: StateDir, images: Path, port: int | None, gpus: int, grace: float) -> None:
    """Serve until SIGTERM or SIGINT, then end all pods; the options are those of the command.

    Raises:
        SetupError: if it cannot start.
    """
    state.prepare()
    with state.lock():
        # Of a former server that was killed together with its guard.
        kill_marked(state.pods)
        guard = start_guard(state.pods)
        try:
            asyncio.run(_serve(state, ImageMap(images), port, gpus, grace))
        finally:
            guard.communicate(timeout=_GUARD_LIMIT_S)


async def _serve(
    state: StateDir, images: ImageMap, port: int | None, gpus: int, grace: float
) -> None:
    cluster = Cluster(state, images, gpus)
    # A client that is gone ends its watch or log, and a server that ends does not wait.
    runner = web.AppRunner(
        cluster.application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.5
    )
    await runner.setup()
    port = await _listen(runner, state, port)
    write_kubeconfig(state, port)
    write_private(state.server_file, json.dumps({"pid": os.getpid(), "port": port}))
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    loop.add_signal_handler(signal.SIGCHLD, reap)
    log.info("serving on https://%s:%d, kubeconfig %s", LOOPBACK, port, state.kubeconfig)
    try:
        await cluster.run(stopped)
    finally:
        await cluster.kubelet.shut_down(grace)
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
        next_version = resource_versions()
        self._pods = Collection("Pod", next_version, state)
        self._jobs = Collection("Job", next_version, state)
        events = EventLog(next_version)
        self.kubelet = Kubelet(state, self._pods, events, images, gpus)
        self._controller = JobController(self._jobs, self._pods, events, self.kubelet)
        self._routes = Routes(
            state, self._pods, self._jobs, events.collection, self.kubelet, self._controller
        )
        self._load()

    def application(self) -> web.Application:
        """Return the HTTP application."""
        app = web.Application(
            middlewares=[_errors, _authentication(self._state.token())], client_max_size=_BODY_LIMIT
        )
        for path in _DOCUMENTS:
            app.router.add_get(path, _discovery)
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
        for obj in self._state.load():
            if is_deleting(obj):
                self._state.drop(uid_of(obj))
            elif obj["kind"] == "Job":
                if not is_concluded(obj):
                    message = "the server that ran the job has ended"
                    obj["status"]["conditions"] = [job_condition("Failed", "NodeLost", message)]
                self._jobs.add(obj)
            else:
                self._state.drop_temp(uid_of(obj))
                if not is_finished(obj):
                    log.warning("pod %s: its server has ended", describe(obj))
                    obj["status"] = lost(obj)
                self._pods.add(obj)


def _authentication(token: str) -> Middleware:
    """Return a check of each request: not from a browser, and with the token."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if "Origin" in request.headers or urlsplit(f"//{request.host}").hostname not in _HOSTS:
            raise ApiError(403, "Forbidden", "requests of web pages are not answered")
        # Clients in pods write `bearer`, others `Bearer`.
        given = request.headers.get("Authorization", "").partition(" ")[2].encode()
        if request.path not in _OPEN_PATHS and not hmac.compare_digest(given, token.encode()):
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
    except web.HTTPException as caught:
        # No such path or method, or too long a body.
        error = ApiError(caught.status, caught.reason.replace(" ", ""), caught.text or "")
    except (ConnectionResetError, asyncio.CancelledError):
        # The client has disconnected in the middle of a stream.
        raise
    except Exception:
        log.exception("%s %s", request.method, request.path)
        error = ApiError(500, "InternalError", "an internal error: see the log of localpods")
    return web.json_response(error.status, status=error.code)


async def _discovery(request: web.Request) -> web.Response:
    return web.json_response(_DOCUMENTS[request.path])
