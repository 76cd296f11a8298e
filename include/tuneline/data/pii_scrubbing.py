"""Personal data and secrets are found and replaced by stand-ins, and what leaks is measured.

Tier 1 (patterns and checksums) runs on every row, tier 2 (names) where a profile demands it.
Inside a row the same value gets the same stand-in in every turn; a JSON answer stays valid JSON.
A canary set of the project's own making goes through the same code in every run: the share of it
that comes out readable is the residual leak rate, and its limit decides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from tuneline.config import DataConfig
from tuneline.data.pii_canaries import Canary, leaks, make_canaries
from tuneline.data.pii_entities import NER_ENTITIES
from tuneline.data.pii_profiles import demanded, scrubbed_entities, uncovered_languages
from tuneline.data.pii_scrubber import SEED, Scrubbed, Scrubber, make_scrubber
from tuneline.data.tables import (
    AUDIT,
    REJECTED,
    ROWS,
    UNSCRUBBED,
    Row,
    rejects_of,
    rows_of,
    scrubbed,
    write_audit,
    write_rejects,
    write_rows,
)
from tuneline.evidence import Evidence, Measurement, measure

if TYPE_CHECKING:
    from tuneline.run import StepContext

ITEM = "pii_scrubbing"
CANARIES = "canaries.parquet"


def leaked_canaries(scrubber: Scrubber, canaries: Sequence[Canary]) -> list[bool]:
    """Send canaries through the scrubber; which of them can still be read."""
    results = scrubber.scrub(
        [f"canary-{number}" for number in range(len(canaries))],
        [[{"role": "user", "content": canary.text}] for canary in canaries],
    )
    return [
        leaks(canary, result.messages[0]["content"])
        for canary, result in zip(canaries, results, strict=True)
    ]


def run(ctx: StepContext) -> Evidence:
    """Scrub every row and measure what leaks."""
    config = ctx.config.data
    rows = rows_of(ctx, "schema_validation", UNSCRUBBED)
    scrubber = make_scrubber(config, (m["content"] for row in rows for m in row.messages))
    # Equal source lines get equal stand-ins, so that they stay equal.
    results = scrubber.scrub(
        [row.row_id.split("-", 1)[0] for row in rows], [row.messages for row in rows]
    )
    kept: list[Row] = []
    left: list[tuple[Row, str]] = []
    for row, result in zip(rows, results, strict=True):
        if result.residual:
            left.append((row, f"residual_pii: {result.residual} hits are left after scrubbing"))
        else:
            kept.append(scrubbed(row, result.messages, result.stand_ins))
    write_rows(ctx.out / ROWS, kept)
    rejects = list(rejects_of(left, ITEM, {row.row_id: row.raw for row in rows}))
    write_rejects(ctx.quarantine / Path(REJECTED).name, rejects)
    canaries = make_canaries(scrubbed_entities(config.pii_profile), SEED)
    leaked = leaked_canaries(scrubber, canaries)
    _write_audits(ctx.out, rows, results, canaries, leaked)
    return _conclude(ctx, rows, results, canaries, leaked)


def _write_audits(
    out: Path,
    rows: Sequence[Row],
    results: Sequence[Scrubbed],
    canaries: Sequence[Canary],
    leaked: Sequence[bool],
) -> None:
    write_audit(
        out / AUDIT,
        {
            "row_id": [row.row_id for row in rows],
            "kept": [not result.residual for result in results],
            "reason": ["residual_pii" if result.residual else None for result in results],
            "hits": [result.hits.total() for result in results],
            "residual_hits": [result.residual for result in results],
        },
    )
    write_audit(
        out / CANARIES,
        {
            "entity": [canary.entity for canary in canaries],
            "form": [canary.form for canary in canaries],
            "leaked": [int(leak) for leak in leaked],
        },
    )


def leak_limit(entity: str, config: DataConfig) -> float:
    """The share of an entity's canaries that may leak."""
    return config.pii_max_leak_ner if entity in NER_ENTITIES else config.pii_max_leak


def _conclude(
    ctx: StepContext,
    rows: Sequence[Row],
    results: Sequence[Scrubbed],
    canaries: Sequence[Canary],
    leaked: Sequence[bool],
) -> Evidence:
    config = ctx.config.data
    hits: Counter[str] = sum((result.hits for result in results), Counter())
    lost = [result for result in results if result.residual]
    kept = len(rows) - len(lost)
    uncovered = uncovered_languages(config.pii_languages)
    measurements = [
        measure("rows_in", len(rows), "rows"),
        measure("rows_kept", kept, "rows", ">=", 1),
        measure("rows_lost", len(rows) - kept - len(lost), "rows", "==", 0),
        measure("rows_changed", sum(r.hits.total() > 0 for r in results), "rows"),
        measure("rows_rejected", len(lost), "rows"),
        *(measure(f"found_{entity}", hits[entity], "hits") for entity in sorted(hits)),
        measure(
            "residual_pattern_hits",
            sum(r.residual for r in results if r not in lost),
            "hits",
            "==",
            0,
        ),
        measure("profiles", "+".join(sorted(config.pii_profile)), "text"),
        measure("languages", "+".join(sorted(config.pii_languages)), "text"),
        measure("uncovered_languages", len(uncovered), "languages", "==", 0),
        *_leak_measurements(config, canaries, leaked),
    ]
    worst = max(
        (m for m in measurements if m.name.startswith("leak_")),
        key=lambda m: float(m.value or 0) / float(str(m.limit) if m.limit else 1),
    )
    names = "+".join(sorted(config.pii_profile)).upper()
    summary = (
        f"{hits.total()} pieces of personal data replaced in "
        f"{sum(r.hits.total() > 0 for r in results)} of {len(rows)} rows (profile {names}); of "
        f"{len(canaries)} canaries {sum(leaked)} leaked, worst {worst.name.removeprefix('leak_')} "
        f"with {float(worst.value or 0):.0%}."
    )
    if uncovered:
        summary += f" Not covered: {', '.join(uncovered)}."
    return ctx.conclude(
        summary,
        measurements,
        rows={ROWS: kept, REJECTED: len(lost), AUDIT: len(rows), CANARIES: len(canaries)},
    )


def _leak_measurements(
    config: DataConfig, canaries: Sequence[Canary], leaked: Sequence[bool]
) -> list[Measurement]:
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for canary, leak in zip(canaries, leaked, strict=True):
        outcomes[canary.entity].append(leak)
    wanted = demanded(config.pii_profile)
    measurements = []
    for entity, flags in outcomes.items():
        share = sum(flags) / len(flags)
        measurements.append(
            measure(
                f"leak_{entity}",
                share,
                "share",
                "<=",
                leak_limit(entity, config),
                noise=sqrt(share * (1 - share) / len(flags)),
                # What no profile demands is scrubbed all the same, but does not fail the item.
                on_breach="fail" if entity in wanted else "warn",
            )
        )
    return measurements
