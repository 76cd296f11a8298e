"""Judge what a data item takes out: the share of the rows, of each class, by reason, with examples.

Everything is derived from the audit table and the rejects that the item has just written, and never
from text. Rows that leave because a setting states how many are wanted (`ASKED_FOR`) are counted
apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tuneline.artifacts.data import audit_of, rejected_of, rows_of
from tuneline.catalogue import data_item_before
from tuneline.config import DataConfig
from tuneline.config.data import DataItem
from tuneline.data.tables.rows import class_key
from tuneline.evidence import Evidence, Measurement, Verdict, measure

if TYPE_CHECKING:
    from tuneline.step_context import StepContext

# Reasons of rows that leave because a setting states how many rows are wanted.
ASKED_FOR = frozenset({"not_selected", "train_cap", "validation_cap", "holdout_cap"})


@dataclass(frozen=True)
class Levels:
    """Shares of all rows, and of a class of `least`, above which an item warns or fails."""

    warn: float
    fail: float
    class_warn: float
    class_fail: float
    least: int


def levels_of(item: str, config: DataConfig) -> Levels:
    """Return the levels of a data item.

    An older limit on the same rows (`max_rejected_share`, `max_too_long_share`) is the level at
    which its item fails, unless `removed_share_fail` names the item.
    """
    name = cast("DataItem", item)
    older: dict[DataItem, float] = {
        "schema_validation": config.max_rejected_share,
        "token_length_audit": config.max_too_long_share,
    }
    fail = {**older, **config.removed_share_fail}
    return Levels(
        config.removed_share_warn[name],
        fail[name],
        config.class_removed_share_warn[name],
        config.class_removed_share_fail[name],
        config.min_rows_per_class,
    )


REMOVED = "removed.json"
# Examples of each reason in removed.json, and the number of reasons with examples in the evidence.
EXAMPLES = 3
REASONS_SHOWN = 4
# Up to this item rows hold unscrubbed text, and a reason's detail or a class may quote it.
_UNSCRUBBED = ("schema_validation", "pii_scrubbing")


@dataclass(frozen=True)
class Example:
    """A removed row, without any of its text."""

    row_id: str
    source_file: str
    source_line: int
    reason: str

    def __str__(self) -> str:
        """Return the row's place, and the detail of the reason if there is one."""
        detail = self.reason.partition(": ")[2]
        return f"{self.source_file} line {self.source_line}" + (f" ({detail})" if detail else "")


@dataclass
class Class:
    """The rows of one class: its name (None if it may not be told), how many came in and left."""

    name: str | None = None
    rows: int = 0
    removed: int = 0

    @property
    def share(self) -> float:
        """The share of its rows that were removed."""
        return self.removed / self.rows if self.rows else 0.0


@dataclass
class Removed:
    """What an item took out, and (`asked_for`) what a setting asked to leave out."""

    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    asked_for: Counter[str] = field(default_factory=Counter)
    classes: dict[str, Class] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of the judged rows that were removed."""
        return self.reasons.total() / self.rows if self.rows else 0.0

    def large(self, least: int) -> list[Class]:
        """Return the classes with enough rows to be judged, those that lost most first."""
        return [group for group in self.classes.values() if group.rows >= least]


def count_removed(audit: Path, rejected: Path, *, scrubbed: bool) -> Removed:
    """Count what an item took out; details are shown if its rows came in scrubbed."""
    import pyarrow.parquet as pq

    table = pq.read_table(audit, columns=["class", "kept", "reason"])
    counts = table.group_by(["class", "kept", "reason"]).aggregate([([], "count_all")])
    found = Removed()
    classes: dict[str, Class] = defaultdict(Class)
    for entry in counts.to_pylist():
        reason, rows = entry["reason"], entry["count_all"]
        if reason in ASKED_FOR:
            found.asked_for[reason] += rows
            continue
        found.rows += rows
        gone = 0 if entry["kept"] else rows
        if gone:
            found.reasons[reason] += gone
        if entry["class"] is not None:
            classes[entry["class"]].rows += rows
            classes[entry["class"]].removed += gone
    found.classes = dict(sorted(classes.items(), key=lambda pair: (-pair[1].share, pair[0])))
    examples: dict[str, list[Example]] = defaultdict(list)
    with pq.ParquetFile(rejected) as file:
        batches = file.iter_batches(columns=["row_id", "source_file", "source_line", "reason"])
        for entry in (entry for batch in batches for entry in batch.to_pylist()):
            code = entry["reason"].partition(":")[0]
            if code not in ASKED_FOR and len(examples[code]) < EXAMPLES:
                shown = entry["reason"] if scrubbed else code
                examples[code].append(Example(**{**entry, "reason": shown}))
    found.examples = {code: some for code, some in examples.items() if some}
    return found


def judge(found: Removed, levels: Levels) -> list[Measurement]:
    """State what an item took out, with its limits."""
    measurements = [
        measure("removed_share", found.share, "share", "<=", levels.warn, on_breach="warn"),
        measure("removed_share_at_most", found.share, "share", "<=", levels.fail),
    ]
    for code, count in found.reasons.most_common():
        measurements.append(measure(f"removed_share_{code}", count / found.rows, "share"))
    for code, _ in found.reasons.most_common(REASONS_SHOWN):
        shown = "; ".join(map(str, found.examples.get(code, ())))
        measurements.append(measure(f"examples_{code}", shown, "text"))
    if found.asked_for:
        measurements.append(measure("removed_as_asked", found.asked_for.total(), "rows"))
    if large := found.large(levels.least):
        name, share = "class_removed_share", large[0].share
        measurements += [
            measure(name, share, "share", "<=", levels.class_warn, on_breach="warn"),
            measure(f"{name}_at_most", share, "share", "<=", levels.class_fail),
        ]
    return measurements


def explain(found: Removed, levels: Levels) -> str:
    """Say which level is exceeded and why; empty if none is."""
    said = []
    if found.share > levels.warn:
        code, count = found.reasons.most_common(1)[0]
        example = next(iter(found.examples.get(code, ())), None)
        where = f", such as {example.source_file} line {example.source_line}" if example else ""
        said.append(
            f"{found.share:.1%} of the rows were taken out (it warns above {levels.warn:.0%}, "
            f"fails above {levels.fail:.0%}), most as {code} ({count / found.rows:.1%}{where})."
        )
    worst = [group for group in found.large(levels.least) if group.share > levels.class_warn]
    if worst:
        name = "A class" if worst[0].name is None else f"Class {worst[0].name!r}"
        more = f", and {len(worst) - 1} more classes lost too many" if worst[1:] else ""
        said.append(
            f"{name} lost {worst[0].removed} of its {worst[0].rows} rows (it warns above "
            f"{levels.class_warn:.0%}, fails above {levels.class_fail:.0%}){more}."
        )
    return "".join(f" {sentence}" for sentence in said)


def describe(found: Removed) -> dict[str, Any]:
    """Return the content of `removed.json`."""
    return {
        "rows": found.rows,
        "removed": found.reasons.total(),
        "share": round(found.share, 4),
        "reasons": {
            code: {
                "rows": count,
                "share": round(count / found.rows, 4),
                "examples": [vars(example) for example in found.examples.get(code, ())],
            }
            for code, count in found.reasons.most_common()
        },
        "asked_for": dict(found.asked_for),
        "classes": [
            {"class": group.name or key, "rows": group.rows, "removed": group.removed}
            for key, group in found.classes.items()
        ],
    }


def conclude(
    ctx: StepContext,
    summary: str,
    measurements: Sequence[Measurement],
    *,
    verdict: Verdict | None = None,
    rows: Mapping[str, int] | None = None,
) -> Evidence:
    """Make a data item's evidence, with a judgement on what it took out, by its written tables.

    `verdict` is one that does not follow from its measurements; a broken limit on removed rows
    wins.
    """
    import pyarrow.parquet as pq

    scrubbed = ctx.step not in _UNSCRUBBED
    audit, rejected = audit_of(ctx.step).path(ctx), rejected_of(ctx.step).path(ctx)
    found = count_removed(audit, rejected, scrubbed=scrubbed)
    before = data_item_before(ctx.step)
    if scrubbed and before is not None:
        # A class of unscrubbed rows keeps its key alone.
        labels = pq.read_table(rows_of(before).fetch(ctx), columns=["label"])["label"].unique()
        for label in labels.to_pylist():
            key = class_key(label)
            if key is not None and key in found.classes:
                found.classes[key].name = label
    levels = levels_of(ctx.step, ctx.config.data)
    judged = judge(found, levels)
    ctx.write_json(REMOVED, describe(found))
    if any(m.ok is False for m in judged):
        verdict = None
    said = summary + explain(found, levels)
    return ctx.conclude(said, [*measurements, *judged], verdict=verdict, rows=rows)
