"""Read raw records from JSONL, CSV and Parquet, each with its file, line and original text.

One bad byte, line or record never stops the rest: it becomes a record with a fault. What makes
the whole file unusable (missing, empty, not a table) is an error in one sentence.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from tuneline.config import CsvMapping
from tuneline.data.csv_mapping import apply_mapping, check_columns
from tuneline.errors import RetryableError, UserError

JSONL_ENDINGS = (".jsonl", ".ndjson")
ENDINGS = (*JSONL_ENDINGS, ".csv", ".parquet")
# Enough to tell text from what a program wrote for itself.
_HEAD_BYTES = 8192
# A quoted CSV field may span lines; an opening quote that is never closed must not swallow the
# file, so a record that is longer than this counts as broken.
MAX_CSV_RECORD_LINES = 1000


class DuplicateKey(ValueError):
    """A JSON object names a key twice."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record as it was read.

    Attributes:
        source_line: from 1; in a CSV the line its record starts on, the header being line 1;
            in a Parquet file the number of the row.
        raw: the original text; bytes that are no UTF-8 are shown as `\\xhh`.
        value: the parsed record, None with a fault.
        fault: why it could not be read (`code: detail`), None when it could.
        label: its class where a CSV mapping names the column.
    """

    source_line: int
    raw: str
    value: Any
    fault: str | None = None
    label: str | None = None


def fetch(uri: str, scratch: Path) -> Path:
    """Bring a dataset file to this machine.

    Args:
        uri: a path, `file://` or `s3://` URI.
        scratch: where a fetched file may lie.

    Raises:
        UserError: it does not exist, is a folder, is empty or can't be read.
        RetryableError: the S3 server failed.
    """
    path = local_path(uri)
    if path is None:
        parsed = urlparse(uri)
        path = scratch / Path(parsed.path).name
        _download(uri, parsed.netloc, parsed.path.lstrip("/"), path)
    check_file(path, uri)
    return path


def local_path(uri: str) -> Path | None:
    """Where a dataset lies on this machine; None for one on an S3 server.

    Raises:
        UserError: it is no address of a kind that is known.
    """
    parsed = urlparse(uri)
    if not uri.strip():
        raise UserError("no dataset was named; give a path, a file:// or an s3:// URI")
    if parsed.scheme == "s3":
        return None
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    if "://" in uri:
        raise UserError(f"{uri}: unknown kind of address; give a path, a file:// or an s3:// URI")
    return Path(uri).expanduser()


def check_file(path: Path, uri: str) -> None:
    """Refuse a file that can hold no dataset, without reading more than its beginning.

    Args:
        path: the file.
        uri: what errors call it.

    Raises:
        UserError: it is missing, a folder, not readable, empty, or of another format.
    """
    if path.is_dir():
        raise UserError(f"{uri} is a folder; give one JSONL, CSV or Parquet file")
    if not path.is_file():
        raise UserError(f"{uri} does not exist; check the path of the dataset")
    if not os.access(path, os.R_OK):
        raise UserError(f"{uri} can't be read; give yourself permission to read it")
    if path.stat().st_size == 0:
        raise UserError(f"{uri} is empty; there is nothing to train on")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(
            f"{uri}: unknown format {ending or '(no ending)'}; use .jsonl, .csv or .parquet"
        )
    with path.open("rb") as handle:
        head = handle.read(_HEAD_BYTES)
    objects = any(line.lstrip().startswith(b"{") for line in head.splitlines())
    if ending in JSONL_ENDINGS and b"\0" in head and not objects:
        raise UserError(
            f"{uri} is a binary file (or UTF-16), not lines of JSON; unpack or convert it to "
            "UTF-8 text with one JSON object on each line"
        )


def _download(uri: str, bucket: str, key: str, path: Path) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        boto3.client("s3").download_file(bucket, key, str(path))
    except NoCredentialsError:
        raise UserError(
            f"no credentials for {uri}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in ("404", "NoSuchKey", "NoSuchBucket", "NotFound"):
            raise UserError(f"{uri} does not exist; check bucket and key") from None
        if code in ("401", "403", "AccessDenied", "Forbidden"):
            raise UserError(f"{uri}: access denied; check the credentials") from None
        raise RetryableError(f"{uri}: the S3 server answered {code}") from error
    except BotoCoreError as error:
        raise RetryableError(f"{uri}: {error}") from error


def read_records(path: Path, name: str, mapping: CsvMapping | None) -> Iterator[RawRecord]:
    """Read the records of a file, one by one.

    Args:
        path: the file.
        name: what errors call it.
        mapping: how the columns of a CSV become turns; None takes its columns as fields.

    Raises:
        UserError: the ending is unknown, or the file as a whole can't be read.
    """
    ending = path.suffix.lower()
    if ending in JSONL_ENDINGS:
        return _read_jsonl(path, name)
    if ending == ".csv":
        return _read_csv(path, name, mapping)
    if ending == ".parquet":
        return _read_parquet(path, name)
    raise UserError(f"{name}: unknown format {ending}; use .jsonl, .csv or .parquet")


def count_records(path: Path) -> int | None:
    """Number of records in a file, counted without parsing them; None for a CSV.

    It is what the reader's own count is held against.
    """
    ending = path.suffix.lower()
    if ending in JSONL_ENDINGS:
        lines, last = 0, b"\n"
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                lines += block.count(b"\n")
                last = block[-1:]
        return lines + (last != b"\n")
    if ending == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.ParquetFile(path).metadata.num_rows)
    return None


def parse_json(text: str) -> Any:
    """Parse JSON strictly: no repeated keys, no NaN, no infinity.

    Raises:
        ValueError: it is not JSON; `DuplicateKey` for a repeated key.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicateKey(key)
            seen.add(key)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def show_bytes(data: bytes) -> str:
    """Decode UTF-8, other bytes as `\\xhh`."""
    return data.decode("utf-8", "backslashreplace")


def _read_jsonl(path: Path, name: str) -> Iterator[RawRecord]:
    with path.open("rb") as handle:
        first = handle.read(3)
        if first != b"\xef\xbb\xbf":
            handle.seek(0)
        blank = True
        for number, line in enumerate(handle, 1):
            record = _json_record(number, line.rstrip(b"\r\n"))
            blank = blank and record.fault == "blank_line"
            yield record
    if blank:
        raise UserError(f"{name} holds blank lines only; there is nothing to train on")


def _json_record(number: int, data: bytes) -> RawRecord:
    if not data.strip():
        return RawRecord(number, show_bytes(data), None, "blank_line")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = data[error.start]
        fault = f"invalid_utf8: byte 0x{bad:02x} at position {error.start}"
        return RawRecord(number, show_bytes(data), None, fault)
    try:
        return RawRecord(number, text, parse_json(text))
    except DuplicateKey as error:
        fault = f"duplicate_key: {str(error)[:80]!r} stands twice"
    except RecursionError:
        fault = "broken_json: nested too deeply"
    except json.JSONDecodeError as error:
        fault = f"broken_json: {error.msg} at character {error.pos}"
    except ValueError as error:
        fault = f"broken_json: {str(error)[:80]}"
    return RawRecord(number, text, None, fault)


def _read_csv(path: Path, name: str, mapping: CsvMapping | None) -> Iterator[RawRecord]:
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    csv.field_size_limit(1 << 30)
    records = _csv_records(lines)
    try:
        _, header_bytes = next(records)
        header = _fields(header_bytes)
    except (StopIteration, csv.Error, UnicodeDecodeError):
        raise UserError(
            f"{name}: its first line is no CSV header in UTF-8; name the columns there"
        ) from None
    if len(set(header)) != len(header) or not all(header):
        raise UserError(f"{name}: every column needs a name of its own, line 1 has {header}")
    if mapping is not None:
        check_columns(mapping, header, name)
    yield from (_csv_record(number, data, header, mapping) for number, data in records)


def _csv_records(lines: list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Cut lines into records: a record ends where its quotes are balanced."""
    at = 0
    while at < len(lines):
        end, quotes = at + 1, lines[at].count(b'"')
        while quotes % 2 and end < len(lines) and end - at < MAX_CSV_RECORD_LINES:
            quotes += lines[end].count(b'"')
            end += 1
        if quotes % 2:
            end = at + 1
        yield at + 1, b"\n".join(lines[at:end]).rstrip(b"\r")
        at = end


def _fields(data: bytes) -> list[str]:
    rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True))
    if len(rows) != 1:
        raise csv.Error("not one record")
    return rows[0]


def _csv_record(
    number: int, data: bytes, header: list[str], mapping: CsvMapping | None
) -> RawRecord:
    raw = show_bytes(data)
    if not data.strip():
        return RawRecord(number, raw, None, "blank_line")
    try:
        fields = _fields(data)
    except UnicodeDecodeError as error:
        fault = f"invalid_utf8: byte 0x{data[error.start]:02x} at position {error.start}"
        return RawRecord(number, raw, None, fault)
    except csv.Error as error:
        return RawRecord(number, raw, None, f"broken_csv: {error}")
    if len(fields) != len(header):
        fault = f"broken_csv: {len(fields)} fields under {len(header)} columns"
        return RawRecord(number, raw, None, fault)
    value: dict[str, Any] = dict(zip(header, fields, strict=True))
    if mapping is None:
        return RawRecord(number, raw, value)
    label = value[mapping.label].strip() or None if mapping.label else None
    return RawRecord(number, raw, apply_mapping(mapping, value), label=label)


def _read_parquet(path: Path, name: str) -> Iterator[RawRecord]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        if file.metadata.num_rows == 0:
            raise UserError(f"{name} has no rows; there is nothing to train on")
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for index in range(batch.num_rows):
                number += 1
                yield _parquet_record(number, batch.slice(index, 1))
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name} can't be read as Parquet: {reason.rstrip('.')}; write the file again"
        ) from None


def _parquet_record(number: int, one: Any) -> RawRecord:
    try:
        value = one.to_pylist()[0]
    except UnicodeDecodeError:
        return RawRecord(number, "", None, "invalid_utf8: a text column is no UTF-8")
    present = {key: entry for key, entry in value.items() if entry is not None}
    return RawRecord(number, json.dumps(present, ensure_ascii=False, default=str), present)
