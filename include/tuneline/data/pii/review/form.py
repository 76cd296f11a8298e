"""The review of scrubbed rows as a form: rows as Markdown, a field for each, what was missed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tuneline.artifacts.pii_review import (
    PII_SHEET,
    DrawnRow,
    PiiFindings,
    PiiSheet,
    findings_document,
    findings_of,
)
from tuneline.data.pii.canaries.kinds import KINDS, entity_of
from tuneline.data.pii.review.draw import draw_rows
from tuneline.data.pii.review.estimate import Reviewed
from tuneline.data.pii.review.sheet import BETWEEN, NONE, OTHER, read_missed
from tuneline.data.tables.rows import Row
from tuneline.errors import UserError
from tuneline.machine.markdown import fenced
from tuneline.run import Run, now

# `data.pii_review` when people are to be asked.
ASK = "ask"
# As many as a person reads without a break.
ROWS_PER_FORM = 10
READ_ALL = "read_all"


def make_sheet(rows: Sequence[Row], count: int) -> PiiSheet:
    """Draw rows for people to read."""
    drawn = [DrawnRow(**vars(row)) for row in draw_rows(rows, count)]
    named = "\n".join(f"{row.row_id} {row.row_hash}" for row in drawn)
    return PiiSheet(draw_id=hashlib.sha256(named.encode()).hexdigest()[:12], rows=drawn)


def open_forms(run: Run) -> list[list[int]]:
    """Return the row numbers of each form that nobody has answered; none if nobody is asked."""
    sheet = PII_SHEET.find(run) if run.config.data.pii_review == ASK else None
    if sheet is None:
        return []
    done = {number for found in findings_of(run, sheet.draw_id) for number in found.missed}
    numbers = range(1, len(sheet.rows) + 1)
    forms = [list(numbers[n : n + ROWS_PER_FORM]) for n in range(0, len(numbers), ROWS_PER_FORM)]
    return [form for form in forms if not done.issuperset(form)]


def form_body(run: Run, numbers: Sequence[int]) -> str:
    """Render rows of a run as Markdown, for the person who reads them.

    Raises:
        UserError: if they were not drawn.
    """
    sheet = _sheet(run)
    kinds = ", ".join([*KINDS, OTHER])
    told = (
        "Scrubbing has replaced what it found by `[TYPE]`. Is anything left that tells who "
        "somebody is, or a secret? Leave the field of a row empty if nothing is. Otherwise copy "
        f"each piece as `TYPE: text`, several with `{BETWEEN}` between them. Types: {kinds}."
    )
    texts = [f"### Row {number}\n\n{fenced(sheet.rows[number - 1].text)}" for number in numbers]
    return "\n\n".join([told, *texts])


def form_fields(run: Run, numbers: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return the fields of a form: JSON Schema keywords and a default for each."""
    draw_id = _sheet(run).draw_id
    fields: dict[str, dict[str, Any]] = {
        _field(draw_id, number): {
            "type": ["string", "null"],
            "default": None,
            "title": f"Row {number}",
            "description": f"Empty, or TYPE: text {BETWEEN} TYPE: text",
        }
        for number in numbers
    }
    fields[READ_ALL] = {
        "type": "boolean",
        "default": False,
        "title": "I have read every row of this form",
    }
    return fields


def record_form(
    run: Run, numbers: Sequence[int], given: Mapping[str, Any], reviewer: str
) -> PiiFindings:
    """Store what a person found in the rows of one form.

    Args:
        run: the run.
        numbers: the rows that were shown.
        given: values by the name of the field.
        reviewer: the user that Airflow recorded.

    Raises:
        UserError: if the rows were not all read, a piece is of no known type or does not stand in
            its row, or other rows were drawn since the form was shown.
    """
    sheet = _sheet(run)
    known = {_field(sheet.draw_id, number): number for number in numbers}
    stray = sorted(set(given) - set(known) - {READ_ALL})
    if stray:
        raise UserError(
            f"review of {reviewer}: the form has no field {stray[0]}; if other rows were drawn "
            "since it was shown, read the new ones"
        )
    if given.get(READ_ALL) is not True:
        raise UserError(
            f"review of {reviewer}: tick that every row was read; an empty field then says that "
            "nothing was missed"
        )
    missed = {
        number: _pieces(str(given.get(name) or NONE), sheet.rows[number - 1].text, number)
        for name, number in known.items()
    }
    findings = PiiFindings(draw_id=sheet.draw_id, reviewer=reviewer, at=now(), missed=missed)
    findings_document(sheet.draw_id, min(numbers)).put(run, findings)
    return findings


def _pieces(cell: str, text: str, number: int) -> list[tuple[str, str]]:
    found = list(read_missed(cell.strip() or NONE, f"row {number}"))
    for _, piece in found:
        if piece.casefold() not in text.casefold():
            raise UserError(f"row {number}: {piece!r} does not stand in it; copy it from the row")
    return found


def answered(run: Run, sheet: PiiSheet) -> Reviewed:
    """Return what people found in the rows of a sheet, so far as they were read.

    Rows of a stratum that were not read are stood for by the others of it. While no row of a
    stratum was read, the review is not one of all rows, and says nothing.
    """
    missed = {
        number: pieces
        for found in findings_of(run, sheet.draw_id)
        for number, pieces in found.missed.items()
        if 1 <= number <= len(sheet.rows)
    }
    read = {number: sheet.rows[number - 1] for number in sorted(missed)}
    drawn = Counter(row.stratum for row in sheet.rows)
    seen = Counter(row.stratum for row in read.values())
    if seen.keys() != drawn.keys():
        return Reviewed()
    return Reviewed(
        [row.weight * drawn[row.stratum] / seen[row.stratum] for row in read.values()],
        [row.stratum for row in read.values()],
        [
            [entity_of(kind) if kind in KINDS else kind for kind, _ in missed[number]]
            for number in read
        ],
    )


def _sheet(run: Run) -> PiiSheet:
    sheet = PII_SHEET.find(run)
    if sheet is None:
        raise UserError(f"no rows of {run.uri} were drawn for review; run pii_scrubbing first")
    return sheet


def _field(draw_id: str, number: int) -> str:
    return f"row_{number}_{draw_id}"
