"""Turn the records of a file into turns, select and number them.

Each record leaves exactly one outcome, kept or rejected, so that none is lost.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tuneline.config import CsvMapping, DataConfig
from tuneline.data.conversations.formats import Malformed, describe, detect, form_of, to_messages
from tuneline.data.conversations.tool_calls import Conversation, read_conversation, uses_tools
from tuneline.data.sources.raw_record import RawRecord
from tuneline.data.tables.rows import Message, Reject, Row

NOT_SELECTED = "not_selected"


@dataclass
class Outcome:
    """One record on its way through schema_validation."""

    row_id: str
    source_file: str
    source_line: int
    raw: str
    own_holdout: bool
    label: str | None = None
    messages: list[Message] = field(default_factory=list)
    conversation: Conversation | None = None
    reason: str | None = None
    tokens_equal: bool | None = None
    mask_exact: bool | None = None
    n_tokens: int = 0

    @property
    def code(self) -> str:
        """The reason without its detail, empty for a row that is kept."""
        return (self.reason or "").split(":", 1)[0]

    def row(self) -> Row:
        """Return the row of a record that is kept."""
        return Row(
            self.row_id,
            self.messages,
            self.source_file,
            self.source_line,
            label=self.label,
            own_holdout=self.own_holdout,
            n_tokens=self.n_tokens,
            raw=self.raw,
        )

    def reject(self) -> Reject:
        """Return the reject of a record that is not kept."""
        assert self.reason is not None
        place = (self.source_file, self.source_line)
        return Reject(self.row_id, "schema_validation", self.reason, *place, self.raw)


@dataclass(frozen=True)
class FileForm:
    """The form of a file, with the share of its records that have it."""

    source_file: str
    form: str | None
    confidence: float


def select(outcomes: Iterable[Outcome], mapping: CsvMapping | None) -> None:
    """Mark the rows that a CSV mapping leaves out (`keep_labels`, `max_per_label`).

    In a class with too many rows those with the lowest hashes stay, whatever their order.
    """
    if mapping is None:
        return
    classes: dict[str | None, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.reason is not None:
            continue
        if mapping.keep_labels and outcome.label not in mapping.keep_labels:
            outcome.reason = f"{NOT_SELECTED}: its class is not in data.csv.keep_labels"
        else:
            classes.setdefault(outcome.label, []).append(outcome)
    if mapping.max_per_label is None:
        return
    for rows in classes.values():
        for outcome in sorted(rows, key=lambda o: o.row_id)[mapping.max_per_label :]:
            outcome.reason = f"{NOT_SELECTED}: over data.csv.max_per_label"


def convert(
    records: Iterable[RawRecord], source_file: str, config: DataConfig, *, own_holdout: bool
) -> tuple[list[Outcome], FileForm]:
    """Turn a file's records into turns, and detect the form that they have.

    Each record is read by its own form first, so that no record is held until the form of the
    file is known; then those of another form are rejected.
    """
    outcomes: list[Outcome] = []
    forms: dict[int, str | None] = {}
    for record in records:
        outcome = Outcome(
            _digest(record.raw), source_file, record.source_line, record.raw, own_holdout
        )
        outcome.label = record.label
        outcome.reason = record.fault
        outcomes.append(outcome)
        if record.fault is not None:
            continue
        own = form_of(record.value)
        forms[len(outcomes) - 1] = own
        form = own if config.format == "auto" else config.format
        try:
            if form is None:
                raise Malformed(f"unknown_format: {describe(record.value)}")
            if form == "messages" and uses_tools(record.value):
                outcome.conversation = read_conversation(record.value)
            else:
                outcome.messages = to_messages(record.value, form)
        except Malformed as error:
            outcome.reason = str(error)
    if config.format != "auto":
        return outcomes, FileForm(source_file, config.format, 1.0)
    form, confidence = detect(forms.values())
    for position, own in forms.items():
        if own == form and form is not None:
            continue
        outcome = outcomes[position]
        outcome.messages = []
        if form is None:
            outcome.reason = "unknown_format: the record has none of the known forms"
        else:
            what = own or (outcome.reason or "").removeprefix("unknown_format: ")
            outcome.reason = f"unknown_format: {what} in a file of {form}"
    return outcomes, FileForm(source_file, form, confidence)


def _digest(raw: str) -> str:
    return hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def number_repeats(outcomes: Iterable[Outcome]) -> None:
    """Number the ids of records with equal text: `id`, `id-2`, `id-3`."""
    seen: Counter[str] = Counter()
    for outcome in outcomes:
        seen[outcome.row_id] += 1
        if seen[outcome.row_id] > 1:
            outcome.row_id = f"{outcome.row_id}-{seen[outcome.row_id]}"
