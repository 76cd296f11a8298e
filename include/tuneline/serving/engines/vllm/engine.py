"""vLLM: serves Hugging Face checkpoints, so nothing is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from tuneline.artifacts.deployment import REFERENCE
from tuneline.machine.cores import default_threads
from tuneline.models.base_model import read_json
from tuneline.models.cache import Log
from tuneline.models.chat_templates import request_defaults
from tuneline.models.tool_turns import request_fields
from tuneline.serving.client import Messages
from tuneline.serving.engines.divergence import Divergence, NumberFormat, Rows
from tuneline.serving.engines.engine import Compatibility, Engine, ModelFacts, query_gpus
from tuneline.serving.engines.server import Counters, EngineServer, ServeRequest
from tuneline.serving.engines.vllm.launch import (
    DRAIN_SECONDS,
    NOT_INSTALLED,
    cause,
    is_cpu_build,
    launch_command,
)
from tuneline.serving.engines.vllm.quantize import quantise
from tuneline.serving.engines.vllm.scoring import distances, losses
from tuneline.serving.processes import free_port

# Of its `_FLOAT16_NOT_SUPPORTED_MODELS` (vllm/config/model.py) those that are supported here.
_NOT_IN_FLOAT16 = ("gemma2", "gemma3")
_PROMPT, _CACHED = "vllm:prompt_tokens_total", "vllm:prompt_tokens_cached_total"
_COMPLETION, _STEPS = "vllm:generation_tokens_total", "vllm:iteration_tokens_total_count"
_RUNNING, _WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


class Vllm(Engine):
    """vLLM's OpenAI-compatible server, on GPUs or on the CPU, whichever it was built for."""

    title: ClassVar[str] = "vLLM"

    def check(self, model: ModelFacts) -> Compatibility:
        """Look the architecture up, and refuse GGUF checkpoints."""
        found = super().check(model)
        if model.quantization == "gguf":
            # Out of vLLM's core since its pull request 39612; its parser still takes the word.
            return replace(found, compatible=False, reason="vLLM's core no longer loads GGUF")
        return found

    def missing(self) -> str | None:
        """Return what is missing to start it here, None if nothing is."""
        if find_spec("vllm") is None:
            return NOT_INSTALLED
        if not is_cpu_build() and not query_gpus():
            return f"{self.version()} is built for GPUs, and there is none here"
        return None

    def version(self) -> str:
        """Return the version of vLLM."""
        try:
            return f"vllm {version('vllm')}"
        except PackageNotFoundError:
            return "vllm not installed here"

    def on_gpu(self) -> bool:
        """Return True if the installed vLLM is not built for the CPU."""
        return find_spec("vllm") is not None and not is_cpu_build()

    def number_format(self, model: Path) -> NumberFormat:
        """Return bfloat16 for models that vLLM does not compute in float16, on a GPU."""
        kind = str(read_json(model / "config.json").get("model_type"))
        return "bfloat16" if self.on_gpu() and kind.startswith(_NOT_IN_FLOAT16) else "float16"

    def make_variant(
        self, name: str, source: Path, target: Path, *, texts: Sequence[str], log: Log
    ) -> Path:
        """Quantise a checkpoint; `f16` is the merged checkpoint itself."""
        if name == REFERENCE:
            return source
        log(f"quantising to {name} with llm-compressor, calibrated on {len(texts)} rows")
        return quantise(source, target, texts)

    def distances(
        self, reference: Path, others: Mapping[str, Path], rows: Rows, request: ServeRequest
    ) -> dict[str, Divergence]:
        """Compare log-probabilities over the whole vocabulary, as vLLM serves each checkpoint."""
        return distances(reference, others, rows, request)

    def losses(self, model: Path, rows: Rows, request: ServeRequest) -> list[list[float]] | None:
        """Score the tokens of a checkpoint as vLLM serves it, in a child process."""
        return losses(model, rows, request)

    def server(self, request: ServeRequest) -> VllmServer:
        """Return a server of a checkpoint."""
        return VllmServer(request)

    def command(self, request: ServeRequest) -> list[str]:
        """Return the command line of the server."""
        return launch_command(request)


class VllmServer(EngineServer):
    """A vLLM server as a child process; ready once it has generated a token."""

    title = "vLLM"
    # Longer than vLLM itself takes to drain and to end its processes.
    stop_seconds = DRAIN_SECONDS + 10.0
    poll_seconds = 0.2
    # vLLM's engine and its workers are processes of their own.
    own_group = True
    # Started without a parser of calls, it takes declared tools only like this.
    tool_fields: ClassVar[Mapping[str, Any]] = {"tool_choice": "none"}

    def __init__(self, request: ServeRequest) -> None:
        """Describe a server of a checkpoint with adapters in PEFT's folders."""
        # vLLM does not print the port that it would choose.
        threads, port = request.threads or default_threads(), request.port or free_port()
        request = replace(request, threads=threads, port=port)
        super().__init__(request, launch_command(request, "--stop-with-stdin"))

    def counters(self) -> Counters:
        """Read the counters; a request generates one token in each step that it is part of."""
        metrics = self.metrics()
        generated = metrics[_COMPLETION]
        return Counters(
            int(metrics[_PROMPT] - metrics.get(_CACHED, 0.0)),
            int(generated),
            metrics[_STEPS],
            generated,
            int(metrics.get(_RUNNING, 0.0) + metrics.get(_WAITING, 0.0)),
        )

    def renders(self, messages: Messages, text: str, ids: Sequence[int]) -> bool:
        """Compare the token ids that the checkpoint's chat template gives."""
        body = {**request_fields(messages), "add_generation_prompt": True}
        body |= request_defaults(self.request.model)
        return self._tokens(body) == list(ids)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of the checkpoint's tokenizer."""
        return [self._tokens({"prompt": text, "add_special_tokens": False}) for text in texts]

    def _tokens(self, body: Mapping[str, Any]) -> list[int]:
        answer = self.post("tokenize", {"model": self.alias, **body})
        return [int(token) for token in answer["tokens"]]

    def cause(self, log: str) -> str | None:
        """Return the message of the first exception."""
        return cause(log)
