"""Read the records of a dataset to disk, as turns in the form that each record has."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from tuneline.artifacts.data import SOURCES
from tuneline.config import DataConfig
from tuneline.data.conversations.outcomes import (
    FileForm,
    Outcome,
    file_form,
    keep_form,
    outcomes_of,
)
from tuneline.data.sources.opened import open_files
from tuneline.data.tables.spool import Spool

if TYPE_CHECKING:
    from tuneline.step_context import StepContext

# Records in memory at once.
_AT_ONCE = 1 << 12


@dataclass
class Records:
    """The records of a dataset, on disk.

    Attributes:
        batches: the outcome of each record.
        form_of_batch: form of the file that each batch is from.
        forms: form of each file.
        repeated: ids of records with equal text.
        in_files: number of records, counted independently of the reader.
    """

    batches: Spool[Outcome]
    form_of_batch: list[FileForm] = field(default_factory=list)
    forms: list[FileForm] = field(default_factory=list)
    repeated: set[str] = field(default_factory=set)
    in_files: int = 0

    def of_their_form(self, config: DataConfig) -> Iterator[Sequence[Outcome]]:
        """Yield all batches; records that do not have the form of their file are rejected."""
        for batch, form in zip(self.batches, self.form_of_batch, strict=True):
            for outcome in batch:
                keep_form(outcome, form, config)
            yield batch


def read_dataset(ctx: StepContext) -> Records:
    """Read every file of the dataset, and note it for the dataset's card."""
    config = ctx.config.data
    read = Records(Spool(ctx.scratch / "outcomes"))
    sources = []
    digests = array("Q")
    for opened in open_files(config, ctx.scratch / "source"):
        outcomes = outcomes_of(
            opened.records(), opened.file.name, config, own_holdout=opened.own_holdout
        )
        own_forms: Counter[str | None] = Counter()
        batches = 0
        while batch := list(islice(outcomes, _AT_ONCE)):
            own_forms.update(outcome.own_form for outcome in batch if outcome.parsed)
            digests.extend(int(outcome.row_id, 16) for outcome in batch)
            read.batches.add(batch)
            batches += 1
        form = file_form(opened.file.name, own_forms, config)
        ctx.note_input(opened.input_name, opened.file.origin, opened.path, rows=opened.found)
        read.in_files += opened.count()
        read.forms.append(form)
        read.form_of_batch += [form] * batches
        ref = ctx.inputs[opened.input_name]
        sources.append(opened.note(ref.sha256, ref.bytes, form.form))
    SOURCES.write(ctx, SOURCES.model(sources))
    ordered = np.sort(np.array(digests, dtype=np.uint64))
    read.repeated = {f"{value:016x}" for value in ordered[1:][ordered[1:] == ordered[:-1]].tolist()}
    return read
