"""token_length_audit: no row exceeds the context used in training.

Tokens are counted with the target tokenizer. The limit is the smaller of the training length and
the model's own context. A longer row is rejected or, by policy, split at its user turns; it is
never cut. Where the chat template writes an answer otherwise once more turns follow, a row with
several answers becomes one for each, whatever its length.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise, starmap, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tuneline.artifacts.data import AUDIT, REJECTED, ROWS, rows_of
from tuneline.bases import base_of
from tuneline.config.data import TargetFormat
from tuneline.data.engine import engine_of
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.removed_rows import conclude
from tuneline.data.tables.rows import (
    ROW_COLUMNS,
    Message,
    Row,
    TableWriter,
    base_id,
    rows_before,
    write_decisions,
)
from tuneline.evidence import Evidence, measure
from tuneline.machine.workers import Engine, Kernel, as_batch, rows_in
from tuneline.models.tool_turns import is_result
from tuneline.plots import save

if TYPE_CHECKING:
    from tuneline.step_context import StepContext

ITEM = "token_length_audit"
HISTOGRAM = "token_lengths.svg"
# Rows in memory at once.
_AT_ONCE = 1 << 12


def _exchanges(turns: Sequence[Message]) -> list[int]:
    """Return where exchanges begin; the results of calls are part of one."""
    return [n for n in range(0, len(turns), 2) if not is_result(turns[n])]


def split_at_turns(
    messages: Sequence[Message], limit: int, renderer: Renderer
) -> list[list[Message]] | None:
    """Split a conversation into pieces of whole exchanges that fit; None if one alone does not."""
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    rest = messages[len(system) :]
    pieces: list[list[Message]] = []
    current: list[Message] = []
    starts = [*_exchanges(rest), len(rest)]
    for start, end in pairwise(starts):
        exchange = list(rest[start:end])
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


def end_in_each_answer(
    messages: Sequence[Message], limit: int, renderer: Renderer
) -> list[list[Message]] | None:
    """Return a row for each answer, with as many exchanges before it as fit; None if one can't."""
    system = list(messages[:1]) if messages[0]["role"] == "system" else []
    pieces = []
    for asked in renderer.learned_as(messages):
        turns = asked[len(system) :]

        def too_long(start: int, turns: Sequence[Message] = turns) -> bool:
            return renderer.count([renderer.text([*system, *turns[start:]])])[0] > limit

        starts = _exchanges(turns)
        # The more exchanges are left out, the shorter it is.
        first = bisect_left(starts, True, key=lambda start: not too_long(start))
        if first == len(starts):
            return None
        pieces.append([*system, *turns[starts[first] :]])
    return pieces


class Fit(NamedTuple):
    """A row's tokens as it came in; why it leaves, or the pieces and tokens that it is split to."""

    tokens: int
    reason: str | None = None
    pieces: Sequence[tuple[list[Message], int]] = ()

    def kept(self, row: Row) -> Iterator[Row]:
        """Yield what stays of the row."""
        if self.reason is None and not self.pieces:
            yield row if row.n_tokens == self.tokens else replace(row, n_tokens=self.tokens)
        for k, (piece, tokens) in enumerate(self.pieces):
            name = f"{row.row_id}#{k}"
            yield replace(row, row_id=name, messages=piece, n_tokens=tokens, stand_ins=())


# The turns of a row, its tokens (0: not counted), and `served_by`.
Counted = tuple[list[Message], int, str | None]


def fit(rows: Sequence[Counted], limit: int, renderer: Renderer, policy: str) -> list[Fit]:
    """Count tokens, and reject or split the rows over the limit.

    A row that schema_validation counted and that no step changed since is not counted again.
    """
    fresh = iter(renderer.count(renderer.text(turns) for turns, counted, _ in rows if not counted))
    found: list[Fit] = []
    for turns, counted, served_by in rows:
        length = counted or next(fresh)
        # Of a row of production the last answer alone is learned: a client may have written others.
        parts = renderer.learned_as(turns) if served_by is None else [turns]
        if length <= limit and len(parts) == 1:
            found.append(Fit(length))
            continue
        if length > limit:
            splits = policy == "split" and served_by is None
            divide = split_at_turns if renderer.stays(turns) else end_in_each_answer
            parts = (divide(turns, limit, renderer) if splits else None) or []
        if not parts:
            found.append(Fit(length, f"too_long: {length} tokens, the limit is {limit}"))
            continue
        counts = renderer.count([renderer.text(piece) for piece in parts])
        found.append(Fit(length, pieces=list(zip(parts, counts, strict=True))))
    return found


def _fitter(tokenizer: Any, target: TargetFormat, limit: int, policy: str) -> Kernel:
    renderer = Renderer(tokenizer, target)
    return lambda batch: as_batch(fit(list(rows_in(batch)), limit, renderer, policy))


@dataclass
class _Audited:
    """The tokens of each row that came in, why it leaves, and the longest that stays of it."""

    lengths: list[int] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)
    longest: dict[str, int] = field(default_factory=dict)
    total: int = 0
    split: int = 0

    def kept(
        self, rows: Sequence[Row], make: Callable[[], Kernel], engine: Engine
    ) -> Iterator[Row]:
        """Yield what stays; count all rows."""
        starts = range(0, len(rows), _AT_ONCE)
        given, parts = tee(rows[start : start + _AT_ONCE] for start in starts)
        sent = (as_batch((r.messages, r.n_tokens, r.served_by) for r in part) for part in given)
        for part, batch in zip(parts, engine.map(make, sent, 1), strict=True):
            for row, found in zip(part, starmap(Fit, rows_in(batch)), strict=True):
                self.lengths.append(found.tokens)
                self.reasons.append(found.reason)
                self.split += bool(found.pieces)
                for piece in found.kept(row):
                    length = max(piece.n_tokens, self.longest.get(base_id(row.row_id), 0))
                    self.longest[base_id(row.row_id)] = length
                    self.total += piece.n_tokens
                    yield piece


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
    save(figure, path)


def run(ctx: StepContext) -> Evidence:
    """Count the tokens of every row; reject or split the rows over the limit."""
    import numpy as np

    from tuneline.models import load_tokenizer

    config = ctx.config.data
    rows = rows_before(ctx)
    base = base_of(ctx, weights=False)
    limit = min(config.max_tokens, base.context_length)
    renderer = Renderer(load_tokenizer(base.path), config.target_format)
    make = partial(_fitter, renderer.tokenizer, config.target_format, limit, config.too_long)
    counted = _Audited()
    with TableWriter(rows_of(ITEM).path(ctx), ROW_COLUMNS) as table:
        table.write(counted.kept(rows, make, engine_of(config)))
    lengths, longest = counted.lengths, counted.longest
    gone = write_decisions(
        ctx,
        rows,
        counted.reasons,
        n_tokens=lengths,
        kept_tokens=[longest.get(row_id) for row_id in rows.column("row_id")],
        over_limit=[int(length > limit) for length in lengths],
    )
    plot_lengths(ctx.out / HISTOGRAM, lengths, limit)
    over = sum(length > limit for length in lengths)
    p50, p99 = (float(np.percentile(lengths, q)) for q in (50, 99))
    more = counted.split - (over - gone)
    each_answer = f"; {more} more became a row for each answer" if more else ""
    measurements = [
        measure("rows_in", len(rows), "rows"),
        measure("rows_kept", len(rows) - gone, "rows", ">=", 1),
        measure("rows_lost", len(rows) - gone - len(longest), "rows", "==", 0),
        measure("limit", limit, "tokens"),
        measure("tokens_max", max(longest.values(), default=None), "tokens", "<=", limit),
        measure("tokens_total", counted.total, "tokens"),
        measure("over_limit_share", over / len(rows), "share", "<=", config.max_too_long_share),
        measure("rows_split", counted.split, "rows"),
    ]
    return conclude(
        ctx,
        f"{len(rows) - over} of {len(rows)} rows fit into {limit} tokens (median {p50:.0f}, p99 "
        f"{p99:.0f}); of the {over} longer ones {gone} were rejected and {over - gone} split "
        f"at turns{each_answer}.",
        measurements,
        rows={ROWS: table.rows, REJECTED: gone, AUDIT: len(rows)},
    )
