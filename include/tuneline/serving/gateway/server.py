"""Running the gateway: its socket, its signals, its drain."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

import uvicorn

from tuneline.errors import EXIT_OK, UserError
from tuneline.serving.gateway.app import create_app
from tuneline.serving.gateway.config import DrainConfig, GatewayConfig, load_config
from tuneline.serving.gateway.runtime import Runtime

log = logging.getLogger("tuneline.gateway")

# After the drain only what overran it is left; it gets this long to be cut off cleanly.
_CUT_OFF_S = 1
_BACKLOG = 2048


def run_gateway(config_path: Path) -> int:
    """Serve until SIGTERM or SIGINT, then drain.

    On the first signal the readiness probe turns 503 while requests are still
    served for `drain.delay_s`; then new ones are refused and those under way
    finish, for at most `drain.timeout_s`. A second signal stops at once.

    Returns:
        0 after a stop by signal.

    Raises:
        UserError: the configuration or a file it names is wrong, or the port is taken.
    """
    config = load_config(config_path)
    app = create_app(config)
    listener = _listen(config)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    # These would log a line per upstream request, with its URL.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    server = _DrainingServer(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            # Nothing here asks for the client's address.
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_CUT_OFF_S,
        ),
        app.state.runtime,
        config.drain,
    )
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("gateway on http://%s:%d/v1, models: %s", shown, port, ", ".join(_ids(config)))
    server.run(sockets=[listener])
    log.info("gateway stopped")
    return EXIT_OK


class _DrainingServer(uvicorn.Server):
    """uvicorn closes its port on the first signal; this one drains before."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime, drain: DrainConfig) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._drain = drain
        self._drain_began: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain_began is None:
            self._drain_began = time.monotonic()
            self._runtime.draining = True
            log.info("%s: draining", signal.Signals(sig).name)
        else:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the serving."""
        if await super().on_tick(counter):
            return True
        if self._drain_began is None:
            return False
        passed = time.monotonic() - self._drain_began
        if passed < self._drain.delay_s:
            return False
        self._runtime.closed = True
        if passed < self._drain.delay_s + self._drain.timeout_s:
            return self._runtime.in_flight == 0
        log.warning("drain timed out; %d requests are cut off", self._runtime.in_flight)
        return True


def _ids(config: GatewayConfig) -> list[str]:
    return [model.id for model in config.models]


def _listen(config: GatewayConfig) -> socket.socket:
    """The bound socket.

    Raises:
        UserError: the address or port cannot be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # With the protocol spelled out: asyncio turns Nagle's algorithm off only for sockets
        # that say TCP, and with it on an answer in two writes takes 40 ms longer.
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
