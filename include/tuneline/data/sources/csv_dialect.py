"""The delimiter and quoting of a CSV or TSV file: named by a setting, or found in its beginning.

Each known delimiter is tried on the first records. The one whose header has the columns that the
mapping names wins, then the one under which most records have as many fields as the header. Quotes
are taken as text if they break more records than they hold together.
"""

from __future__ import annotations

import csv
import io
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from tuneline.config.data import CsvDelimiter, CsvQuoting
from tuneline.data.sources.byte_streams import BrokenStream

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
    """How the records of a file are written.

    Attributes:
        delimiter: name of the delimiter, a key of `DELIMITERS`.
        quoting: `double` (a quote inside is doubled), `backslash` (a quote inside is escaped),
            `single`, or `none` (quotes are text).
    """

    delimiter: str = "comma"
    quoting: str = "double"

    def __str__(self) -> str:
        """Return its names, such as `tab, double`."""
        return f"{self.delimiter}, {self.quoting}"

    def fields(self, data: bytes) -> list[str]:
        """Parse one record.

        Raises:
            csv.Error: if it is not exactly one record.
            UnicodeDecodeError: if it is not UTF-8.
        """
        quote, escaped = _QUOTES[self.quoting]
        text = data.decode("utf-8")
        # The csv module checks doubled quotes strictly, escaped ones not at all.
        if escaped and not self._escaped_record.fullmatch(text):
            raise csv.Error("a quote stands inside a value without a backslash")
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
        """Return True if a quoted field is open at the end of a line.

        Only a quote at the beginning of a field opens one.

        Args:
            line: the line.
            opened: True if a field was open at its beginning.
        """
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
    """The text of one CSV record.

    Attributes:
        number: the line on which it starts.
        lines: the number of its lines.
        data: its bytes; a line over the limit is cut.
        size: its true size in bytes if a line was cut, else 0.
    """

    number: int
    lines: int
    data: bytes
    size: int


def cut_records(source: Iterator[Line], dialect: Dialect) -> Iterator[CsvText]:
    """Cut lines into records: a record ends where no quoted field is open.

    Lines that make no record together are one record each, so that a stray quote costs its own
    line only.

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
        if opened or (taken > 1 and not _is_record(_joined(ahead, taken), dialect)):
            taken = 1
        data = _joined(ahead, taken)
        parts = [ahead.popleft() for _ in range(taken)]
        cut = any(size > len(part) for part, size in parts)
        yield CsvText(number, taken, data, sum(size for _, size in parts) if cut else 0)
        number += taken
    if broken is not None:
        raise broken


def _joined(ahead: deque[Line], taken: int) -> bytes:
    return b"\n".join(part for part, _ in islice(ahead, taken)).rstrip(b"\r")


def _is_record(data: bytes, dialect: Dialect) -> bool:
    try:
        dialect.fields(data)
    except UnicodeDecodeError:
        return True
    except csv.Error:
        return False
    return True


@dataclass(frozen=True)
class _Trial:
    """The first records of a file read in one dialect.

    Attributes:
        dialect: the dialect.
        header: names of the columns.
        good: number of records with as many fields as the header.
        bad: number of lines in the other records.
        held: number of the good ones in which a quote opens a field.
    """

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
    """Find the dialect of a file.

    Args:
        head: its first bytes, without a byte order mark; a last line that is cut off is left out.
        delimiter: the delimiter, if it is known.
        quoting: the quoting, if it is known.
        tab_first: True if the file's name speaks for tabs.
        columns: columns that the mapping names.

    Returns:
        The dialect; where nothing in the file decides, comma (or tab) and double quotes.
    """
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
    try:
        header = dialect.fields(first.data) if first is not None else []
    except (csv.Error, UnicodeDecodeError):
        return None
    if not header or len(set(header)) != len(header) or not all(header):
        return None
    good = bad = held = 0
    opens = re.compile(
        b"(?:^|%s)%s" % (re.escape(DELIMITERS[dialect.delimiter].encode()), _quote_of(dialect))
    )
    for record in records:
        if not record.data.strip():
            continue
        try:
            fits = len(dialect.fields(record.data)) == len(header)
        except UnicodeDecodeError:
            continue
        except csv.Error:
            fits = False
        good += fits
        bad += 0 if fits else record.lines
        held += fits and opens.search(record.data) is not None
    return _Trial(dialect, tuple(header), good, bad, held)


def _quote_of(dialect: Dialect) -> bytes:
    """Return a pattern of the dialect's quote, which matches nothing if quotes are text."""
    return _QUOTES[dialect.quoting][0].encode() or b"(?!)"
