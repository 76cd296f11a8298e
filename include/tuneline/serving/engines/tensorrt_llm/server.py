"""TensorRT-LLM's server as a child process, for both of its backends."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import httpx

from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.machine.child_environment import child_environment
from tuneline.models.base_model import load_tokenizer
from tuneline.serving.client.chat_protocol import EngineUnavailable, Messages
from tuneline.serving.engines.base import arguments
from tuneline.serving.engines.engine_server import Counters, EngineServer, ServeRequest
from tuneline.serving.engines.identity import gpu_memory_used
from tuneline.serving.engines.tensorrt_llm.commands import ENGINE_FOLDER, TOKENIZER_FOLDER
from tuneline.serving.engines.tensorrt_llm.identity import read_limits
from tuneline.serving.engines.tensorrt_llm.stats import add_up
from tuneline.serving.probes import engine_probe
from tuneline.serving.server_process import free_port

Backend = Literal["tensorrt", "pytorch"]

# A reading of an idle engine's statistics waits two seconds for a step.
METRICS_SECONDS = 30.0
# The KV cache holds every slot's context, and as much again for prefixes that were answered before.
_CACHE_FACTOR = 2
_MODULE = "tuneline.serving.engines.tensorrt_llm.launch"
# What the log says of a start that must fail again, and what to do.
_USER = (
    (r"incompatible device, expecting compute.*", "build the engine again on this GPU"),
    (r"version tag does not match.*", "build the engine again in this image"),
    (r"max_\w+ \[\d+\] is greater than build_config\.[^\[]*\[\d+\]", "build the engine for more"),
    (r"No GPU devices found.*", "give the pod a GPU"),
)
_RETRY = re.compile(r"Failed to bind socket[^\n]*|address already in use", re.I)
_MEMORY = re.compile(r"^.*out of memory.*", re.I | re.M)
_RAISED = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception)): (.+)$", re.M)


class TrtllmServer(EngineServer):
    """A trtllm-serve process; ready once it has generated a token.

    with TrtllmServer(ServeRequest(Path("built"), "model", 4, 1024), "tensorrt") as server:
        server.client().chat([…], max_tokens=32)
    """

    # uvicorn finishes running answers after SIGTERM; then the engine frees the GPU.
    stop_seconds = 40.0
    poll_seconds = 0.2
    # trtllm-serve starts the engine in further processes.
    own_group = True

    def __init__(self, request: ServeRequest, backend: Backend) -> None:
        """Describe a server; `start` or a `with` block starts it.

        Args:
            request: the model and the sizes.
            backend: `tensorrt` for a built engine, `pytorch` for a checkpoint.
        """
        # trtllm-serve refuses port 0.
        self.request = replace(request, port=request.port or free_port())
        self.backend = backend
        self._totals = Counters(0, 0)
        super().__init__(
            launch_command(self.request, backend, "--stop-with-stdin"),
            start_seconds=request.start_seconds,
            environment=child_environment(PYTHONUNBUFFERED="1"),
            # The pipe ties its life to ours: it ends when the pipe closes, however we die.
            stdin=subprocess.PIPE,
        )

    def find_url(self) -> str | None:
        """Return the address once the health route answers: the weights are loaded."""
        url = f"http://{self.request.host}:{self.request.port}"
        return url if engine_probe.listens(url, 2.0) else None

    def launch(self) -> None:
        """Start the process without waiting; its totals start at zero."""
        self._totals = Counters(0, 0)
        super().launch()

    def memory_bytes(self) -> int:
        """Return the memory in use on the GPUs, in bytes.

        The weights lie there and not in the memory of a process. It is all of the memory in use,
        since a container sees other process ids than the driver; a step's pod has its GPUs to
        itself.
        """
        return gpu_memory_used()

    def signal(self, number: int) -> None:
        """Send a signal to all of its processes; SIGTERM to the server alone, as in a pod."""
        if number == signal.SIGTERM:
            self._running().send_signal(number)
        else:
            super().signal(number)

    def counters(self) -> Counters:
        """Read the statistics since the last reading and add them to the totals.

        Others who read `/metrics` take entries away from this; the probe does, before it finds
        the engine ready.
        """
        url = f"http://{self.request.host}:{self.request.port}/metrics"
        try:
            answer = httpx.get(url, timeout=METRICS_SECONDS, trust_env=False)
            answer.raise_for_status()
            steps = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise EngineUnavailable(f"{url} gives no statistics: {error}") from error
        self._totals = add_up(self._totals, steps)
        return self._totals

    def with_adapter(self, name: str) -> dict[str, Any]:
        """Refuse: the engine is compiled of the merged model.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"TensorRT-LLM can't answer with the adapter {name}: what it serves here is the merged "
            "model"
        )

    def renders(self, messages: Messages, text: str, ids: Sequence[int]) -> bool:
        """Compare with the chat template that trtllm-serve was started with.

        The server has no route that renders. So the template and the tokenizer of its folder give
        the ids here, by the same library, and the server itself confirms their number: it counts
        the tokens of the prompt that it rendered.
        """
        tokenizer = self._tokenizer()
        rendered = tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
        if rendered != text or self.tokenize([text]) != [list(ids)]:
            return False
        with self.client() as client:
            answer = client.chat(messages, max_tokens=1)
        return answer.usage.prompt_tokens == len(ids)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of the tokenizer that trtllm-serve was started with.

        The server has no route that tokenises; it loads the same files with the same library.
        """
        encoded = self._tokenizer()(list(texts), add_special_tokens=False)
        return [[int(token) for token in ids] for ids in encoded["input_ids"]]

    def _tokenizer(self) -> Any:
        return load_tokenizer(tokenizer_folder(self.request.model, self.backend))

    def start_error(self, code: int | None, lacking: str) -> TunelineError:
        """Return the error that its log states, or a retryable one if its time ran out."""
        model = self.request.model
        if code is None:
            return RetryableError(
                f"TensorRT-LLM with {model} was not ready after {self.start_seconds:.0f} s: "
                f"{lacking}"
            )
        return start_error(model, code, self.read_log(), self.last_words())


def start_error(model: Path, code: int, log: str, last_words: str) -> TunelineError:
    """Return the error of a server that ended before it was ready.

    Args:
        model: the model, as it is named in the message.
        code: exit code of the server.
        log: its output.
        last_words: last line of its output, for a log without an exception.
    """
    said = f"TensorRT-LLM can't serve {model}: "
    for pattern, remedy in _USER:
        if found := re.search(pattern, log):
            return UserError(f"{said}{found.group(0).strip().rstrip('.')}; {remedy}")
    if found := _RETRY.search(log):
        return RetryableError(f"{said}{found.group(0).strip()}; wait until the port is free")
    if found := _MEMORY.search(log):
        return TunelineError(
            f"{said}{found.group(0).strip()}; lower deployment.parallel or context_tokens, or take "
            "a larger GPU"
        )
    raised = _RAISED.findall(log)
    return TunelineError(f"{said}{raised[-1][1] if raised else last_words} (exit code {code})")


def tokenizer_folder(model: Path, backend: Backend) -> Path:
    """Return the folder of the tokenizer that a model is served with."""
    return model / TOKENIZER_FOLDER if backend == "tensorrt" else model


def launch_command(request: ServeRequest, backend: Backend, *switches: str) -> list[str]:
    """Return the command line of the launcher; its own options come first.

    Args:
        request: the model and the sizes.
        backend: `tensorrt` for a built engine, `pytorch` for a checkpoint.
        switches: switches of the launcher.
    """
    command = [sys.executable, "-m", _MODULE, "--alias", request.alias, *switches]
    if backend == "pytorch":
        command.append("--checkpoint")
    command += ["--cache-tokens", str(_CACHE_FACTOR * request.parallel * request.context_tokens)]
    model, *options = serve_arguments(request, backend)
    return [*command, model, *options]


def serve_arguments(request: ServeRequest, backend: Backend) -> list[str]:
    """Return the arguments of trtllm-serve; the first is the model.

    An engine refuses a larger batch or more tokens than it was built for, and trtllm-serve asks
    for 2048 requests and 8192 tokens unless it is told otherwise.
    """
    options: dict[str, Any] = {
        "--backend": backend,
        "--host": request.host,
        "--port": request.port,
        "--max_batch_size": request.parallel,
    }
    if backend == "pytorch":
        return [
            str(request.model),
            *arguments({**options, "--max_seq_len": request.context_tokens}),
        ]
    limits = read_limits(request.model)
    options |= {
        "--tokenizer": tokenizer_folder(request.model, backend),
        "--max_num_tokens": limits.max_num_tokens,
        "--max_seq_len": limits.max_total_tokens,
        "--tp_size": limits.world_size,
    }
    return [str(request.model / ENGINE_FOLDER), *arguments(options)]
