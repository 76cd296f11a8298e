"""A blind review without a terminal: pairs as a sheet to fill in, or as a form of Airflow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneline.artifacts.evaluation import BOTH_BAD, CHOICES, Mark, ReviewPair
from tuneline.errors import UserError
from tuneline.machine.markdown import fenced
from tuneline.people.ballots import cast, sheet_of
from tuneline.people.sheets import Entry, read_sheet, written
from tuneline.run import Run

COLUMNS = ("review_id", "pair", "prompt", "A", "B", "choice", "reviewer", "comment")
_NEEDED = ("review_id", "pair", "choice", "reviewer")
_ADVICE = "fill the file that `tuneline review export` wrote"
_HOW = f"write {', '.join(CHOICES[:-1])} or {CHOICES[-1]}"
_CHOICE_OF = {choice.casefold(): choice for choice in CHOICES}
# Spreadsheets cut longer cells, and no two answers agree for so long and differ then.
_COMPARED = 2000


def export_file(run: Run, out: Path, *, reviewer: str = "") -> int:
    """Write the pairs of a review as CSV with empty places for votes; return their number."""
    sheet = sheet_of(run)
    if out.suffix != ".csv":
        raise UserError(f"--out {out}: name a .csv file")
    try:
        given = {"review_id": sheet.review_id, "reviewer": reviewer}
        rows = ({**given, **pair.model_dump()} for pair in sheet.pairs)
        out.write_bytes(written(COLUMNS, rows))
    except OSError as error:
        raise UserError(f"{out} can't be written: {error.strerror}") from None
    return len(sheet.pairs)


def import_file(run: Run, path: Path, *, imported_by: str) -> dict[str, int]:
    """Store the votes of a filled sheet, by reviewer; UserError names file, line and field."""
    sheet = sheet_of(run)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    assigned = run.config.evaluation.reviewer_names
    marks: dict[str, list[Mark]] = defaultdict(list)
    seen: dict[tuple[str, int], str] = {}
    for vote in read_sheet(raw, str(path), _NEEDED, _ADVICE):
        if not vote.text("choice"):
            continue
        reviewer, mark = _checked(vote, sheet.review_id, sheet.pairs, assigned)
        earlier = seen.setdefault((reviewer, mark.pair), vote.where)
        if earlier != vote.where:
            raise UserError(
                f"{vote.where}, pair: {reviewer} has voted on pair {mark.pair} on "
                f"{earlier.rpartition(', ')[2]} already; keep one of the two"
            )
        marks[reviewer].append(mark)
    if not marks:
        raise UserError(f"{path} holds no vote; fill the column choice ({_HOW})")
    for name, own in sorted(marks.items()):
        cast(run, sheet.review_id, name, "csv", own, imported_by=imported_by)
    return {name: len(own) for name, own in sorted(marks.items())}


def _checked(
    vote: Entry, review_id: str, pairs: Sequence[ReviewPair], assigned: Sequence[str]
) -> tuple[str, Mark]:
    """Return a vote's reviewer and its mark."""
    given, number = vote.text("review_id"), vote.text("pair")
    choice, reviewer = vote.text("choice"), vote.text("reviewer")
    if given != review_id:
        raise UserError(
            f"{vote.where}, review_id: the file is for the review {given or '(none)'}, but this "
            f"run's pairs are of the review {review_id}; export them again and vote anew"
        )
    shown = {str(pair.pair): pair for pair in pairs}
    if number not in shown:
        numbers = [entry.pair for entry in pairs]
        raise UserError(
            f"{vote.where}, pair: there is no pair {number!r}; the pairs are {min(numbers)} to "
            f"{max(numbers)}"
        )
    if choice.casefold() not in _CHOICE_OF:
        raise UserError(f"{vote.where}, choice: {choice!r} is not a choice; {_HOW}")
    if not reviewer:
        raise UserError(f"{vote.where}, reviewer: a vote needs the name of its reviewer")
    if assigned and reviewer not in assigned:
        raise UserError(
            f"{vote.where}, reviewer: {reviewer} is not assigned to this review; "
            f"evaluation.reviewers names {', '.join(assigned)}"
        )
    pair = shown[number]
    for name in ("prompt", "A", "B"):
        # As after sorting a single column.
        if name in vote.cells and _plain(vote.text(name)) != _plain(getattr(pair, name)):
            raise UserError(
                f"{vote.where}, {name}: this is not the text of pair {number}; the file was "
                "sorted or edited, so export the pairs again"
            )
    mark = Mark(pair=pair.pair, choice=_CHOICE_OF[choice.casefold()], comment=vote.text("comment"))
    return reviewer, mark


def _plain(text: str) -> str:
    """Return a text without what spreadsheets change: line ends and spaces."""
    return " ".join(text.split())[:_COMPARED]


COMMENT = "comment"
# What the form shows for each choice.
LABELS = {"A": "A is better", "B": "B is better", "tie": "Tie", BOTH_BAD: "Both are bad"}
_CHOICE_OF_LABEL = {label: choice for choice, label in LABELS.items()}


def review_body(run: Run, numbers: Collection[int]) -> str:
    """Render pairs of a run as Markdown; UserError if there are no such pairs."""
    parts = [sheet_of(run).instructions]
    for pair in _shown(run, numbers):
        texts = [("Question", pair.prompt), ("A", pair.A), ("B", pair.B)]
        parts.append(f"### Pair {pair.pair}")
        parts += [f"**{name}**\n\n{fenced(text)}" for name, text in texts]
    return "\n\n".join(parts)


def form_fields(run: Run, numbers: Collection[int]) -> dict[str, dict[str, Any]]:
    """Return the fields of the form: JSON Schema keywords and a default for each.

    A name holds the review's id, so that votes given for earlier pairs fit no field.
    """
    review_id = sheet_of(run).review_id
    text = {"type": ["string", "null"], "default": None}
    choices = [None, *LABELS.values()]
    fields: dict[str, dict[str, Any]] = {
        _field(review_id, pair.pair): {**text, "enum": choices, "title": f"Pair {pair.pair}"}
        for pair in _shown(run, numbers)
    }
    hint = "What the votes do not say, such as why both answers are bad."
    fields[COMMENT] = {**text, "format": "multiline", "title": "Comment", "description": hint}
    return fields


def record_form(run: Run, numbers: Collection[int], given: Mapping[str, Any], reviewer: str) -> int:
    """Store what a reviewer filled in; return the number of votes; UserError if one is wrong."""
    review_id = sheet_of(run).review_id
    known = {_field(review_id, number): number for number in numbers}
    stray = sorted(set(given) - set(known) - {COMMENT})
    if stray:
        raise UserError(
            f"votes of {reviewer}: the form has no field {stray[0]}; if the pairs were drawn again "
            "since it was shown, vote on the new ones"
        )
    marks = [
        Mark(pair=number, choice=_CHOICE_OF_LABEL.get(str(given[name]), str(given[name])))
        for name, number in known.items()
        if given.get(name)
    ]
    if not marks:
        raise UserError(f"votes of {reviewer}: no vote was given; vote on at least one pair")
    comment = str(given.get(COMMENT) or "")
    cast(run, review_id, reviewer, "airflow", marks, comment=comment)
    return len(marks)


def _field(review_id: str, number: int) -> str:
    return f"pair_{number}_{review_id}"


def _shown(run: Run, numbers: Collection[int]) -> list[ReviewPair]:
    sheet = sheet_of(run)
    found = [pair for pair in sheet.pairs if pair.pair in numbers]
    if len(found) < len(numbers):
        raise UserError(
            f"the review of {run.uri} has {len(sheet.pairs)} pairs and not those that were dealt "
            "out; they were drawn again, so clear prepare_review, which deals them out"
        )
    return found
