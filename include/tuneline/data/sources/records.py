"""Read raw records from JSONL, CSV, TSV and Parquet, each with its file, line and original text.

JSONL and CSV may be packed by gzip or zstd. One bad byte, line or record never stops the rest: it
becomes a record with a fault, and so does the rest of a file that breaks off. A file that is
unusable as a whole (empty, not a table) is an error, or, among other files, a record with a fault.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tuneline.data.sources.byte_streams import compression_of_file, count_lines, head_of
from tuneline.data.sources.csv_records import CsvForm, read_csv
from tuneline.data.sources.jsonl_records import read_jsonl
from tuneline.data.sources.parquet_records import open_parquet, read_parquet
from tuneline.data.sources.raw_record import BROKEN_FILE, NothingInside, RawRecord
from tuneline.data.sources.source_file import CSV_ENDINGS, ENDINGS, JSONL_ENDINGS, ending_of
from tuneline.errors import UserError

# Enough to tell text from binary data.
_HEAD_BYTES = 8192


def check_file(path: Path, uri: str) -> None:
    """Refuse a file that can't hold a dataset, reading only its beginning.

    Args:
        path: the file.
        uri: its name in errors.

    Raises:
        UserError: if it is missing, a folder, not readable, empty, or of another format.
    """
    if path.is_dir():
        raise UserError(f"{uri} is a folder; give one JSONL, CSV or Parquet file")
    if not path.is_file():
        raise UserError(f"{uri} does not exist; check the path of the dataset")
    if not os.access(path, os.R_OK):
        raise UserError(f"{uri} can't be read; give yourself permission to read it")
    if path.stat().st_size == 0:
        raise NothingInside(f"{uri} is empty; there is nothing to train on")
    if _form(path, uri) == "jsonl":
        head = head_of(path, _HEAD_BYTES)
        if b"\0" in head and not _has_object(head):
            raise UserError(
                f"{uri} is a binary file (or UTF-16), not lines of JSON; unpack or convert it to "
                "UTF-8 text with one JSON object on each line"
            )


def _has_object(head: bytes) -> bool:
    return any(line.lstrip().startswith(b"{") for line in head.splitlines())


def _form(path: Path, uri: str) -> str:
    """Return the format of a file: `jsonl`, `csv` or `parquet`.

    Raises:
        UserError: if it has another format, or is a packed Parquet file.
    """
    if head_of(path, 4) == b"PAR1":
        if compression_of_file(path):
            raise UserError(f"{uri} is a packed Parquet file; unpack it")
        return "parquet"
    ending = ending_of(path.name)
    if ending not in ENDINGS:
        more = "; a JSON list becomes lines by `jq -c '.[]'`" if ending == ".json" else ""
        raise UserError(
            f"{uri}: unknown format {ending or '(no ending)'}; use .jsonl, .csv, .tsv or "
            f".parquet, all but the last also as .gz or .zst{more}"
        )
    if ending in JSONL_ENDINGS:
        return "jsonl"
    return "csv" if ending in CSV_ENDINGS else "parquet"


def read_records(path: Path, name: str, csv: CsvForm | None = None) -> Iterator[RawRecord]:
    """Read the records of a file, one by one.

    Args:
        path: the file.
        name: its name in errors.
        csv: how CSV files are read; None finds the dialect and takes columns as fields.

    Raises:
        UserError: if the format is unknown, or the file as a whole can't be read.
    """
    form = _form(path, name)
    if form == "jsonl":
        return read_jsonl(path, name)
    if form == "csv":
        return read_csv(path, name, csv or CsvForm())
    return read_parquet(path, name)


def records_among_others(path: Path, name: str, csv: CsvForm | None = None) -> Iterator[RawRecord]:
    """Read a file that is one of several: if it is unusable, that is a record with a fault.

    A file without records gives none.
    """
    line = 0
    try:
        check_file(path, name)
        for record in read_records(path, name, csv):
            line = record.source_line
            yield record
    except NothingInside:
        return
    except UserError as error:
        yield RawRecord(line + 1, "", None, f"{BROKEN_FILE}: {error}")


def count_records(path: Path) -> int | None:
    """Count the records of a file without parsing them; None for a CSV.

    The reader's own count is compared with it. A file that can't be read counts as one record.
    """
    try:
        check_file(path, path.name)
        form = _form(path, path.name)
        if form == "parquet":
            return int(open_parquet(path, path.name).metadata.num_rows)
    except NothingInside:
        return 0
    except (UserError, OSError):
        return 1
    return count_lines(path) if form == "jsonl" else None
