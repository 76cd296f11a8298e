"""TensorRT-LLM's engine path, as in 1.2.1: convert a checkpoint, build, serve what was built.

1.2 is the last line with this path: from 1.3 on there is the PyTorch backend only
(`tensorrt_llm_pytorch`). An engine is built on a GPU of the kind that will serve it; without one,
`build` returns the exact commands and reports that nothing was built. What is served is a folder:
the engine's files, the tokenizer with its chat template, and `engine_identity.json`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tuneline.artifacts.deployment import REFERENCE, BuildReport
from tuneline.errors import TunelineError, UserError
from tuneline.machine.child_environment import child_environment
from tuneline.models.base_model import BaseModel, read_json
from tuneline.models.cache import Log, cache_root, cached_model
from tuneline.serving.engines.base import (
    BuildRequest,
    Compatibility,
    Form,
    ModelFacts,
    ServedModel,
)
from tuneline.serving.engines.divergence import Divergence, compare_logits, summary
from tuneline.serving.engines.engine_server import ServeRequest
from tuneline.serving.engines.identity import hash_files, query_gpus
from tuneline.serving.engines.tensorrt_llm.commands import (
    CONVERTERS,
    ENGINE_FOLDER,
    PYTHON,
    TOKENIZER_FOLDER,
    Workplace,
    build_commands,
    lacking,
    obstacle,
    run_command,
)
from tuneline.serving.engines.tensorrt_llm.identity import (
    read_limits,
    refuse_adapters,
    refuse_foreign,
    refuse_sizes,
    write_identity,
)
from tuneline.serving.engines.tensorrt_llm.of_nvidias_image import OfNvidiasImage
from tuneline.serving.engines.tensorrt_llm.portable import copy_portable
from tuneline.serving.engines.tensorrt_llm.server import TrtllmServer, launch_command

VERSION = "1.2.1"

_LOGITS = "tuneline.serving.engines.tensorrt_llm.logits"


class TensorRtLlm(OfNvidiasImage):
    """TensorRT-LLM 1.2.1 with built engines.

    Attributes:
        parallel: requests served at once, that engines are built for.
        context_tokens: context of one request, that engines are built for.
    """

    title: ClassVar[str] = "TensorRT-LLM"
    form: ClassVar[Form] = "engine"
    parallel: int = BuildRequest.max_batch_size
    context_tokens: int = BuildRequest.max_total_tokens

    def sized(self, parallel: int, context_tokens: int) -> TensorRtLlm:
        """Return the engine with the sizes that it builds for."""
        engine = TensorRtLlm(self.name)
        engine.parallel, engine.context_tokens = parallel, context_tokens
        return engine

    def missing(self) -> str | None:
        """Return what keeps the engine from being built and started here."""
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
        work = Workplace(request.out_dir)
        try:
            work.prepare(request)
            for command in commands:
                run_command(command)
        finally:
            work.clear()
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
            max_input_tokens=self.context_tokens - 1,
            max_total_tokens=self.context_tokens,
            calibration=() if name == REFERENCE else texts,
            context_logits=True,
        )
        report = self.build(request)
        if not report.built:
            raise UserError(f"{self.name}, {name}: {report.reason}")
        return target

    def distances(
        self,
        reference: Path,
        others: Mapping[str, Path],
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        request: ServeRequest,
    ) -> dict[str, Divergence]:
        """Compare the logits that the engines give at each token of the answers.

        Each engine is loaded by itself, since it takes the GPU's memory whole.

        Raises:
            UserError: if a row is longer than the engines' context.
            TunelineError: if an engine gives no logits.
        """
        longest = max((len(ids) for ids in sequences), default=0)
        limit = read_limits(reference).max_total_tokens
        if longest >= limit:
            raise UserError(
                f"a row has {longest} tokens, the engines were built for {limit} with at least one "
                "of an answer; raise deployment.context_tokens"
            )
        with tempfile.TemporaryDirectory(prefix="tuneline-logits-") as scratch:
            first = _logits(reference, sequences, starts, Path(scratch) / "reference")
            found = {}
            for name, path in others.items():
                second = first
                if path != reference:
                    second = _logits(path, sequences, starts, Path(scratch) / name)
                found[name] = _compared(first, second, sequences, starts)
                if second != first:
                    shutil.rmtree(second)
        return found

    def server(self, request: ServeRequest) -> TrtllmServer:
        """Return a server of a built engine, compared with its identity.

        Raises:
            UserError: if it was built for another GPU or version or for less, or its bytes are
                others.
        """
        self._refuse(request)
        return TrtllmServer(request, "tensorrt")

    def command(self, request: ServeRequest) -> list[str]:
        """Return the command line of the server; see `server`."""
        self._refuse(request)
        return launch_command(request, "tensorrt")

    def _refuse(self, request: ServeRequest) -> None:
        refuse_foreign(request.model)
        refuse_sizes(request.model, request.parallel, request.context_tokens)
        refuse_adapters(request.model, request.adapters)


def _logits(
    engine: Path, sequences: Sequence[Sequence[int]], starts: Sequence[int], out: Path
) -> Path:
    """Have NVIDIA's Python write the logits of an engine; return their folder."""
    out.mkdir()
    tokenizer = engine / TOKENIZER_FOLDER
    request = {
        "engine": str(engine / ENGINE_FOLDER),
        "tokenizer": str(tokenizer),
        "vocabulary": int(read_json(tokenizer / "config.json")["vocab_size"]),
        "sequences": [list(map(int, ids)) for ids in sequences],
        "starts": [max(1, start) for start in starts],
        "out": str(out),
    }
    answer = subprocess.run(
        [PYTHON, "-m", _LOGITS],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    if answer.returncode != 0:
        lines = answer.stderr.strip().splitlines()
        raise TunelineError(
            f"TensorRT-LLM gives no logits (code {answer.returncode}): "
            f"{lines[-1] if lines else 'no message'}"
        )
    return out


def _compared(
    first: Path, second: Path, sequences: Sequence[Sequence[int]], starts: Sequence[int]
) -> Divergence:
    parts: list[Any] = []
    for number, (ids, start) in enumerate(zip(sequences, starts, strict=True)):
        targets = np.asarray(ids[max(1, start) :])
        if len(targets):
            before, after = (np.load(folder / f"{number}.npy") for folder in (first, second))
            parts.append(compare_logits(before, after, targets))
    return summary(parts)
