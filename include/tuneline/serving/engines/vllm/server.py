"""vLLM's server as a child process."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import httpx

from tuneline.errors import RetryableError, TunelineError
from tuneline.machine.child_environment import child_environment
from tuneline.machine.cores import default_threads
from tuneline.models.base_model import read_json
from tuneline.serving.client import Messages
from tuneline.serving.engines.base import arguments
from tuneline.serving.engines.engine_server import Counters, EngineServer, ServeRequest
from tuneline.serving.engines.vllm.log import start_error
from tuneline.serving.probes import engine_probe
from tuneline.serving.processes import free_port

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# `MaxLoRARanks` in vllm/config/lora.py: `--max-lora-rank` takes no other value.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Running requests may take this long to finish after SIGTERM, in seconds.
DRAIN_SECONDS = 20
# Tokens of a block of the KV cache on a CPU (`check_and_update_config` in vllm/platforms/cpu.py).
_BLOCK = 128
# The cache holds every slot's context, and as much again for prefixes that were answered before.
_CACHE_FACTOR = 2
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PROMPT, _CACHED = "vllm:prompt_tokens_total", "vllm:prompt_tokens_cached_total"
_COMPLETION, _STEPS = "vllm:generation_tokens_total", "vllm:iteration_tokens_total_count"


def is_cpu_build() -> bool:
    """Return True if the installed vLLM runs on the CPU; vLLM decides by its version as well."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return False


class VllmServer(EngineServer):
    """A vLLM server as a child process; ready once it has generated a token.

    with VllmServer(ServeRequest(Path("checkpoint"), "model", 4, 1024)) as server:
        server.client().chat([…], max_tokens=32)
    """

    # Longer than vLLM itself takes to drain and to end its processes.
    stop_seconds = DRAIN_SECONDS + 10.0
    poll_seconds = 0.2
    # vLLM's engine and its workers are processes of their own.
    own_group = True

    def __init__(
        self,
        request: ServeRequest,
        *,
        dtype: Dtype | None = None,
        prefix_caching: bool = True,
        eager: bool | None = None,
    ) -> None:
        """Describe a server; `start` or a `with` block starts it.

        Args:
            request: the model and the sizes; its adapters are PEFT folders.
            dtype: see `serve_options`.
            prefix_caching: see `serve_options`.
            eager: see `serve_options`.
        """
        self.request = replace(
            request,
            threads=request.threads or default_threads(),
            # vLLM does not print the port that it would choose.
            port=request.port or free_port(),
        )
        options = serve_options(
            self.request, dtype=dtype, prefix_caching=prefix_caching, eager=eager
        )
        super().__init__(
            launch_command(self.request, options, "--stop-with-stdin"),
            start_seconds=request.start_seconds,
            environment=child_environment(PYTHONUNBUFFERED="1"),
            # The pipe ties its life to ours: it ends when the pipe closes, however we die.
            stdin=subprocess.PIPE,
        )

    def find_url(self) -> str | None:
        """Return the address once the health route answers: the weights are loaded."""
        url = f"http://{self.request.host}:{self.request.port}"
        return url if engine_probe.listens(url, 2.0) else None

    def counters(self) -> Counters:
        """Read the counters; a request generates one token in each step that it is part of."""
        metrics = self.metrics()
        generated = metrics[_COMPLETION]
        return Counters(
            int(metrics[_PROMPT] - metrics.get(_CACHED, 0.0)),
            int(generated),
            metrics[_STEPS],
            generated,
        )

    def renders(self, messages: Messages, text: str, ids: Sequence[int]) -> bool:
        """Compare the token ids that the checkpoint's chat template gives."""
        body = {"messages": list(messages), "add_generation_prompt": True}
        return self._tokens(body) == list(ids)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of the checkpoint's tokenizer."""
        return [self._tokens({"prompt": text, "add_special_tokens": False}) for text in texts]

    def _tokens(self, body: Mapping[str, Any]) -> list[int]:
        answer = httpx.post(
            f"{self.base_url}/tokenize",
            json={"model": self.alias, **body},
            timeout=60.0,
            trust_env=False,
        )
        answer.raise_for_status()
        return [int(token) for token in answer.json()["tokens"]]

    def start_error(self, code: int | None, lacking: str) -> TunelineError:
        """Return the error that its log states, or a retryable one if its time ran out."""
        model = self.request.model
        if code is None:
            return RetryableError(
                f"vLLM with {model} was not ready after {self.start_seconds:.0f} s: {lacking}"
            )
        return start_error(model, code, self.read_log(), self.last_words())


def serve_options(
    request: ServeRequest,
    *,
    dtype: Dtype | None = None,
    prefix_caching: bool = True,
    eager: bool | None = None,
) -> dict[str, Any]:
    """Return the options of `vllm serve` that have a value.

    Args:
        request: the model and the sizes.
        dtype: type of weights and activations. None takes the checkpoint's on a GPU and float32
            on a CPU, where an answer in 16 bits depends on the requests beside it; a quantised
            checkpoint is computed in bfloat16 there, since its kernels know no float32.
        prefix_caching: whether the start of a prompt that was answered before is reused.
        eager: whether the model runs without compilation. None compiles on a GPU only: on a CPU
            the first start takes half a minute longer and answers are not faster.
    """
    on_cpu = is_cpu_build()
    dtype = dtype or (_cpu_dtype(request.model) if on_cpu else "auto")
    eager = on_cpu if eager is None else eager
    options: dict[str, Any] = {
        "--host": request.host,
        "--port": request.port,
        "--served-model-name": request.alias,
        "--max-model-len": request.context_tokens,
        "--max-num-seqs": request.parallel,
        "--dtype": dtype,
        # Requests state how they sample; defaults of the checkpoint must not add to it.
        "--generation-config": "vllm",
        "--shutdown-timeout": DRAIN_SECONDS,
        _switch("prefix-caching", prefix_caching): "",
    }
    if eager:
        options["--enforce-eager"] = ""
    if on_cpu:
        # Without it vLLM takes nine tenths of the machine's memory.
        options["--kv-cache-memory-bytes"] = kv_cache_bytes(request, dtype)
    if request.adapters:
        options |= _adapter_options(request.adapters)
    return options


def _cpu_dtype(model: Path) -> Dtype:
    quantised = "quantization_config" in read_json(model / "config.json")
    return "bfloat16" if quantised else "float32"


def launch_command(request: ServeRequest, options: Mapping[str, Any], *switches: str) -> list[str]:
    """Return the command line of the launcher (see `launch`).

    Args:
        request: the model and the number of threads.
        options: options of `vllm serve`; those without a value have an empty one.
        switches: switches of the launcher.
    """
    command = [sys.executable, "-m", "tuneline.serving.engines.vllm.launch", *switches]
    if request.threads is not None:
        command += ["--threads", str(request.threads)]
    loras = [f"{name}={path}" for name, path in request.adapters.items()]
    given = [part for part in arguments(options) if part]
    return [*command, str(request.model), *given, *(["--lora-modules", *loras] if loras else [])]


def kv_cache_bytes(request: ServeRequest, dtype: Dtype) -> int:
    """Return the size of the KV cache on a CPU, in bytes.

    It holds keys and values of each layer for the context of every slot, in whole blocks.

    Raises:
        UserError: if the model's config.json is missing.
    """
    config = read_json(request.model / "config.json")
    config = config.get("text_config") or config
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    size = _BYTES[config.get("dtype", "bfloat16") if dtype == "auto" else dtype]
    per_block = 2 * int(config["num_hidden_layers"]) * kv_heads * width * size * _BLOCK
    # One block more: block 0 is a placeholder that holds nothing.
    blocks = request.parallel * math.ceil(request.context_tokens / _BLOCK) * _CACHE_FACTOR + 1
    return blocks * per_block


def lora_rank(adapter: Path) -> int:
    """Return the rank of an adapter, the largest if modules differ."""
    config = read_json(adapter / "adapter_config.json")
    return max(int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()), 1)


def _adapter_options(adapters: Mapping[str, Path]) -> dict[str, Any]:
    needed = max(lora_rank(path) for path in adapters.values())
    # One above all of them is left to vLLM, which names the ranks that it takes.
    rank = next((allowed for allowed in LORA_RANKS if allowed >= needed), needed)
    return {"--enable-lora": "", "--max-lora-rank": rank, "--max-loras": len(adapters)}


def _switch(name: str, on: bool) -> str:
    return f"--enable-{name}" if on else f"--no-enable-{name}"
