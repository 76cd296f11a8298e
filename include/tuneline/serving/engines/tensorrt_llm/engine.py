"""TensorRT-LLM's engine path, as in 1.2.1: convert a checkpoint, build, serve what was built.

1.2 is the last line with this path: from 1.3 on there is the PyTorch backend only
(`tensorrt_llm_pytorch`). An engine is built on a GPU of the kind that will serve it; without one,
`build` returns the exact commands and reports that nothing was built. What is served is a folder:
the engine's files, the tokenizer with its chat template, and `engine_identity.json`.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import httpx

from tuneline.artifacts.deployment import REFERENCE, BuildReport
from tuneline.errors import UserError
from tuneline.machine.child_environment import child_environment
from tuneline.models.base_model import BaseModel, load_tokenizer, read_json
from tuneline.models.cache import Log, cache_root, cached_model
from tuneline.models.tool_turns import with_tools
from tuneline.serving.client import EngineUnavailable, Messages
from tuneline.serving.engines.divergence import (
    Divergence,
    Rows,
    checkpoint_losses,
    compare_variants,
)
from tuneline.serving.engines.engine import (
    BuildRequest,
    Compatibility,
    Engine,
    Form,
    ModelFacts,
    ServedModel,
    gpu_memory_used,
    hash_files,
    query_gpus,
)
from tuneline.serving.engines.server import (
    Counters,
    EngineServer,
    ServeRequest,
    arguments,
    known_cause,
)
from tuneline.serving.engines.tensorrt_llm.build import (
    CONVERTERS,
    ENGINE_FOLDER,
    PYTHON,
    TOKENIZER_FOLDER,
    build_commands,
    copy_portable,
    lacking,
    obstacle,
    prepare,
    run_command,
    workplace,
)
from tuneline.serving.engines.tensorrt_llm.identity import (
    IDENTITY_FILE,
    installed_versions,
    read_sizes,
    refuse_unservable,
    write_identity,
)
from tuneline.serving.processes import free_port, run_child

VERSION = "1.2.1"
Backend = Literal["tensorrt", "pytorch"]

# A reading of an idle engine's statistics waits two seconds for a step.
METRICS_SECONDS = 30.0
# The KV cache holds every slot's context, and as much again for prefixes that were answered before.
_CACHE_FACTOR = 2
_MODULE, _LOGITS = (
    f"tuneline.serving.engines.tensorrt_llm.{name}" for name in ("launch", "logits")
)
_RAISED = re.compile(r"^(?:\w+\.)*\w+(?:Error|Exception): (.+)$", re.M)


class _NvidiaImage(Engine):
    """Both backends run in NVIDIA's image, on GPUs alone, and are given merged models alone."""

    serves_adapters: ClassVar[bool] = False
    backend: ClassVar[Backend]

    def interpreter(self) -> str | None:
        """Return NVIDIA's Python."""
        return PYTHON

    def version(self) -> str:
        """Return the version of TensorRT-LLM in this image."""
        return f"tensorrt_llm {installed_versions()['tensorrt_llm'] or 'not installed here'}"

    def on_gpu(self) -> bool:
        """Return True where it can be started: it runs on nothing else."""
        return self.missing() is None

    def refuse(self, request: ServeRequest) -> None:
        """Refuse adapters."""
        if request.adapters:
            raise UserError(
                f"{self.title} can't serve the adapters {', '.join(request.adapters)}: it is "
                "started with merged models only"
            )

    def server(self, request: ServeRequest) -> TrtllmServer:
        """Return a server of a built engine or a checkpoint."""
        self.refuse(request)
        return TrtllmServer(request, self.backend)

    def command(self, request: ServeRequest) -> list[str]:
        """Return the command line of the server."""
        self.refuse(request)
        return launch_command(request, self.backend)


class TensorRtLlm(_NvidiaImage):
    """TensorRT-LLM 1.2.1 with built engines, and the sizes that they are built for."""

    title: ClassVar[str] = "TensorRT-LLM"
    form: ClassVar[Form] = "engine"
    backend = "tensorrt"
    parallel: int = BuildRequest.max_batch_size
    context_tokens: int = BuildRequest.max_total_tokens

    def sized(self, parallel: int, context_tokens: int) -> TensorRtLlm:
        """Return the engine with the sizes that it builds for."""
        engine = TensorRtLlm(self.name)
        engine.parallel, engine.context_tokens = parallel, context_tokens
        return engine

    def missing(self) -> str | None:
        """Return what keeps the engine from being built and started here, None if nothing does."""
        return lacking("trtllm-build", "trtllm-serve")

    def check(self, model: ModelFacts) -> Compatibility:
        """Look the architecture up in the table and among the converters."""
        found = super().check(model)
        if found.compatible and model.architecture not in CONVERTERS:
            reason = f"{model.architecture} is known, but its conversion is not set up here"
            return replace(found, compatible=False, reason=reason)
        if model.quantization is not None:
            reason = f"the engine path converts unquantised checkpoints, not {model.quantization}"
            return replace(found, compatible=False, reason=reason)
        return found

    def build(self, request: BuildRequest) -> BuildReport:
        """Convert and build, where there is a GPU and TensorRT-LLM.

        Raises:
            UserError: if no machine could meet the request.
            TunelineError: if a command failed, with its last line.
        """
        commands = build_commands(request)
        if lacks := obstacle(request):
            reason = f"not built: {lacks}"
            return BuildReport(engine=self.name, built=False, reason=reason, commands=commands)
        started = time.monotonic()
        try:
            prepare(request)
            for command in commands:
                run_command(command)
        finally:
            shutil.rmtree(workplace(request.out_dir), ignore_errors=True)
        copy_portable(request.model_dir, request.out_dir / TOKENIZER_FOLDER, weights=False)
        facts = {
            "method": request.quantization or REFERENCE,
            "context_logits": request.context_logits,
            "built_of": hash_files(request.model_dir)[0],
            "calibrated_on": len(request.calibration),
        }
        return BuildReport(
            engine=self.name,
            built=True,
            reason="built and identified",
            commands=commands,
            identity=write_identity(request.out_dir, facts),
            seconds=time.monotonic() - started,
        )

    def make_variant(
        self, name: str, source: Path, target: Path, *, texts: Sequence[str], log: Log
    ) -> Path:
        """Build an engine of a variant, one whose logits can be read.

        The engine that ships is built again without them by build_engine, since a prompt is
        slower with them; its weights are the same, of the same texts and the same seed.
        """
        log(f"building an engine of {name}")
        return self._built(name, source, target, texts)

    def untuned(self, base: BaseModel, log: Log) -> ServedModel:
        """Return an engine of a base model from the cache; build it if it is not there.

        It is used again for the same model, sizes, version and GPU only.
        """

        def fill(folder: Path) -> None:
            log(f"building an engine of the base model {base.uri} (once)")
            self._built(REFERENCE, base.path, folder / "built", ())

        gpus = [(gpu["name"], gpu["compute_cap"]) for gpu in query_gpus()]
        key = f"{base.digest} {self.version()} {gpus} {self.parallel} {self.context_tokens}"
        entry, _ = cached_model(cache_root(), "trtllm", key, fill, log=log)
        return ServedModel(self.name, entry / "built", *hash_files(entry / "built"))

    def _built(self, name: str, source: Path, target: Path, texts: Sequence[str]) -> Path:
        request = BuildRequest(
            source,
            target,
            quantization=None if name == REFERENCE else name,
            max_batch_size=self.parallel,
            max_total_tokens=self.context_tokens,
            calibration=() if name == REFERENCE else texts,
            context_logits=True,
        )
        report = self.build(request)
        if not report.built:
            raise UserError(f"{self.name}, {name}: {report.reason}")
        return target

    def distances(
        self, reference: Path, others: Mapping[str, Path], rows: Rows, request: ServeRequest
    ) -> dict[str, Divergence]:
        """Compare the logits that the engines give at each token of the answers.

        Each engine is loaded by itself, since it takes the GPU's memory whole.

        Raises:
            UserError: if a row is longer than the engines' context.
            TunelineError: if an engine gives no logits.
        """
        return compare_variants(
            reference, others, rows, lambda engine, folder: _score(engine, rows, folder)
        )

    def losses(self, model: Path, rows: Rows, request: ServeRequest) -> list[list[float]] | None:
        """Return the losses by the logits; None if the engine was built without them.

        Raises:
            UserError: if a row is longer than the engine's context.
        """
        if not read_json(model / IDENTITY_FILE).get("context_logits"):
            return None
        with tempfile.TemporaryDirectory(prefix="tuneline-losses-") as scratch:
            _score(model, rows, Path(scratch), losses=True)
            return list(json.loads((Path(scratch) / "losses.json").read_text()))

    def refuse(self, request: ServeRequest) -> None:
        """Refuse adapters, and an engine that is not what it was built as and for."""
        super().refuse(request)
        refuse_unservable(request)


def _score(engine: Path, rows: Rows, out: Path, *, losses: bool = False) -> None:
    """Have NVIDIA's Python write the logits of an engine, or its losses."""
    longest, limit = max(len(row.ids) for row in rows), read_sizes(engine).max_total_tokens
    if longest >= limit:
        raise UserError(
            f"a row has {longest} tokens, the engine was built for {limit} with at least one of an "
            "answer; raise deployment.context_tokens"
        )
    tokenizer = engine / TOKENIZER_FOLDER
    request = {
        "engine": str(engine / ENGINE_FOLDER),
        "tokenizer": str(tokenizer),
        "vocabulary": int(read_json(tokenizer / "config.json")["vocab_size"]),
        "rows": rows,
        "out": str(out),
        "losses": losses,
    }
    asked = out / "request.json"
    asked.write_text(json.dumps(request))
    command = [PYTHON, "-m", _LOGITS, str(asked)]
    run_child(command, "TensorRT-LLM gives no logits", child_environment())


class TensorRtLlmPytorch(_NvidiaImage):
    """`trtllm-serve` on a Hugging Face directory."""

    title: ClassVar[str] = "TensorRT-LLM (PyTorch backend)"
    backend = "pytorch"

    def missing(self) -> str | None:
        """Return what keeps the engine from being started here, None if nothing does."""
        return lacking("trtllm-serve")

    def make_variant(
        self, name: str, source: Path, target: Path, *, texts: Sequence[str], log: Log
    ) -> Path:
        """Return the checkpoint itself: it ships as it was exported."""
        if name != REFERENCE:
            raise UserError(f"{self.name} has no variant {name}; use {REFERENCE}")
        return source

    def distances(
        self, reference: Path, others: Mapping[str, Path], rows: Rows, request: ServeRequest
    ) -> dict[str, Divergence]:
        """Return the perplexity of the one variant that there is.

        transformers computes it in float32 of the same checkpoint: trtllm-serve gives no
        probabilities of a prompt. There is no distance to measure.
        """
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        losses = checkpoint_losses(reference, rows, threads=request.threads, device=device)
        tokens = sum(len(row.places) for row in rows)
        perplexity = math.exp(sum(map(sum, losses)) / tokens)
        return dict.fromkeys(others, Divergence(tokens, perplexity, perplexity))


class TrtllmServer(EngineServer):
    """A trtllm-serve process; ready once it has generated a token."""

    title = "TensorRT-LLM"
    # uvicorn finishes running answers after SIGTERM; then the engine frees the GPU.
    stop_seconds = 40.0
    poll_seconds = 0.2
    # trtllm-serve starts the engine in further processes.
    own_group = True

    def __init__(self, request: ServeRequest, backend: Backend) -> None:
        """Describe a server of a built engine (`tensorrt`) or of a checkpoint (`pytorch`)."""
        # trtllm-serve refuses port 0.
        request = replace(request, port=request.port or free_port())
        self.backend = backend
        self._totals = Counters(0, 0)
        super().__init__(request, launch_command(request, backend, "--stop-with-stdin"))

    def memory_bytes(self) -> int:
        """Return all memory in use on the GPUs, where the weights lie, in bytes.

        A container sees other process ids than the driver, and a pod has its GPUs to itself.
        """
        return gpu_memory_used()

    def counters(self) -> Counters:
        """Read the statistics since the last reading and add them to the totals.

        A reading takes them away, also from others, such as the probe; the engine keeps only the
        latest thousand or so.
        """
        url = f"{self.url}/metrics"
        try:
            answer = httpx.get(url, timeout=METRICS_SECONDS, trust_env=False)
            answer.raise_for_status()
            steps = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise EngineUnavailable(f"{url} gives no statistics: {error}") from error
        self._totals = _add_up(self._totals, steps)
        return self._totals

    def renders(self, messages: Messages, text: str, ids: Sequence[int]) -> bool:
        """Compare with the chat template that trtllm-serve was started with.

        The server has no route that renders. So the template and the tokenizer of its folder give
        the ids here, by the same library, and the server itself confirms their number: it counts
        the tokens of the prompt that it rendered.
        """
        turns, tools = with_tools(messages)
        rendered = self._tokenizer().apply_chat_template(
            turns, tools=tools, tokenize=False, add_generation_prompt=True
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

    def cause(self, log: str) -> str | None:
        """Return what is known of a failed start, or else the last exception."""
        known, raised = known_cause(log), _RAISED.findall(log)
        return known[0] if known else raised[-1] if raised else None


def _add_up(before: Counters, steps: Sequence[Mapping[str, Any]]) -> Counters:
    """Return totals with more entries of `/metrics` added, one for each step of the engine."""
    batches = [step.get("inflightBatchingStats") or {} for step in steps]
    names = ("numContextRequests", "numGenRequests")
    requests = [sum(int(batch.get(name, 0)) for name in names) for batch in batches]
    return Counters(
        before.prompt_tokens + sum(int(batch.get("numCtxTokens", 0)) for batch in batches),
        before.completion_tokens + sum(requests),
        before.steps + sum(1 for count in requests if count),
        before.step_requests + sum(requests),
    )


def tokenizer_folder(model: Path, backend: Backend) -> Path:
    """Return the folder of the tokenizer that a model is served with."""
    return model / TOKENIZER_FOLDER if backend == "tensorrt" else model


def launch_command(request: ServeRequest, backend: Backend, *switches: str) -> list[str]:
    """Return the command line of the launcher; its own options come first."""
    command = [sys.executable, "-m", _MODULE, "--alias", request.alias, *switches]
    if backend == "pytorch":
        command.append("--checkpoint")
    command += ["--cache-tokens", str(_CACHE_FACTOR * request.parallel * request.context_tokens)]
    model, *options = serve_arguments(request, backend)
    return [*command, model, *options]


def serve_arguments(request: ServeRequest, backend: Backend) -> list[str]:
    """Return the arguments of trtllm-serve; the first is the model.

    An engine refuses a larger batch or more tokens than it was built for, and trtllm-serve asks
    for 2048 requests and 8192 tokens by default.
    """
    options: dict[str, Any] = {
        "--backend": backend,
        "--host": request.host,
        "--port": request.port,
        "--max_batch_size": request.parallel,
    }
    if backend == "pytorch":
        options["--max_seq_len"] = request.context_tokens
        return [str(request.model), *arguments(options)]
    sizes = read_sizes(request.model)
    options |= {
        "--tokenizer": tokenizer_folder(request.model, backend),
        "--max_num_tokens": sizes.max_num_tokens,
        "--max_seq_len": sizes.max_total_tokens,
        "--tp_size": 1,
    }
    return [str(request.model / ENGINE_FOLDER), *arguments(options)]
