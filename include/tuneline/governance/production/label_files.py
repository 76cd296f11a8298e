"""Read a file of labels, CSV or JSON lines, and refuse it as a whole if a line is wrong."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tuneline.errors import UserError
from tuneline.governance.production.vocabulary import Decision

# A cell of CSV may be as long as an answer.
_LONGEST_CELL = 10_000_000


@dataclass(frozen=True)
class GivenLabel:
    """A label as a file states it.

    Attributes:
        where: file and line.
        request_id: the request.
        decision: the decision.
        corrected: the corrected answer, not scrubbed; None unless the decision is `correct`.
        by: the labeller, if the file names one.
        at: the time of the label, if the file states one, RFC 3339 in UTC.
        entry: everything that the line holds.
    """

    where: str
    request_id: str
    decision: Decision
    corrected: str | None
    by: str | None
    at: str | None
    entry: dict[str, Any]


def parse_labels(raw: bytes, name: str, known: Collection[str] | None) -> list[GivenLabel]:
    """Read a file of labels; lines without a decision are not labels yet and are passed over.

    Args:
        raw: its bytes.
        name: its name, for errors.
        known: ids of the requests that are in review; None takes any.

    Raises:
        UserError: if the file is not CSV or JSON lines, or a line names an unknown request or
            decision, lacks a corrected answer or repeats a request. File and line are named.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8 text; save it as UTF-8") from None
    labels: list[GivenLabel] = []
    lines: dict[str, int] = {}
    for line, entry in _entries(text, name):
        where = f"{name}, line {line}"
        label = _label(entry, where, known)
        if label is None:
            continue
        if label.request_id in lines:
            raise UserError(
                f"{where}: request {label.request_id} is labelled on line "
                f"{lines[label.request_id]} already; keep one of the two"
            )
        lines[label.request_id] = line
        labels.append(label)
    if not labels:
        raise UserError(f"{name} holds no label; fill the column decision with {_decisions()}")
    return labels


def _entries(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if text.lstrip().startswith("{"):
        yield from _json_entries(text, name)
    else:
        yield from _csv_entries(text, name)


def _json_entries(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # JSON may hold other line separators of Unicode as they are.
    for line, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        try:
            entry = json.loads(written)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            raise UserError(f"{name}, line {line}: expected a JSON object with request_id")
        yield line, entry


def _csv_entries(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    before = csv.field_size_limit(_LONGEST_CELL)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        missing = {"request_id", "decision"} - set(reader.fieldnames or ())
        if missing:
            raise UserError(
                f"{name}, line 1: the columns {' and '.join(sorted(missing))} are missing; give a "
                "CSV file with these columns, or JSON lines"
            )
        line = reader.line_num + 1
        for entry in reader:
            if None in entry:
                raise UserError(f"{name}, line {line}: more cells than columns; quote the texts")
            yield line, entry
            # A cell may hold line ends.
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{name}, line {line}: not valid CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _label(entry: dict[str, Any], where: str, known: Collection[str] | None) -> GivenLabel | None:
    given = _text(entry, "decision", where).strip().lower()
    if not given:
        return None
    if given not in set(Decision):
        raise UserError(f"{where}: {given!r} is not a decision; write {_decisions()}")
    request_id = _text(entry, "request_id", where).strip()
    if known is not None and request_id not in known:
        raise UserError(
            f"{where}: request {request_id!r} is not in review; `tuneline logs review` lists "
            "those that are"
        )
    decision = Decision(given)
    corrected = _text(entry, "answer_corrected", where).strip()
    if decision == Decision.CORRECT and not corrected:
        raise UserError(f"{where}: `correct` needs the corrected answer in answer_corrected")
    if decision != Decision.CORRECT and corrected:
        raise UserError(
            f"{where}: answer_corrected is filled, but the decision is {decision}; write "
            "`correct`, or empty it"
        )
    return GivenLabel(
        where,
        request_id,
        decision,
        corrected or None,
        _text(entry, "by", where).strip() or None,
        _time(_text(entry, "at", where).strip(), where),
        entry,
    )


def _text(entry: dict[str, Any], name: str, where: str) -> str:
    value = entry.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is a {type(value).__name__}, not text")
    return value


def _time(text: str, where: str) -> str | None:
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(f"{where}: {text!r} is not a time; write it as RFC 3339") from None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _decisions() -> str:
    *some, last = Decision
    return f"{', '.join(some)} or {last}"
