"""Labels in the store, `labels/<model>/`: written once, and read together with dropped files.

A file written here is named after the hash of its bytes. Each of its lines carries the scrubbed
prompt and answer, so that it stays good when its day is curated again. A file of any other name
was dropped there by hand: it is checked as `tuneline logs label` does, and its texts are looked up.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tuneline.config import DataConfig
from tuneline.data.pii.replace.scrubber import Scrubber, make_scrubber
from tuneline.data.pii_scrubbing import reason_to_reject
from tuneline.data.tables.rows import Message
from tuneline.errors import UserError
from tuneline.governance.production.curated_day import check_model
from tuneline.governance.production.label_files import GivenLabel, parse_labels
from tuneline.governance.production.review_rows import ReviewRow, review_rows
from tuneline.governance.production.vocabulary import Decision
from tuneline.production_logs.partition import folder_name
from tuneline.run import now
from tuneline.store import AlreadyThere, FileStore, S3Store, Store, at_work_in

PREFIX = "labels"
_OURS = re.compile(r"[0-9a-f]{64}\.jsonl")
# Stands for a surrogate while an answer is scrubbed: a private character is no part of a name.
_MARK = "\ue000{}\ue001"


@dataclass(frozen=True)
class Label:
    """A person's decision on a row.

    Attributes:
        request_id: the request.
        day: its day, YYYY-MM-DD.
        decision: the decision.
        answer_corrected: the corrected answer, scrubbed; None unless the decision is `correct`.
        by: the labeller.
        at: time of the label, RFC 3339; empty if a dropped file states none.
        messages: the scrubbed prompt.
        answer: the scrubbed answer.
        stratum: the stratum that the row was drawn from.
        inclusion_probability: the probability with which it was drawn.
    """

    request_id: str
    day: str
    decision: Decision
    answer_corrected: str | None
    by: str
    at: str
    messages: list[Message]
    answer: str
    stratum: str
    inclusion_probability: float


@dataclass
class Labels:
    """The labels of a model.

    Attributes:
        latest: the label in force of each request, by its id.
        conflicts: number of requests with labels that disagree.
        skipped: the error of each file that could not be read.
    """

    latest: dict[str, Label] = field(default_factory=dict)
    conflicts: int = 0
    skipped: list[str] = field(default_factory=list)


def store_labels(store: Store, model: str, raw: bytes, name: str, by: str) -> int:
    """Check a file of labels, scrub its corrected answers, and store it.

    Args:
        store: the store.
        model: the model.
        raw: the file's bytes, CSV or JSON lines.
        name: its name, for errors.
        by: the labeller.

    Returns:
        The number of labels.

    Raises:
        UserError: if anything in it is wrong; nothing is stored then.
    """
    check_model(model)
    if not by.strip():
        raise UserError("--by is empty; name the person who labelled the rows")
    rows = {row.request_id: row for row in review_rows(store, model)}
    given = parse_labels(raw, name, rows.keys())
    # Name and time are those of this call, whatever the file says.
    time = now()
    named = [replace(label, by=by.strip(), at=time) for label in given]
    with at_work_in(store):
        labels = _made(named, rows, name)
    lines = "".join(json.dumps(asdict(label), ensure_ascii=False) + "\n" for label in labels)
    written = lines.encode()
    key = f"{PREFIX}/{folder_name(model)}/{hashlib.sha256(written).hexdigest()}.jsonl"
    with suppress(AlreadyThere):
        store.put_bytes(key, written, once=True)
    return len(labels)


def read_labels(store: Store, model: str) -> Labels:
    """Read all labels of a model; of labels that disagree the latest counts.

    A label without a time is earlier than those with one. A file that is wrong is left out and its
    error noted.
    """
    found: defaultdict[str, list[Label]] = defaultdict(list)
    result = Labels()
    rows: dict[str, ReviewRow] | None = None
    for key in store.keys(f"{PREFIX}/{folder_name(model)}"):
        try:
            raw = _bytes(store, key)
            name = key.rpartition("/")[2]
            if _OURS.fullmatch(name):
                labels = _own(raw, name, store.uri_of(key))
            else:
                if rows is None:
                    rows = {row.request_id: row for row in review_rows(store, model)}
                given = parse_labels(raw, store.uri_of(key), rows.keys())
                with at_work_in(store):
                    labels = _made(given, rows, name)
        except UserError as error:
            result.skipped.append(str(error))
            continue
        for label in labels:
            found[label.request_id].append(label)
    for request_id, some in found.items():
        # The order of labels of one time is that of the files' names.
        result.latest[request_id] = sorted(some, key=lambda label: label.at)[-1]
        result.conflicts += len({(label.decision, label.answer_corrected) for label in some}) > 1
    return result


def open_rows(rows: Iterable[ReviewRow], labels: Labels) -> list[ReviewRow]:
    """Return the rows that nobody has labelled."""
    return [row for row in rows if row.request_id not in labels.latest]


def _bytes(store: Store, key: str) -> bytes:
    """Read a file that may have been put there by hand, so that the store knows no hash of it."""
    with TemporaryDirectory(prefix="tuneline-") as scratch:
        path = Path(scratch) / "labels"
        if isinstance(store, S3Store):
            store.get_foreign(key, path)
            return path.read_bytes()
        assert isinstance(store, FileStore)
        try:
            return (store.root / key).read_bytes()
        except OSError as error:
            raise UserError(f"{store.uri_of(key)} can't be read: {error.strerror}") from None


def _own(raw: bytes, name: str, where: str) -> list[Label]:
    """Read a file that `store_labels` wrote."""
    if hashlib.sha256(raw).hexdigest() != name.partition(".")[0]:
        raise UserError(
            f"{where} is not what its name says; restore it, or give a file of your own another "
            "name"
        )
    labels = parse_labels(raw, where, None)
    columns = {entry.name for entry in fields(Label)}
    for label in labels:
        if label.entry.keys() != columns:
            raise UserError(f"{label.where}: not as it was written; give the file another name")
    return [Label(**{**label.entry, "decision": label.decision}) for label in labels]


def _made(given: Sequence[GivenLabel], rows: Mapping[str, ReviewRow], file: str) -> list[Label]:
    """Add the texts to labels and scrub the corrected answers; `file` stands for a labeller."""
    corrected = _scrubbed([(label, rows[label.request_id]) for label in given if label.corrected])
    return [
        Label(
            label.request_id,
            rows[label.request_id].day,
            label.decision,
            corrected.get(label.request_id),
            label.by or file,
            label.at or "",
            rows[label.request_id].messages,
            rows[label.request_id].answer,
            rows[label.request_id].stratum,
            rows[label.request_id].inclusion_probability,
        )
        for label in given
    ]


def _scrubbed(corrections: Sequence[tuple[GivenLabel, ReviewRow]]) -> dict[str, str]:
    """Return the corrected answers, scrubbed as their days were, by request id."""
    groups: dict[str, list[tuple[GivenLabel, ReviewRow]]] = defaultdict(list)
    for correction in corrections:
        groups[correction[1].data.model_dump_json()].append(correction)
    found: dict[str, str] = {}
    for document, some in groups.items():
        texts = [(label.corrected or "", row.surrogates) for label, row in some]
        config = DataConfig.model_validate_json(document)
        scrubber = make_scrubber(config)
        answers = _scrub_answers(scrubber, [label for label, _ in some], texts)
        found.update(zip([label.request_id for label, _ in some], answers, strict=True))
    return found


def _scrub_answers(
    scrubber: Scrubber, given: Sequence[GivenLabel], texts: Sequence[tuple[str, list[str]]]
) -> list[str]:
    """Scrub answers; surrogates of their rows stay, so that they match the prompt."""
    marked = [
        _replace(text, {s: _MARK.format(n) for n, s in enumerate(known)}) for text, known in texts
    ]
    batch: list[list[Message]] = [[{"role": "assistant", "content": text}] for text in marked]
    results = scrubber.scrub([label.request_id for label in given], batch)
    answers = []
    for label, result, (_, known) in zip(given, results, texts, strict=True):
        reason = reason_to_reject(result)
        if reason is not None:
            raise UserError(f"{label.where}: the corrected answer can't be scrubbed: {reason}")
        answer = result.messages[0]["content"]
        answers.append(_replace(answer, {_MARK.format(n): s for n, s in enumerate(known)}))
    return answers


def _replace(text: str, values: Mapping[str, Any]) -> str:
    """Replace whole words, the longest first."""
    if not values:
        return text
    ordered = sorted(values, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, ordered)) + r")(?!\w)")
    return pattern.sub(lambda match: values[match[0]], text)
