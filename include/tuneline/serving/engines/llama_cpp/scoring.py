"""Measure the distance of a quantised file from its reference by the engine's own logits.

The measures are the perplexity of both files and the KL divergence from the reference to the
quantised one, token by token over the whole vocabulary, as `llama-perplexity --kl-divergence`
computes it (llama.cpp, tools/perplexity). A child process evaluates the bytes that ship. The
losses of one file alone are for a comparison with another engine: whole answers to one question
share its prompt, which is evaluated once, and several questions share a batch, since a batch of a
few tokens takes nearly as long as one of many. A sequence that shares nothing is evaluated alone:
in company it would be rounded otherwise, which a comparison with another engine would see.

    python -m tuneline.serving.engines.llama_cpp.scoring < request.json > result.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from tuneline.errors import TunelineError, UserError
from tuneline.machine.child_environment import child_environment
from tuneline.machine.cores import default_threads
from tuneline.serving.engines.divergence import (
    Divergence,
    Rows,
    ScoredRow,
    compare_logits,
    log_softmax,
    summary,
)
from tuneline.serving.engines.llama_cpp.lib import LlamaLibrary, LlamaModel, Token
from tuneline.serving.processes import last_line

# llama.cpp computes at most 512 tokens at once; more sequences than this make the mask costly.
BATCH_TOKENS, BATCH_SEQUENCES = 512, 32


@dataclass
class Batch:
    """Tokens to evaluate, and by a sequence's number the rows of logits and token ids to read."""

    tokens: list[Token] = field(default_factory=list)
    targets: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


# Neighbours with the same prompt, each with its number.
_Group = list[tuple[int, ScoredRow]]


def plan_batches(rows: Rows) -> list[Batch]:
    """Return batches that give the logits before each token that counts.

    A batch is larger than `BATCH_TOKENS` only where it holds one sequence.
    """
    alone: list[list[_Group]] = []
    shared: list[list[_Group]] = [[]]
    for group in _groups(rows):
        if len(group) == 1:
            alone.append([group])
        elif _fits([*shared[-1], group]):
            shared[-1].append(group)
        else:
            shared.append([group])
    return [_batch(groups) for groups in (*alone, *shared) if groups]


def _prompt(row: ScoredRow) -> list[int]:
    """Return the tokens before the first one that counts."""
    return row.ids[: row.places[0]]


def _rest(row: ScoredRow) -> list[int]:
    """Return the other tokens that something is predicted from."""
    return row.ids[row.places[0] : row.places[-1]]


def _groups(rows: Rows) -> Iterator[_Group]:
    """Yield neighbours with the same prompt, as many as fit a batch."""
    counted = (one for one in enumerate(rows) if one[1].places)
    for _, neighbours in groupby(counted, key=lambda one: _prompt(one[1])):
        group: _Group = []
        for one in neighbours:
            if group and not _fits([[*group, one]]):
                yield group
                group = []
            group.append(one)
        yield group


def _fits(groups: Sequence[_Group]) -> bool:
    """Return True if groups fit one batch, what all their prompts begin with counted once."""
    common = _common(groups)
    own = (len(_prompt(group[0][1])) - common for group in groups)
    rests = (len(_rest(row)) for group in groups for _, row in group)
    tokens = common + sum(own) + sum(rests)
    return tokens <= BATCH_TOKENS and sum(map(len, groups)) <= BATCH_SEQUENCES


def _common(groups: Sequence[_Group]) -> int:
    """Return the number of tokens that all prompts begin with, such as a system turn."""
    columns = zip(*(_prompt(group[0][1])[:-1] for group in groups), strict=False)
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, columns))


def _batch(groups: Sequence[_Group]) -> Batch:
    """Lay out what all prompts begin with, then each prompt and what follows it."""
    batch, common = Batch(), _common(groups)
    everything = tuple(range(sum(map(len, groups))))
    start = _prompt(groups[0][0][1])[:common]
    batch.tokens += [Token(token, at, everything, wanted=False) for at, token in enumerate(start)]
    for group in groups:
        _add(batch, group, common)
    return batch


def _add(batch: Batch, group: _Group, common: int) -> None:
    """Add what a prompt does not share, and what follows it in each sequence of a group."""
    rows = sum(token.wanted for token in batch.tokens)
    places = tuple(range(len(batch.targets), len(batch.targets) + len(group)))
    prompt = _prompt(group[0][1])
    batch.tokens += [
        Token(prompt[at], at, places, wanted=at == len(prompt) - 1)
        for at in range(common, len(prompt))
    ]
    after_prompt, rows = rows, rows + 1
    for place, (number, row) in zip(places, group, strict=True):
        first, *others = row.places
        targets = [(after_prompt, row.ids[first])]
        wanted = {at - 1 for at in others}
        for at, token in enumerate(_rest(row), first):
            batch.tokens.append(Token(token, at, (place,), wanted=at in wanted))
            if at in wanted:
                targets.append((rows, row.ids[at + 1]))
                rows += 1
        batch.targets[number] = targets


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

    Neighbours that have all tokens before those in common are evaluated together, which saves work.
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
            known = log_softmax(model.evaluate(batch.tokens))
            for number, targets in batch.targets.items():
                at, ids = map(list, zip(*targets, strict=True))
                losses[number] = (-known[at, ids]).tolist()
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
