"""Rows of the dataset as training sees them: token ids, a mask of learned tokens, a weight.

The order of rows is fixed before training starts, from the seed alone, so that a resumed run sees
exactly the rows that the interrupted one had not seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneline.config import TargetFormat
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import read_dataset
from tuneline.errors import UserError

IGNORED = -100  # the label that torch's cross-entropy and TRL ignore

# Batches that are sorted by length together. More saves padding, fewer keeps the order random.
_GROUP_BATCHES = 8


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """One row, tokenised.

    Attributes:
        learned: True for each token that counts for the loss (the assistant's tokens).
        weight: that of its tokens in the loss; up-sampling is a weight, not a copy.
        rehearsal: True for a row that is not of the task, or has a canary.
    """

    row_id: str
    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    weight: float
    rehearsal: bool = False

    @property
    def labels(self) -> list[int]:
        """Token ids where they are learned, `IGNORED` elsewhere."""
        return [i if keep else IGNORED for i, keep in zip(self.ids, self.learned, strict=True)]

    @property
    def targets(self) -> int:
        """The number of tokens that are predicted and learned; the first is never predicted."""
        return sum(self.learned[1:])


def tail(row: EncodedRow, share: float) -> EncodedRow:
    """Return the end of a row, where its learned tokens are."""
    start = len(row.ids) - max(2, round(share * len(row.ids)))
    return replace(row, ids=row.ids[start:], learned=row.learned[start:])


def encode_split(
    dataset: Path, split: str, tokenizer: Any, target: TargetFormat, max_tokens: int
) -> list[EncodedRow]:
    """Tokenise the rows of one split of `dataset.parquet`, in the order of the file.

    UserError if there are none, or one has no learned tokens, a weight that is not positive, or
    more tokens than the training context (rows are never cut).
    """
    rows, weights = read_dataset(dataset)
    chosen = [(row, w) for row, w in zip(rows, weights, strict=True) if row.split == split]
    if not chosen:
        raise UserError(f"{dataset.name} has no {split} rows; give the data phase more rows")
    rendered = Renderer(tokenizer, target).render([row.messages for row, _ in chosen])
    encoded = []
    for (row, weight), example in zip(chosen, rendered, strict=True):
        where = f"{dataset.name}, row {row.row_id} ({row.source_file} line {row.source_line})"
        # Whoever sends a request may have written its earlier answers.
        learned = example.loss_mask if row.served_by is None else example.last_answer()
        if learned is None or not any(learned[1:]):
            raise UserError(f"{where}: its answer has no token; reject the row")
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"{where}: weight {weight} is not positive")
        if len(example.ids) > max_tokens:
            raise UserError(
                f"{where}: {len(example.ids)} tokens, the training context is {max_tokens}; "
                "run token_length_audit with the same data.max_tokens"
            )
        encoded.append(EncodedRow(row.row_id, tuple(example.ids), tuple(learned), weight))
    return encoded


def total_steps(rows: int, effective_batch: int, epochs: float, max_steps: int | None) -> int:
    """Count the optimiser steps of a run that sees every row at least `epochs` times."""
    steps = math.ceil(rows * epochs / effective_batch)
    return min(steps, max_steps) if max_steps else max(1, steps)


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """Return the steps after which to evaluate: evenly spread, the last one among them."""
    count = min(steps, evaluations)
    return {round(i * steps / count) for i in range(1, count + 1)}


def run_order(
    lengths: Sequence[int],
    effective_batch: int,
    steps: int,
    seed: int,
    rehearsal: Sequence[bool] | None = None,
) -> list[int]:
    """Return `steps × effective_batch` indices of rows, those of similar length together.

    Every pass is shuffled. A few batches at a time are sorted by length and cut into batches, and
    these shuffled again, so that length follows no pattern in time. Rehearsal rows are dealt out
    evenly: a step on them alone would pull away from the task. The longest batch comes first: a run
    that does not fit in memory fails at once, and the heap never grows again.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    need = steps * effective_batch
    stream: list[int] = []
    while len(stream) < need:
        stream.extend(int(i) for i in rng.permutation(len(lengths)))
    stream = stream[:need]
    batches: list[list[int]] = []
    group = effective_batch * _GROUP_BATCHES
    for start in range(0, need, group):
        part = sorted(stream[start : start + group], key=lambda i: (-lengths[i], i))
        cut = _cut(part, effective_batch, rehearsal)
        batches.extend(cut[int(index)] for index in rng.permutation(len(cut)))
    for batch in batches:
        # The first micro-batch of a batch is its longest.
        batch.sort(key=lambda i: (-lengths[i], i))
    longest = max(range(len(batches)), key=lambda b: sum(lengths[i] for i in batches[b]))
    batches.insert(0, batches.pop(longest))
    return [index for batch in batches for index in batch]


def _cut(rows: list[int], size: int, rehearsal: Sequence[bool] | None) -> list[list[int]]:
    """Cut sorted rows into batches, rehearsal rows evenly among them."""
    dealt = [i for i in rows if rehearsal is not None and rehearsal[i]]
    count = len(rows) // size
    cut = [dealt[b::count] for b in range(count)]
    others = iter(i for i in rows if rehearsal is None or not rehearsal[i])
    return [[*batch, *itertools.islice(others, size - len(batch))] for batch in cut]


def collate(
    torch: Any, rows: Sequence[dict[str, Any]], pad_id: int, *, packed: bool = False
) -> dict[str, Any]:
    """Make one batch of rows: dicts with `input_ids`, `labels`, `weight` and `rehearsal`.

    Weight and rehearsal have the shape (rows,). Padded: `input_ids`, `labels` and `attention_mask`
    of shape (rows, longest). Packed, by TRL's collator: `input_ids`, `labels`, `position_ids` and
    `seq_idx` (the row of each token) of shape (1, tokens), and the limits of the rows for
    FlashAttention; the first token of a row has no label.
    """
    of_rows = {
        "weight": torch.tensor([row["weight"] for row in rows], dtype=torch.float32),
        "rehearsal": torch.tensor([row["rehearsal"] for row in rows], dtype=torch.bool),
    }
    if packed:
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        return of_rows | DataCollatorForLanguageModeling(pad_id, padding_free=True)(list(rows))
    # TRL's padding is the same; importing it costs each step that measures a loss two seconds.
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> Any:
        cells = [list(r[name]) + [value] * (longest - len(r[name])) for r in rows]
        return torch.tensor(cells, dtype=torch.long)

    mask = [[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows]
    return {
        "input_ids": padded("input_ids", pad_id),
        "labels": padded("labels", IGNORED),
        "attention_mask": torch.tensor(mask, dtype=torch.long),
        **of_rows,
    }


def as_columns(rows: Sequence[EncodedRow]) -> dict[str, list[Any]]:
    """Return rows as the columns that `collate` takes."""
    return {
        "input_ids": [list(row.ids) for row in rows],
        "labels": [row.labels for row in rows],
        "weight": [row.weight for row in rows],
        "rehearsal": [row.rehearsal for row in rows],
    }


def as_batch(
    torch: Any, rows: Sequence[EncodedRow], pad_id: int, *, packed: bool = False
) -> dict[str, Any]:
    """Return rows as one batch; see `collate`."""
    columns = as_columns(rows)
    entries = [{name: columns[name][i] for name in columns} for i in range(len(rows))]
    return collate(torch, entries, pad_id, packed=packed)


def batch_shape(
    lengths: Sequence[int], effective_batch: int, micro_batch: int, *, end_to_end: bool
) -> dict[str, float]:
    """Return what the rows of a run, in its order, come to; nothing is padded `end_to_end`."""
    batches = [lengths[at : at + micro_batch] for at in range(0, len(lengths), micro_batch)]
    padding = 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)
    return {
        "padding_share": 0.0 if end_to_end else round(padding, 4),
        "padding_share_if_padded": round(padding, 4),
        "tokens_per_step": round(sum(lengths) * effective_batch / len(lengths), 1),
    }


def pad_token(tokenizer: Any) -> int:
    """Return a token id for padding; it is masked everywhere, so any known token will do."""
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if value is not None:
            return int(value)
    return 0
