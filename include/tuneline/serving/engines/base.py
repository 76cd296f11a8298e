"""The interface of inference engines: model facts, compatibility, builds and serve commands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from tuneline.artifacts.deployment import BuildReport
from tuneline.errors import UserError
from tuneline.models.base_model import read_json
from tuneline.serving.engines.identity import hash_tree, machine_identity
from tuneline.serving.engines.registry import known_architectures

# Address of a served engine inside its pod; the gateway has its own port.
HOST, PORT = "127.0.0.1", 8081


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a model that decide whether an engine can run it, from its config.json.

    Attributes:
        path: the model's directory.
        architecture: first entry of `architectures`.
        vocab_size: rows of the embedding.
        quantization: `quant_method` of the checkpoint; None if it is not quantised.
        config: the whole config.json.
    """

    path: Path
    architecture: str
    vocab_size: int
    quantization: str | None
    config: Mapping[str, Any]


def read_facts(model_dir: Path) -> ModelFacts:
    """Read a model's facts.

    Raises:
        UserError: if config.json is missing or is not JSON.
    """
    config = read_json(model_dir / "config.json")
    return ModelFacts(
        path=model_dir,
        architecture=str((config.get("architectures") or ["unknown"])[0]),
        vocab_size=int(config.get("vocab_size", 0)),
        quantization=(config.get("quantization_config") or {}).get("quant_method"),
        config=config,
    )


@dataclass(frozen=True)
class Compatibility:
    """The answer of an engine or of the table: can it run the model?

    Attributes:
        engine: name of the engine.
        compatible: the answer.
        reason: one sentence.
        source: origin of the answer, the engine's own registry or a table.
        live: whether the installed engine itself gave the answer.
    """

    engine: str
    compatible: bool
    reason: str
    source: str
    live: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class BuildRequest:
    """The model and the sizes that an engine is built for.

    Attributes:
        model_dir: Hugging Face directory of the merged model.
        out_dir: folder for the built engine.
        quantization: engine-specific name (`int4_awq`, `fp8`, …); None for none.
        dtype: `float16` or `bfloat16`.
        max_batch_size: requests served at once.
        max_input_tokens: longest prompt, in tokens.
        max_total_tokens: longest prompt with its answer, in tokens.
        tensor_parallel: number of GPUs that share one model.
        lora_rank: highest rank of adapters served beside the model; None without adapters.
        calibration_dir: local dataset for quantisations that calibrate.
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


class Engine:
    """An inference engine; one without a class of its own is checked for compatibility only."""

    def __init__(self, name: str) -> None:
        """Create the engine of that name."""
        self.name = name

    def check(self, model: ModelFacts) -> Compatibility:
        """Look the model's architecture up in the engine's own registry, or in the table."""
        known, source, live = known_architectures(self.name)
        compatible = model.architecture in known
        if compatible:
            reason = f"{model.architecture} is among the architectures it knows"
        else:
            reason = f"{model.architecture} is not among the {len(known)} architectures it knows"
        return Compatibility(self.name, compatible, reason, source, live)

    def build(self, request: BuildRequest) -> BuildReport:
        """Make the files that the engine loads, or report the obstacle.

        Raises:
            UserError: if no machine could meet the request, or nothing is built for the engine.
        """
        raise UserError(f"{self.name}: nothing is built for this engine")


class CheckpointServer(Engine, ABC):
    """An engine that serves Hugging Face checkpoints: they are identified, nothing is built.

    Attributes:
        title: the engine's name in sentences.
        package: the Python package that holds it.
        program: the command that serves a model, whose directory follows.
        quantised: description of the quantised checkpoints that it loads.
    """

    title: ClassVar[str]
    package: ClassVar[str]
    program: ClassVar[tuple[str, ...]]
    quantised: ClassVar[str]

    @abstractmethod
    def options(self, request: BuildRequest) -> dict[str, Any]:
        """Return the options of the serve command, without host and port."""

    def serve_command(self, request: BuildRequest) -> list[str]:
        """Return the command line that serves the checkpoint."""
        options = {**self.options(request), "--host": HOST, "--port": PORT}
        return [*self.program, str(request.model_dir), *arguments(options)]

    def build(self, request: BuildRequest) -> BuildReport:
        """Identify the checkpoint.

        Raises:
            UserError: if a quantisation is requested; the engine takes quantised checkpoints.
        """
        if request.quantization is not None:
            raise UserError(
                f"{self.title} does not quantise ({request.quantization}); give it {self.quantised}"
            )
        identity = {
            "engine": self.name,
            "version": _installed(self.package),
            **machine_identity(),
            "files": hash_tree(request.model_dir),
        }
        return BuildReport(
            engine=self.name,
            built=True,
            reason="it serves the checkpoint itself",
            commands=[self.serve_command(request)],
            identity=identity,
        )


def _installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed here"


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Return options as command-line arguments, those with the value None left out."""
    given = {flag: str(value) for flag, value in options.items() if value is not None}
    return [part for option in given.items() for part in option]
