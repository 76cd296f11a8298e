"""Rows for the training benchmark: those of the sample, with and without a shared prefix."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contest.trial import read_lines, write_lines
from benchmarks.workloads.support_chat import clean_rows
from tuneline.data.tables.rows import TRAIN, VALIDATION, Message, Row, write_dataset

if TYPE_CHECKING:
    from tuneline.training.loop.rows import EncodedRow

# No row is over it.
LIMIT = 1 << 16


def sample_conversations(count: int, seed: int) -> list[list[Message]]:
    """Clean rows of the sample in random order, again from the start where it has too few."""
    rows = clean_rows()
    rng = random.Random(seed)  # noqa: S311 - a workload, no secret
    rounds = -(-count // len(rows))
    return [row for _ in range(rounds) for row in rng.sample(rows, len(rows))][:count]


def without_common_prefix(
    conversations: Sequence[Sequence[Message]], seed: int
) -> list[list[Message]]:
    """Shuffle the words of each row's system prompt.

    Rows keep their lengths; only the tokens of the chat template, and the first word of some, are
    still a shared prefix.
    """
    rng = random.Random(seed)  # noqa: S311 - a workload, no secret

    def shuffled(turn: Message) -> Message:
        words = turn["content"].split(" ")
        return {**turn, "content": " ".join(rng.sample(words, len(words)))}

    return [
        [shuffled(turn) if turn["role"] == "system" else turn for turn in turns]
        for turns in conversations
    ]


def encode(
    conversations: Sequence[Sequence[Message]], validation: int, tokenizer: Any, folder: Path
) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """Tokenise and mask rows as the product does, by way of a `dataset.parquet`.

    Returns:
        Training rows, and validation rows: the last `validation` ones.
    """
    from tuneline.training.loop.rows import encode_split

    splits = [TRAIN] * (len(conversations) - validation) + [VALIDATION] * validation
    rows = [
        Row(f"row-{number:05d}", list(turns), "bench", number + 1, split=split)
        for number, (turns, split) in enumerate(zip(conversations, splits, strict=True))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset.parquet"
    write_dataset(path, rows, [1.0] * len(rows))
    train, held = (
        encode_split(path, split, tokenizer, "tokenizer", LIMIT) for split in (TRAIN, VALIDATION)
    )
    return train, held


def random_rows(count: int, length: int, vocabulary: range, seed: int) -> list[EncodedRow]:
    """Rows of `length` random tokens that share no prefix, all in the loss."""
    from tuneline.training.loop.rows import EncodedRow

    rng = random.Random(seed)  # noqa: S311 - a workload, no secret
    drawn = [tuple(rng.choice(vocabulary) for _ in range(length)) for _ in range(count)]
    return [EncodedRow(f"row-{i}", ids, (True,) * length, 1.0) for i, ids in enumerate(drawn)]


def write_rows(path: Path, rows: Sequence[EncodedRow]) -> str:
    """Leave tokenised rows for the workers; the path as a job names it."""
    return write_lines(path, [asdict(row) for row in rows])


def read_rows(path: str) -> list[EncodedRow]:
    """The files that `write_rows` left."""
    from tuneline.training.loop.rows import EncodedRow

    return [
        EncodedRow(**{**row, "ids": tuple(row["ids"]), "learned": tuple(row["learned"])})
        for row in read_lines(path)
    ]


def batches_of(rows: Sequence[EncodedRow], batch: int, steps: int, seed: int) -> list[Any]:
    """The optimiser steps of a run, in the order that the product gives them."""
    from tuneline.training.loop.rows import run_order

    order = run_order([len(row.ids) for row in rows], batch, steps, seed)
    return [[rows[i] for i in order[s : s + batch]] for s in range(0, len(order), batch)]


def computed_share(batches: Sequence[Sequence[EncodedRow]]) -> float:
    """Tokens that our training computes over those of the rows: shared prefixes count once."""
    import torch

    from tuneline.training.loop.cpu_kernels import lay_out
    from tuneline.training.loop.rows import as_batch

    computed = total = 0
    for batch in batches:
        padded = as_batch(torch, batch, 0)
        computed += lay_out(padded["input_ids"], padded["attention_mask"]).ids.numel()
        total += sum(len(row.ids) for row in batch)
    return computed / total
