"""Read the records of a dataset to disk, as turns in the form that each record has."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneline.artifacts.data import SOURCES
from tuneline.config import CsvMapping, DataConfig
from tuneline.data.conversations.formats import Malformed, describe, detect, form_of, to_messages
from tuneline.data.conversations.tool_calls import Conversation, read_conversation, uses_tools
from tuneline.data.rendering.renderer import Parity
from tuneline.data.sources.records import open_files
from tuneline.data.sources.streams import RawRecord
from tuneline.data.tables.rows import Message, Reject, Row, Spool

if TYPE_CHECKING:
    from tuneline.step_context import StepContext

NOT_SELECTED = "not_selected"
# Fields of a record that `tuneline logs reviewed` wrote.
REVIEWED_FIELDS = frozenset({"request_id", "labeller", "decision"})
# Fields that hold the id of a conversation, unless `data.conversation_field` names another.
CONVERSATION_FIELDS = ("conversation_id", "dialogue_id", "dialog_id", "thread_id")


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
    conversation_key: str | None = None
    parsed: bool = False
    own_form: str | None = None
    served_by: str | None = None
    day: str | None = None
    parity: Parity | None = None

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
            conversation=self.conversation_key,
            served_by=self.served_by,
            day=self.day,
        )

    def reject(self) -> Reject:
        """Return the reject of a record that is not kept."""
        assert self.reason is not None
        place = (self.source_file, self.source_line)
        return Reject(self.row_id, "schema_validation", self.reason, *place, self.raw)


@dataclass(frozen=True)
class FileForm:
    """The form of a file."""

    source_file: str
    form: str | None


def left_out(outcomes: Iterable[Outcome], mapping: CsvMapping | None) -> dict[int, str]:
    """Return the rows that a CSV mapping leaves out, with the reason, by number.

    In a class with too many rows those with the lowest hashes stay; the own hold-out counts apart.
    """
    found: dict[int, str] = {}
    if mapping is None:
        return found
    classes: dict[tuple[bool, str | None], list[tuple[str, int]]] = {}
    for number, outcome in enumerate(outcomes):
        if outcome.reason is not None:
            continue
        if mapping.keep_labels and outcome.label not in mapping.keep_labels:
            found[number] = f"{NOT_SELECTED}: its class is not in data.csv.keep_labels"
        elif mapping.max_per_label is not None:
            key = (outcome.own_holdout, outcome.label)
            classes.setdefault(key, []).append((outcome.row_id, number))
    for rows in classes.values():
        for _, number in sorted(rows)[mapping.max_per_label :]:
            found[number] = f"{NOT_SELECTED}: over data.csv.max_per_label"
    return found


def convert(
    records: Iterable[RawRecord], source_file: str, config: DataConfig, *, own_holdout: bool
) -> tuple[list[Outcome], FileForm]:
    """Turn a file's records into turns, and reject those that do not have the file's form."""
    outcomes = list(outcomes_of(records, source_file, config, own_holdout=own_holdout))
    form = file_form(source_file, Counter(o.own_form for o in outcomes if o.parsed), config)
    for outcome in outcomes:
        keep_form(outcome, form, config)
    return outcomes, form


def outcomes_of(
    records: Iterable[RawRecord], source_file: str, config: DataConfig, *, own_holdout: bool
) -> Iterator[Outcome]:
    """Turn records into turns, each by its own form; that of the file is known at its end."""
    names = config.conversation_field
    fields = CONVERSATION_FIELDS if names is None else (names,)
    for record in records:
        outcome = Outcome(
            _digest(record.raw), source_file, record.source_line, record.raw, own_holdout
        )
        outcome.label, outcome.reason = record.label, record.fault
        if record.fault is None:
            thread: Any = record.conversation
            if thread is None and isinstance(record.value, dict):
                ids = (record.value[n] for n in fields if record.value.get(n) is not None)
                thread = next(ids, None)
            is_id = isinstance(thread, str | int) and not isinstance(thread, bool)
            if is_id and str(thread).strip():
                outcome.conversation_key = _digest(str(thread))
            outcome.served_by, outcome.day = reviewed_request(record.value)
            _take_turns(outcome, record.value, config)
        yield outcome


def reviewed_request(record: Any) -> tuple[str | None, str | None]:
    """Return the model whose answer to a request a person reviewed, and its day; None if none."""
    if not isinstance(record, dict) or not record.keys() >= REVIEWED_FIELDS:
        return None, None
    return str(record.get("served_by") or "unknown"), str(record.get("day"))


def _take_turns(outcome: Outcome, value: Any, config: DataConfig) -> None:
    outcome.parsed = True
    outcome.own_form = form_of(value)
    form = outcome.own_form if config.format == "auto" else config.format
    try:
        if form is None:
            raise Malformed(f"unknown_format: {describe(value)}")
        if form == "messages" and uses_tools(value):
            outcome.conversation = read_conversation(value)
        else:
            outcome.messages = to_messages(value, form)
    except Malformed as error:
        outcome.reason = str(error)


def file_form(source_file: str, forms: Counter[str | None], config: DataConfig) -> FileForm:
    """Return the form of a file: the configured one, or that of most records."""
    if config.format != "auto":
        return FileForm(source_file, config.format)
    return FileForm(source_file, detect(forms.elements()))


def keep_form(outcome: Outcome, file: FileForm, config: DataConfig) -> None:
    """Reject a record that does not have the form of its file, if that was detected."""
    own, form = outcome.own_form, file.form
    if config.format != "auto" or not outcome.parsed or (own == form and form is not None):
        return
    outcome.messages = []
    if form is None:
        outcome.reason = "unknown_format: the record has none of the known forms"
    else:
        what = own or (outcome.reason or "").removeprefix("unknown_format: ")
        outcome.reason = f"unknown_format: {what} in a file of {form}"


def _digest(raw: str) -> str:
    return hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def number_repeats(outcomes: Iterable[Outcome], seen: Counter[str] | None = None) -> None:
    """Number the ids of records with equal text: `id`, `id-2`; `seen` counts earlier calls."""
    seen = Counter() if seen is None else seen
    for outcome in outcomes:
        seen[outcome.row_id] += 1
        if seen[outcome.row_id] > 1:
            outcome.row_id = f"{outcome.row_id}-{seen[outcome.row_id]}"


# Records in memory at once.
_AT_ONCE = 1 << 12


@dataclass
class Records:
    """The records of a dataset on disk; `in_files` is counted independently of the reader."""

    batches: Spool[Outcome]
    form_of_batch: list[FileForm] = field(default_factory=list)
    forms: list[FileForm] = field(default_factory=list)
    repeated: set[str] = field(default_factory=set)
    in_files: int = 0

    def of_their_form(self, config: DataConfig) -> Iterator[Sequence[Outcome]]:
        """Yield all batches; records that do not have the form of their file are rejected."""
        for batch, form in zip(self.batches, self.form_of_batch, strict=True):
            for outcome in batch:
                keep_form(outcome, form, config)
            yield batch


def read_dataset(ctx: StepContext) -> Records:
    """Read every file of the dataset, and note it for the dataset's card."""

    config = ctx.config.data
    read = Records(Spool(ctx.scratch / "outcomes"))
    sources = []
    digests = array("Q")
    for opened in open_files(config, ctx.scratch / "source"):
        outcomes = outcomes_of(
            opened.records(), opened.file.name, config, own_holdout=opened.own_holdout
        )
        own_forms: Counter[str | None] = Counter()
        batches = 0
        while batch := list(islice(outcomes, _AT_ONCE)):
            own_forms.update(outcome.own_form for outcome in batch if outcome.parsed)
            digests.extend(int(outcome.row_id, 16) for outcome in batch)
            read.batches.add(batch)
            batches += 1
        form = file_form(opened.file.name, own_forms, config)
        ctx.note_input(opened.input_name, opened.file.origin, opened.path, rows=opened.found)
        read.in_files += opened.count()
        read.forms.append(form)
        read.form_of_batch += [form] * batches
        ref = ctx.inputs[opened.input_name]
        sources.append(opened.note(ref.sha256, ref.bytes, form.form))
    SOURCES.write(ctx, SOURCES.model(sources))
    ordered = np.sort(np.array(digests, dtype=np.uint64))
    read.repeated = {f"{value:016x}" for value in ordered[1:][ordered[1:] == ordered[:-1]].tolist()}
    return read
