"""What every inference engine can be asked, and in what form it answers."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuneline.errors import TunelineError
from tuneline.models.base_model import read_json
from tuneline.serving.client.client import EngineClient


@dataclass(frozen=True)
class ModelFacts:
    """What decides whether an engine can run a model; read from its config.json.

    Attributes:
        path: The model's directory.
        architecture: First entry of `architectures`.
        dtype: Of the weights, as the configuration states it.
        context_length: Tokens.
        vocab_size: Rows of the embedding.
        hidden_size: Width of the model.
        quantization: `quant_method` of the checkpoint, None when it is not quantised.
        lora_rank: Rank of the adapter that is to be served beside it, None without one.
        config: The whole config.json.
    """

    path: Path
    architecture: str
    dtype: str
    context_length: int
    vocab_size: int
    hidden_size: int
    quantization: str | None
    lora_rank: int | None
    config: Mapping[str, Any]


def read_facts(model_dir: Path, adapter_dir: Path | None = None) -> ModelFacts:
    """Read a model's facts, and the rank of an adapter that is served with it.

    Raises:
        UserError: config.json or adapter_config.json is missing or not JSON.
    """
    config = read_json(model_dir / "config.json")
    rank = int(read_json(adapter_dir / "adapter_config.json")["r"]) if adapter_dir else None
    return ModelFacts(
        path=model_dir,
        architecture=str((config.get("architectures") or ["unknown"])[0]),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        context_length=int(config.get("max_position_embeddings", 0)),
        vocab_size=int(config.get("vocab_size", 0)),
        hidden_size=int(config.get("hidden_size", 0)),
        quantization=(config.get("quantization_config") or {}).get("quant_method"),
        lora_rank=rank,
        config=config,
    )


@dataclass(frozen=True)
class Compatibility:
    """Whether an engine can run a model.

    Attributes:
        engine: Name of the engine.
        compatible: The answer.
        reason: One sentence.
        source: Who says so: the engine's own registry or parser, or a table and its origin.
        live: Whether the source was the installed engine itself.
    """

    engine: str
    compatible: bool
    reason: str
    source: str
    live: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class BuildRequest:
    """What to build an engine for.

    Attributes:
        model_dir: Hugging Face directory of the merged model, or of the base with adapters.
        out_dir: Where the built engine goes.
        quantization: Engine-specific name (`q8_0`, `int4_awq`, `fp8`, …), None for none.
        dtype: `float16` or `bfloat16`.
        max_batch_size: Requests the engine runs at once.
        max_input_tokens: Longest prompt.
        max_total_tokens: Longest prompt with its answer.
        tensor_parallel: GPUs one model is spread over.
        lora_rank: Highest rank of adapters served beside the base, None without any.
        calibration_dir: Local data set for quantisations that calibrate.
    """

    model_dir: Path
    out_dir: Path
    quantization: str | None = None
    dtype: str = "float16"
    max_batch_size: int = 8
    max_input_tokens: int = 1024
    max_total_tokens: int = 2048
    tensor_parallel: int = 1
    lora_rank: int | None = None
    calibration_dir: Path | None = None


@dataclass(frozen=True)
class BuildReport:
    """What came of a build; `built` is false when it was not possible here, never faked.

    Attributes:
        engine: Name of the engine.
        built: Whether files exist that the engine runs.
        reason: One sentence; when not built, what stood in the way.
        commands: The exact command lines, also when they could not be run.
        identity: What the built engine is tied to; {} when not built.
        seconds: Wall-clock time of the build.
    """

    engine: str
    built: bool
    reason: str
    commands: tuple[tuple[str, ...], ...] = ()
    identity: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            **asdict(self),
            "commands": [list(command) for command in self.commands],
            "identity": dict(self.identity),
        }


@dataclass(frozen=True)
class ServeRequest:
    """How to start an engine's server.

    Attributes:
        model: What the engine loads: GGUF file, Hugging Face directory or engine directory.
        alias: Model name in the API.
        host: Address to listen on; loopback unless said otherwise.
        port: Port to listen on.
        max_batch_size: Requests served at once.
        max_total_tokens: Context of one request.
        adapters: LoRA adapters by name.
        lora_rank: Highest rank among them.
        tokenizer: Directory of the tokenizer where the model has none of its own.
        tensor_parallel: GPUs one model is spread over.
    """

    model: Path
    alias: str
    host: str = "127.0.0.1"
    port: int = 8081
    max_batch_size: int = 8
    max_total_tokens: int = 2048
    adapters: Mapping[str, Path] = field(default_factory=dict)
    lora_rank: int | None = None
    tokenizer: Path | None = None
    tensor_parallel: int = 1


@dataclass(frozen=True)
class Health:
    """What probing a server found.

    Attributes:
        live: It answers HTTP at all.
        ready: It lists the expected model and generated a token within the time limit.
        reason: One sentence.
        seconds: Time of the generation, or until it was given up.
        models: Ids it lists.
    """

    live: bool
    ready: bool
    reason: str
    seconds: float
    models: tuple[str, ...] = ()


class Engine(ABC):
    """One inference engine."""

    name: str

    @abstractmethod
    def check(self, model: ModelFacts) -> Compatibility:
        """Whether this engine can run the model, and who says so."""

    @abstractmethod
    def build(self, request: BuildRequest) -> BuildReport:
        """Make what the engine loads, or say what stands in the way.

        Raises:
            UserError: The request itself can't be met by any machine.
        """

    @abstractmethod
    def command(self, request: ServeRequest) -> list[str]:
        """The command line of its server.

        Raises:
            UserError: The engine can't serve what is asked for.
        """

    def health(self, base_url: str, *, model: str | None = None, timeout: float = 5.0) -> Health:
        """Probe a running server by generating one token.

        A health route alone is not asked: vLLM's answered 200 after a GPU fault (vllm#36960)
        and trtllm-serve's only says that its executor lives.

        Args:
            base_url: `http://host:port`.
            model: Id that must be listed; None accepts any.
            timeout: Seconds within which the token must come.
        """
        return probe(base_url, model=model, timeout=timeout)


def probe(base_url: str, *, model: str | None = None, timeout: float = 5.0) -> Health:
    """The probe behind `Engine.health`."""
    started = time.monotonic()
    listed: list[str] = []
    with EngineClient(base_url, timeout=timeout) as client:
        try:
            listed = client.models()
        except TunelineError as error:
            # An answer with an error status shows a live process; silence shows none.
            return Health(
                _is_live(client), False, f"{error}", time.monotonic() - started, tuple(listed)
            )
        if model is not None and model not in listed:
            reason = f"it serves {', '.join(listed) or 'no model'}, not {model}"
            return Health(True, False, reason, time.monotonic() - started, tuple(listed))
        client.model = model or (listed[0] if listed else "default")
        try:
            client.chat([{"role": "user", "content": "ping"}], max_tokens=1)
        except TunelineError as error:
            return Health(True, False, f"{error}", time.monotonic() - started, tuple(listed))
    seconds = time.monotonic() - started
    return Health(True, True, "it generated a token", seconds, tuple(listed))


def _is_live(client: EngineClient) -> bool:
    import httpx

    try:
        httpx.get(f"{client.base_url}/health", timeout=2.0, trust_env=False)
    except httpx.HTTPError:
        return False
    return True


def render(options: Sequence[tuple[str, Any]]) -> list[str]:
    """Options as arguments: None and False are left out, True is a bare flag."""
    rendered: list[str] = []
    for flag, value in options:
        if value is None or value is False:
            continue
        rendered.append(flag)
        if value is not True:
            rendered.append(str(value))
    return rendered
