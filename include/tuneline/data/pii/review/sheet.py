"""Write the sheet of a review, and read it when a person has filled it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tuneline.data.pii.canaries.kinds import KINDS
from tuneline.data.pii.review.draw import Drawn
from tuneline.errors import UserError

COLUMNS = ("row_id", "row_hash", "stratum", "text", "missed")
NONE = "none"
OTHER = "OTHER"
BETWEEN = "|"
# A spreadsheet takes a cell that begins with one of these for a formula.
_FORMULA = tuple("=+-@\t\r")
_LONGEST_CELL = 10_000_000
_HOW = f"write {NONE}, or what was missed, as TYPE: text {BETWEEN} TYPE: text"


@dataclass(frozen=True)
class Answer:
    """What a person says of a row.

    Attributes:
        where: file and line, for errors.
        row_id: id of the row.
        row_hash: hash of its turns when it was drawn.
        missed: type and text of each piece of personal data that scrubbing missed.
    """

    where: str
    row_id: str
    row_hash: str
    missed: tuple[tuple[str, str], ...]


def as_csv(drawn: Iterable[Drawn]) -> bytes:
    """Return a sheet with an empty column for what was missed; no cell is a formula."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for row in drawn:
        text = f"'{row.text}" if row.text.startswith(_FORMULA) else row.text
        writer.writerow([row.row_id, row.row_hash, row.stratum, text, ""])
    # Spreadsheets take a file for UTF-8 only if it begins with its mark.
    return out.getvalue().encode("utf-8-sig")


def read_sheet(raw: bytes, name: str) -> list[Answer]:
    """Read a filled sheet.

    Args:
        raw: its bytes.
        name: its name, for errors.

    Raises:
        UserError: if it is not such a sheet, a row has no answer or is there twice, or a type is
            unknown. File and line are named.
    """
    answers: list[Answer] = []
    seen: dict[str, str] = {}
    for line, entry in _lines(raw, name):
        where = f"{name}, line {line}"
        row_id = (entry["row_id"] or "").strip()
        if row_id in seen:
            raise UserError(f"{where}: row {row_id} is there twice; keep one of the two")
        seen[row_id] = where
        missed = read_missed((entry["missed"] or "").strip(), where)
        answers.append(Answer(where, row_id, (entry["row_hash"] or "").strip(), missed))
    if not answers:
        raise UserError(f"{name} holds no rows; `tuneline data review-pii` writes some")
    return answers


def _lines(raw: bytes, name: str) -> Sequence[tuple[int, Mapping[str, str | None]]]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8 text; save it as UTF-8") from None
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        lacking = {"row_id", "row_hash", "missed"} - set(reader.fieldnames or ())
        if lacking:
            raise UserError(
                f"{name}, line 1: the columns {' and '.join(sorted(lacking))} are missing; fill "
                "the file that `tuneline data review-pii --out` wrote"
            )
        # A cell may hold line ends, so a row begins where the one before it ended.
        found, line = [], reader.line_num + 1
        for entry in reader:
            found.append((line, entry))
            line = reader.line_num + 1
        return found
    except csv.Error as error:
        raise UserError(f"{name}: not valid CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def read_missed(cell: str, where: str) -> tuple[tuple[str, str], ...]:
    """Return the type and text of each piece that a person wrote into a cell.

    Raises:
        UserError: if it is empty or not of that form; `where` names its place.
    """
    if not cell:
        raise UserError(f"{where}: the column missed is empty; {_HOW}")
    if cell.casefold() == NONE:
        return ()
    found = []
    for piece in cell.split(BETWEEN):
        kind, separator, text = (part.strip() for part in piece.partition(":"))
        if not separator or not text:
            raise UserError(f"{where}: {piece.strip()!r} is not TYPE: text; {_HOW}")
        if kind.upper() not in (*KINDS, OTHER):
            raise UserError(
                f"{where}: no type is called {kind}; there are {', '.join([*KINDS, OTHER])}"
            )
        found.append((kind.upper(), text))
    return tuple(found)


def check_pieces(answers: Iterable[Answer], drawn: Sequence[Drawn]) -> None:
    """Refuse an answer whose missed text does not stand in its row.

    Raises:
        UserError: naming file and line.
    """
    texts = {row.row_id: row.text.casefold() for row in drawn}
    for answer in answers:
        for _, piece in answer.missed:
            if piece.casefold() not in texts[answer.row_id]:
                raise UserError(
                    f"{answer.where}: {piece!r} does not stand in row {answer.row_id}; copy it "
                    "from the column text"
                )
