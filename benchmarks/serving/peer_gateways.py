"""The servers of the gateway benchmark: its upstream, and other gateways with their keys."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.contest.contest import INSTALL, bench_python
from tuneline.errors import TunelineError
from tuneline.serving.processes import ServerProcess, free_port


@contextmanager
def upstream_process(module: str = "benchmarks.serving.mock_upstream") -> Iterator[str]:
    """Run a server that prints its address, which is yielded, until its standard input closes."""
    command = [sys.executable, "-m", module]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        address = process.stdout.readline().strip()
        try:
            if not address:
                raise TunelineError(f"{module} did not start")
            yield address
        finally:
            process.stdin.close()


class PeerGateway(ServerProcess):
    """A gateway in front of one upstream; it listens when the `with` block begins.

    `asked` are the parts of a trial's job that say how requests are sent to it.
    """

    stop_seconds = 20.0
    poll_seconds = 0.2

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        port: int,
        *,
        environment: Mapping[str, str] | None = None,
        live: str = "/",
        **asked: Any,
    ) -> None:
        self.name, self._live = name, live
        self.asked = {"url": f"http://127.0.0.1:{port}", **asked}
        environment = {**os.environ, **(environment or {})}
        log = folder / f"{name}.log"
        super().__init__(command, start_seconds=180.0, log_file=log, environment=environment)

    def waiting_for(self) -> str | None:
        """Return what it lacks until it answers."""
        try:
            httpx.get(self.asked["url"] + self._live, timeout=2, trust_env=False).raise_for_status()
        except httpx.HTTPStatusError as error:
            # Not every gateway has a page at /; what answers there listens.
            return None if self._live == "/" else str(error)
        except httpx.HTTPError:
            return "it did not listen"
        return None

    def start_error(self, code: int | None, lacking: str) -> TunelineError:
        """Return an error with the last line that it wrote."""
        return TunelineError(f"{self.name} did not start: {self.last_words()}")


def litellm(upstream: str, model: str, folder: Path) -> PeerGateway:
    """LiteLLM's proxy with its master key; further keys and its log need PostgreSQL."""
    program, port, key = _program(bench_python().parent / "litellm"), free_port(), "sk-bench"
    config = folder / "litellm.yaml"
    target = {"model": f"openai/{model}", "api_base": f"{upstream}/v1", "api_key": "unused"}
    models = [{"model_name": model, "litellm_params": target}]
    # JSON is YAML.
    config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": key}}))
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    return PeerGateway(
        "litellm",
        [*command, "--num_workers", "1"],
        folder,
        port,
        version=_version("litellm"),
        key=key,
        environment={"LITELLM_LOG": "ERROR"},
        live="/health/liveliness",
    )


def ferrogw(upstream: str, model: str, folder: Path) -> PeerGateway:
    """ferrogw, with its keys in SQLite."""
    program, port, key = _program(bench_python().parent / "ferrogw"), free_port(), "fgw_" + "a" * 40
    config = folder / "ferrogw.json"
    targets = [{"virtual_key": "openai", "models": [model]}]
    config.write_text(json.dumps({"strategy": {"mode": "fallback"}, "targets": targets}))
    environment = {
        "PORT": str(port),
        "GATEWAY_CONFIG": str(config),
        "OPENAI_API_KEY": "unused",
        "OPENAI_BASE_URL": f"{upstream}/v1",
        "MASTER_KEY": key,
        # Its limit of 20 requests a second and address is on by default.
        "RATE_LIMIT_RPS": "0",
        "API_KEY_STORE_BACKEND": "sqlite",
        "API_KEY_STORE_DSN": str(folder / "ferrogw.db"),
    }
    asked = {"version": _version("ferrogw"), "key": key}
    return PeerGateway("ferrogw", [program], folder, port, environment=environment, **asked)


def portkey(upstream: str, model: str, folder: Path) -> PeerGateway:
    """Portkey's gateway on Node.js, which keeps neither keys nor a ledger."""
    node = shutil.which("node")
    if node is None:
        raise TunelineError("Node.js is not installed")
    package = bench_python().parents[1] / "node_modules" / "@portkey-ai" / "gateway"
    program, port = _program(package / "build" / "start-server.js"), free_port()
    return PeerGateway(
        "portkey",
        [node, program, f"--port={port}", "--headless"],
        folder,
        port,
        version=json.loads((package / "package.json").read_text())["version"],
        headers={"x-portkey-provider": "openai", "x-portkey-custom-host": f"{upstream}/v1"},
    )


def _program(path: Path) -> str:
    if not path.is_file():
        raise TunelineError(f"there is no {path}; {INSTALL}")
    return str(path)


def _version(package: str) -> str:
    """Return the version of a package of the peers' environment."""
    question = f"from importlib.metadata import version; print(version({package!r}))"
    command = [str(bench_python()), "-c", question]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
