"""The review as a numbered sheet to read, and answers of one line each, for a task in Airflow.

A row keeps its number for ever: `review/<model>/<first>.json` claims the numbers from `first` on
for its rows and is written once. So an answer never lands on another row, whatever was labelled or
rendered since.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Collection, Sequence
from datetime import date

from tuneline.errors import UserError
from tuneline.governance.production.curated_day import check_model
from tuneline.governance.production.label_files import parse_labels
from tuneline.governance.production.labels import open_rows, read_labels, store_labels
from tuneline.governance.production.review_rows import ReviewRow, review_rows
from tuneline.governance.production.vocabulary import Decision
from tuneline.machine.markdown import fenced
from tuneline.production_logs.partition import folder_name
from tuneline.store import AlreadyThere, NotThere, Store

PREFIX = "review"
# More than this nobody reads in one sitting.
ROWS = 20
_LINE = re.compile(
    r"\s*(?:row\s*)?(\d+)\s*+(?:[:=.)-]\s*+)?(accept|reject|correct)\b\s*:?(.*)", re.I
)
_INSTRUCTIONS = (
    "Decide on each answer, one line a row: `3 accept`, `4 reject`, or "
    "`5 correct: the answer as it should be`. Accepted and corrected answers become training data. "
    "Leave personal data out; names and numbers below are not real ones."
)


def review_sheet(
    store: Store, model: str, days: Collection[date] | None = None, *, limit: int = ROWS
) -> str:
    """Render open rows as Markdown, each under its number.

    Args:
        store: the store.
        model: the model.
        days: the days of the rows; None for all.
        limit: most rows, the earliest first.

    Returns:
        The sheet; a sentence that says so if no row is open.
    """
    check_model(model)
    rows = open_rows(review_rows(store, model, days), read_labels(store, model))[:limit]
    if not rows:
        return f"No row of {model} waits for review."
    numbers = _claim_numbers(store, model, rows)
    parts = [_INSTRUCTIONS]
    for row in rows:
        texts = (("Prompt", row.prompt), ("Answer", row.answer))
        shown = "\n\n".join(f"**{name}**\n\n{fenced(text)}" for name, text in texts)
        parts.append(f"### Row {numbers[row.request_id]} ({row.stratum}, {row.day})\n\n{shown}")
    return "\n\n".join(parts)


def put_answers(store: Store, model: str, name: str, text: str, by: str) -> None:
    """Put the answers to a sheet aside, as they were typed.

    Corrected answers may hold personal data, and the scrubber is not where people are asked. So
    they wait in `quarantine/answers/<model>/` until `take_answers` scrubs and stores them.

    Args:
        store: the store.
        model: the model.
        name: a name that they are found by.
        text: lines such as `3 accept`, `4 reject`, `5 correct: the right answer`.
        by: the labeller.

    Raises:
        UserError: if a line is no answer, or names a number that no sheet has; nothing is stored.
    """
    raw = _parsed(store, model, text)
    parse_labels(raw, "answers", [row.request_id for row in review_rows(store, model)])
    document = json.dumps({"text": text, "by": by}, ensure_ascii=False)
    store.put_bytes(_answers_key(model, name), document.encode())


def take_answers(store: Store, model: str, name: str) -> int:
    """Scrub and store the answers that were put aside, and delete them there.

    Returns:
        The number of labels; 0 if none were put aside by that name.

    Raises:
        UserError: if an answer is wrong; see `record_labels`.
    """
    key = _answers_key(model, name)
    try:
        document = json.loads(store.get_bytes(key))
    except NotThere:
        return 0
    count = record_labels(store, model, document["text"], document["by"])
    store.delete_prefix(key.removesuffix("/answers.json"))
    return count


def record_labels(store: Store, model: str, text: str, by: str) -> int:
    """Store the answers to a sheet.

    Args:
        store: the store.
        model: the model.
        text: lines such as `3 accept`, `4 reject`, `5 correct: the right answer`.
        by: the labeller.

    Returns:
        The number of labels.

    Raises:
        UserError: if a line is no answer, or names a number that no sheet has; nothing is stored.
    """
    return store_labels(store, model, _parsed(store, model, text), "answers", by)


def _parsed(store: Store, model: str, text: str) -> bytes:
    """Return the answers as a file of labels, JSON lines."""
    check_model(model)
    ids = {number: request_id for request_id, number in _numbers(store, model).items()}
    out = io.StringIO()
    for line, answer in enumerate(text.splitlines(), 1):
        # An empty line stays one, so that errors name the lines of the answer.
        out.write((json.dumps(_entry(answer, line, ids)) if answer.strip() else "") + "\n")
    written = out.getvalue()
    if not written.strip():
        raise UserError("answers: none was given; write one line for each row, like `3 accept`")
    return written.encode()


def _answers_key(model: str, name: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    return f"quarantine/answers/{folder_name(model)}/{safe}/answers.json"


def _entry(answer: str, line: int, ids: dict[int, str]) -> dict[str, str]:
    found = _LINE.fullmatch(answer)
    corrects = found is not None and found[2].lower() == Decision.CORRECT
    if found is None or (found[3].strip() and not corrects):
        raise UserError(
            f"answers, line {line}: {answer.strip()[:80]!r} is no answer; write the number and "
            "accept, reject or correct, like `3 accept` or `5 correct: the right answer`"
        )
    number = int(found[1])
    if number not in ids:
        raise UserError(f"answers, line {line}: no sheet has a row {number}")
    return {
        "request_id": ids[number],
        "decision": found[2].lower(),
        "answer_corrected": found[3].strip(),
    }


def _numbers(store: Store, model: str) -> dict[str, int]:
    """Return the numbers that are claimed, by request id."""
    numbers: dict[str, int] = {}
    for key in store.keys(f"{PREFIX}/{folder_name(model)}"):
        document = json.loads(store.get_bytes(key))
        for number, request_id in enumerate(document["request_ids"], document["first"]):
            numbers.setdefault(request_id, number)
    return numbers


def _claim_numbers(store: Store, model: str, rows: Sequence[ReviewRow]) -> dict[str, int]:
    """Return the number of each row; rows without one get the next ones."""
    while True:
        numbers = _numbers(store, model)
        fresh = [row.request_id for row in rows if row.request_id not in numbers]
        if not fresh:
            return numbers
        first = max(numbers.values(), default=0) + 1
        document = {"schema": "tuneline/review-numbers/1", "first": first, "request_ids": fresh}
        key = f"{PREFIX}/{folder_name(model)}/{first:08d}.json"
        try:
            store.put_bytes(key, json.dumps(document, indent=1).encode(), once=True)
        except AlreadyThere:
            # Somebody else claimed these numbers in between.
            continue
