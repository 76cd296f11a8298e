"""schema_validation: every row follows the model's prompt format, or is rejected with its line.

Rows are compared with the tokenizer's own chat template token id by token id; the loss mask must
cover exactly the assistant's tokens. Rows in = rows kept + rows rejected.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, tee
from typing import TYPE_CHECKING, Any

import numpy as np

from tuneline.artifacts.data import AUDIT, REJECTED, UNSCRUBBED, audit_of, rejected_of
from tuneline.bases import base_of
from tuneline.config import DataConfig
from tuneline.config.data import AUTO
from tuneline.data.conversations.answers import JSON_MAJORITY, AnswerCounts, check_answers
from tuneline.data.conversations.formats import Malformed
from tuneline.data.conversations.reading import (
    NOT_SELECTED,
    FileForm,
    Outcome,
    Records,
    left_out,
    number_repeats,
    read_dataset,
)
from tuneline.data.conversations.tool_calls import Conversation, added_markers, plain_turns
from tuneline.data.conversations.turn_checks import (
    ALPACA_MARKERS,
    ROLES,
    TEMPLATE_MARKERS,
    check_turns,
)
from tuneline.data.engine import engine_of
from tuneline.data.rendering.renderer import Parity, Renderer, compare
from tuneline.data.sources.streams import BROKEN_FILE
from tuneline.data.tables.removed_rows import conclude
from tuneline.data.tables.rows import (
    REJECT_COLUMNS,
    ROW_COLUMNS,
    Message,
    Spool,
    TableWriter,
    class_key,
)
from tuneline.errors import UserError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.machine.workers import Engine, Kernel, as_batch, rows_in
from tuneline.models.tool_turns import TOOL_MARKERS
from tuneline.run import LABEL_FIELD

if TYPE_CHECKING:
    import pyarrow as pa

    from tuneline.step_context import StepContext

ITEM = "schema_validation"
# Up to this number of files each form is a measurement; above it, the files are counted by form.
MOST_FORMS = 8


def check_system(outcome: Outcome, rule: str) -> str | None:
    """Return the reason why a row breaks the rule for system turns, None if it doesn't."""
    turns = outcome.messages if outcome.conversation is None else outcome.conversation.messages
    present = bool(turns) and turns[0]["role"] == "system"
    if rule == "required" and not present:
        return "system_missing: data.system_prompt asks for a system turn"
    if rule == "forbidden" and present:
        return "system_forbidden: data.system_prompt allows no system turn"
    return None


def markers_of(renderer: Renderer) -> tuple[str, ...]:
    """Return the texts that no turn may hold: special tokens and template markers."""
    special = {
        str(token) for token in renderer.tokenizer.added_tokens_decoder.values() if token.special
    }
    more = ALPACA_MARKERS if renderer.target == "alpaca" else ()
    return tuple(sorted(special.union(TEMPLATE_MARKERS, more)))


def render(outcomes: Sequence[Outcome], renderer: Renderer) -> None:
    """Compare rows with the tokenizer's own template; `take_rendering` rejects by it."""
    live = list(_live(outcomes))
    for outcome, parity in zip(live, compare([o.messages for o in live], renderer), strict=True):
        outcome.parity = parity


def take_rendering(outcomes: Iterable[Outcome]) -> None:
    """Reject the rows, of those that passed the other checks, without an exact mask."""
    for outcome in outcomes:
        if outcome.reason is None and outcome.parity is not None:
            reason, equal, exact, tokens, *_ = outcome.parity
            outcome.reason, outcome.tokens_equal = reason, equal
            outcome.mask_exact, outcome.n_tokens = exact, tokens


def check_rows(
    outcomes: Sequence[Outcome], renderer: Renderer, markers: tuple[str, ...], config: DataConfig
) -> None:
    """Check each row on its own and make its turns plain; the outcomes take the reasons."""
    marks_of_calls = added_markers(renderer)
    for outcome in outcomes:
        if outcome.reason is None:
            outcome.reason = check_system(outcome, config.system_prompt)
        if outcome.reason is None and outcome.conversation is not None:
            try:
                every = (*markers, *marks_of_calls)
                outcome.messages = plain_turns(outcome.conversation, renderer, every)
            except Malformed as error:
                outcome.reason = str(error)
        if outcome.reason is None:
            # The marks of tools stand in no other row.
            own = TOOL_MARKERS if outcome.conversation is None else ()
            outcome.reason = check_turns(outcome.messages, (*markers, *own))


def validate(outcomes: Sequence[Outcome], renderer: Renderer, config: DataConfig) -> None:
    """Run every check on the rows of a dataset; the outcomes take the reasons."""
    check_rows(outcomes, renderer, markers_of(renderer), config)
    render(outcomes, renderer)
    check_answers(outcomes, config)
    take_rendering(outcomes)


def _checker(tokenizer: Any, config: DataConfig) -> Kernel:
    """Make the kernel of what each row is checked for on its own."""
    renderer = Renderer(tokenizer, config.target_format)
    markers = markers_of(renderer)

    def check(batch: pa.RecordBatch) -> pa.RecordBatch:
        outcomes = [Outcome("", "", 0, "", False) for _ in range(len(batch))]
        for outcome, (messages, conversation) in zip(outcomes, rows_in(batch), strict=True):
            outcome.messages = messages
            outcome.conversation = conversation and Conversation(**conversation)
        check_rows(outcomes, renderer, markers, config)
        render(outcomes, renderer)
        return as_batch((o.messages, o.reason, o.parity) for o in outcomes)

    return check


def _on_their_own(
    batches: Iterable[Sequence[Outcome]],
    renderer: Renderer,
    counts: AnswerCounts,
    config: DataConfig,
    engine: Engine,
) -> Iterator[Sequence[Outcome]]:
    """Check each row on its own, those that have no reason yet."""
    make = partial(_checker, renderer.tokenizer, config)
    given, batches = tee(batches)
    sent = (
        as_batch((o.messages, o.conversation and vars(o.conversation)) for o in _live(batch))
        for batch in given
    )
    for batch, found in zip(batches, engine.map(make, sent, 1), strict=True):
        for outcome, (messages, reason, parity) in zip(_live(batch), rows_in(found), strict=True):
            outcome.messages, outcome.reason = messages, reason
            outcome.parity = parity and Parity(*parity)
        counts.add(batch, config)
        yield batch


def _live(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    return (outcome for outcome in outcomes if outcome.reason is None)


def _checked(
    ctx: StepContext, read: Records, renderer: Renderer, engine: Engine
) -> tuple[Iterable[Sequence[Outcome]], AnswerCounts]:
    """Select and number the rows and check each on its own."""
    config = ctx.config.data
    counts = AnswerCounts()
    gone = left_out(chain.from_iterable(read.of_their_form(config)), config.csv)

    def numbered() -> Iterator[Sequence[Outcome]]:
        seen: Counter[str] = Counter()
        number = 0
        for batch in read.of_their_form(config):
            for at in gone.keys() & range(number, number + len(batch)) if gone else ():
                batch[at - number].reason = gone[at]
            number += len(batch)
            number_repeats((o for o in batch if o.row_id in read.repeated), seen)
            yield batch

    checked = _on_their_own(numbered(), renderer, counts, config, engine)
    checked = ctx.progress(checked, None, "checked batches of rows")
    if config.label_field is None:
        return checked, counts
    spool: Spool[Outcome] = Spool(ctx.scratch / "checked")
    for batch in checked:
        spool.add(batch)
    return spool, counts


@dataclass
class _Tally:
    """What is counted of the outcomes; `first` is line and code of the first rejected row."""

    rows: int = 0
    kept: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    lines: dict[str, array[int]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    mismatches: int = 0
    inexact: int = 0
    first: tuple[int, str] | None = None

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Count the outcomes of a batch."""
        self.rows += len(outcomes)
        for outcome in outcomes:
            lines = self.lines.setdefault(outcome.source_file, array("q"))
            lines.append(outcome.source_line)
            if outcome.reason is None:
                self.kept += 1
                self.mismatches += not outcome.tokens_equal
                self.inexact += not outcome.mask_exact
                continue
            self.codes[outcome.code] += 1
            if outcome.code == BROKEN_FILE:
                self.broken.add(outcome.source_file)
            if self.first is None and outcome.code != NOT_SELECTED:
                self.first = (outcome.source_line, outcome.code)

    @property
    def distinct_lines(self) -> int:
        """The number of source lines; several records may be from one."""
        return sum(len(np.unique(np.array(lines, dtype=np.int64))) for lines in self.lines.values())


def _write(ctx: StepContext, checked: Iterable[Sequence[Outcome]], counts: AnswerCounts) -> _Tally:
    """Finish the checks and write the tables, batch by batch."""
    import pyarrow.parquet as pq

    tally = _Tally()
    with (
        TableWriter(UNSCRUBBED.path(ctx), ROW_COLUMNS) as rows,
        TableWriter(rejected_of(ITEM).path(ctx), REJECT_COLUMNS) as rejects,
        pq.ParquetWriter(audit_of(ITEM).path(ctx), _audited([]).schema) as audit,
    ):
        for batch in checked:
            check_answers(batch, ctx.config.data, counts)
            take_rendering(batch)
            rows.write(o.row() for o in batch if o.reason is None)
            rejects.write(o.reject() for o in batch if o.reason)
            audit.write_table(_audited(batch))
            tally.add(batch)
    return tally


def _audited(outcomes: Sequence[Outcome]) -> pa.Table:
    """Return the lines of the audit table, which holds no text."""
    import pyarrow as pa

    def last_role(messages: Sequence[Message]) -> str | None:
        role = messages[-1]["role"] if messages else None
        return role if role in (None, *ROLES) else "unknown"

    text, number, flag = pa.string(), pa.int64(), pa.bool_()
    columns: list[tuple[str, pa.DataType, Callable[[Outcome], object]]] = [
        ("row_id", text, lambda o: o.row_id),
        ("source_file", text, lambda o: o.source_file),
        ("source_line", number, lambda o: o.source_line),
        ("kept", flag, lambda o: o.reason is None),
        ("reason", text, lambda o: o.code or None),
        ("malformed", number, lambda o: int(o.code not in ("", NOT_SELECTED))),
        ("selected", flag, lambda o: o.code != NOT_SELECTED),
        ("turns", number, lambda o: len(o.messages)),
        # An unknown role may be any text.
        ("last_role", text, lambda o: last_role(o.messages)),
        ("tokens_equal", flag, lambda o: o.tokens_equal),
        ("mask_exact", flag, lambda o: o.mask_exact),
        ("has_label", flag, lambda o: o.label is not None),
        ("class", text, lambda o: class_key(o.label)),
    ]
    return pa.table({n: pa.array(map(value, outcomes), kind) for n, kind, value in columns})


def _conclude(ctx: StepContext, tally: _Tally, read: Records, counts: AnswerCounts) -> Evidence:
    kept, codes, config = tally.kept, tally.codes, ctx.config.data
    unselected = codes.pop(NOT_SELECTED, 0)
    rejected = codes.total()
    share = rejected / (kept + rejected) if kept + rejected else 1.0
    lost = read.in_files - min(tally.distinct_lines, kept + rejected + unselected)
    measurements = [
        measure("rows_in", read.in_files, "rows"),
        measure("rows_kept", kept, "rows", ">=", 1),
        measure("rows_rejected", rejected, "rows"),
        measure("rows_not_selected", unselected, "rows"),
        measure("rows_lost", lost, "rows", "==", 0),
        measure("rejected_share", share, "share", "<=", config.max_rejected_share),
        measure("token_mismatches", tally.mismatches, "rows", "==", 0),
        measure("inexact_masks", tally.inexact, "rows", "==", 0),
        *(measure(f"rejected_{code}", count, "rows") for code, count in sorted(codes.items())),
        measure("broken_files", len(tally.broken), "files", "<=", 0, on_breach="warn"),
        *_forms(read.forms),
        measure(LABEL_FIELD, (label := _class_of(ctx, counts)) or "", "field"),
    ]
    sizes = {UNSCRUBBED.name: kept, REJECTED: rejected + unselected, AUDIT: tally.rows}
    summary = _summary(config, tally)
    if config.label_field == AUTO:
        summary += f"; the class is in {label!r}" if label else "; no field is taken as a class"
        if not label and (most := counts.class_of(JSON_MAJORITY)):
            summary += f" ({most!r} is one in {counts.short[most]} answers: name it if it is)"
    return conclude(ctx, f"{summary}.", measurements, rows=sizes)


def _summary(config: DataConfig, tally: _Tally) -> str:
    kept, rejected, target = tally.kept, tally.codes.total(), config.target_format
    template = "the tokenizer's chat template" if target == "tokenizer" else target
    summary = f"{kept} of {kept + rejected} rows follow {template}"
    if not kept:
        summary = f"No row of {', '.join(config.sources)} can be trained on"
    commonest = sorted(tally.codes.items(), key=lambda entry: (-entry[1], entry[0]))
    why = ", ".join(f"{count} {code}" for code, count in commonest[:4])
    summary += f"; {rejected} rejected ({why})" if rejected else "; none rejected"
    if tally.first is not None and not kept:
        # Its code alone: the detail may quote the row, which belongs into quarantine.
        summary += f", the first in line {tally.first[0]} ({tally.first[1]})"
    return summary


def _forms(forms: Sequence[FileForm]) -> list[Measurement]:
    """Return the form of each file; of many files, the number that have each form."""
    if len(forms) <= MOST_FORMS:
        return [measure(f"form_of_{form.source_file}", form.form, "form") for form in forms]
    counts = Counter(form.form or "unknown" for form in forms)
    return [measure(f"files_of_{form}", count, "files") for form, count in sorted(counts.items())]


def run(ctx: StepContext) -> Evidence:
    """Read the dataset, keep the rows that follow the format, reject the others."""
    from tuneline.models import load_tokenizer

    config = ctx.config.data
    engine = engine_of(config)  # first, so that none is missed after an hour of reading
    read = read_dataset(ctx)
    base = base_of(ctx, weights=False)
    renderer = Renderer(load_tokenizer(base.path), config.target_format)
    checked, counts = _checked(ctx, read, renderer, engine)
    return _conclude(ctx, _write(ctx, checked, counts), read, counts)


def _class_of(ctx: StepContext, counts: AnswerCounts) -> str | None:
    """Return the field of the class; UserError if production needs one and none was found."""
    config, label = ctx.config, counts.label_field(ctx.config.data)
    asked = label is None and config.data.label_field == AUTO and config.profile == "production"
    if asked and ctx.run.policy.floors(config.name, config.profile)["data.label_field"]:
        raise UserError(
            "the policy asks for a class in every answer, and no one field of them has short texts "
            "that repeat; name it in data.label_field, or set that to null with a waiver"
        )
    return label
