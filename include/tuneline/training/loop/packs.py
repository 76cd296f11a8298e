"""Share the rows of an optimiser step among processes and sequences of limited length.

A pack is the rows of one micro-batch, laid end to end in one sequence. It is limited by its tokens
and not by its rows, so that short rows fill it as well as long ones. Packs are made within an
optimiser step: the effective batch keeps its rows and the run its order, whatever the limit is,
and a run resumes with another limit or with padding. All processes compute equally many packs,
since those that share a model's weights have to compute it together.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneline.training.loop.rows import EncodedRow, as_columns, collate

# Indices of rows, by process, pack and place in the pack.
StepPacks = list[list[list[int]]]


def pack_step(lengths: Sequence[int], processes: int, limit: int) -> StepPacks:
    """Share out the rows of one optimiser step in as few packs as the limit allows.

    The longest row that is left goes to the emptiest pack (LPT: Graham, 1969), which keeps packs
    and processes evenly loaded.

    Args:
        lengths: tokens of each row; at least as many rows as processes.
        processes: processes that train together.
        limit: tokens of a pack, at most; a longer row has a pack to itself.

    Returns:
        The packs of each process, equally many for all and none of them empty.
    """
    most = len(lengths) // processes
    least = -(-sum(lengths) // (limit * processes))
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    packs: list[list[int]] = []
    for count in range(min(least, most), most + 1):
        packs = _level(order, lengths, count * processes)
        if max(sum(lengths[i] for i in pack) for pack in packs) <= limit:
            break
    return [packs[rank::processes] for rank in range(processes)]


def _level(order: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Deal rows, longest first, to a number of packs."""
    packs: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for row in order:
        load, number = loads[0]
        packs[number].append(row)
        heapq.heapreplace(loads, (load + lengths[row], number))
    return packs


def pack_run(
    lengths: Sequence[int], effective_batch: int, processes: int, limit: int
) -> list[StepPacks]:
    """Pack every optimiser step of a run.

    Args:
        lengths: tokens of each row, in the order of the run.
        effective_batch: rows of an optimiser step.
        processes: processes that train together.
        limit: tokens of a pack, at most.

    Returns:
        The packs of each step, as indices into `lengths`.
    """
    steps = []
    for start in range(0, len(lengths), effective_batch):
        packs = pack_step(lengths[start : start + effective_batch], processes, limit)
        steps.append([[[start + i for i in pack] for pack in share] for share in packs])
    return steps


def share_columns(
    rows: Sequence[EncodedRow], steps: Sequence[StepPacks]
) -> dict[str, list[object]]:
    """Return one entry for each step and process: the columns of its rows, and `packs`.

    Returns:
        The columns of `as_columns`, each entry a list over rows, and `packs`, the number of rows
        of each pack. Entry `step × processes + rank` is that of a process.
    """
    entries: list[dict[str, list[object]]] = []
    for share in itertools.chain.from_iterable(steps):
        columns = as_columns([rows[i] for pack in share for i in pack])
        entries.append({**columns, "packs": [len(pack) for pack in share]})
    return {name: [entry[name] for entry in entries] for name in entries[0]}


def collate_share(torch: Any, entries: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """Pad the rows of a process's share of a step; `packs` has the rows of each pack, in order."""
    [entry] = entries
    columns = {name: cells for name, cells in entry.items() if name != "packs"}
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return {**collate(torch, rows, pad_id), "packs": list(entry["packs"])}


def cut_share(share: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cut a share of `collate_share` into its packs."""
    ends = itertools.accumulate(share["packs"], initial=0)
    return [
        {name: cells[start:end] for name, cells in share.items() if name != "packs"}
        for start, end in itertools.pairwise(ends)
    ]


@dataclass(frozen=True)
class BatchShape:
    """What the rows of a run come to when they are fed to the model.

    Attributes:
        steps: optimiser steps.
        rows: rows of all steps.
        tokens: their tokens.
        computed: tokens that the model computes, padding included.
        micro_batches: forward passes of all processes.
        packed_rows: rows that share a sequence with another row.
    """

    steps: int
    rows: int
    tokens: int
    computed: int
    micro_batches: int
    packed_rows: int

    @classmethod
    def packed(cls, lengths: Sequence[int], steps: Sequence[StepPacks]) -> BatchShape:
        """Return the shape of a packed run."""
        packs = [pack for step in steps for share in step for pack in share]
        tokens = sum(lengths)
        together = sum(len(pack) for pack in packs if len(pack) > 1)
        return cls(len(steps), len(lengths), tokens, tokens, len(packs), together)

    @classmethod
    def padded(
        cls, lengths: Sequence[int], effective_batch: int, micro_batch: int, *, end_to_end: bool
    ) -> BatchShape:
        """Return the shape of a run in micro-batches of equally many rows.

        Args:
            lengths: tokens of each row, in the order of the run.
            effective_batch: rows of an optimiser step.
            micro_batch: rows of a forward pass.
            end_to_end: True where the kernel for CPUs lays the rows end to end.
        """
        batches = [
            lengths[start : start + micro_batch] for start in range(0, len(lengths), micro_batch)
        ]
        padded = sum(max(batch) * len(batch) for batch in batches)
        tokens, steps = sum(lengths), len(lengths) // effective_batch
        together = len(lengths) if end_to_end and micro_batch > 1 else 0
        return cls(
            steps, len(lengths), tokens, tokens if end_to_end else padded, len(batches), together
        )

    @property
    def padding_share(self) -> float:
        """Padding over all tokens that the model computes."""
        return 1 - self.tokens / self.computed

    @property
    def packed_share(self) -> float:
        """Rows that share a sequence with another row, over all rows."""
        return self.packed_rows / self.rows

    @property
    def tokens_per_step(self) -> float:
        """Tokens of an optimiser step, without padding, on average."""
        return self.tokens / self.steps

    @property
    def micro_batches_per_step(self) -> float:
        """Forward passes of an optimiser step over all processes, on average."""
        return self.micro_batches / self.steps

    def summary(self) -> dict[str, float]:
        """Return shares and averages for the evidence, by the names of their measurements."""
        return {
            "packed_share": round(self.packed_share, 4),
            "padding_share": round(self.padding_share, 4),
            "tokens_per_step": round(self.tokens_per_step, 1),
            "micro_batches_per_step": round(self.micro_batches_per_step, 2),
        }
