"""People's labels: the rows that wait for one, the sheets and forms that take them, and the store.

A file in `labels/<model>/` is named after the hash of its bytes and carries the scrubbed texts.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tuneline.artifacts.request_log import folder_name
from tuneline.config import DataConfig
from tuneline.config.model_file import people_per_label
from tuneline.data.pii.replace.scrubber import make_scrubber
from tuneline.data.pii_scrubbing import reason_to_reject
from tuneline.data.tables.rows import Message
from tuneline.errors import UserError
from tuneline.governance.production.curated_days import (
    check_model,
    curated_days,
    open_days,
    parse_day,
)
from tuneline.governance.production.requests import position
from tuneline.machine.markdown import fenced
from tuneline.people.sheets import Entry, read_sheet, written
from tuneline.run import now
from tuneline.store import AlreadyThere, CorruptObject, Store, at_work_in

PREFIX = "labels"
_OF_A_ROW = "request_id messages answer stratum served_by model_version".split()
COLUMNS = "request_id prompt answer stratum decision answer_corrected".split()
_OURS = re.compile(r"[0-9a-f]{64}\.jsonl")
# Is in the place of a surrogate while an answer is scrubbed: a private character is no part of a
# name.
_MARK = "\ue000{}\ue001"
# As many as a person decides on in some five minutes.
ROWS_OF_FORM = 50
_DECISION, _CORRECTED = "decision_", "corrected_"
_INSTRUCTIONS = (
    "Decide on each answer. Accepted and corrected answers become training data. Leave personal "
    "data out; names and numbers below are not real ones. A client wrote every turn of the prompt, "
    "also those of the assistant. `<U+200B>` is a character that can't be seen."
)
_TOGETHER = " A label counts if two people give the same: each answers once, one after the other."
# Those that Unicode has programs leave out of a display (`Default_Ignorable_Code_Point`).
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
_WRITERS = {r: f"{r} (written by the client)" for r in ("system", "assistant")} | {"user": "user"}
# Clocks of two machines differ by less.
_CLOCKS = timedelta(minutes=10)


class Decision(StrEnum):
    """A person's decision on an answer."""

    ACCEPT = "accept"
    REJECT = "reject"
    CORRECT = "correct"


_DECISIONS = f"{', '.join([*Decision][:-1])} or {[*Decision][-1]}"


@dataclass(frozen=True)
class ReviewRow:
    """A row that was drawn for review."""

    request_id: str
    day: str
    messages: list[Message]
    answer: str
    stratum: str  # that it was drawn from
    surrogates: list[str]  # texts that were written in place of personal data
    data: DataConfig  # settings that it was scrubbed by
    served_by: str | None = None  # upstream that answered
    model_version: str | None = None
    key_hash: str | None = None
    answer_corrected: str = ""  # by a person with whom another one has to agree

    @property
    def prompt(self) -> str:
        """The prompt as a person reads it: each turn with its writer, unless there is one alone."""
        if len(self.messages) == 1:
            return _shown(self.messages[0]["content"])
        return _shown(
            "\n\n".join(f"{_WRITERS.get(m['role'])}: {m['content']}" for m in self.messages)
        )


@dataclass(frozen=True)
class GivenLabel:
    """A label as a sheet states it."""

    where: str
    request_id: str
    decision: Decision
    corrected: str | None  # not scrubbed; None unless the decision is `correct`


@dataclass(frozen=True)
class Label:
    """A person's decision on a row; `answer_corrected` is scrubbed, `at` may be empty."""

    request_id: str
    day: str
    decision: Decision
    answer_corrected: str | None  # scrubbed; None unless the decision is `correct`
    by: str
    at: str  # RFC 3339
    messages: list[Message]
    answer: str
    stratum: str
    served_by: str | None = None
    model_version: str | None = None

    @property
    def text(self) -> str | None:
        """The answer that the person stands for, None if they reject the row."""
        if self.decision == Decision.REJECT:
            return None
        return self.answer_corrected or self.answer


@dataclass
class Labels:
    """The label in force of each request, and the error of each file that could not be read.

    `proposed` are corrected answers with which nobody else agrees yet, by request.
    """

    latest: dict[str, Label] = field(default_factory=dict)
    proposed: dict[str, str] = field(default_factory=dict)
    conflicts: int = 0
    skipped: list[str] = field(default_factory=list)


def parse_days(text: str) -> tuple[date, date]:
    """Return the first and last day of `A..B`, or of a day alone; UserError if neither."""
    first, separator, last = text.partition("..")
    days = parse_day(first), parse_day(last if separator else first)
    if days[0] > days[1]:
        raise UserError(f"--days {text} ends before it begins; write the earlier day first")
    return days


def review_rows(
    store: Store, model: str, days: Collection[date] | None = None
) -> Iterator[ReviewRow]:
    """Yield the rows that were drawn for review, day by day; None for all days."""
    known = curated_days(store, model)
    for curated in open_days(store, model, [d for d in known if days is None or d in days]):
        data = DataConfig.model_validate(curated.evidence.settings["data"])
        with tempfile.TemporaryDirectory(prefix="tuneline-") as scratch:
            columns = [*_OF_A_ROW, "stand_ins", "in_review", "key_hash"]
            for batch in curated.requests(Path(scratch), columns):
                for entry in batch.filter(batch["in_review"]).to_pylist():
                    yield _review_row(entry, curated.evidence.day, data)


def _review_row(entry: Mapping[str, Any], day: str, data: DataConfig) -> ReviewRow:
    texts = [*(turn["content"] for turn in entry["messages"]), entry["answer"]]
    places = entry["stand_ins"] or ()
    surrogates = sorted({texts[p["turn"]][p["start"] : p["end"]] for p in places})
    own: dict[str, Any] = {name: entry.get(name) for name in (*_OF_A_ROW, "key_hash")}
    return ReviewRow(day=day, surrogates=surrogates, data=data, **own)


def open_rows(rows: Iterable[ReviewRow], labels: Labels) -> list[ReviewRow]:
    """Return the rows without a label in force: of days and keys in turn, else in random order.

    So the first rows, which a form asks about, are not those of whoever sent requests first.
    """
    seen: Counter[tuple[str, str | None]] = Counter()
    turns: list[tuple[int, ReviewRow]] = []
    for row in sorted(rows, key=lambda row: position(row.request_id)):
        if row.request_id not in labels.latest:
            seen[row.day, row.key_hash] += 1
            proposed = labels.proposed.get(row.request_id, "")
            turns.append((seen[row.day, row.key_hash], replace(row, answer_corrected=proposed)))
    return [row for _, row in sorted(turns, key=lambda turn: turn[0])]


def as_jsonl(rows: Iterable[ReviewRow]) -> bytes:
    """Return rows as JSON lines with empty columns for the decision."""
    return "".join(json.dumps(_cells(row), ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: Iterable[ReviewRow]) -> bytes:
    """Return rows as a sheet with empty columns for the decision."""
    return written(COLUMNS, map(_cells, rows))


def _cells(row: ReviewRow) -> dict[str, str]:
    return {**{name: getattr(row, name, "") for name in COLUMNS}, "answer": _shown(row.answer)}


def _shown(text: str) -> str:
    """Write out characters that nobody sees: they may be what an answer is made to depend on."""
    return _INVISIBLE.sub(lambda match: f"<U+{ord(match[0]):04X}>", text)


def label_form(rows: Sequence[ReviewRow], people: int = 1) -> tuple[str, dict[str, dict[str, Any]]]:
    """Render rows as Markdown, with the fields of a form, which are named after their requests."""
    rows = rows[:ROWS_OF_FORM]
    parts = [_INSTRUCTIONS + _TOGETHER * (people > 1)] if rows else ["No row waits for review."]
    for number, row in enumerate(rows, 1):
        texts = [("Prompt", row.prompt), ("Answer", _shown(row.answer))]
        if row.answer_corrected:
            texts.append(("Another correction; correct to it to agree", row.answer_corrected))
        shown = "\n\n".join(f"**{name}**\n\n{fenced(text)}" for name, text in texts)
        parts.append(f"### Row {number} ({row.stratum}, {row.day})\n\n{shown}")
    return "\n\n".join(parts), form_fields([row.request_id for row in rows])


def form_fields(ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the fields of a form for some requests."""
    found: dict[str, dict[str, Any]] = {}
    text, choices = {"type": ["string", "null"], "default": None}, [None, *map(str, Decision)]
    for number, request_id in enumerate(ids, 1):
        wanted = f"Row {number}: the answer as it should be, if you correct it"
        found[_DECISION + request_id] = {**text, "enum": choices, "title": f"Row {number}"}
        found[_CORRECTED + request_id] = {**text, "format": "multiline", "title": wanted}
    return found


def ids_of_form(given: Mapping[str, Any]) -> list[str]:
    """Return the requests of a form that was filled in."""
    return [name.removeprefix(_DECISION) for name in given if name.startswith(_DECISION)]


def put_answers(store: Store, model: str, name: str, given: Mapping[str, Any], by: str) -> bool:
    """Put a filled form aside; return True if another person has to fill it in too.

    Corrected answers may hold personal data, and the scrubber is not where people are asked. So
    they wait in `quarantine/answers/<model>/` until `take_answers` scrubs and stores them.

    Raises:
        UserError: if an answer is wrong, or none was given; nothing is stored.
    """
    lines = [
        {
            "request_id": request_id,
            "decision": given[_DECISION + request_id] or "",
            "answer_corrected": given.get(_CORRECTED + request_id) or "",
        }
        for request_id in ids_of_form(given)
    ]
    if not lines:
        raise UserError("answers: no row was shown, so that there is none to label")
    raw = "".join(json.dumps(line) + "\n" for line in lines)
    parse_labels(raw.encode(), "answers", [row.request_id for row in review_rows(store, model)])
    document = json.dumps({"labels": raw, "by": by}, ensure_ascii=False)
    folder, person = _answers_of(model, name), hashlib.sha256(by.casefold().encode()).hexdigest()
    store.put_bytes(f"{folder}/{person}.json", document.encode())
    return len(list(store.keys(folder))) < people_per_label(model)


def take_answers(store: Store, model: str, name: str) -> int:
    """Scrub, store and delete answers that were put aside; return the number of labels."""
    folder, count = _answers_of(model, name), 0
    for document in [json.loads(store.get_bytes(key)) for key in store.keys(folder)]:
        count += store_labels(store, model, document["labels"].encode(), "answers", document["by"])
    store.delete_prefix(folder)
    return count


def _answers_of(model: str, name: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    return f"quarantine/answers/{folder_name(model)}/{safe}"


def parse_labels(raw: bytes, name: str, known: Collection[str]) -> list[GivenLabel]:
    """Read the labels of a sheet; UserError names file and line of what is wrong."""
    labels: dict[str, GivenLabel] = {}
    needed = ("request_id", "decision")
    for entry in read_sheet(raw, name, needed, "fill the file that `tuneline logs review` wrote"):
        label = _label(entry, known)
        if label is None:
            continue
        if label.request_id in labels:
            earlier = labels[label.request_id].where.rpartition(", ")[2]
            raise UserError(
                f"{label.where}: request {label.request_id} is labelled on {earlier} already; keep "
                "one of the two"
            )
        labels[label.request_id] = label
    if not labels:
        raise UserError(f"{name} holds no label; fill the column decision with {_DECISIONS}")
    return list(labels.values())


def _label(entry: Entry, known: Collection[str]) -> GivenLabel | None:
    where, given = entry.where, entry.text("decision").lower()
    if not given:
        return None
    if given not in set(Decision):
        raise UserError(f"{where}: {given!r} is not a decision; write {_DECISIONS}")
    request_id = entry.text("request_id")
    if request_id not in known:
        raise UserError(
            f"{where}: request {request_id!r} is not in review; `tuneline logs review` lists "
            "those that are"
        )
    decision, corrected = Decision(given), entry.text("answer_corrected")
    if decision == Decision.CORRECT and not corrected:
        raise UserError(f"{where}: `correct` needs the corrected answer in answer_corrected")
    if decision != Decision.CORRECT and corrected:
        raise UserError(
            f"{where}: answer_corrected is filled, but the decision is {decision}; write "
            "`correct`, or empty it"
        )
    return GivenLabel(where, request_id, decision, corrected or None)


def store_labels(store: Store, model: str, raw: bytes, name: str, by: str) -> int:
    """Check, scrub and store a file of labels; return their number; UserError if one is wrong."""
    check_model(model)
    if not by.strip():
        raise UserError("--by is empty; name the person who labelled the rows")
    rows = {row.request_id: row for row in review_rows(store, model)}
    given = parse_labels(raw, name, rows.keys())
    with at_work_in(store):
        corrected = _scrubbed([(one, rows[one.request_id]) for one in given if one.corrected])
    time, labels = now(), []
    for one in given:
        own = {name: getattr(rows[one.request_id], name) for name in ("day", *_OF_A_ROW)}
        text = corrected.get(one.request_id)
        labels.append(
            Label(decision=one.decision, answer_corrected=text, by=by.strip(), at=time, **own)
        )
    lines = "".join(json.dumps(asdict(label), ensure_ascii=False) + "\n" for label in labels)
    written = lines.encode()
    key = f"{PREFIX}/{folder_name(model)}/{hashlib.sha256(written).hexdigest()}.jsonl"
    with suppress(AlreadyThere):
        store.put_bytes(key, written, once=True)
    return len(labels)


def read_labels(store: Store, model: str) -> Labels:
    """Read all labels of a model.

    Of one person's labels on a row the latest counts. Of people who disagree the majority decides,
    and without one the row stays open, as it does while fewer stand for it than `people_per_label`.
    A file that `store_labels` did not write is left out and its error noted.
    """
    result = Labels()
    read: list[Label] = []
    for key in store.keys(f"{PREFIX}/{folder_name(model)}"):
        try:
            read += _own(store, key)
        except (UserError, CorruptObject) as error:
            result.skipped.append(str(error))
    _settle(read, people_per_label(model), result)
    return result


def _settle(read: Sequence[Label], needed: int, result: Labels) -> None:
    """Find the labels in force among those of all people."""
    found: defaultdict[str, dict[str, Label]] = defaultdict(dict)
    # The order of labels of one time is that of the files' names.
    for label in sorted(read, key=lambda label: label.at):
        found[label.request_id].pop(label.by.casefold(), None)
        found[label.request_id][label.by.casefold()] = label
    for request_id, of_people in found.items():
        given = list(of_people.values())
        texts = Counter(label.text for label in given)
        ((text, most),) = texts.most_common(1)
        if most >= needed and 2 * most > len(given):
            agreed = [label for label in given if label.text == text]
            by = " and ".join(label.by for label in agreed)
            result.latest[request_id] = replace(agreed[-1], by=by)
        elif given[-1].answer_corrected:
            result.proposed[request_id] = given[-1].answer_corrected
        result.conflicts += len(texts) > 1


def _own(store: Store, key: str) -> list[Label]:
    """Read a file that `store_labels` wrote: its name is the hash of its bytes."""
    where, name = store.uri_of(key), key.rpartition("/")[2]
    if not _OURS.fullmatch(name):
        raise UserError(f"{where} was put there by hand; store it by `tuneline logs label`")
    try:
        raw = store.get_bytes(key, sha256=name.partition(".")[0])
        labels = list(map(TypeAdapter(Label).validate_json, raw.splitlines()))
    except ValidationError:
        raise UserError(f"{where}: not as it was written; label its rows again") from None
    if any(label.at > (datetime.now(UTC) + _CLOCKS).isoformat() for label in labels):
        # It would count for ever.
        raise UserError(f"{where}: its time is in the future; label its rows again")
    return labels


def _scrubbed(corrections: Sequence[tuple[GivenLabel, ReviewRow]]) -> dict[str, str]:
    """Return the corrected answers, scrubbed as their days were, by request id.

    Surrogates of their rows stay, so that they match the prompt.
    """
    groups: dict[str, list[tuple[GivenLabel, ReviewRow]]] = defaultdict(list)
    for correction in corrections:
        groups[correction[1].data.model_dump_json()].append(correction)
    found: dict[str, str] = {}
    for document, some in groups.items():
        scrubber = make_scrubber(DataConfig.model_validate_json(document))
        marks = [{s: _MARK.format(n) for n, s in enumerate(row.surrogates)} for _, row in some]
        batch: list[list[Message]] = [
            [{"role": "assistant", "content": _replace(label.corrected or "", own)}]
            for (label, _), own in zip(some, marks, strict=True)
        ]
        results = scrubber.scrub([label.request_id for label, _ in some], batch)
        for (label, _), own, result in zip(some, marks, results, strict=True):
            reason = reason_to_reject(result)
            if reason is not None:
                raise UserError(f"{label.where}: the corrected answer can't be scrubbed: {reason}")
            back = {mark: surrogate for surrogate, mark in own.items()}
            found[label.request_id] = _replace(result.messages[0]["content"], back)
    return found


def _replace(text: str, values: Mapping[str, Any]) -> str:
    """Replace whole words, the longest first."""
    if not values:
        return text
    ordered = sorted(values, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, ordered)) + r")(?!\w)")
    return pattern.sub(lambda match: values[match[0]], text)
