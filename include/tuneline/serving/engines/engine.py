"""The interface of inference engines: what they load, how it is made, and how it is served."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from tuneline.artifacts.deployment import BuildReport
from tuneline.errors import UserError
from tuneline.models.base_model import BaseModel, digest_of, read_json
from tuneline.models.cache import Log
from tuneline.serving.engines.divergence import Divergence, NumberFormat, Rows
from tuneline.serving.engines.server import EngineServer, ServeRequest
from tuneline.store import sha256_file

_TABLE = Path(__file__).with_name("architectures.json")

# Lists the architectures of the installed vLLM. It runs in a child process: the import takes
# seconds, and registers signal handlers or GPU contexts.
_ASK_VLLM = "from vllm import ModelRegistry; print('\\n'.join(ModelRegistry.get_supported_archs()))"

# What an engine loads: one GGUF file, a Hugging Face folder, or a folder that was compiled.
Form = Literal["gguf", "checkpoint", "engine"]


@cache
def known_architectures(engine: str) -> tuple[frozenset[str], str, bool]:
    """Return the architectures that an engine knows, who says so, and if that is the engine."""
    if engine == "vllm" and importlib.util.find_spec("vllm") is not None:
        # Engines print notices as well; architecture names are single words.
        words = _output([sys.executable, "-c", _ASK_VLLM], timeout=180).split("\n")
        if listed := frozenset(filter(str.isidentifier, words)):
            return listed, "the model registry of the installed vllm", True
    table = json.loads(_TABLE.read_text(encoding="utf-8"))[engine]
    return frozenset(table["architectures"]), str(table["source"]), False


def _output(command: Sequence[str], timeout: float) -> str:
    """Return what a program prints; nothing if it fails or takes too long."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=True
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        return ""
    return answer.stdout


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
    """Return one hash of a file, or of a folder: that of the list of its files' hashes."""
    return files[path.name] if path.is_file() else digest_of(files)


def machine_identity() -> dict[str, Any]:
    """Return the platform and the GPUs, to which built engines are tied."""
    return {"os": platform.system(), "arch": platform.machine(), "gpus": query_gpus()}


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
    return [line.split(", ") for line in _output(command, 30).splitlines() if line.strip()]


@dataclass(frozen=True)
class ModelFacts:
    """The facts of a model that decide whether an engine can run it, from its config.json."""

    path: Path
    architecture: str
    vocab_size: int
    quantization: str | None
    config: Mapping[str, Any]


def read_facts(model_dir: Path) -> ModelFacts:
    """Read a model's facts, or raise UserError if config.json is missing or is not JSON."""
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
    """The answer of an engine, or of the table if it is not `live`: can it run the model?"""

    engine: str
    compatible: bool
    reason: str
    source: str
    live: bool


@dataclass(frozen=True)
class BuildRequest:
    """The model and the sizes that an engine is built for.

    Attributes:
        quantization: the engine's name of it (`int4_awq`, `fp8`, …); None for none.
        max_total_tokens: longest prompt with its answer, in tokens.
        calibration: texts for quantisations that calibrate.
        context_logits: whether the engine can give the logits of a prompt, to be measured; it is
            slower for that.
    """

    model_dir: Path
    out_dir: Path
    quantization: str | None = None
    max_batch_size: int = 8
    max_total_tokens: int = 2048
    calibration: Sequence[str] = ()
    context_logits: bool = False


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter in the form that an engine loads next to a base; see `ServedModel`."""

    name: str
    path: Path
    sha256: str
    files: Mapping[str, str]

    @property
    def bytes(self) -> int:
        """Size of the file or of all files of the folder, in bytes."""
        return sum(file.stat().st_size for file in _paths(self.path, self.files))


@dataclass(frozen=True)
class ServedModel:
    """A model in the form that its engine loads.

    Attributes:
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
    def paths(self) -> list[Path]:
        """Each file of the model and of its adapter."""
        parts = [part for part in (self, self.adapter) if part]
        return [file for part in parts for file in _paths(part.path, part.files)]

    @property
    def bytes(self) -> int:
        """Size of the file or of all files of the folder, and of the adapter, in bytes."""
        return sum(file.stat().st_size for file in self.paths)

    def beside(self, adapter: ServedAdapter) -> ServedModel:
        """Return this base with an adapter beside it."""
        sha256 = digest_of({"base": self.sha256, "adapter": adapter.sha256})
        return replace(self, sha256=sha256, adapter=adapter)


def _paths(path: Path, files: Mapping[str, str]) -> list[Path]:
    return [path] if path.is_file() else [path / name for name in files]


class Engine:
    """An inference engine. Engines without a subclass are only checked for compatibility."""

    title: ClassVar[str] = ""
    form: ClassVar[Form] = "checkpoint"
    serves_adapters: ClassVar[bool] = True

    def __init__(self, name: str) -> None:
        self.name = name

    def check(self, model: ModelFacts) -> Compatibility:
        """Look the model's architecture up in the engine's own registry, or in the table."""
        known, source, live = known_architectures(self.name)
        compatible = model.architecture in known
        among = "among the" if compatible else f"not among the {len(known)}"
        reason = f"{model.architecture} is {among} architectures it knows"
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

    def number_format(self, model: Path) -> NumberFormat:
        """Return the format that it computes an unquantised model in, or the next coarser one."""
        return "float16"

    def sized(self, parallel: int, context_tokens: int) -> Engine:
        """Return the engine with the sizes that it builds for, where it builds."""
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
        """Make a quantised variant of the tuned model; return its file or folder.

        Args:
            name: one of `deployment.variants`.
            source: the unquantised model in the engine's form.
            target: where it is written; a file for `gguf`, else a folder.
            texts: rendered training rows, for quantisations that calibrate.

        Raises:
            UserError: if the engine has no such variant, or it can't be made of this model.
        """
        raise UserError(f"{self.name} has no variant {name}")

    def untuned(self, base: BaseModel, log: Log) -> ServedModel:
        """Return a base model in the form that the engine loads."""
        return ServedModel(self.name, base.path, base.digest, base.files)

    def exporter(self) -> str:
        """Return the packages that make the forms of models for it."""
        return self.version()

    def distances(
        self, reference: Path, others: Mapping[str, Path], rows: Rows, request: ServeRequest
    ) -> dict[str, Divergence]:
        """Return the distance of each variant from the reference, token by token.

        Args:
            others: the variants by name; the reference itself may be among them.
            rows: each with at least one token that counts.
            request: the sizes that servers are started with, and the adapter that is next to
                each of them, if one is.
        """
        raise UserError(f"{self.name}: its distributions can't be compared")

    def losses(self, model: Path, rows: Rows, request: ServeRequest) -> list[list[float]] | None:
        """Return the loss of a model on each token that counts, for each row, in nats.

        None if the engine does not report the probability of tokens that it is given.
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
