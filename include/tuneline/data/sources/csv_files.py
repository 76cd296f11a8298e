"""Read the records of a CSV or TSV file; a bad record becomes one with a fault."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from tuneline.config import CsvMapping
from tuneline.config.data import CsvDelimiter, CsvQuoting
from tuneline.data.sources.find_files import ending_of
from tuneline.data.sources.streams import (
    BrokenStream,
    RawRecord,
    broken_file,
    head_of,
    invalid_utf8,
    line_too_long,
    lines,
    show_bytes,
)
from tuneline.errors import UserError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def columns_of(template: str, where: str) -> list[str]:
    """Return the columns that a template names; UserError for a lone brace or an empty name."""
    names = []
    for piece in _PIECE.finditer(template):
        if piece[0] in ("{{", "}}"):
            continue
        name = (piece[1] or "").removesuffix("!j")
        if not name:
            raise UserError(
                f"{where}: {piece[0]!r} at character {piece.start()} names no column; "
                "write {column}, and {{ or }} for a brace"
            )
        names.append(name)
    return names


def fill(template: str, values: Mapping[str, str]) -> str:
    """Fill a template with the values of one record."""

    def put(piece: re.Match[str]) -> str:
        if piece[0] in ("{{", "}}"):
            return piece[0][0]
        name = piece[1]
        if name.endswith("!j"):
            return json.dumps(values[name.removesuffix("!j")], ensure_ascii=False)
        return values[name]

    return _PIECE.sub(put, template)


def wanted_columns(mapping: CsvMapping) -> list[str]:
    """Return the columns that a mapping names; UserError if a template is malformed."""
    wanted: dict[str, None] = {}
    for field in ("system", "user", "assistant"):
        template = getattr(mapping, field)
        if template is not None:
            wanted |= dict.fromkeys(columns_of(template, f"data.csv.{field}"))
    for column in (mapping.label, mapping.conversation):
        if column is not None:
            wanted[column] = None
    return list(wanted)


# A quoted field may span lines; an opening quote that is never closed must not swallow the file,
# so a record that is longer than this counts as broken.
MAX_CSV_RECORD_LINES = 1000
# What is read of a file to find its dialect: enough bytes for some hundred records of chat.
HEAD_BYTES = 1 << 18
_HEAD_RECORDS = 500

DELIMITERS: dict[str, str] = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
# Quote character, and whether a backslash escapes it.
_QUOTES: dict[str, tuple[str, bool]] = {
    "double": ('"', False),
    "backslash": ('"', True),
    "single": ("'", False),
    "none": ("", False),
}
_ESCAPED = re.compile(rb'\\"')
Line = tuple[bytes, int]


@dataclass(frozen=True)
class Dialect:
    """How records are written: a key of `DELIMITERS`, and one of `_QUOTES`."""

    delimiter: str = "comma"
    quoting: str = "double"

    def __str__(self) -> str:
        """Return its names, such as `tab, double`."""
        return f"{self.delimiter}, {self.quoting}"

    def fields(self, data: bytes) -> list[str]:
        """Parse one record; csv.Error if it is not one, UnicodeDecodeError if not UTF-8."""
        quote, escaped = _QUOTES[self.quoting]
        text = data.decode("utf-8")
        # The csv module checks doubled quotes strictly, escaped ones not at all.
        if escaped and not self._escaped_record.fullmatch(text):
            raise csv.Error("a quote is inside a value without a backslash")
        rows = list(
            csv.reader(
                io.StringIO(text, newline=""),
                delimiter=DELIMITERS[self.delimiter],
                quotechar=quote or None,
                quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
                doublequote=not escaped,
                escapechar="\\" if escaped else None,
                strict=True,
            )
        )
        if len(rows) != 1:
            raise csv.Error("not one record")
        return rows[0]

    @cached_property
    def _quote(self) -> bytes:
        return _QUOTES[self.quoting][0].encode()

    @cached_property
    def _escaped_record(self) -> re.Pattern[str]:
        """A record whose quotes are either escaped or around a value."""
        mark = re.escape(DELIMITERS[self.delimiter])
        value = rf'(?:"(?:\\.|[^"\\])*+"|(?:\\.|[^"\\{mark}])*+)'
        return re.compile(f"{value}(?:{mark}{value})*+", re.S)

    @cached_property
    def _closing(self) -> re.Pattern[bytes]:
        """What ends a quoted field, after what only looks as if it did."""
        inside = rb"\\." if _QUOTES[self.quoting][1] else self._quote * 2
        return re.compile(b"(?:%s)|(%s)" % (inside, self._quote), re.S)

    def stays_open(self, line: bytes, *, opened: bool) -> bool:
        """Return True if a field is open at the end of a line; a quote that begins one opens it."""
        if not self._quote or (not opened and self._quote not in line):
            return False
        at, delimiter = 0, DELIMITERS[self.delimiter].encode()
        while True:
            if opened:
                closing = next((m for m in self._closing.finditer(line, at) if m[1]), None)
                if closing is None:
                    return True
                at, opened = closing.end(), False
            elif line.startswith(self._quote, at):
                at, opened = at + 1, True
                continue
            at = line.find(delimiter, at) + 1
            if not at:
                return False


@dataclass(frozen=True, slots=True)
class CsvText:
    """The text of one CSV record; `size` is its true size in bytes if a line was cut, else 0."""

    number: int
    lines: int
    data: bytes
    size: int


def cut_records(source: Iterator[Line], dialect: Dialect) -> Iterator[CsvText]:
    """Cut lines into records: a record ends where no quoted field is open.

    Lines that make no record together are one record each, so that a stray quote costs its own line
    only.

    Raises:
        BrokenStream: if the file breaks off, after the records before.
    """
    ahead: deque[Line] = deque()
    broken: BrokenStream | None = None
    number = 1
    while True:
        taken, opened = 0, False
        # A record has one line, and more as long as a quoted field is open.
        while taken == 0 or (opened and taken < MAX_CSV_RECORD_LINES):
            if taken == len(ahead):
                try:
                    ahead.append(next(source))
                except StopIteration:
                    break
                except BrokenStream as error:
                    broken = error
                    break
            opened = dialect.stays_open(ahead[taken][0], opened=opened)
            taken += 1
        if not taken:
            break
        data = _joined(ahead, taken)
        if taken > 1 and (opened or _fields(data, dialect) == 0):
            taken, data = 1, _joined(ahead, 1)
        parts = [ahead.popleft() for _ in range(taken)]
        cut = any(size > len(part) for part, size in parts)
        yield CsvText(number, taken, data, sum(size for _, size in parts) if cut else 0)
        number += taken
    if broken is not None:
        raise broken


def _joined(ahead: deque[Line], taken: int) -> bytes:
    return b"\n".join(part for part, _ in islice(ahead, taken)).rstrip(b"\r")


def _fields(data: bytes, dialect: Dialect) -> int | None:
    """Return the number of fields of a record, 0 if it is none, None if it is not UTF-8."""
    try:
        return len(dialect.fields(data))
    except UnicodeDecodeError:
        return None
    except csv.Error:
        return 0


@dataclass(frozen=True)
class _Trial:
    """The first records of a file read in one dialect."""

    dialect: Dialect
    header: tuple[str, ...]
    good: int
    bad: int
    held: int

    @property
    def share(self) -> float:
        """The number of good records over theirs and the bad lines."""
        return self.good / (self.good + self.bad) if self.good + self.bad else 0.0


def find_dialect(
    head: bytes,
    *,
    delimiter: CsvDelimiter = "auto",
    quoting: CsvQuoting = "auto",
    tab_first: bool = False,
    columns: Sequence[str] = (),
) -> Dialect:
    """Find the dialect by a file's first bytes; where nothing decides, comma and double quotes."""
    preferred = "tab" if tab_first else "comma"
    if delimiter != "auto" and quoting != "auto":
        return Dialect(delimiter, quoting)
    lines = head.split(b"\n")
    if len(head) >= HEAD_BYTES or not lines[-1]:
        lines.pop()
    names = list(DELIMITERS) if delimiter == "auto" else [delimiter]
    found = [trial for name in names if (trial := _best_quoting(lines, name, quoting)) is not None]
    if delimiter == "auto":
        found = [trial for trial in found if len(trial.header) > 1]
    if not found:
        fallback = preferred if delimiter == "auto" else delimiter
        return Dialect(fallback, "double" if quoting == "auto" else quoting)

    def rank(trial: _Trial) -> tuple[bool, float, bool, int]:
        wanted = all(column in trial.header for column in columns)
        by_name = trial.dialect.delimiter == preferred
        return wanted, trial.share, by_name, len(trial.header)

    return max(found, key=rank).dialect


def _best_quoting(lines: Sequence[bytes], delimiter: str, quoting: CsvQuoting) -> _Trial | None:
    """Return the best trial of one delimiter, None if its header is none in any quoting."""
    names = list(_QUOTES) if quoting == "auto" else [quoting]
    trials = {name: trial for name in names if (trial := _try(lines, Dialect(delimiter, name)))}
    if not trials:
        return None
    double = trials.get("double")
    if double is None or len(trials) == 1:
        return max(trials.values(), key=lambda trial: trial.share)
    single = trials.get("single")
    if single is not None and all(re.fullmatch("'.*'", name) for name in double.header):
        return single
    best = double
    escaped = trials.get("backslash")
    if escaped is not None and escaped.bad <= best.bad and _ESCAPED.search(b"\n".join(lines)):
        best = escaped
    if single is not None and single.held and single.bad < best.bad:
        best = single
    literal = trials.get("none")
    if literal is not None and literal.bad < best.bad and best.bad > best.held:
        return literal
    return best


def _try(lines: Sequence[bytes], dialect: Dialect) -> _Trial | None:
    """Read the first records in a dialect; return None if the first is not a header."""
    source = ((line, len(line)) for line in lines)
    records = islice(cut_records(source, dialect), _HEAD_RECORDS)
    first = next(records, None)
    if first is None or not _fields(first.data, dialect):
        return None
    header = dialect.fields(first.data)
    if len(set(header)) != len(header) or not all(header):
        return None
    good = bad = held = 0
    # Quotes that are text open nothing.
    quote = _QUOTES[dialect.quoting][0].encode() or b"(?!)"
    opens = re.compile(b"(?:^|%s)%s" % (re.escape(DELIMITERS[dialect.delimiter].encode()), quote))
    for record in records:
        count = _fields(record.data, dialect) if record.data.strip() else None
        if count is None:
            continue
        fits = count == len(header)
        good += fits
        bad += 0 if fits else record.lines
        held += fits and opens.search(record.data) is not None
    return _Trial(dialect, tuple(header), good, bad, held)


_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class CsvForm:
    """The settings of CSV files; without a mapping columns are fields."""

    mapping: CsvMapping | None = None
    delimiter: CsvDelimiter = "auto"
    quoting: CsvQuoting = "auto"

    def dialect_of(self, path: Path) -> Dialect:
        """Return the dialect of a file by its beginning; UserError for a malformed template."""
        return find_dialect(
            head_of(path, HEAD_BYTES).removeprefix(_BOM),
            delimiter=self.delimiter,
            quoting=self.quoting,
            tab_first=ending_of(path.name) == ".tsv",
            columns=wanted_columns(self.mapping) if self.mapping is not None else (),
        )


def read_csv(path: Path, name: str, form: CsvForm) -> Iterator[RawRecord]:
    """Read the records of a file; see `records.read_records`."""
    csv.field_size_limit(1 << 30)
    dialect, mapping = form.dialect_of(path), form.mapping
    records = cut_records(lines(path), dialect)
    try:
        first = next(records)
        header = dialect.fields(first.data.removeprefix(_BOM))
    except BrokenStream as error:
        raise UserError(f"{name} can't be read: {error}; write the file again") from None
    except (StopIteration, csv.Error, UnicodeDecodeError):
        raise UserError(
            f"{name}: its first line is not a CSV header in UTF-8; name the columns there"
        ) from None
    if len(set(header)) != len(header) or not all(header):
        raise UserError(
            f"{name}: every column needs its own name, line 1 has {header}, read with "
            f"{dialect} (data.csv_delimiter, data.csv_quoting)"
        )
    wanted = wanted_columns(mapping) if mapping is not None else []
    if missing := [column for column in wanted if column not in header]:
        raise UserError(
            f"{name} has no column {', '.join(map(repr, missing))}, which data.csv names; "
            f"its columns are {', '.join(map(repr, header))}, read with {dialect} "
            "(data.csv_delimiter, data.csv_quoting)"
        )
    last = first
    try:
        for last in records:
            if last.size:
                yield line_too_long(last.number, last.data, last.size)
            else:
                yield _csv_record(last.number, last.data, header, dialect, mapping)
    except BrokenStream as error:
        yield broken_file(last.number + last.lines, error)


def _csv_record(
    number: int, data: bytes, header: list[str], dialect: Dialect, mapping: CsvMapping | None
) -> RawRecord:
    raw = show_bytes(data)
    if not data.strip():
        return RawRecord(number, raw, None, "blank_line")
    try:
        fields = dialect.fields(data)
    except UnicodeDecodeError as error:
        return invalid_utf8(number, data, error)
    except csv.Error as error:
        return RawRecord(number, raw, None, f"broken_csv: {error}")
    if more := len(fields) - len(header):
        fault = f"broken_csv: {len(fields)} fields under {len(header)} columns, "
        if more < 0:
            fault += f"{-more} too few (a value or a delimiter is missing)"
        else:
            delimiter = DELIMITERS[dialect.delimiter]
            fault += f"{more} too many (a value that holds {delimiter!r} needs quotes)"
        return RawRecord(number, raw, None, fault)
    value: dict[str, Any] = dict(zip(header, fields, strict=True))
    if mapping is None:
        return RawRecord(number, raw, value)
    label = value[mapping.label].strip() or None if mapping.label else None
    thread = value[mapping.conversation].strip() or None if mapping.conversation else None
    templates = {role: getattr(mapping, role) for role in ("system", "user", "assistant")}.items()
    turns = [{"role": r, "content": fill(t, value)} for r, t in templates if t is not None]
    return RawRecord(number, raw, {"messages": turns}, label=label, conversation=thread)
