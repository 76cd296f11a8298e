"""The pairs of a review as a CSV sheet, and the sheet as a spreadsheet saved it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tuneline.artifacts.evaluation import ReviewPair
from tuneline.errors import UserError

_TEXTS = ("prompt", "A", "B")
COLUMNS = ("review_id", "pair", *_TEXTS, "choice", "reviewer", "comment")
_NEEDED = ("review_id", "pair", "choice", "reviewer")
# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA = tuple("=+-@\t\r")
_LONGEST_CELL = 10_000_000
_DELIMITERS = ",;\t"


@dataclass(frozen=True)
class GivenVote:
    """A vote as a sheet states it, before it is checked.

    Attributes:
        where: file and line, for errors.
        review_id: the review that the sheet was written for.
        pair: the pair's number, as text.
        choice: the choice, as text.
        reviewer: the reviewer's name.
        comment: what the reviewer says.
        texts: what the sheet shows of the pair (`prompt`, `A`, `B`), where it does.
    """

    where: str
    review_id: str
    pair: str
    choice: str
    reviewer: str
    comment: str
    texts: Mapping[str, str]


def written(review_id: str, pairs: Iterable[ReviewPair], reviewer: str) -> bytes:
    """Return the sheet of some pairs, without votes; no cell is a formula."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for pair in pairs:
        texts = [_cell(getattr(pair, name)) for name in _TEXTS]
        writer.writerow([review_id, pair.pair, *texts, "", _cell(reviewer), ""])
    # Spreadsheets take a file for UTF-8 only if it begins with its mark.
    return out.getvalue().encode("utf-8-sig")


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def read(raw: bytes, name: str) -> list[GivenVote]:
    """Read a filled sheet; rows without a choice are no votes yet and are passed over.

    Spreadsheets save it in their own way: with a mark of its encoding, in UTF-16, with semicolons
    or tabs, with a first line `sep=;`.

    Args:
        raw: the sheet's bytes.
        name: its name, for errors.

    Raises:
        UserError: if it is not such a sheet. File and line are named.
    """
    text, skipped = _text(raw, name)
    delimiter = _delimiter(text)
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        columns = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        _check_columns(columns, f"{name}, line {1 + skipped}")
        votes: list[GivenVote] = []
        line = reader.line_num + 1
        for entry in reader:
            where = f"{name}, line {line + skipped}"
            if None in entry:
                raise UserError(f"{where}: more cells than columns; quote the texts")
            if (entry["choice"] or "").strip():
                votes.append(_vote(entry, where))
            # A cell may hold line ends.
            line = reader.line_num + 1
        return votes
    except csv.Error as error:
        raise UserError(f"{name}: not valid CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _text(raw: bytes, name: str) -> tuple[str, int]:
    """Return the sheet's text, and the number of lines before its columns."""
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        raise UserError(
            f"{name} is not UTF-8 text; save it as `CSV UTF-8` in the spreadsheet"
        ) from None
    first, _, rest = text.partition("\n")
    return (rest, 1) if first.strip().lower().startswith("sep=") else (text, 0)


def _delimiter(text: str) -> str:
    first = text.partition("\n")[0]
    return max(_DELIMITERS, key=first.count)


def _check_columns(columns: Sequence[str], where: str) -> None:
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise UserError(
            f"{where}: the columns {', '.join(missing)} are missing; fill the file that "
            "`tuneline review export` wrote"
        )
    repeated = sorted({name for name in columns if name and columns.count(name) > 1})
    if repeated:
        raise UserError(f"{where}: the column {repeated[0]} is there twice; keep one")


def _vote(entry: dict[str, str | None], where: str) -> GivenVote:
    def cell(name: str) -> str:
        return (entry.get(name) or "").strip()

    texts = {name: entry[name] or "" for name in _TEXTS if name in entry}
    return GivenVote(
        where,
        cell("review_id"),
        cell("pair"),
        cell("choice"),
        cell("reviewer").removeprefix("'"),
        cell("comment"),
        texts,
    )
