"""Every example follows the model's prompt format, or is rejected with its reason and line.

Rows are read record by record, turned into turns, checked, rendered for the target model and
held against the tokenizer's own chat template token id by token id; the loss mask must cover
exactly the assistant's tokens. Rows in = rows kept + rows rejected.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.config import CsvMapping, DataConfig
from tuneline.data.answers import parse_answer
from tuneline.data.formats import Malformed, describe, detect, form_of, to_messages
from tuneline.data.rendering import Renderer
from tuneline.data.source_rows import open_files
from tuneline.data.sources import BROKEN_FILE, RawRecord
from tuneline.data.tables import (
    AUDIT,
    REJECTED,
    UNSCRUBBED,
    Message,
    Reject,
    Row,
    write_audit,
    write_rejects,
    write_rows,
)
from tuneline.data.template_parity import compare
from tuneline.data.turn_checks import (
    ALPACA_MARKERS,
    ROLES,
    TEMPLATE_MARKERS,
    check_empty,
    check_injection,
    check_roles,
    check_unicode,
)
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, measure

if TYPE_CHECKING:
    from tuneline.run import StepContext

ITEM = "schema_validation"
NOT_SELECTED = "not_selected"
# From this share on, a file's answers are taken to be JSON, and those that are not for faults.
JSON_MAJORITY = 0.5
# The form of each file is told for so many files; of more, how many have each form.
MOST_FORMS = 8


@dataclass
class Outcome:
    """What became of one record."""

    row_id: str
    source_file: str
    source_line: int
    raw: str
    own_holdout: bool
    label: str | None = None
    messages: list[Message] = field(default_factory=list)
    reason: str | None = None
    tokens_equal: bool | None = None
    mask_exact: bool | None = None

    @property
    def code(self) -> str:
        """The reason without its detail, empty for a row that is kept."""
        return (self.reason or "").split(":", 1)[0]


@dataclass(frozen=True)
class FileForm:
    """The form found in a file, with the share of its records that have it."""

    source_file: str
    form: str | None
    confidence: float


def select(outcomes: Iterable[Outcome], mapping: CsvMapping | None) -> None:
    """Mark the rows that a CSV mapping leaves out (`keep_labels`, `max_per_label`).

    Of a class with too many rows those with the lowest hashes stay, so that the order of the
    rows does not matter.
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

    Each record is read by its own form first, so that none has to be held until the form of the
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
    """Give records with equal text ids of their own: `id`, `id-2`, `id-3`."""
    seen: Counter[str] = Counter()
    for outcome in outcomes:
        seen[outcome.row_id] += 1
        if seen[outcome.row_id] > 1:
            outcome.row_id = f"{outcome.row_id}-{seen[outcome.row_id]}"


def check_turns(messages: Sequence[Message], markers: tuple[str, ...]) -> str | None:
    """Why a row's turns can't be trained on, None when they can."""
    return (
        check_roles(messages)
        or check_unicode(messages)
        or check_empty(messages)
        or check_injection(messages, markers)
    )


def markers_of(renderer: Renderer) -> tuple[str, ...]:
    """What no turn may hold: special tokens and template markers."""
    special = {
        str(token) for token in renderer.tokenizer.added_tokens_decoder.values() if token.special
    }
    more = ALPACA_MARKERS if renderer.target == "alpaca" else ()
    return tuple(sorted(special.union(TEMPLATE_MARKERS, more)))


def check_answers(outcomes: Sequence[Outcome], config: DataConfig) -> None:
    """Hold answers against the schema, or against what most answers are; take their labels.

    Without a schema, answers must be JSON objects when most of the dataset's are, and have the
    label field when most of those objects have it.
    """
    live = [outcome for outcome in outcomes if outcome.reason is None]
    parsed = [parse_answer(outcome.messages[-1]["content"]) for outcome in live]
    for outcome, value in zip(live, parsed, strict=True):
        if value is not None and "\\u" in outcome.messages[-1]["content"]:
            decoded = json.dumps(value, ensure_ascii=False)
            outcome.reason = check_unicode([{"role": "assistant", "content": decoded}])
    pairs = [(o, v) for o, v in zip(live, parsed, strict=True) if o.reason is None]
    live, parsed = [o for o, _ in pairs], [v for _, v in pairs]
    objects = [value for value in parsed if isinstance(value, dict)]
    name = config.label_field
    if config.answer_schema is not None:
        _check_schema(live, parsed, config.answer_schema)
    elif name is None or len(objects) <= JSON_MAJORITY * len(live):
        return
    else:
        for outcome, value in zip(live, parsed, strict=True):
            if not isinstance(value, dict):
                outcome.reason = "answer_not_json: most answers are JSON objects, this is none"
    if name is None or sum(name in value for value in objects) <= JSON_MAJORITY * len(objects):
        return
    for outcome, value in zip(live, parsed, strict=True):
        if outcome.reason is not None:
            continue
        label = value.get(name) if isinstance(value, dict) else None
        if label is None or isinstance(label, dict | list) or not str(label).strip():
            outcome.reason = f"answer_without_label: the answer has no text in {name!r}"
        elif outcome.label is None:
            outcome.label = str(label)


def _check_schema(live: Sequence[Outcome], parsed: Sequence[Any], schema: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise UserError(f"data.answer_schema is no JSON Schema: {error.message}") from None
    validator = Draft202012Validator(schema)
    for outcome, value in zip(live, parsed, strict=True):
        if value is None:
            outcome.reason = "answer_not_json: data.answer_schema asks for JSON"
            continue
        fault = next(validator.iter_errors(value), None)
        if fault is not None:
            where = "/".join(map(str, fault.absolute_path)) or "its top level"
            outcome.reason = f"answer_schema: at {where}, {fault.validator} is not met"


def check_rendering(outcomes: Sequence[Outcome], renderer: Renderer) -> None:
    """Compare rows with the tokenizer's own template, reject rows without an exact mask."""
    live = [outcome for outcome in outcomes if outcome.reason is None]
    found = compare([outcome.messages for outcome in live], renderer)
    for outcome, parity in zip(live, found, strict=True):
        outcome.reason = parity.reason
        outcome.tokens_equal, outcome.mask_exact = parity.tokens_equal, parity.mask_exact


def validate(outcomes: Sequence[Outcome], renderer: Renderer, config: DataConfig) -> None:
    """Run every check on the rows of a dataset; reasons are noted in the outcomes."""
    markers = markers_of(renderer)
    for outcome in outcomes:
        if outcome.reason is None:
            outcome.reason = check_turns(outcome.messages, markers)
    check_answers(outcomes, config)
    check_rendering(outcomes, renderer)


def run(ctx: StepContext) -> Evidence:
    """Read the dataset, keep what follows the format, reject the rest."""
    from tuneline.models import load_tokenizer, resolve

    config = ctx.config.data
    outcomes: list[Outcome] = []
    forms = []
    in_files = 0
    for opened in open_files(config, ctx.scratch / "source"):
        found, form = convert(
            opened.records(config.csv), opened.file.name, config, own_holdout=opened.own_holdout
        )
        ctx.note_input(opened.input_name, opened.file.origin, opened.path, rows=len(found))
        in_files += opened.count()
        outcomes += found
        forms.append(form)
    for held in (False, True):
        select((o for o in outcomes if o.own_holdout == held), config.csv)
    number_repeats(outcomes)
    base = resolve(ctx.config.base_model, log=ctx.log)
    validate(outcomes, Renderer(load_tokenizer(base.path), config.target_format), config)
    _write(outcomes, ctx.out, ctx.quarantine)
    return _conclude(ctx, outcomes, forms, in_files)


def _write(outcomes: Sequence[Outcome], out: Path, quarantine: Path) -> None:
    write_rows(
        quarantine / Path(UNSCRUBBED).name,
        (
            Row(
                o.row_id,
                o.messages,
                o.source_file,
                o.source_line,
                label=o.label,
                own_holdout=o.own_holdout,
                raw=o.raw,
            )
            for o in outcomes
            if o.reason is None
        ),
    )
    write_rejects(
        quarantine / Path(REJECTED).name,
        (
            Reject(o.row_id, ITEM, o.reason, o.source_file, o.source_line, o.raw)
            for o in outcomes
            if o.reason is not None
        ),
    )
    write_audit(
        out / AUDIT,
        {
            "row_id": [o.row_id for o in outcomes],
            "source_file": [o.source_file for o in outcomes],
            "source_line": [o.source_line for o in outcomes],
            "kept": [o.reason is None for o in outcomes],
            "reason": [o.code or None for o in outcomes],
            "malformed": [int(o.code not in ("", NOT_SELECTED)) for o in outcomes],
            "selected": [o.code != NOT_SELECTED for o in outcomes],
            "turns": [len(o.messages) for o in outcomes],
            "last_role": [_last_role(o.messages) for o in outcomes],
            "tokens_equal": [o.tokens_equal for o in outcomes],
            "mask_exact": [o.mask_exact for o in outcomes],
            "has_label": [o.label is not None for o in outcomes],
        },
    )


def _last_role(messages: Sequence[Message]) -> str | None:
    """The last turn's role; what is no role is not repeated, since it may be any text."""
    if not messages:
        return None
    role = messages[-1]["role"]
    return role if role in ROLES else "unknown"


def _conclude(
    ctx: StepContext, outcomes: Sequence[Outcome], forms: Sequence[FileForm], in_files: int
) -> Evidence:
    config = ctx.config.data
    kept = [o for o in outcomes if o.reason is None]
    codes = Counter(o.code for o in outcomes if o.reason is not None)
    unselected = codes.pop(NOT_SELECTED, 0)
    selected = len(outcomes) - unselected
    rejected = codes.total()
    share = rejected / selected if selected else 1.0
    broken = {o.source_file for o in outcomes if o.code == BROKEN_FILE}
    lines = len({(o.source_file, o.source_line) for o in outcomes})
    lost = in_files - min(lines, len(kept) + rejected + unselected)
    measurements = [
        measure("rows_in", in_files, "rows"),
        measure("rows_kept", len(kept), "rows", ">=", 1),
        measure("rows_rejected", rejected, "rows"),
        measure("rows_not_selected", unselected, "rows"),
        measure("rows_lost", lost, "rows", "==", 0),
        measure("rejected_share", share, "share", "<=", config.max_rejected_share),
        measure(
            "token_mismatches",
            sum(not o.tokens_equal for o in kept),
            "rows",
            "==",
            0,
        ),
        measure("inexact_masks", sum(not o.mask_exact for o in kept), "rows", "==", 0),
        *(measure(f"rejected_{code}", count, "rows") for code, count in sorted(codes.items())),
    ]
    measurements += [
        measure("source_files", len(forms), "files"),
        measure("broken_files", len(broken), "files", "<=", 0, on_breach="warn"),
        *_forms(forms),
    ]
    why = ", ".join(f"{count} {code}" for code, count in codes.most_common(4))
    target = config.target_format
    shown = "the tokenizer's chat template" if target == "tokenizer" else target
    if kept:
        summary = f"{len(kept)} of {selected} rows follow {shown}"
    else:
        summary = f"No row of {', '.join(config.sources)} can be trained on"
    summary += f"; {rejected} rejected ({why})" if rejected else "; none rejected"
    first = next((o for o in outcomes if o.code not in ("", NOT_SELECTED)), None)
    if first is not None and not kept:
        # Its code alone: the detail may quote the row, which belongs into quarantine.
        summary += f", the first in line {first.source_line} ({first.code})"
    summary += "."
    return ctx.conclude(
        summary,
        measurements,
        rows={UNSCRUBBED: len(kept), REJECTED: rejected + unselected, AUDIT: len(outcomes)},
    )


def _forms(forms: Sequence[FileForm]) -> list[Measurement]:
    """The form of each file; of many files, how many have each form."""
    if len(forms) <= MOST_FORMS:
        return [
            measurement
            for form in forms
            for measurement in (
                measure(f"form_of_{form.source_file}", form.form, "form"),
                measure(f"form_confidence_{form.source_file}", form.confidence, "share"),
            )
        ]
    counts = Counter(form.form or "unknown" for form in forms)
    return [
        *(measure(f"files_of_{form}", count, "files") for form, count in sorted(counts.items())),
        measure("form_confidence_lowest", min(form.confidence for form in forms), "share"),
    ]
