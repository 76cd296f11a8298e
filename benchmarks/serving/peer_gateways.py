"""Other gateways as child processes, each with what it has of keys in SQLite."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.contest.contest import INSTALL
from tuneline.errors import TunelineError
from tuneline.serving.processes import ServerProcess, free_port

_START_SECONDS = 60.0


class PeerGateway(ServerProcess):
    """A gateway in front of one upstream; it listens when the `with` block begins.

    Args:
        port: port that it was told to listen on.
    """

    stop_seconds = 10.0

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        port: int,
        folder: Path,
        key: str,
        headers: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.key = key
        self.headers = dict(headers or {})
        self._port = port
        super().__init__(
            command,
            start_seconds=_START_SECONDS,
            log_file=folder / f"{name}.log",
            environment={**os.environ, **(environment or {})},
        )

    def waiting_for(self) -> str | None:
        """Return what it lacks until it listens."""
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return "it did not listen"
        return None

    def start_error(self, code: int | None, lacking: str) -> TunelineError:
        """Return an error with the last line that it wrote."""
        return TunelineError(f"{self.name} did not start: {self.last_words()}")


def ferrogw(python: Path, upstream: str, model: str, folder: Path) -> PeerGateway:
    """ferrogw, with its keys in SQLite.

    Raises:
        TunelineError: if it is not installed.
    """
    home = folder / "ferrogw"
    home.mkdir(parents=True, exist_ok=True)
    config = home / "config.json"
    targets = [{"virtual_key": "openai", "models": [model]}]
    config.write_text(json.dumps({"strategy": {"mode": "fallback"}, "targets": targets}))
    port = free_port()
    key = "fgw_" + "a" * 40
    environment = {
        "PORT": str(port),
        "GATEWAY_CONFIG": str(config),
        "OPENAI_API_KEY": "unused",
        "OPENAI_BASE_URL": f"{upstream}/v1",
        "MASTER_KEY": key,
        # Its limit of 20 requests a second and address is on by default.
        "RATE_LIMIT_RPS": "0",
        "API_KEY_STORE_BACKEND": "sqlite",
        "API_KEY_STORE_DSN": str(home / "keys.db"),
    }
    command = [_program(python.parent / "ferrogw")]
    return PeerGateway("ferrogw", command, port=port, folder=home, key=key, environment=environment)


def portkey(python: Path, upstream: str, folder: Path) -> PeerGateway:
    """Portkey's gateway on Node.js; it has neither keys of its own nor a ledger.

    Raises:
        TunelineError: if it, or Node.js, is not installed.
    """
    node = shutil.which("node")
    if node is None:
        raise TunelineError("Node.js is not installed")
    prefix = python.parents[1] / "node_modules" / "@portkey-ai" / "gateway"
    port = free_port()
    command = [node, _program(prefix / "build" / "start-server.js"), f"--port={port}", "--headless"]
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"{upstream}/v1"}
    return PeerGateway("portkey", command, port=port, folder=folder, key="unused", headers=headers)


def _program(path: Path) -> str:
    if not path.is_file():
        raise TunelineError(f"there is no {path}; {INSTALL}")
    return str(path)
