"""The form of a reviewer's task: the pairs as Markdown, a field for each, and the votes in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tuneline.artifacts.evaluation import BOTH_BAD, Mark, ReviewPair
from tuneline.errors import UserError
from tuneline.human_answers.ballots import cast, sheet_of
from tuneline.machine.markdown import fenced
from tuneline.run import Run

COMMENT = "comment"
# What the form shows for each choice.
LABELS = {"A": "A is better", "B": "B is better", "tie": "Tie", BOTH_BAD: "Both are bad"}
_CHOICE_OF = {label: choice for choice, label in LABELS.items()}


def review_body(run: Run, numbers: Collection[int]) -> str:
    """Render pairs of a run as Markdown, for the person who votes.

    Raises:
        UserError: if the pairs were not prepared, or there is no such pair.
    """
    return "\n\n".join([sheet_of(run).instructions, *map(_pair, _shown(run, numbers))])


def form_fields(run: Run, numbers: Collection[int]) -> dict[str, dict[str, Any]]:
    """Return the fields of the form: JSON Schema keywords and a default for each.

    The name of a field holds the review's id, so that votes given for earlier pairs fit no field.

    Raises:
        UserError: see `review_body`.
    """
    review_id = sheet_of(run).review_id
    fields: dict[str, dict[str, Any]] = {
        _field(review_id, pair.pair): {
            "type": ["string", "null"],
            "default": None,
            "enum": [None, *LABELS.values()],
            "title": f"Pair {pair.pair}",
        }
        for pair in _shown(run, numbers)
    }
    fields[COMMENT] = {
        "type": ["string", "null"],
        "default": None,
        "format": "multiline",
        "title": "Comment",
        "description": "What the votes do not say, such as why both answers are bad.",
    }
    return fields


def record_form(run: Run, numbers: Collection[int], given: Mapping[str, Any], reviewer: str) -> int:
    """Store what a reviewer filled in.

    Args:
        run: the run.
        numbers: the pairs that were shown.
        given: values by the name of the field.
        reviewer: the user that Airflow recorded.

    Returns:
        The number of votes.

    Raises:
        UserError: if no pair was voted on, a choice does not exist, or the pairs were drawn again
            since the form was shown.
    """
    review_id = sheet_of(run).review_id
    known = {_field(review_id, number): number for number in numbers}
    stray = sorted(set(given) - set(known) - {COMMENT})
    if stray:
        raise UserError(
            f"votes of {reviewer}: the form has no field {stray[0]}; if the pairs were drawn again "
            "since it was shown, vote on the new ones"
        )
    marks = [
        Mark(pair=number, choice=_CHOICE_OF.get(str(given[name]), str(given[name])))
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


def _pair(pair: ReviewPair) -> str:
    texts = [("Question", pair.prompt), ("A", pair.A), ("B", pair.B)]
    shown = "\n\n".join(f"**{name}**\n\n{fenced(text)}" for name, text in texts)
    return f"### Pair {pair.pair}\n\n{shown}"
