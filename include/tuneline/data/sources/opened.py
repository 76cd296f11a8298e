"""Open the files of a dataset one after the other, its own hold-out last.

A file that can't be read becomes a record with a fault and does not stop the others; if no file
holds a record, that is the user's error.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tuneline.artifacts.data import SourceNote
from tuneline.config import DataConfig
from tuneline.data.sources.csv_records import CsvForm
from tuneline.data.sources.files import find_files
from tuneline.data.sources.raw_record import BROKEN_FILE, RawRecord
from tuneline.data.sources.records import (
    check_file,
    count_records,
    read_records,
    records_among_others,
)
from tuneline.data.sources.source_file import SourceFile, is_csv
from tuneline.errors import UserError


@dataclass
class OpenFile:
    """A file on this machine whose records can be read once.

    Attributes:
        file: its address and name.
        path: its path here.
        own_holdout: True if it belongs to the dataset's own hold-out.
        alone: True if the dataset (or its hold-out) has no other file.
        csv: how it is read if it is a CSV file.
        found: number of records read so far.
        unusable: reason why nothing of it can be read, None if something can.
    """

    file: SourceFile
    path: Path
    own_holdout: bool
    alone: bool
    csv: CsvForm = field(default_factory=CsvForm)
    found: int = 0
    unusable: str | None = field(default=None, init=False)

    def records(self) -> Iterator[RawRecord]:
        """Read its records, one by one.

        Raises:
            UserError: if the file is unusable and there is no other.
        """
        name = self.file.name
        if self.alone:
            check_file(self.path, name)
        read = read_records if self.alone else records_among_others
        for record in read(self.path, name, self.csv):
            self.found += 1
            fault = record.fault or ""
            if self.found == 1 and fault.startswith(BROKEN_FILE):
                self.unusable = fault.partition(": ")[2]
            elif self.found > 1:
                self.unusable = None
            yield record

    def note(self, sha256: str, size: int, form: str | None) -> SourceNote:
        """Describe the file for the dataset's card, once it has been read.

        Args:
            sha256: hash of its bytes.
            size: its size, bytes.
            form: the form found in it.
        """
        return SourceNote(
            name=self.file.name,
            address=self.file.address,
            # A path of this machine says nothing elsewhere; a server's address is the pinned one.
            origin=None if self.file.local is not None else self.file.origin,
            own_holdout=self.own_holdout,
            sha256=sha256,
            bytes=size,
            form=form,
            dialect=str(self.csv.dialect_of(self.path)) if is_csv(self.path.name) else None,
            records=self.found,
        )

    @property
    def input_name(self) -> str:
        """Its name among the inputs of the evidence."""
        kind = "holdout" if self.own_holdout else "dataset"
        return kind if self.alone else f"{kind}/{self.file.name}"

    def count(self) -> int:
        """Count its records, without the reader where possible."""
        counted = count_records(self.path)
        return self.found if counted is None else counted


def open_files(config: DataConfig, scratch: Path) -> Iterator[OpenFile]:
    """Open every file of the dataset, then of its own hold-out.

    A fetched file is removed before the next one is opened. A file that is named as hold-out is
    not read as training data too.

    Raises:
        UserError: if an address names nothing, or no file of the dataset (or of its hold-out)
            holds a record that could be read.
        RetryableError: if a server failed.
    """
    held = find_files(config.holdouts) if config.holdouts else []
    origins = {file.origin for file in held}
    files = [file for file in find_files(config.sources) if file.origin not in origins]
    if not files:
        raise UserError(
            "every file of data.source is also named in data.holdout; nothing is left to train on"
        )
    csv = CsvForm(config.csv, config.csv_delimiter, config.csv_quoting)
    for group, own_holdout in ((files, False), (held, True)):
        opened = []
        for file in group:
            path = file.fetch(scratch)
            opened.append(OpenFile(file, path, own_holdout, len(group) == 1, csv))
            yield opened[-1]
            if file.download is not None:
                shutil.rmtree(scratch, ignore_errors=True)
        _refuse_nothing(opened)


def _refuse_nothing(opened: list[OpenFile]) -> None:
    """Refuse a dataset of several files if none can be read."""
    if not opened or any(file.found and file.unusable is None for file in opened):
        return
    reason = next((file.unusable for file in opened if file.unusable), None)
    addresses = ", ".join(dict.fromkeys(file.file.address for file in opened))
    if reason is None:
        raise UserError(f"{addresses}: {len(opened)} files, and none holds a row to train on")
    if len(opened) == 1:
        raise UserError(f"{addresses} can't be read: {reason}")
    raise UserError(f"{addresses}: none of {len(opened)} files can be read; {reason}")
