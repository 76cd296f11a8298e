"""The rows that people read for personal data that scrubbing missed, and what they found."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from tuneline.artifacts.artifact import Document, RunDocument
from tuneline.run import Run

FOLDER = "data/pii_review"


class DrawnRow(BaseModel):
    """A scrubbed row that was drawn, for a person to read.

    Attributes:
        row_hash: hash of its turns.
        stratum: one of `tuneline.data.pii.review.rows_to_read.STRATA`.
        weight: rows of the stratum over rows drawn from it.
        text: the row as a person reads it, with surrogates as `[ENTITY]`.
    """

    row_id: str
    row_hash: str
    stratum: str
    weight: float
    text: str


class PiiSheet(BaseModel):
    """Every row that was drawn; a row's number is its place, from 1.

    Attributes:
        draw_id: hash of the rows, so that answers count for these rows alone.
    """

    draw_id: str
    rows: list[DrawnRow]


class PiiFindings(BaseModel):
    """The personal data that one person found in some of the rows.

    Attributes:
        reviewer: the user that Airflow recorded.
        missed: by row number the type and text of each piece that was missed; an empty list for
            a row in which nothing was.
    """

    draw_id: str
    reviewer: str
    at: str
    missed: dict[int, list[tuple[str, str]]]


PII_SHEET = Document("pii_scrubbing", "review_sheet.json", PiiSheet)


def findings_document(draw_id: str, first_row: int) -> RunDocument[PiiFindings]:
    """Return the document of the answer to one form, by the first row that it shows."""
    return RunDocument(f"{FOLDER}/{draw_id}/rows-{first_row:04d}.json", PiiFindings)


def findings_of(run: Run, draw_id: str) -> Iterator[PiiFindings]:
    """Yield what people found in the rows of a draw."""
    prefix = run.key("")
    for key in run.store.keys(run.key(FOLDER, draw_id)):
        found = RunDocument(key.removeprefix(prefix), PiiFindings).find(run)
        if found is not None and found.draw_id == draw_id:
            yield found
