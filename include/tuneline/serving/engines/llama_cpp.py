"""llama.cpp on a CPU: the engine of the laptop profile."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tuneline.deployment.gguf_export import export_gguf, gguf_architecture, rope
from tuneline.deployment.gguf_quantize import QUANTISATIONS, quantize
from tuneline.deployment.gguf_tokenizer import read_tokenizer
from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.serving.client import EngineClient
from tuneline.serving.cores import default_threads
from tuneline.serving.engines.base import (
    BuildReport,
    BuildRequest,
    Compatibility,
    Engine,
    ModelFacts,
    ServeRequest,
    probe,
)
from tuneline.serving.engines.identity import hash_tree, machine_identity
from tuneline.serving.llama_server import ERROR_PREFIX, READY_PREFIX

# A small model is up in a second; large ones read tens of gigabytes from disk first.
START_TIMEOUT = 600.0
# Longer than the server itself takes to drain.
STOP_TIMEOUT = 25.0
# Our lines may stand behind half a line of the engine's: its log threads write to the same file.
_READY = re.compile(re.escape(READY_PREFIX) + r"(http\S+)\n")
_ERROR = re.compile(re.escape(ERROR_PREFIX) + r"(.+)\n")
# llama.cpp's log: time, level E, function, message.
_LOG_ERROR = re.compile(r"^[\d.]+ E (?:.*?: )?(.+)$", re.M)


class LlamaCpp(Engine):
    """llama.cpp through xllamacpp."""

    name = "llama_cpp"

    def check(self, model: ModelFacts) -> Compatibility:
        """Whether our exporter can turn the model into GGUF faithfully."""
        source = "this project's GGUF exporter, whose architectures and tokenizers are tested"
        try:
            architecture = gguf_architecture(model.config, model.path)
            rope(model.config)
            tokenizer = read_tokenizer(model.path, model.vocab_size)
        except UserError as error:
            return Compatibility(self.name, False, str(error), source, live=True)
        reason = f"GGUF architecture {architecture}, pre-tokenizer {tokenizer.pre}"
        return Compatibility(self.name, True, reason, source, live=True)

    def build(self, request: BuildRequest) -> BuildReport:
        """Export to GGUF; `quantization` None gives f16, else one of `QUANTISATIONS`."""
        started = time.monotonic()
        kind = request.quantization or "f16"
        if kind not in ("f16", *QUANTISATIONS):
            raise UserError(
                f"llama_cpp: quantisation {kind!r}: use f16 or one of {', '.join(QUANTISATIONS)}"
            )
        full = request.out_dir / "model-f16.gguf"
        export_gguf(request.model_dir, full)
        if kind != "f16":
            quantize(full, request.out_dir / f"model-{kind}.gguf", kind)
            full.unlink()
        identity = self.identity(request.out_dir)
        identity["limits"] = {
            "max_batch_size": request.max_batch_size,
            "max_total_tokens": request.max_total_tokens,
        }
        seconds = time.monotonic() - started
        return BuildReport(self.name, True, f"exported to {kind}", (), identity, seconds)

    def identity(self, out_dir: Path) -> dict[str, Any]:
        """What a build directory holds and what it was built with."""
        from importlib.metadata import version

        return {
            "engine": self.name,
            "version": f"xllamacpp {version('xllamacpp')}",
            "exporter": f"gguf {version('gguf')}",
            **machine_identity(),
            "files": hash_tree(out_dir),
        }

    def command(self, request: ServeRequest) -> list[str]:
        """`python -m tuneline.serving.llama_server …`."""
        command = [sys.executable, "-m", "tuneline.serving.llama_server"]
        command += ["--model", str(request.model), "--alias", request.alias]
        command += ["--host", request.host, "--port", str(request.port)]
        command += ["--parallel", str(request.max_batch_size)]
        command += ["--ctx", str(request.max_total_tokens)]
        for adapter in request.adapters.values():
            command += ["--lora", str(adapter)]
        return command


class LlamaServer:
    """A llama.cpp server as a child process, ready when the `with` block begins.

    with LlamaServer(Path("model.gguf"), parallel=4, ctx=1024) as server:
        server.client().chat([…], max_tokens=32)
    """

    def __init__(
        self,
        model: Path,
        *,
        loras: Sequence[Path] = (),
        threads: int | None = None,
        parallel: int = 1,
        ctx: int = 2048,
        alias: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        log_file: Path | None = None,
        start_timeout: float = START_TIMEOUT,
    ) -> None:
        """Describe a server; `start` or a `with` block starts it.

        Args:
            model: GGUF file.
            loras: GGUF adapters; off unless a request names them by index and scale.
            threads: None takes `default_threads()`.
            parallel: Requests served at once (slots).
            ctx: Context of one slot, tokens.
            alias: Model name in the API.
            host: Address to listen on.
            port: 0 takes a free one.
            log_file: Where the engine's messages go; None takes a temporary file.
            start_timeout: Seconds until it must be ready.
        """
        self.model = model
        self.alias = alias or model.stem
        self.threads = threads or default_threads()
        self.parallel = parallel
        self.base_url = ""
        self.load_seconds = 0.0
        self._arguments = ["--model", str(model), "--alias", self.alias, "--host", host]
        self._arguments += ["--port", str(port), "--threads", str(self.threads)]
        self._arguments += ["--parallel", str(parallel), "--ctx", str(ctx), "--stop-with-stdin"]
        for lora in loras:
            self._arguments += ["--lora", str(lora)]
        self._log_file = log_file
        self._start_timeout = start_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._own_log: Path | None = None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise TunelineError("the server is not running; start it first")
        return self._process.pid

    @property
    def log_file(self) -> Path:
        """The engine's messages."""
        path = self._log_file or self._own_log
        if path is None:
            raise TunelineError("the server has no log yet; start it first")
        return path

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it has generated a token.

        Raises:
            UserError: A file is missing.
            TunelineError: The engine could not start; one sentence from its log.
            RetryableError: It was not ready in time.
        """
        started = time.monotonic()
        self.launch()
        try:
            self._wait_until_ready(started + self._start_timeout)
        except BaseException:
            self.kill()
            raise
        self.load_seconds = time.monotonic() - started

    def launch(self) -> None:
        """Start the process without waiting; for those who watch it start."""
        if self._process is not None:
            raise TunelineError("the server is running already")
        if self._log_file is None:
            self._own_log = _temporary_log()
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tuneline.serving.llama_server", *self._arguments],
                # The pipe ties its life to ours: when we die, however, it reads the end.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
            )

    def client(self, *, timeout: float = 300.0) -> EngineClient:
        """A client for this server; several may be used at once."""
        return EngineClient(self.base_url, model=self.alias, timeout=timeout)

    def memory_bytes(self) -> int:
        """Resident memory of the server's process."""
        import psutil

        return int(psutil.Process(self.pid).memory_info().rss)

    def signal(self, number: int) -> None:
        """Send a signal to the server's process (a test of hung or dying engines)."""
        os.kill(self.pid, number)

    def stop(self) -> None:
        """SIGTERM, wait for it to drain, SIGKILL if it does not end."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
        self._forget()

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._forget()

    def _forget(self) -> None:
        assert self._process is not None
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
        if self._own_log is not None:
            self._own_log.unlink(missing_ok=True)
            self._own_log = None

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._process is not None
        while not self.base_url:
            code = self._process.poll()
            log = self.log_file.read_text(encoding="utf-8", errors="replace")
            if code is not None:
                raise _start_error(self.model, code, log)
            if match := _READY.search(log):
                self.base_url = match.group(1)
            else:
                self._pause(deadline)
        while True:
            health = probe(self.base_url, model=self.alias, timeout=30.0)
            if health.ready:
                return
            code = self._process.poll()
            if code is not None:
                log = self.log_file.read_text(encoding="utf-8", errors="replace")
                raise _start_error(self.model, code, log)
            self._pause(deadline, health.reason)

    def _pause(self, deadline: float, reason: str = "it did not listen") -> None:
        if time.monotonic() > deadline:
            raise RetryableError(
                f"llama.cpp with {self.model} was not ready after {self._start_timeout:.0f} s: "
                f"{reason}"
            )
        time.sleep(0.02)


def _start_error(model: Path, code: int, log: str) -> TunelineError:
    stated = _ERROR.findall(log)
    if stated and code == UserError.exit_code:
        return UserError(stated[-1])
    # The first error line names the cause, those after it only that loading failed.
    causes = _LOG_ERROR.findall(log) or stated or log.strip().splitlines()[-1:]
    reason = (causes or ["it said nothing"])[0]
    return TunelineError(f"llama.cpp can't serve {model} (exit code {code}): {reason}")


def _temporary_log() -> Path:
    import tempfile

    handle, name = tempfile.mkstemp(prefix="tuneline-llama-", suffix=".log")
    os.close(handle)
    return Path(name)


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "GGML_NO_BACKTRACE": "1",
    }
