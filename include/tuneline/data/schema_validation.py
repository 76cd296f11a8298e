"""Every example follows the model's prompt format, or is rejected with its reason and line.

Rows are read record by record, turned into turns, checked, rendered for the target model and
held against the tokenizer's own chat template token id by token id; the loss mask must cover
exactly the assistant's tokens. Rows in = rows kept + rows rejected.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
from tuneline.data.sources.opened import SOURCES, open_files
from tuneline.data.sources.records import BROKEN_FILE
from tuneline.data.tables.rows import (
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
from tuneline.evidence import Evidence, Measurement, measure

if TYPE_CHECKING:
    from tuneline.run import StepContext

ITEM = "schema_validation"
# The form of each file is told for so many files; of more, how many have each form.
MOST_FORMS = 8


def check_turns(messages: Sequence[Message], markers: tuple[str, ...]) -> str | None:
    """Why a row's turns can't be trained on, None when they can."""
    return (
        check_roles(messages)
        or check_unicode(messages)
        or check_empty(messages)
        or check_injection(messages, markers)
    )


def check_system(outcome: Outcome, rule: str) -> str | None:
    """Why a row breaks the rule for system turns, None when it does not."""
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
    """What no turn may hold: special tokens and template markers."""
    special = {
        str(token) for token in renderer.tokenizer.added_tokens_decoder.values() if token.special
    }
    more = ALPACA_MARKERS if renderer.target == "alpaca" else ()
    return tuple(sorted(special.union(TEMPLATE_MARKERS, more)))


def check_rendering(outcomes: Sequence[Outcome], renderer: Renderer) -> None:
    """Compare rows with the tokenizer's own template, reject rows without an exact mask."""
    live = [outcome for outcome in outcomes if outcome.reason is None]
    found = compare([outcome.messages for outcome in live], renderer)
    for outcome, parity in zip(live, found, strict=True):
        outcome.reason = parity.reason
        outcome.tokens_equal, outcome.mask_exact = parity.tokens_equal, parity.mask_exact
        outcome.n_tokens = parity.tokens


def validate(outcomes: Sequence[Outcome], renderer: Renderer, config: DataConfig) -> None:
    """Run every check on the rows of a dataset; reasons are noted in the outcomes."""
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


def run(ctx: StepContext) -> Evidence:
    """Read the dataset, keep what follows the format, reject the rest."""
    from tuneline.models import load_tokenizer, resolve

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
        sources.append(opened.described(ref.sha256, ref.bytes, form.form))
    (ctx.out / SOURCES).write_text(json.dumps(sources, indent=1))
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
                n_tokens=o.n_tokens,
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
    commonest = sorted(codes.items(), key=lambda entry: (-entry[1], entry[0]))
    why = ", ".join(f"{count} {code}" for code, count in commonest[:4])
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
