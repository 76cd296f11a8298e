"""Votes of reviewers without a login: pairs out to a CSV sheet, and the filled sheet in.

A sheet is taken whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from tuneline.artifacts.evaluation import CHOICES, Mark, ReviewPair
from tuneline.errors import UserError
from tuneline.human_answers import review_csv
from tuneline.human_answers.ballots import cast, sheet_of
from tuneline.run import Run

_HOW = f"write {', '.join(CHOICES[:-1])} or {CHOICES[-1]}"
_CHOICE_OF = {choice.casefold(): choice for choice in CHOICES}
# Spreadsheets cut longer cells, and no two answers agree for so long and differ then.
_COMPARED = 2000


def export_file(run: Run, out: Path, *, reviewer: str = "") -> int:
    """Write the pairs of a review, with empty places for the votes.

    Args:
        run: the run.
        out: a `.csv` file.
        reviewer: a name to write into the column `reviewer`.

    Returns:
        The number of pairs.

    Raises:
        UserError: if the pairs were not prepared, or the file can't be written.
    """
    sheet = sheet_of(run)
    if out.suffix != ".csv":
        raise UserError(f"--out {out}: name a .csv file")
    try:
        out.write_bytes(review_csv.written(sheet.review_id, sheet.pairs, reviewer))
    except OSError as error:
        raise UserError(f"{out} can't be written: {error.strerror}") from None
    return len(sheet.pairs)


def import_file(run: Run, path: Path, *, imported_by: str) -> dict[str, int]:
    """Read a filled sheet and store its votes, one ballot for each reviewer.

    Args:
        run: the run.
        path: the sheet.
        imported_by: the user who reads the file in.

    Returns:
        The number of votes of each reviewer.

    Raises:
        UserError: if a line is wrong, for another review, or not by an assigned reviewer. File,
            line and field are named.
    """
    sheet = sheet_of(run)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    given = review_csv.read(raw, str(path))
    assigned = run.config.evaluation.reviewer_names
    votes = [_checked(vote, sheet.review_id, sheet.pairs, assigned) for vote in given]
    _check_repeats(given)
    if not votes:
        raise UserError(f"{path} holds no vote; fill the column choice ({_HOW})")
    counts: dict[str, int] = {}
    for name, group in groupby(sorted(votes, key=_reviewer), key=_reviewer):
        marks = [mark for _, mark in group]
        cast(run, sheet.review_id, name, "csv", marks, imported_by=imported_by)
        counts[name] = len(marks)
    return counts


def _reviewer(vote: tuple[str, Mark]) -> str:
    return vote[0]


def _check_repeats(given: Sequence[review_csv.GivenVote]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for vote in given:
        key = (vote.reviewer, vote.pair)
        if key in seen:
            raise UserError(
                f"{vote.where}, pair: {vote.reviewer} has voted on pair {vote.pair} on "
                f"{seen[key].rpartition(', ')[2]} already; keep one of the two"
            )
        seen[key] = vote.where


def _checked(
    vote: review_csv.GivenVote, review_id: str, pairs: Sequence[ReviewPair], assigned: Sequence[str]
) -> tuple[str, Mark]:
    """Return a vote's reviewer and its mark."""
    if vote.review_id != review_id:
        raise UserError(
            f"{vote.where}, review_id: the file is for the review {vote.review_id or '(none)'}, "
            f"but this run's pairs are of the review {review_id}; export them again and vote anew"
        )
    shown = {pair.pair: pair for pair in pairs}
    number = int(vote.pair) if vote.pair.isascii() and vote.pair.isdigit() else None
    if number is None or number not in shown:
        raise UserError(
            f"{vote.where}, pair: there is no pair {vote.pair!r}; the pairs are {min(shown)} to "
            f"{max(shown)}"
        )
    if vote.choice.casefold() not in _CHOICE_OF:
        raise UserError(f"{vote.where}, choice: {vote.choice!r} is not a choice; {_HOW}")
    if not vote.reviewer:
        raise UserError(f"{vote.where}, reviewer: a vote needs the name of its reviewer")
    if assigned and vote.reviewer not in assigned:
        raise UserError(
            f"{vote.where}, reviewer: {vote.reviewer} is not assigned to this review; "
            f"evaluation.reviewers names {', '.join(assigned)}"
        )
    _check_texts(vote, shown[number])
    choice = _CHOICE_OF[vote.choice.casefold()]
    return vote.reviewer, Mark(pair=number, choice=choice, comment=vote.comment)


def _check_texts(vote: review_csv.GivenVote, pair: ReviewPair) -> None:
    """Refuse a row whose texts are those of another pair, as after sorting a single column."""
    for name, text in vote.texts.items():
        if _plain(text) != _plain(getattr(pair, name)):
            raise UserError(
                f"{vote.where}, {name}: this is not the text of pair {pair.pair}; the file was "
                "sorted or edited, so export the pairs again"
            )


def _plain(text: str) -> str:
    """Return a text without what spreadsheets change: line ends, spaces, the mark of no formula."""
    return " ".join(text.removeprefix("'").split())[:_COMPARED]
