"""llama.cpp on a CPU: the engine of the laptop profile."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.gguf.export import gguf_architecture, rope
from tuneline.gguf.tokenizer import read_tokenizer
from tuneline.machine.child_environment import child_environment
from tuneline.machine.cores import default_threads
from tuneline.serving.client.client import EngineClient
from tuneline.serving.engines.base import Compatibility, Engine, ModelFacts
from tuneline.serving.engines.llama_cpp.server import ERROR_PREFIX, READY_PREFIX, server_command
from tuneline.serving.probes import engine_probe
from tuneline.serving.server_process import ServerProcess

# A small model is up in a second; large ones read tens of gigabytes from disk first.
START_TIMEOUT = 600.0
# Within which a started server must generate its first token, seconds.
TOKEN_TIMEOUT = 30.0
# Our lines may follow half a line of the engine's: its log threads write to the same file.
_READY = re.compile(re.escape(READY_PREFIX) + r"(http\S+)\n")
_ERROR = re.compile(re.escape(ERROR_PREFIX) + r"(.+)\n")
# llama.cpp's log: time, level E, function, message.
_LOG_ERROR = re.compile(r"^[\d.]+ E (?:.*?: )?(.+)$", re.M)


class LlamaCpp(Engine):
    """llama.cpp through xllamacpp; `build_engine` loads the shipped GGUF file itself."""

    def check(self, model: ModelFacts) -> Compatibility:
        """Check that our exporter can convert the model to GGUF faithfully."""
        source = "this project's GGUF exporter, whose architectures and tokenizers are tested"
        try:
            architecture = gguf_architecture(model.config, model.path)
            rope(model.config)
            tokenizer = read_tokenizer(model.path, model.vocab_size)
        except UserError as error:
            return Compatibility(self.name, False, str(error), source, live=True)
        reason = f"GGUF architecture {architecture}, pre-tokenizer {tokenizer.pre}"
        return Compatibility(self.name, True, reason, source, live=True)


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
        port: int = 0,
        start_timeout: float = START_TIMEOUT,
    ) -> None:
        """Describe a server; `start` or a `with` block starts it.

        Args:
            model: GGUF file.
            loras: GGUF adapters; off unless a request names them by index and scale.
            threads: number of threads; None takes `default_threads()`.
            parallel: requests served at once (slots).
            ctx: context of one slot, in tokens.
            alias: model name in the API.
            port: port to listen on; 0 takes a free one.
            start_timeout: longest time until it is ready, in seconds.
        """
        self.model = model
        self.alias = alias or model.stem
        self.threads = threads or default_threads()
        self.parallel = parallel
        self.base_url = ""
        command = server_command(
            model,
            "--stop-with-stdin",
            *(part for path in loras for part in ("--lora", str(path))),
            alias=self.alias,
            port=port,
            threads=self.threads,
            parallel=parallel,
            ctx=ctx,
        )
        super().__init__(
            command,
            start_seconds=start_timeout,
            environment=child_environment(
                PYTHONUNBUFFERED="1", OMP_WAIT_POLICY="PASSIVE", GGML_NO_BACKTRACE="1"
            ),
            # The pipe ties its life to ours: it ends when the pipe closes, however we die.
            stdin=subprocess.PIPE,
        )

    def client(self, *, timeout: float = 300.0) -> EngineClient:
        """Return a client of this server; several may be used at once."""
        return EngineClient(self.base_url, model=self.alias, timeout=timeout)

    def memory_bytes(self) -> int:
        """Return the resident memory of the server's process, in bytes."""
        import psutil

        return int(psutil.Process(self.pid).memory_info().rss)

    def waiting_for(self) -> str | None:
        """Return None once it listens and has generated a token."""
        if not self.base_url:
            match = _READY.search(self.read_log())
            if match is None:
                return "it did not listen"
            self.base_url = match.group(1)
        found = engine_probe.ready(self.base_url, TOKEN_TIMEOUT, self.alias)
        return None if found.ok else found.reason

    def start_error(self, code: int | None, lacking: str) -> TunelineError:
        """Return the error that its log states, or a retryable one if its time ran out."""
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
