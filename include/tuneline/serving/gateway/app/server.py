"""The gateway as a process: clients' connections, its log, reloads, signals and the drain.

uvicorn waits for ever on slow heads and readers and keeps headers of any size; each lets one client
hold memory and places that others need, so `_ClientConnection` sets limits.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import resource
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from tuneline.errors import EXIT_OK, TunelineError, UserError
from tuneline.serving.gateway.app.routes import create_app
from tuneline.serving.gateway.app.runtime import Runtime, ScrubberFor
from tuneline.serving.gateway.config import ClientLimits, GatewayConfig, fingerprint, load_config
from tuneline.serving.gateway.ledger.writer import GatheredLines
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.gateway.request import error_body

log = logging.getLogger("tuneline.gateway")

# Who connects has something to say, and a connection without a key is free to make.
_FIRST_BYTE_S = 5.0
# Requests that a client sends before it has an answer to the first.
_MOST_PIPELINED = 16
# Of the process's descriptors, those for everything but connections: ledger, logs, libraries.
_OTHER_FILES = 64
# A limit without end makes some libraries slow.
_MOST_FILES = 65_536
# With --watch the file is looked at this often.
_LOOK_S = 0.25
# The parts of the configuration that a reload exchanges; the others are bound at the start.
LIVE = frozenset(
    {
        "upstreams",
        "models",
        "allowed_hosts",
        "readiness",
        "drain",
        "currency",
        "max_body_bytes",
        "max_in_flight",
        "max_in_flight_bytes",
    }
)
# Requests that overran the drain get this long to be cut off cleanly.
_CUT_OFF_S = 1
_BACKLOG = 2048
# A log whose reader is stuck must not hold up the end.
_LAST_LINES_S = 2.0
_SWITCH_S = 0.0005


def connections_at_most(limits: ClientLimits, max_in_flight: int) -> int:
    """Let the process open all files that it may; return how many connections clients may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        # Some systems allow less than they state.
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    free = (_MOST_FILES if soft == resource.RLIM_INFINITY else soft) - _OTHER_FILES
    return max(1, min(limits.connections, free - min(max_in_flight, free // 2)))


class _Connections:
    """The open connections of clients, of which an idle one makes room for a new one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of_address: Counter[str] = Counter()
        # In the order in which they fell idle.
        self._idle: dict[_ClientConnection, None] = {}

    def opened(self, connection: _ClientConnection) -> None:
        """Take a new connection; without room for it, close it or an idle one.

        Of the idle ones it is the oldest of the address that has the most connections, so that
        nobody shuts others out.
        """
        self._of_address[connection.address] += 1
        if self._of_address.total() > self._most:
            crowded = self._of_address
            leaves = max(self._idle, key=lambda one: crowded[one.address], default=connection)
            self._idle.pop(leaves, None)
            # What it has not read goes with it.
            leaves.transport.abort()
        if not connection.transport.is_closing():
            self.idles(connection)

    def idles(self, connection: _ClientConnection) -> None:
        self._idle[connection] = None

    def works(self, connection: _ClientConnection) -> None:
        self._idle.pop(connection, None)

    def lost(self, connection: _ClientConnection) -> None:
        self._idle.pop(connection, None)
        self._of_address[connection.address] -= 1
        if not self._of_address[connection.address]:
            del self._of_address[connection.address]


def connection_class(limits: ClientLimits, most: int) -> type[asyncio.Protocol]:
    """Return the protocol class of a server with these limits, and so many connections."""

    class Limited(_ClientConnection):
        LIMITS = limits
        OPEN = _Connections(most)

    return Limited


class _ClientConnection(HttpToolsProtocol):
    """A connection whose client has to keep within the limits.

    A head that comes in one piece, as nearly all do, costs no timer.
    """

    LIMITS: ClientLimits
    OPEN: _Connections

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._in_head = True
        self._head_bytes = 0
        self._message_over = True
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._abort_after("head", min(_FIRST_BYTE_S, self.LIMITS.idle_timeout_s))
        self.OPEN.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self.OPEN.lost(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            if self._head_bytes == 0:
                self._stop("head")
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        if self._head_bytes > self.LIMITS.header_bytes:
            self._refuse_head()
        elif self._head_bytes and "head" not in self._timers:
            self._abort_after("head", self.LIMITS.header_timeout_s)

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the head is too large."""
        self._stop("head")
        self._in_head = self._message_over = False
        limit = self.LIMITS.header_bytes
        head = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._head_bytes > limit and head > limit:
            self._refuse_head()
        elif len(self.pipeline) >= _MOST_PIPELINED:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.OPEN.works(self)
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = self._message_over = True
        self._head_bytes = 0
        self._stop("body")
        if self.cycle is not None:
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, if its request was taken."""
        if self.cycle is not None:
            super().on_body(body)

    def on_response_complete(self) -> None:
        """Give a client that was answered early some time for the rest of its body."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self.OPEN.idles(self)
        if not self._message_over:
            self._abort_after("body", self.LIMITS.body_timeout_s)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_after("write", self.LIMITS.write_timeout_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("write")

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse_head(self) -> None:
        self._refuse(431, f"The headers are larger than {self.LIMITS.header_bytes} bytes.")

    def _refuse(self, status: int, message: str) -> None:
        body = error_body(message, "invalid_request_error", None)
        head = STATUS_LINE[status] + (
            b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            % len(body)
        )
        self.transport.write(head + body)
        self.transport.close()

    def _abort_after(self, what: str, seconds: float) -> None:
        self._stop(what)
        self._timers[what] = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self, what: str) -> None:
        timer = self._timers.pop(what, None)
        if timer is not None:
            timer.cancel()


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON; `fields` of the record become fields of the line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def await_file(path: Path) -> None:
    """Wait until a configuration file is there."""
    if not path.exists():
        print(f"waiting for {path}", flush=True)
    while not path.exists():
        time.sleep(_LOOK_S)


def _refuse_fixed(old: GatewayConfig, new: GatewayConfig) -> None:
    """Refuse changes of keys that are bound at the start."""
    if old.production_log and new.production_log:
        # The scrubber is exchanged; a new release may speak other languages.
        languages = {"languages": new.production_log.languages}
        log = old.production_log.model_copy(update=languages)
        old = old.model_copy(update={"production_log": log})
    fixed = [n for n in GatewayConfig.model_fields if getattr(old, n) != getattr(new, n)]
    if keys := ", ".join(f"`{name}`" for name in fixed if name not in LIVE):
        raise UserError(f"{keys} can't change while the gateway runs; restart it for that")


class _Reloader:
    def __init__(self, path: Path, runtime: Runtime, taken: str, *, watch: bool) -> None:
        self._path = path
        self._runtime = runtime
        self._watch = watch
        self._seen = taken
        self._asked = asyncio.Event()
        runtime.reload.taken = taken

    async def run(self) -> None:
        """Reload whenever it is asked for; ends when it is cancelled."""
        with suppress(NotImplementedError, RuntimeError, ValueError):
            # Only the main thread of a process hears signals.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S if self._watch else None):
                    await self._asked.wait()
            changed = self._watch and fingerprint(self._path) not in ("", self._seen)
            if self._asked.is_set() or changed:
                self._asked.clear()
                await self._reload()

    async def _reload(self) -> None:
        state = self._runtime.reload
        self._seen = found = fingerprint(self._path)
        try:
            config = load_config(self._path)
            _refuse_fixed(self._runtime.config, config)
            await self._runtime.change(config)
        except TunelineError as error:
            state.refused = found
            self._runtime.metrics.reloads.labels("refused").inc()
            log.error("the configuration stays as it was: %s", error)
            return
        state.taken, state.refused = found, None
        self._runtime.metrics.reloads.labels("taken").inc()
        models = ", ".join(f"{model.id} ({' -> '.join(model.chain)})" for model in config.models)
        log.info("configuration %s loaded, models: %s", found, models or "none")


def run_gateway(
    config_path: Path, scrubber_for: ScrubberFor | None = None, *, watch: bool = False
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; SIGHUP reads the configuration again.

    After the first signal the readiness probe answers 503 while requests are still served for
    `drain.delay_s`; then new ones are refused and those under way finish, for at most
    `drain.timeout_s`. A second signal stops at once. With `watch`, changes of the file are taken
    over unasked, and a missing file is waited for.

    Raises:
        UserError: if the configuration or a file it names is wrong, or the port is taken.
    """
    if watch:
        await_file(config_path)
    # Before the file is read: a change between the two is then seen as one.
    taken = fingerprint(config_path)
    config = load_config(config_path)
    app = create_app(config, scrubber_for)
    listener = _listen(config)
    lines = _begin_log(config, app.state.runtime.metrics)
    reloader = _Reloader(config_path, app.state.runtime, taken, watch=watch)
    server = _DrainingServer(_server_config(app, config), app.state.runtime, reloader)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    models = ", ".join(model.id for model in config.models)
    _steady_interpreter()
    log.info("gateway on http://%s:%d/v1, models: %s", shown, port, models)
    try:
        server.run(sockets=[listener])
        log.info("gateway stopped")
    finally:
        lines.close(_LAST_LINES_S)
    return EXIT_OK


def _server_config(app: Starlette, config: GatewayConfig) -> uvicorn.Config:
    most = connections_at_most(config.limits, config.max_in_flight)
    return uvicorn.Config(
        app,
        http=connection_class(config.limits, most),
        ws="none",
        timeout_keep_alive=math.ceil(config.limits.idle_timeout_s),
        log_config=None,
        log_level="warning",
        access_log=False,
        # Nothing here needs the client's address.
        proxy_headers=False,
        server_header=False,
        # Named, since uvicorn would fall back to its slow ones without a word.
        loop="uvloop",
        timeout_graceful_shutdown=_CUT_OFF_S,
    )


def _begin_log(config: GatewayConfig, metrics: Metrics) -> GatheredLines:
    lines = GatheredLines(sys.stderr.fileno(), metrics.log_lost.inc)
    handler = logging.StreamHandler(lines)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if config.log.format == "json" else plain)
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    lines.start()
    return lines


def _steady_interpreter() -> None:
    """Keep what lasts out of garbage collection, and let threads alternate."""
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_S)
    # No line of ours states them, and each costs a look-up per line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class _DrainingServer(uvicorn.Server):
    """A server that drains first; uvicorn closes its port on the first signal."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime, reloader: _Reloader) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._reloader = reloader
        self._drain_began: float | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        reloads = asyncio.create_task(self._reloader.run())
        try:
            await super().serve(sockets)
        finally:
            reloads.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain_began is None:
            self._drain_began = time.monotonic()
            self._runtime.draining = True
            log.info("%s: draining", signal.Signals(sig).name)
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Return True to stop serving; uvicorn calls it ten times a second."""
        if await super().on_tick(counter):
            return True
        if self._drain_began is None:
            return False
        passed, drain = time.monotonic() - self._drain_began, self._runtime.config.drain
        if passed < drain.delay_s:
            return False
        self._runtime.closed = True
        if passed < drain.delay_s + drain.timeout_s:
            return self._runtime.in_flight == 0
        log.warning("drain timed out; %d requests are cut off", self._runtime.in_flight)
        return True


def _listen(config: GatewayConfig) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # The protocol is spelled out since asyncio turns Nagle's algorithm off only for sockets
        # that state TCP; with it on, an answer in two writes takes 40 ms longer.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise UserError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}; "
            "set `host` and `port` to free ones, or stop what listens there"
        ) from None
    return listener
