"""llama.cpp on a CPU: the engine of the laptop profile."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.gguf.export import export_gguf, gguf_architecture, rope
from tuneline.gguf.quantize import QUANTISATIONS, quantize
from tuneline.gguf.tokenizer import read_tokenizer
from tuneline.machine.child_environment import child_environment
from tuneline.machine.cores import default_threads
from tuneline.serving.client.client import EngineClient
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
from tuneline.serving.engines.llama_cpp.server import ERROR_PREFIX, READY_PREFIX
from tuneline.serving.server_process import ServerProcess

# A small model is up in a second; large ones read tens of gigabytes from disk first.
START_TIMEOUT = 600.0
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
        """`python -m tuneline.serving.engines.llama_cpp.server …`."""
        command = [sys.executable, "-m", "tuneline.serving.engines.llama_cpp.server"]
        command += ["--model", str(request.model), "--alias", request.alias]
        command += ["--host", request.host, "--port", str(request.port)]
        command += ["--parallel", str(request.max_batch_size)]
        command += ["--ctx", str(request.max_total_tokens)]
        for adapter in request.adapters.values():
            command += ["--lora", str(adapter)]
        return command


class LlamaServer(ServerProcess):
    """A llama.cpp server as a child process; ready once it has generated a token.

    with LlamaServer(Path("model.gguf"), parallel=4, ctx=1024) as server:
        server.client().chat([…], max_tokens=32)
    """

    # Longer than the server itself takes to drain.
    stop_seconds = 25.0
    poll_seconds = 0.02

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
        command = [sys.executable, "-m", "tuneline.serving.engines.llama_cpp.server"]
        command += ["--model", str(model), "--alias", self.alias, "--host", host]
        command += ["--port", str(port), "--threads", str(self.threads)]
        command += ["--parallel", str(parallel), "--ctx", str(ctx), "--stop-with-stdin"]
        for lora in loras:
            command += ["--lora", str(lora)]
        super().__init__(
            command,
            start_seconds=start_timeout,
            log_file=log_file,
            environment=_environment(),
            # The pipe ties its life to ours: when we die, however, it reads the end.
            stdin=subprocess.PIPE,
        )

    def client(self, *, timeout: float = 300.0) -> EngineClient:
        """A client for this server; several may be used at once."""
        return EngineClient(self.base_url, model=self.alias, timeout=timeout)

    def memory_bytes(self) -> int:
        """Resident memory of the server's process."""
        import psutil

        return int(psutil.Process(self.pid).memory_info().rss)

    def waiting_for(self) -> str | None:
        """It has to listen, and to have generated a token."""
        if not self.base_url:
            match = _READY.search(self.read_log())
            if match is None:
                return "it did not listen"
            self.base_url = match.group(1)
        health = probe(self.base_url, model=self.alias, timeout=30.0)
        return None if health.ready else health.reason

    def start_error(self, code: int | None, lacking: str) -> TunelineError:
        """What its log says: the user's error for a missing file, retryable for lack of time."""
        if code is None:
            return RetryableError(
                f"llama.cpp with {self.model} was not ready after {self.start_seconds:.0f} s: "
                f"{lacking}"
            )
        log = self.read_log()
        stated = _ERROR.findall(log)
        if stated and code == UserError.exit_code:
            return UserError(stated[-1])
        # The first error line names the cause, those after it only that loading failed.
        causes = _LOG_ERROR.findall(log) or stated or [self.last_words()]
        return TunelineError(f"llama.cpp can't serve {self.model} (exit code {code}): {causes[0]}")


def _environment() -> dict[str, str]:
    return child_environment(PYTHONUNBUFFERED="1", OMP_WAIT_POLICY="PASSIVE", GGML_NO_BACKTRACE="1")
