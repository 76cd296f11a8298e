"""llama.cpp on a CPU: the engine of the laptop profile."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from tuneline.artifacts.deployment import REFERENCE
from tuneline.errors import UserError
from tuneline.gguf.architectures import read_settings
from tuneline.gguf.export import export_gguf, quantize
from tuneline.gguf.tokenizer import read_tokenizer
from tuneline.machine.cores import default_threads
from tuneline.models.base_model import BaseModel
from tuneline.models.cache import Log, cache_root, cached_model
from tuneline.models.tool_turns import request_fields
from tuneline.serving.client import Messages
from tuneline.serving.engines.divergence import Divergence, Rows
from tuneline.serving.engines.engine import Compatibility, Engine, Form, ModelFacts, ServedModel
from tuneline.serving.engines.llama_cpp import launch
from tuneline.serving.engines.llama_cpp.scoring import (
    perplexity_and_kl,
    sequence_losses,
    tokenize_texts,
)
from tuneline.serving.engines.server import Counters, EngineServer, ServeRequest, arguments

# Our lines may follow half a line of the engine's: its log threads write to the same file.
_READY = re.compile(re.escape(launch.READY_PREFIX) + r"(http\S+)\n")
_ERROR = re.compile(re.escape(launch.ERROR_PREFIX) + r"(.+)")
# llama.cpp's log: time, level E, function, message.
_LOG_ERROR = re.compile(r"^[\d.]+ E (?:.*?: )?(.+)$", re.M)
_PROMPT, _COMPLETION = "llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total"
_STEPS, _PER_STEP = "llamacpp:n_decode_total", "llamacpp:n_busy_slots_per_decode"
_RUNNING, _WAITING = "llamacpp:requests_processing", "llamacpp:requests_deferred"


class LlamaCpp(Engine):
    """llama.cpp through xllamacpp; it loads one GGUF file."""

    title: ClassVar[str] = "llama.cpp"
    form: ClassVar[Form] = "gguf"

    def check(self, model: ModelFacts) -> Compatibility:
        """Check that our exporter can convert the model to GGUF faithfully."""
        source = "this project's GGUF exporter, whose architectures and tokenizers are tested"
        try:
            settings = read_settings(model.config, model.path)
            tokenizer = read_tokenizer(model.path, model.vocab_size)
        except UserError as error:
            return Compatibility(self.name, False, str(error), source, live=True)
        reason = (
            f"GGUF architecture {settings.family.gguf}, pre-tokenizer {tokenizer['tokenizer_pre']}"
        )
        return Compatibility(self.name, True, reason, source, live=True)

    def missing(self) -> str | None:
        """Return the package that is not installed, None if the engine can be started."""
        return None if find_spec("xllamacpp") else "xllamacpp is not installed in this image"

    def version(self) -> str:
        """Return the version of xllamacpp."""
        return f"xllamacpp {version('xllamacpp')}"

    def make_variant(
        self, name: str, source: Path, target: Path, *, texts: Sequence[str], log: Log
    ) -> Path:
        """Quantise a GGUF file; llama.cpp's plain quantisations do not calibrate."""
        if name == REFERENCE:
            return source
        log(f"quantising to {name}")
        return quantize(source, target, name).path

    def untuned(self, base: BaseModel, log: Log) -> ServedModel:
        """Return a base model as f16 GGUF from the cache; export it if it is not there."""

        def fill(folder: Path) -> None:
            log(f"exporting the base model {base.uri} to GGUF (once)")
            export_gguf(base.path, folder / "base-f16.gguf")

        key = f"{base.digest} gguf {version('gguf')} adapted template"
        folder, files = cached_model(cache_root(), "gguf", key, fill, log=log)
        path = folder / "base-f16.gguf"
        return ServedModel(self.name, path, files[path.name], {path.name: files[path.name]})

    def exporter(self) -> str:
        """Return the versions of the GGUF writer and of llama.cpp, which quantises."""
        return f"gguf {version('gguf')}, {self.version()}"

    def distances(
        self, reference: Path, others: Mapping[str, Path], rows: Rows, request: ServeRequest
    ) -> dict[str, Divergence]:
        """Compare logits over the whole vocabulary, in a child process for each variant."""
        compare = partial(
            perplexity_and_kl, threads=request.threads, adapter=request.answering_adapter
        )
        return {name: compare(reference, path, rows) for name, path in others.items()}

    def losses(self, model: Path, rows: Rows, request: ServeRequest) -> list[list[float]] | None:
        """Score the tokens of a GGUF file, in a child process."""
        adapter = request.answering_adapter
        return sequence_losses(model, rows, threads=request.threads, adapter=adapter)

    def server(self, request: ServeRequest) -> LlamaServer:
        """Return a server of a GGUF file."""
        return LlamaServer(request)

    def command(self, request: ServeRequest) -> list[str]:
        """Return the command line of the server."""
        return server_command(request)


class LlamaServer(EngineServer):
    """A llama.cpp server as a child process; ready once it has generated a token."""

    title = "llama.cpp"
    # Longer than the server itself takes to drain.
    stop_seconds = 25.0
    poll_seconds = 0.02

    def __init__(self, request: ServeRequest) -> None:
        """Describe a server; `start` or a `with` block starts it."""
        request = replace(request, threads=request.threads or default_threads())
        command = server_command(request, "--stop-with-stdin")
        super().__init__(request, command, OMP_WAIT_POLICY="PASSIVE", GGML_NO_BACKTRACE="1")

    def find_url(self) -> str | None:
        """Return the address that the server has printed."""
        match = _READY.search(self.read_log())
        return match.group(1) if match else None

    def counters(self) -> Counters:
        """Read the counters; llama.cpp leaves cached prompt tokens out by itself.

        It counts the tokens of an answer when the answer ends or is cancelled, all at once.
        """
        metrics = self.metrics()
        steps = metrics[_STEPS]
        prompt, completion = int(metrics[_PROMPT]), int(metrics[_COMPLETION])
        under_way = int(metrics[_RUNNING] + metrics[_WAITING])
        return Counters(prompt, completion, steps, steps * metrics[_PER_STEP], under_way)

    def adapter_key(self, name: str) -> int:
        """Return the place of an adapter among those that were loaded."""
        return list(self.request.adapters).index(name)

    def renders(self, messages: Messages, text: str, ids: Sequence[int]) -> bool:
        """Compare the token ids of the prompt that the file's own chat template gives.

        The engine takes the first token of a text off a rendered chat and puts it back when it
        encodes it, so the texts may differ.
        """
        prompt = self.post("apply-template", request_fields(messages))["prompt"]
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        return bool(self.post("tokenize", asked)["tokens"] == list(ids))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of the file's own tokenizer."""
        return tokenize_texts(self.request.model, texts)

    def cause(self, log: str) -> str | None:
        """Return the first error line, which names the cause; later ones say that loading failed.

        Without any, return what our launcher says.
        """
        causes = _LOG_ERROR.findall(log) or _ERROR.findall(log)
        return str(causes[0]) if causes else None


def server_command(request: ServeRequest, *switches: str) -> list[str]:
    """Return the command line that serves a GGUF file; `switches` are options without a value."""
    options: dict[str, object] = {
        "--model": request.model,
        "--alias": request.alias,
        "--host": request.host,
        "--port": request.port,
        "--parallel": request.parallel,
        "--ctx": request.context_tokens,
        "--threads": request.threads,
    }
    loras = [part for path in request.adapters.values() for part in ("--lora", str(path))]
    return [sys.executable, "-m", launch.__name__, *arguments(options), *switches, *loras]
