"""schema_validation: every row follows the model's prompt format, or is rejected with its line.

Rows are read record by record, turned into turns, checked, rendered for the target model and
compared with the tokenizer's own chat template token id by token id; the loss mask must cover
exactly the assistant's tokens. Rows in = rows kept + rows rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tuneline.artifacts.data import AUDIT, REJECTED, SOURCES, UNSCRUBBED, audit_of, rejected_of
from tuneline.bases import base_of
from tuneline.config import DataConfig
from tuneline.data.conversations.answer_checks import check_answers
from tuneline.data.conversations.formats import Malformed
from tuneline.data.conversations.outcomes import (
    NOT_SELECTED,
    FileForm,
    Outcome,
    convert,
    number_repeats,
    select,
)
from tuneline.data.conversations.tool_calls import added_markers, plain_turns
from tuneline.data.conversations.turn_checks import (
    ALPACA_MARKERS,
    ROLES,
    TEMPLATE_MARKERS,
    check_empty,
    check_injection,
    check_roles,
    check_unicode,
)
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.rendering.template_parity import compare
from tuneline.data.sources.opened import open_files
from tuneline.data.sources.raw_record import BROKEN_FILE
from tuneline.data.tables.rows import Message, write_audit, write_rejects, write_rows
from tuneline.evidence import Evidence, Measurement, measure

if TYPE_CHECKING:
    from tuneline.run import StepContext

ITEM = "schema_validation"
# Up to this number of files each form is a measurement; above it, the files are counted by form.
MOST_FORMS = 8


def check_turns(messages: Sequence[Message], markers: tuple[str, ...]) -> str | None:
    """Return the reason why a row's turns can't be trained on, None if they can."""
    return (
        check_roles(messages)
        or check_unicode(messages)
        or check_empty(messages)
        or check_injection(messages, markers)
    )


def check_system(outcome: Outcome, rule: str) -> str | None:
    """Return the reason why a row breaks the rule for system turns, None if it doesn't."""
    conversation = outcome.conversation
    turns = conversation.messages if conversation is not None else outcome.messages
    present = bool(turns) and turns[0]["role"] == "system"
    if rule == "required" and not present:
        return "system_missing: data.system_prompt asks for a system turn"
    if rule == "forbidden" and present:
        return "system_forbidden: data.system_prompt allows no system turn"
    return None


def make_plain(outcomes: Sequence[Outcome], renderer: Renderer, markers: tuple[str, ...]) -> None:
    """Write rows with tools as plain turns."""
    markers = (*markers, *added_markers(renderer))
    for outcome in outcomes:
        if outcome.conversation is None:
            continue
        try:
            outcome.messages = plain_turns(outcome.conversation, renderer, markers)
        except Malformed as error:
            outcome.reason = str(error)


def markers_of(renderer: Renderer) -> tuple[str, ...]:
    """Return the texts that no turn may hold: special tokens and template markers."""
    special = {
        str(token) for token in renderer.tokenizer.added_tokens_decoder.values() if token.special
    }
    more = ALPACA_MARKERS if renderer.target == "alpaca" else ()
    return tuple(sorted(special.union(TEMPLATE_MARKERS, more)))


def check_rendering(outcomes: Sequence[Outcome], renderer: Renderer) -> None:
    """Compare rows with the tokenizer's own template; reject rows without an exact mask."""
    live = [outcome for outcome in outcomes if outcome.reason is None]
    found = compare([outcome.messages for outcome in live], renderer)
    for outcome, parity in zip(live, found, strict=True):
        outcome.reason = parity.reason
        outcome.tokens_equal, outcome.mask_exact = parity.tokens_equal, parity.mask_exact
        outcome.n_tokens = parity.tokens


def validate(outcomes: Sequence[Outcome], renderer: Renderer, config: DataConfig) -> None:
    """Run every check on the rows of a dataset; the outcomes take the reasons."""
    markers = markers_of(renderer)
    for outcome in outcomes:
        if outcome.reason is None:
            outcome.reason = check_system(outcome, config.system_prompt)
    make_plain([o for o in outcomes if o.reason is None], renderer, markers)
    for outcome in outcomes:
        if outcome.reason is None:
            outcome.reason = check_turns(outcome.messages, markers)
    check_answers(outcomes, config)
    check_rendering(outcomes, renderer)


def _read(ctx: StepContext) -> tuple[list[Outcome], list[FileForm], int]:
    """Read every file of the dataset, and note it for the dataset's card.

    Returns:
        The outcome of each record, the form of each file, and the number of records counted
        independently of the reader.
    """
    config = ctx.config.data
    outcomes: list[Outcome] = []
    forms = []
    sources = []
    in_files = 0
    for opened in open_files(config, ctx.scratch / "source"):
        found, form = convert(
            opened.records(config.csv), opened.file.name, config, own_holdout=opened.own_holdout
        )
        ctx.note_input(opened.input_name, opened.file.origin, opened.path, rows=len(found))
        in_files += opened.count()
        outcomes += found
        forms.append(form)
        ref = ctx.inputs[opened.input_name]
        sources.append(opened.note(ref.sha256, ref.bytes, form.form))
    SOURCES.write(ctx, SOURCES.model(sources))
    return outcomes, forms, in_files


def _write(ctx: StepContext, outcomes: Sequence[Outcome]) -> None:
    write_rows(UNSCRUBBED.path(ctx), (o.row() for o in outcomes if o.reason is None))
    write_rejects(rejected_of(ITEM).path(ctx), (o.reject() for o in outcomes if o.reason))
    write_audit(
        audit_of(ITEM).path(ctx),
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
    """Return the last turn's role; an unknown one may be any text and is not repeated."""
    if not messages:
        return None
    role = messages[-1]["role"]
    return role if role in ROLES else "unknown"


def _conclude(
    ctx: StepContext, outcomes: Sequence[Outcome], forms: Sequence[FileForm], in_files: int
) -> Evidence:
    kept = [o for o in outcomes if o.reason is None]
    codes = Counter(o.code for o in outcomes if o.reason is not None)
    unselected = codes.pop(NOT_SELECTED, 0)
    selected = len(outcomes) - unselected
    rejected = codes.total()
    share = rejected / selected if selected else 1.0
    broken = {o.source_file for o in outcomes if o.code == BROKEN_FILE}
    lines = len({(o.source_file, o.source_line) for o in outcomes})
    lost = in_files - min(lines, len(kept) + rejected + unselected)
    mismatches = sum(not o.tokens_equal for o in kept)
    measurements = [
        measure("rows_in", in_files, "rows"),
        measure("rows_kept", len(kept), "rows", ">=", 1),
        measure("rows_rejected", rejected, "rows"),
        measure("rows_not_selected", unselected, "rows"),
        measure("rows_lost", lost, "rows", "==", 0),
        measure("rejected_share", share, "share", "<=", ctx.config.data.max_rejected_share),
        measure("token_mismatches", mismatches, "rows", "==", 0),
        measure("inexact_masks", sum(not o.mask_exact for o in kept), "rows", "==", 0),
        *(measure(f"rejected_{code}", count, "rows") for code, count in sorted(codes.items())),
        measure("source_files", len(forms), "files"),
        measure("broken_files", len(broken), "files", "<=", 0, on_breach="warn"),
        *_forms(forms),
    ]
    return ctx.conclude(
        _summary(ctx.config.data, outcomes, len(kept), codes),
        measurements,
        rows={
            UNSCRUBBED.name: len(kept),
            REJECTED: rejected + unselected,
            AUDIT: len(outcomes),
        },
    )


def _summary(
    config: DataConfig, outcomes: Sequence[Outcome], kept: int, codes: Counter[str]
) -> str:
    target = config.target_format
    template = "the tokenizer's chat template" if target == "tokenizer" else target
    rejected = codes.total()
    if kept:
        summary = f"{kept} of {kept + rejected} rows follow {template}"
    else:
        summary = f"No row of {', '.join(config.sources)} can be trained on"
    commonest = sorted(codes.items(), key=lambda entry: (-entry[1], entry[0]))
    why = ", ".join(f"{count} {code}" for code, count in commonest[:4])
    summary += f"; {rejected} rejected ({why})" if rejected else "; none rejected"
    first = next((o for o in outcomes if o.code not in ("", NOT_SELECTED)), None)
    if first is not None and not kept:
        # Its code alone: the detail may quote the row, which belongs into quarantine.
        summary += f", the first in line {first.source_line} ({first.code})"
    return f"{summary}."


def _forms(forms: Sequence[FileForm]) -> list[Measurement]:
    """Return the form of each file; of many files, the number that have each form."""
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


def run(ctx: StepContext) -> Evidence:
    """Read the dataset, keep the rows that follow the format, reject the others."""
    from tuneline.models import load_tokenizer

    config = ctx.config.data
    outcomes, forms, in_files = _read(ctx)
    for held in (False, True):
        select((o for o in outcomes if o.own_holdout == held), config.csv)
    number_repeats(outcomes)
    base = base_of(ctx, weights=False)
    validate(outcomes, Renderer(load_tokenizer(base.path), config.target_format), config)
    _write(ctx, outcomes)
    return _conclude(ctx, outcomes, forms, in_files)
