"""The gateway as a process: its socket, its signals and its drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from tuneline.errors import EXIT_OK, UserError
from tuneline.serving.gateway.app import create_app
from tuneline.serving.gateway.batch import GatheredLines
from tuneline.serving.gateway.client_connection import connection_class, connections_at_most
from tuneline.serving.gateway.config import GatewayConfig, load_config
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.gateway.reload import Reloader, await_file, fingerprint
from tuneline.serving.gateway.runtime import Runtime, ScrubberFor
from tuneline.serving.gateway.structured_log import JsonFormatter

log = logging.getLogger("tuneline.gateway")

# Requests that overran the drain get this long to be cut off cleanly.
_CUT_OFF_S = 1
_BACKLOG = 2048
# A log whose reader is stuck must not hold up the end.
_LAST_LINES_S = 2.0
_LOST = "tuneline_gateway_log_lost_total"
_SWITCH_S = 0.0005


def run_gateway(
    config_path: Path, scrubber_for: ScrubberFor | None = None, *, watch: bool = False
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; SIGHUP reads the configuration again.

    After the first signal the readiness probe answers 503 while requests are still served for
    `drain.delay_s`; then new ones are refused and those under way finish, for at most
    `drain.timeout_s`. A second signal stops at once.

    Args:
        config_path: the configuration file.
        scrubber_for: see `Runtime`.
        watch: whether changes of the file are taken over unasked, and a missing file is waited
            for.

    Returns:
        0 after a stop by signal.

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
    server = _DrainingServer(
        uvicorn.Config(
            app,
            http=connection_class(
                config.limits, connections_at_most(config.limits, config.max_in_flight)
            ),
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
        ),
        app.state.runtime,
        Reloader(config_path, app.state.runtime, taken, watch=watch),
    )
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


def _begin_log(config: GatewayConfig, metrics: Metrics) -> GatheredLines:
    """Send the log to stderr by a thread."""
    metrics.counter(_LOST, "Lines of the gateway's own log that could not be written.")
    lines = GatheredLines(sys.stderr.fileno(), partial(metrics.add, _LOST))
    handler = logging.StreamHandler(lines)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if config.log.format == "json" else plain)
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    lines.start()
    return lines


def _steady_interpreter() -> None:
    """Keep what lives as long as the process out of garbage collection, and let threads alternate.

    A full collection over all imported modules takes tens of milliseconds, in which no request
    moves. A writer's thread that computes gives the interpreter back at the next switch, which
    the event loop would otherwise await for 5 ms at each of its system calls.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_S)
    # No line of ours states them, and each costs a look-up per line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


class _DrainingServer(uvicorn.Server):
    """A server that drains first; uvicorn closes its port on the first signal."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime, reloader: Reloader) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._reloader = reloader
        self._drain_began: float | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve, and take over changes of the configuration meanwhile."""
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
    """Return the bound socket.

    Raises:
        UserError: if the address or port cannot be used.
    """
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
