"""Run the systems of the token benchmark: rows in, the number of tokens of each out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contest.peers import version_of
from benchmarks.contest.trial import Job, Trial, read_lines
from tuneline import __version__

# A batch of 1,000 is the fastest for the bare tokenizer as well.
BATCH = 1000


def audit(job: Job) -> Trial:
    """Try the whole kernel of the item: render every row, count, compare with the limit."""
    from tuneline.data.rendering.renderer import Renderer
    from tuneline.data.tables.rows import Row
    from tuneline.data.token_length_audit import fit
    from tuneline.models import load_tokenizer

    renderer = Renderer(load_tokenizer(Path(job["model"])), job["target"])
    rows = [
        Row(str(number), messages, "bench", number)
        for number, messages in enumerate(read_lines(job["conversations"]), 1)
    ]

    def work(rows: Sequence[Row]) -> list[int]:
        return fit(rows, job["limit"], renderer, "reject")[2]

    return _trial(job, __version__, rows, work)


def count(job: Job) -> Trial:
    """Try the counting alone, on rendered texts."""
    from tuneline.data.rendering.renderer import Renderer
    from tuneline.models import load_tokenizer

    renderer = Renderer(load_tokenizer(Path(job["model"])), job["target"])
    return _trial(job, __version__, read_lines(job["texts"]), renderer.count)


def raw(job: Job) -> Trial:
    """Try the bare tokenizer on rendered texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(job["model"]) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def work(texts: Sequence[str]) -> list[int]:
        counts: list[int] = []
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            counts += map(len, tokenizer.encode_batch_fast(batch, add_special_tokens=False))
        return counts

    return _trial(job, version_of("tokenizers"), read_lines(job["texts"]), work)


def _trial(
    job: Job, version: str, items: Sequence[Any], work: Callable[[Sequence[Any]], list[int]]
) -> Trial:
    reference = read_lines(job["reference"])

    def score(counts: list[int]) -> dict[str, float]:
        same = sum(a == b for a, b in zip(counts, reference, strict=True))
        return {"equal_counts": same / len(reference)}

    return Trial(version, items, work, score)
