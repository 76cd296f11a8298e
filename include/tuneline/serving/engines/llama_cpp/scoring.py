"""Measure the distance of a quantised file from its reference by the engine's own logits.

The measures are the perplexity of both files and the KL divergence from the reference to the
quantised one, token by token over the whole vocabulary, as `llama-perplexity --kl-divergence`
computes it (llama.cpp, tools/perplexity). A child process evaluates the bytes that ship. The
losses of one file alone are for a comparison with another engine: what several sequences begin with
is evaluated once, and several questions share a batch, since a batch of a few tokens takes nearly
as long as one of many. A sequence whose neighbours have other prompts is evaluated alone: in
company it would be rounded otherwise, which a comparison with another engine would see.

    python -m tuneline.serving.engines.llama_cpp.scoring < request.json > result.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from tuneline.errors import TunelineError, UserError
from tuneline.machine.child_environment import child_environment
from tuneline.machine.cores import default_threads
from tuneline.serving.engines.divergence import Divergence, Rows, ScoredRow, compare_logits, summary
from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel, Token
from tuneline.serving.processes import last_line

# llama.cpp computes at most 512 tokens at once; more sequences than this make the mask costly.
BATCH_TOKENS, BATCH_SEQUENCES = 512, 64


@dataclass
class Batch:
    """Tokens to evaluate, and by a sequence's number the rows of logits and token ids to read."""

    tokens: list[Token]
    targets: dict[int, list[tuple[int, int]]]


# A sequence with its number among all.
_Numbered = tuple[int, ScoredRow]


def plan_batches(rows: Rows) -> list[Batch]:
    """Return batches that give the logits before each token that counts.

    A batch is larger than `BATCH_TOKENS` only where it holds one sequence.
    """
    counted = (one for one in enumerate(rows) if one[1].places)
    groups: list[list[_Numbered]] = []
    alone: list[_Numbered] = []
    shared: list[_Numbered] = []
    for _, some in groupby(counted, key=lambda one: one[1].ids[: one[1].places[0]]):
        neighbours = list(some)
        (shared if len(neighbours) > 1 else alone).extend(neighbours)
    tokens, before = 0, list[int]()
    # In the order of their tokens, each shares most with the one before it.
    for one in sorted(shared, key=lambda one: one[1].ids):
        asked = one[1].ids[: one[1].places[-1]]
        pairs = zip(asked, before, strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        tokens, before = tokens + len(asked) - common, asked
        if not groups or tokens > BATCH_TOKENS or len(groups[-1]) == BATCH_SEQUENCES:
            groups.append([])
            tokens = len(asked)
        groups[-1].append(one)
    return [_batch(group) for group in [*([one] for one in alone), *groups]]


def _batch(group: Sequence[_Numbered]) -> Batch:
    """Lay out sequences as a tree, in which what several begin with stands once."""
    nodes: dict[tuple[int, int], int] = {}
    paths: list[list[int]] = []
    members: dict[int, list[int]] = {}
    for place, (_, row) in enumerate(group):
        node, path = -1, []
        for token in row.ids[: row.places[-1]]:
            node = nodes.setdefault((node, token), len(nodes))
            members.setdefault(node, []).append(place)
            path.append(node)
        paths.append(path)
    positions = {node: at for path in paths for at, node in enumerate(path)}
    # What predicts a token that counts is the one before it.
    wanted = sorted({paths[n][at - 1] for n, (_, row) in enumerate(group) for at in row.places})
    logits = {node: number for number, node in enumerate(wanted)}
    tokens = [
        Token(token, positions[node], tuple(members[node]), wanted=node in logits)
        for (_, token), node in nodes.items()
    ]
    targets = {
        number: [(logits[path[at - 1]], row.ids[at]) for at in row.places]
        for path, (number, row) in zip(paths, group, strict=True)
    }
    return Batch(tokens, targets)


def perplexity_and_kl(
    reference: Path,
    other: Path,
    rows: Rows,
    *,
    threads: int | None = None,
    adapter: Path | None = None,
) -> Divergence:
    """Compare two GGUF files of one model, or one with itself, in a child process.

    Raises:
        UserError: if a file can't be loaded, or the vocabularies differ.
        TunelineError: if the engine failed.
    """
    request = {"other": str(other), "rows": rows}
    return Divergence(**_in_child("compare", reference, request, threads, adapter))


def sequence_losses(
    model: Path, rows: Rows, *, threads: int | None = None, adapter: Path | None = None
) -> list[list[float]]:
    """Return the loss of a GGUF file on each token that counts, in nats, in a child process.

    Neighbours with the same tokens before those are evaluated together, which saves work.
    """
    return list(_in_child("score", model, {"rows": rows}, threads, adapter)["losses"])


def tokenize_texts(gguf: Path, texts: Sequence[str]) -> list[list[int]]:
    """Return llama.cpp's token ids of texts; special tokens are recognised."""
    return list(_in_child("tokenize", gguf, {"texts": list(texts)})["ids"])


def _compare(request: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    rows = _rows(request)
    library, options["context"] = LlamaLibrary(), max(len(row.ids) for row in rows)
    with (
        LlamaModel(library, Path(request["model"]), **options) as reference,
        LlamaModel(library, Path(request["other"]), **options) as other,
    ):
        if reference.vocab_size != other.vocab_size:
            raise UserError("the two files have different vocabularies; compare one model's files")
        parts = []
        for row in rows:
            # The logits after token i predict token i + 1.
            at = np.asarray(row.places) - 1
            before, after = (model.logits(row.ids)[at] for model in (reference, other))
            parts.append(compare_logits(before, after, row))
    return asdict(summary(parts))


def _rows(request: Mapping[str, Any]) -> list[ScoredRow]:
    return [ScoredRow(*row) for row in request["rows"]]


def _score(request: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    rows = _rows(request)
    batches = plan_batches(rows)
    if batches:
        options["context"] = max(len(batch.tokens) for batch in batches)
        options["sequences"] = max(len(batch.targets) for batch in batches)
    losses: list[list[float]] = [[] for _ in rows]
    with LlamaModel(LlamaLibrary(), Path(request["model"]), **options) as model:
        for batch in batches:
            logits = model.evaluate(batch.tokens)
            most = logits.max(axis=1)
            # Only the given tokens are read: the whole softmax would take a tenth of the time.
            total = most + np.log(np.exp(logits - most[:, None]).sum(axis=1, dtype=np.float64))
            for number, targets in batch.targets.items():
                at, ids = map(list, zip(*targets, strict=True))
                losses[number] = (total[at] - logits[at, ids]).tolist()
    return {"losses": losses}


def _tokenize(request: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    with LlamaModel(LlamaLibrary(), Path(request["model"]), context=64, **options) as model:
        return {"ids": [model.tokenize(text) for text in request["texts"]]}


def _in_child(
    action: str,
    model: Path,
    request: Mapping[str, Any],
    threads: int | None = None,
    adapter: Path | None = None,
) -> dict[str, Any]:
    asked = {
        **request,
        "model": str(model),
        "threads": threads or default_threads(),
        "adapter": adapter and str(adapter),
    }
    # A failed assertion in C++ must not start a debugger.
    environment = child_environment(OMP_WAIT_POLICY="PASSIVE", GGML_NO_BACKTRACE="1")
    answer = subprocess.run(
        [sys.executable, "-m", __name__, action],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    try:
        result: dict[str, Any] = json.loads(answer.stdout)
    except ValueError:
        reason = last_line(answer.stderr)
        raise TunelineError(f"llama.cpp ended with code {answer.returncode}: {reason}") from None
    if "error" in result:
        kind = UserError if result["user_error"] else TunelineError
        raise kind(result["error"])
    return result


def main() -> int:
    """Run the child process: one request on standard input, one answer on standard output."""
    request = json.load(sys.stdin)
    adapter = request["adapter"]
    options = {"threads": request["threads"], "adapter": adapter and Path(adapter)}
    act = {"compare": _compare, "score": _score, "tokenize": _tokenize}[sys.argv[1]]
    try:
        answer = act(request, options)
    except TunelineError as error:
        answer = {"error": str(error), "user_error": isinstance(error, UserError)}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
