"""The interface of inference engines: what they load, how it is made, and how it is served."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from tuneline.artifacts.deployment import BuildReport
from tuneline.errors import UserError
from tuneline.models.base_model import BaseModel, digest_of, read_json
from tuneline.models.cache import Log
from tuneline.serving.engines.divergence import Divergence
from tuneline.serving.engines.server import EngineServer, ServeRequest
from tuneline.store import sha256_file

_TABLE = Path(__file__).with_name("architectures.json")

# Code that lists the architectures of an installed engine, by import name. It runs in a
# child process: these imports take seconds, and some register signal handlers or GPU contexts.
_LIVE = {
    "vllm": "from vllm import ModelRegistry; "
    "print('\\n'.join(ModelRegistry.get_supported_archs()))",
    "sglang": "from sglang.srt.models.registry import ModelRegistry; "
    "print('\\n'.join(ModelRegistry.get_supported_archs()))",
    "tensorrt_llm": "from tensorrt_llm.models import MODEL_MAP; print('\\n'.join(MODEL_MAP))",
}

# What an engine loads: one GGUF file, a Hugging Face folder, or a folder that was compiled.
Form = Literal["gguf", "checkpoint", "engine"]


@cache
def known_architectures(engine: str) -> tuple[frozenset[str], str, bool]:
    """List the architectures that an engine supports.

    Returns:
        Their names, the source, and whether that is the installed engine itself.
    """
    # An engine's package has its name.
    if engine in _LIVE and importlib.util.find_spec(engine) is not None:
        listed = _ask(_LIVE[engine])
        if listed:
            return listed, f"the model registry of the installed {engine}", True
    table = json.loads(_TABLE.read_text(encoding="utf-8"))[engine]
    return frozenset(table["architectures"]), str(table["source"]), False


def _ask(code: str) -> frozenset[str]:
    try:
        answer = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False
        )
    except subprocess.TimeoutExpired:
        return frozenset()
    if answer.returncode != 0:
        return frozenset()
    # Engines print notices as well; architecture names are single words.
    return frozenset(line for line in answer.stdout.split("\n") if line.isidentifier())


def hash_tree(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a directory, by relative path."""
    return {
        path.relative_to(directory).as_posix(): sha256_file(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def hash_files(path: Path) -> tuple[str, dict[str, str]]:
    """Return one hash of a file or a folder, and the SHA-256 of each file by name."""
    files = {path.name: sha256_file(path)} if path.is_file() else hash_tree(path)
    return whole_digest(path, files), files


def whole_digest(path: Path, files: Mapping[str, str]) -> str:
    """Return one hash of a file, or of a folder: that of the list of its files' hashes.

    Args:
        files: the SHA-256 of each file by name.
    """
    return files[path.name] if path.is_file() else digest_of(files)


def machine_identity() -> dict[str, Any]:
    """Return the platform and the GPUs, to which built engines are tied.

    GPUs come from `nvidia-smi`: a TensorRT engine names none in its own files and fails at
    load on another compute capability.
    """
    return {
        "os": platform.system(),
        "arch": platform.machine(),
        "gpus": query_gpus(),
    }


def query_gpus() -> list[dict[str, str]]:
    """Return name, compute capability, memory and driver of each NVIDIA GPU; [] without any."""
    fields = ("name", "compute_cap", "memory.total", "driver_version")
    return [dict(zip(fields, row, strict=False)) for row in _query(fields, "csv,noheader")]


def gpu_memory_used() -> int:
    """Return the memory in use on all GPUs, in bytes; 0 without any."""
    # In MiB without its unit.
    rows = _query(("memory.used",), "csv,noheader,nounits")
    return sum(int(row[0]) for row in rows if row[0].isdigit()) << 20


def _query(fields: Sequence[str], form: str) -> list[list[str]]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", f"--format={form}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return []
    if answer.returncode != 0:
        return []
    return [line.split(", ") for line in answer.stdout.splitlines() if line.strip()]


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a model that decide whether an engine can run it, from its config.json.

    Attributes:
        architecture: first entry of `architectures`.
        quantization: `quant_method` of the checkpoint; None if it is not quantised.
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
        max_input_tokens: longest prompt, in tokens.
        max_total_tokens: longest prompt with its answer, in tokens.
        tensor_parallel: number of GPUs that share one model.
        lora_rank: highest rank of adapters served beside the model; None without adapters.
        calibration: texts for quantisations that calibrate.
        context_logits: whether the engine can give the logits of a prompt, to be measured; it is
            slower for that.
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
    calibration: Sequence[str] = ()
    context_logits: bool = False


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter in the form that an engine loads beside a base.

    Attributes:
        name: its name in the API.
        path: the file or the folder.
        sha256: hash of the file, or of a folder's list of hashes (`digest_of`).
        files: SHA-256 of each file by name.
    """

    name: str
    path: Path
    sha256: str
    files: Mapping[str, str]

    @property
    def bytes(self) -> int:
        """Size of the file or of all files of the folder, in bytes."""
        return _size(self.path, self.files)


@dataclass(frozen=True)
class ServedModel:
    """A model in the form that its engine loads.

    Attributes:
        path: the file or the folder.
        sha256: hash of the file, or of a folder's list of hashes (`digest_of`); with an adapter
            the hash over both hashes.
        files: SHA-256 of each file by name, without those of the adapter.
        adapter: the adapter that every request is answered with; None for a model without one.
    """

    engine: str
    path: Path
    sha256: str
    files: Mapping[str, str]
    adapter: ServedAdapter | None = None

    @property
    def bytes(self) -> int:
        """Size of the file or of all files of the folder, and of the adapter, in bytes."""
        return _size(self.path, self.files) + (self.adapter.bytes if self.adapter else 0)

    def beside(self, adapter: ServedAdapter) -> ServedModel:
        """Return this base with an adapter beside it."""
        sha256 = digest_of({"base": self.sha256, "adapter": adapter.sha256})
        return replace(self, sha256=sha256, adapter=adapter)


def _size(path: Path, files: Mapping[str, str]) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum((path / name).stat().st_size for name in files)


class Engine:
    """An inference engine. Engines without a subclass are only checked for compatibility.

    Attributes:
        name: its name in the configuration.
        serves_adapters: whether its servers load adapters beside a base.
    """

    title: ClassVar[str] = ""
    form: ClassVar[Form] = "checkpoint"
    serves_adapters: ClassVar[bool] = True

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

    def missing(self) -> str | None:
        """Return what keeps the engine from being started here, None if nothing does."""
        return f"{self.name} can't be started by a run"

    def interpreter(self) -> str | None:
        """Return the command of the Python that the engine runs in, None for this one."""
        return None

    def version(self) -> str:
        """Return the engine's package and version, as it is installed here."""
        return self.name

    def on_gpu(self) -> bool:
        """Return True if the engine, started here, runs on a GPU."""
        return False

    def sized(self, parallel: int, context_tokens: int) -> Engine:
        """Return the engine with the sizes that it builds for, where it builds.

        Args:
            context_tokens: context of one request, in tokens.
        """
        return self

    def build(self, request: BuildRequest) -> BuildReport:
        """Make the files that the engine loads, or report the obstacle.

        Raises:
            UserError: if no machine could meet the request, or nothing is built for the engine.
        """
        raise UserError(f"{self.name}: nothing is built for this engine")

    def make_variant(
        self, name: str, source: Path, target: Path, *, texts: Sequence[str], log: Log
    ) -> Path:
        """Make a quantised variant of the tuned model.

        Args:
            name: one of `deployment.variants`.
            source: the unquantised model in the engine's form.
            target: where it is written; a file for `gguf`, else a folder.
            texts: rendered training rows, for quantisations that calibrate.
            log: function that takes one line of progress.

        Returns:
            The file or the folder.

        Raises:
            UserError: if the engine has no such variant, or it can't be made of this model.
        """
        raise UserError(f"{self.name} has no variant {name}")

    def untuned(self, base: BaseModel, log: Log) -> ServedModel:
        """Return a base model in the form that the engine loads.

        Args:
            log: function that takes one line of progress.
        """
        return ServedModel(self.name, base.path, base.digest, base.files)

    def exporter(self) -> str:
        """Return the packages that make the forms of models for it."""
        return self.version()

    def distances(
        self,
        reference: Path,
        others: Mapping[str, Path],
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        request: ServeRequest,
    ) -> dict[str, Divergence]:
        """Return the distance of each variant from the reference, token by token.

        Args:
            others: the variants by name; the reference itself may be among them.
            sequences: token ids of rows.
            starts: index at which each row's answer starts; only answers count.
            request: the sizes that servers are started with, and the adapter that is beside
                each of them, if one is.
        """
        raise UserError(f"{self.name}: its distributions can't be compared")

    def losses(
        self,
        model: Path,
        sequences: Sequence[Sequence[int]],
        scored: Sequence[Sequence[bool]],
        request: ServeRequest,
    ) -> list[float] | None:
        """Return the loss of a model on given tokens of each sequence, in nats.

        Args:
            sequences: token ids of rows.
            scored: for each token of each sequence, whether it counts; a first one never does.
            request: the sizes that servers are started with.

        Returns:
            The negative log-likelihood of each sequence's scored tokens, summed; None if the
            engine does not tell the probability of tokens that it is given.
        """
        return None

    def server(self, request: ServeRequest) -> EngineServer:
        """Return a server of a model; `start` or a `with` block starts it.

        Raises:
            UserError: if a run can't start the engine.
        """
        raise UserError(f"{self.name} can't be started by a run")

    def command(self, request: ServeRequest) -> list[str]:
        """Return the command line of a server that replaces this process or runs in a pod.

        Raises:
            UserError: if a run can't start the engine.
        """
        raise UserError(f"{self.name} can't be started by a run")
