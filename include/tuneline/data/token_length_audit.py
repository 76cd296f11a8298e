"""No example exceeds the context used in training, counted with the target tokenizer.

The limit is the smaller of the training length and the model's own context. A longer row is
rejected or, by policy, split at its user turns; it is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import (
    AUDIT,
    REJECTED,
    ROWS,
    UNSCRUBBED,
    Message,
    Row,
    read_raws,
    rejects_of,
    rows_before,
    write_audit,
    write_rejects,
    write_rows,
)
from tuneline.evidence import Evidence, measure

if TYPE_CHECKING:
    from tuneline.run import StepContext

ITEM = "token_length_audit"
HISTOGRAM = "token_lengths.png"


def split_at_turns(
    messages: Sequence[Message], limit: int, renderer: Renderer
) -> list[list[Message]] | None:
    """Split a conversation into pieces that fit.

    Each piece starts with the system turn, if there is one, and holds whole exchanges, as many
    as fit.

    Returns:
        The pieces, or None when one exchange alone is over the limit.
    """
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    rest = messages[len(system) :]
    pieces: list[list[Message]] = []
    current: list[Message] = []
    for at in range(0, len(rest), 2):
        exchange = list(rest[at : at + 2])
        longer = [*system, *current, *exchange]
        alone = [*system, *exchange]
        lengths = renderer.count([renderer.text(longer), renderer.text(alone)])
        if lengths[1] > limit:
            return None
        if lengths[0] > limit:
            pieces.append([*system, *current])
            current = exchange
        else:
            current += exchange
    return [*pieces, [*system, *current]]


def fit(
    rows: Sequence[Row], limit: int, renderer: Renderer, policy: str
) -> tuple[list[Row], list[tuple[Row, str]], list[int]]:
    """Count tokens and deal with rows over the limit.

    Rows that schema_validation counted and that nobody changed since are not counted again here;
    the final audit counts every row.

    Returns:
        Rows that fit with their `n_tokens`, rows that leave with the reason, and the token count
        of every row as it came in.
    """
    uncounted = (row.messages for row in rows if not row.n_tokens)
    fresh = iter(renderer.count(renderer.texts(uncounted)))
    lengths = [row.n_tokens or next(fresh) for row in rows]
    kept: list[Row] = []
    left: list[tuple[Row, str]] = []
    for row, length in zip(rows, lengths, strict=True):
        if length <= limit:
            kept.append(replace(row, n_tokens=length))
            continue
        pieces = split_at_turns(row.messages, limit, renderer) if policy == "split" else None
        if pieces is None:
            left.append((row, f"too_long: {length} tokens, the limit is {limit}"))
            continue
        counts = renderer.count([renderer.text(piece) for piece in pieces])
        kept += [
            replace(row, row_id=f"{row.row_id}#{k}", messages=piece, n_tokens=count, stand_ins=())
            for k, (piece, count) in enumerate(zip(pieces, counts, strict=True))
        ]
    return kept, left, lengths


def plot_lengths(path: Path, lengths: Sequence[int], limit: int) -> None:
    """Draw the histogram of token counts with the limit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.hist(lengths, bins=min(60, max(10, len(set(lengths)))), color="#4878a8")
    axes.axvline(limit, color="#c0392b", linestyle="--", label=f"limit {limit}")
    axes.set_xlabel("tokens in the rendered row")
    axes.set_ylabel("rows")
    axes.legend()
    figure.savefig(path, dpi=120)


def run(ctx: StepContext) -> Evidence:
    """Count every row's tokens, reject or split what is too long."""
    import numpy as np

    from tuneline.models import load_tokenizer, resolve

    config = ctx.config.data
    rows = rows_before(ctx)
    base = resolve(ctx.config.base_model, log=ctx.log)
    limit = min(config.max_tokens, base.context_length)
    renderer = Renderer(load_tokenizer(base.path), config.target_format)
    kept, left, lengths = fit(rows, limit, renderer, config.too_long)
    write_rows(ctx.out / ROWS, kept)
    raws = read_raws(ctx.input("schema_validation", UNSCRUBBED), [row.row_id for row, _ in left])
    rejects = list(rejects_of(left, ITEM, raws))
    write_rejects(ctx.quarantine / Path(REJECTED).name, rejects)
    gone = {row.row_id for row, _ in left}
    longest: dict[str, int] = {}
    for row in kept:
        base_row = row.row_id.split("#", 1)[0]
        longest[base_row] = max(row.n_tokens, longest.get(base_row, 0))
    write_audit(
        ctx.out / AUDIT,
        {
            "row_id": [row.row_id for row in rows],
            "kept": [row.row_id not in gone for row in rows],
            "reason": ["too_long" if row.row_id in gone else None for row in rows],
            "n_tokens": lengths,
            "kept_tokens": [longest.get(row.row_id) for row in rows],
            "over_limit": [int(length > limit) for length in lengths],
        },
    )
    plot_lengths(ctx.out / HISTOGRAM, lengths, limit)
    over = sum(length > limit for length in lengths)
    p50, p95, p99 = (float(np.percentile(lengths, q)) for q in (50, 95, 99))
    measurements = [
        measure("rows_in", len(rows), "rows"),
        measure("rows_kept", len(rows) - len(left), "rows", ">=", 1),
        measure("rows_lost", len(rows) - len(left) - len(longest), "rows", "==", 0),
        measure("limit", limit, "tokens"),
        measure("tokens_p50", p50, "tokens"),
        measure("tokens_p95", p95, "tokens"),
        measure("tokens_p99", p99, "tokens"),
        measure("tokens_max_before", max(lengths), "tokens"),
        measure(
            "tokens_max",
            max((row.n_tokens for row in kept), default=None),
            "tokens",
            "<=",
            limit,
        ),
        measure("tokens_total", sum(row.n_tokens for row in kept), "tokens"),
        measure("over_limit_share", over / len(rows), "share", "<=", config.max_too_long_share),
        measure("rows_split", over - len(left), "rows"),
    ]
    return ctx.conclude(
        f"All rows fit into {limit} tokens (median {p50:.0f}, p99 {p99:.0f}); {over} were longer: "
        f"{len(left)} rejected, {over - len(left)} split at turns.",
        measurements,
        rows={ROWS: len(kept), REJECTED: len(rejects), AUDIT: len(rows)},
    )
