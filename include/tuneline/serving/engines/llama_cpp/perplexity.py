"""Measure the distance of a quantised file from its reference by the engine's own logits.

The measures are the perplexity of both files and the KL divergence from the reference to the
quantised one, token by token over the whole vocabulary, as `llama-perplexity --kl-divergence`
computes it (llama.cpp, tools/perplexity). A child process evaluates the bytes that ship.

    python -m tuneline.serving.engines.llama_cpp.perplexity < request.json > result.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneline.errors import TunelineError, UserError
from tuneline.machine.child_environment import child_environment
from tuneline.machine.cores import default_threads


@dataclass(frozen=True)
class Divergence:
    """The distance of a quantised file from its reference.

    Attributes:
        tokens: number of scored tokens.
        reference_perplexity: perplexity of the reference.
        perplexity: perplexity of the quantised file.
        mean_kl: mean KL divergence per token, in nats.
        mean_kl_error: standard error of `mean_kl` over sequences, whose tokens are dependent.
        same_top_token: share of positions with the same most probable token.
    """

    tokens: int
    reference_perplexity: float
    perplexity: float
    mean_kl: float
    mean_kl_error: float
    same_top_token: float


def perplexity_and_kl(
    ref_gguf: Path,
    quant_gguf: Path,
    token_sequences: Sequence[Sequence[int]],
    *,
    score_from: Sequence[int] | None = None,
    threads: int | None = None,
) -> Divergence:
    """Compare two GGUF files on given tokens, in a child process.

    Args:
        ref_gguf: the reference, usually f16.
        quant_gguf: the quantised file, with the same vocabulary.
        token_sequences: sequences of at least two token ids.
        score_from: index of the first scored token of each sequence, so that answers count and
            prompts do not; None scores all tokens but the first.
        threads: number of threads; None takes `default_threads()`.

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
    }
    return Divergence(**_in_child("compare", request))


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


def compare_logits(
    reference: NDArray[np.float32], other: NDArray[np.float32], targets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Compare two sets of logits token by token.

    Args:
        reference: logits of shape (tokens, vocabulary).
        other: logits of the same shape.
        targets: the actual next tokens, shape (tokens,).

    Returns:
        Negative log-likelihood under each, KL divergence (nats), equal top token; all (tokens,).
    """
    first, second = _log_softmax(reference), _log_softmax(other)
    rows = np.arange(len(targets))
    divergence = (np.exp(first) * (first - second)).sum(axis=1)
    return (
        -first[rows, targets],
        -second[rows, targets],
        # Rounding may turn an exact zero into a small negative number.
        np.maximum(divergence, 0.0),
        first.argmax(axis=1) == second.argmax(axis=1),
    )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _compare(request: dict[str, Any]) -> dict[str, Any]:
    from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel

    sequences = request["sequences"]
    starts = request["score_from"] or [1] * len(sequences)
    if len(starts) != len(sequences):
        raise UserError(f"{len(sequences)} sequences but {len(starts)} places to score from")
    context = max((len(sequence) for sequence in sequences), default=0)
    parts = []
    library = LlamaLibrary()
    options = {"context": max(context, 2), "threads": request["threads"]}
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
    if not parts:
        raise UserError("there is no token to score; give sequences of at least two tokens")
    before, after, divergence, same = (
        np.concatenate(values) for values in zip(*parts, strict=True)
    )
    means = np.array([part[2].mean() for part in parts])
    error = means.std(ddof=1) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    result = Divergence(
        tokens=len(before),
        reference_perplexity=float(np.exp(before.mean())),
        perplexity=float(np.exp(after.mean())),
        mean_kl=float(divergence.mean()),
        mean_kl_error=float(error),
        same_top_token=float(same.mean()),
    )
    return asdict(result)


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
        answer = {"compare": _compare, "tokenize": _tokenize}[action](request)
    except TunelineError as error:
        answer = {"error": str(error), "user_error": isinstance(error, UserError)}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
