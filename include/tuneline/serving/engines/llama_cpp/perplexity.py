"""Measure the distance of a quantised file from its reference by the engine's own logits.

The measures are the perplexity of both files and the KL divergence from the reference to the
quantised one, token by token over the whole vocabulary, as `llama-perplexity --kl-divergence`
computes it (llama.cpp, tools/perplexity). A child process evaluates the bytes that ship. The
losses of one file alone are for a comparison with another engine.

    python -m tuneline.serving.engines.llama_cpp.perplexity < request.json > result.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tuneline.errors import TunelineError, UserError
from tuneline.machine.child_environment import child_environment
from tuneline.machine.cores import default_threads
from tuneline.serving.engines.divergence import Divergence, compare_logits, log_softmax, summary
from tuneline.serving.engines.llama_cpp.packing import plan_batches


def perplexity_and_kl(
    ref_gguf: Path,
    quant_gguf: Path,
    token_sequences: Sequence[Sequence[int]],
    *,
    score_from: Sequence[int] | None = None,
    threads: int | None = None,
    adapter: Path | None = None,
) -> Divergence:
    """Compare two GGUF files on given tokens, in a child process.

    Args:
        ref_gguf: the reference, usually f16.
        quant_gguf: the quantised file, with the same vocabulary.
        token_sequences: sequences of at least two token ids.
        score_from: index of the first scored token of each sequence, so that answers count and
            prompts do not; None scores all tokens but the first.
        threads: number of threads; None takes `default_threads()`.
        adapter: GGUF adapter of both files; None without one.

    Raises:
        UserError: if a file can't be loaded, or there is no token to score.
        TunelineError: if the engine failed.
    """
    request = {
        "reference": str(ref_gguf),
        "quantised": str(quant_gguf),
        "sequences": [[int(token) for token in sequence] for sequence in token_sequences],
        "score_from": [int(index) for index in score_from] if score_from is not None else None,
        "threads": threads or default_threads(),
        "adapter": str(adapter) if adapter is not None else None,
    }
    return Divergence(**_in_child("compare", request))


def sequence_losses(
    gguf: Path,
    token_sequences: Sequence[Sequence[int]],
    scored: Sequence[Sequence[bool]],
    *,
    threads: int | None = None,
    adapter: Path | None = None,
) -> list[float]:
    """Return the loss of a GGUF file on tokens of each sequence, in nats, in a child process.

    Args:
        gguf: a model file.
        token_sequences: sequences of token ids. Neighbours that have all tokens before the scored
            ones in common are evaluated together, which saves work.
        scored: for each token of each sequence, whether it counts; a first one never does.
        threads: number of threads; None takes `default_threads()`.
        adapter: GGUF adapter of the file; None without one.

    Returns:
        The negative log-likelihood of each sequence's scored tokens, summed; 0 without any.

    Raises:
        UserError: if the file can't be loaded.
        TunelineError: if the engine failed.
    """
    request = {
        "model": str(gguf),
        "sequences": [[int(token) for token in sequence] for sequence in token_sequences],
        "scored": [[bool(flag) for flag in flags] for flags in scored],
        "threads": threads or default_threads(),
        "adapter": str(adapter) if adapter is not None else None,
    }
    return [float(loss) for loss in _in_child("score", request)["losses"]]


def tokenize_texts(gguf: Path, texts: Sequence[str]) -> list[list[int]]:
    """Return llama.cpp's token ids of texts; special tokens are recognised.

    Args:
        gguf: a model file.
        texts: the texts.

    Raises:
        UserError: if the file can't be loaded.
        TunelineError: if the engine failed.
    """
    answer = _in_child("tokenize", {"model": str(gguf), "texts": list(texts)})
    return [[int(token) for token in ids] for ids in answer["ids"]]


def _compare(request: dict[str, Any]) -> dict[str, Any]:
    from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel

    sequences = request["sequences"]
    starts = request["score_from"] or [1] * len(sequences)
    if len(starts) != len(sequences):
        raise UserError(f"{len(sequences)} sequences but {len(starts)} places to score from")
    context = max((len(sequence) for sequence in sequences), default=0)
    parts = []
    library = LlamaLibrary()
    options: dict[str, Any] = {"context": max(context, 2), "threads": request["threads"]}
    if request["adapter"] is not None:
        options["adapter"] = Path(request["adapter"])
    with (
        LlamaModel(library, Path(request["reference"]), **options) as reference,
        LlamaModel(library, Path(request["quantised"]), **options) as quantised,
    ):
        if reference.vocab_size != quantised.vocab_size:
            raise UserError("the two files have different vocabularies; compare one model's files")
        for sequence, start in zip(sequences, starts, strict=True):
            first = max(1, start)
            if len(sequence) <= first:
                continue
            # The logits after token i predict token i + 1.
            scored = slice(first - 1, len(sequence) - 1)
            parts.append(
                compare_logits(
                    reference.logits(sequence)[scored],
                    quantised.logits(sequence)[scored],
                    np.asarray(sequence[first:]),
                )
            )
    return asdict(summary(parts))


def _score(request: dict[str, Any]) -> dict[str, Any]:
    from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel

    sequences = request["sequences"]
    batches = plan_batches(sequences, request["scored"])
    options: dict[str, Any] = {"threads": request["threads"]}
    if request["adapter"] is not None:
        options["adapter"] = Path(request["adapter"])
    if batches:
        options["context"] = max(len(batch.tokens) for batch in batches)
        options["sequences"] = max(len(batch.targets) for batch in batches)
    losses = [0.0] * len(sequences)
    with LlamaModel(LlamaLibrary(), Path(request["model"]), **options) as model:
        for batch in batches:
            known = log_softmax(model.evaluate(batch.tokens))
            for number, targets in batch.targets.items():
                rows, ids = map(list, zip(*targets, strict=True))
                losses[number] = -float(known[rows, ids].sum())
    return {"losses": losses}


def _tokenize(request: dict[str, Any]) -> dict[str, Any]:
    from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel

    with LlamaModel(LlamaLibrary(), Path(request["model"]), context=64) as model:
        return {"ids": [model.tokenize(text) for text in request["texts"]]}


def _in_child(action: str, request: dict[str, Any]) -> dict[str, Any]:
    # A failed assertion in C++ must not start a debugger.
    environment = child_environment(OMP_WAIT_POLICY="PASSIVE", GGML_NO_BACKTRACE="1")
    answer = subprocess.run(
        [sys.executable, "-m", __name__, action],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    try:
        result = json.loads(answer.stdout)
    except ValueError:
        lines = answer.stderr.strip().splitlines()
        reason = lines[-1] if lines else "no message"
        raise TunelineError(f"llama.cpp ended with code {answer.returncode}: {reason}") from None
    if "error" in result:
        kind = UserError if result["user_error"] else TunelineError
        raise kind(result["error"])
    return dict(result)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the child process: one request on standard input, one answer on standard output."""
    action = (argv if argv is not None else sys.argv[1:])[0]
    request = json.load(sys.stdin)
    try:
        answer = {"compare": _compare, "score": _score, "tokenize": _tokenize}[action](request)
    except TunelineError as error:
        answer = {"error": str(error), "user_error": isinstance(error, UserError)}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
