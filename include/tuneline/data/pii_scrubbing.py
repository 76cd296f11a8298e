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

from tuneline.artifacts.data import AUDIT, REJECTED, ROWS
from tuneline.config import DataConfig
from tuneline.data.pii.canaries import Canary, leaks, make_canaries
from tuneline.data.pii.entities import NER_ENTITIES
from tuneline.data.pii.models import describe_model
from tuneline.data.pii.profiles import demanded, recognised, scrubbed_entities, uncovered_languages
from tuneline.data.pii.scrubber import Scrubbed, Scrubber, make_scrubber
from tuneline.data.pii.settings import SEED
from tuneline.data.pii.workers import worker_count
from tuneline.data.tables.rows import (
    Row,
    rows_before,
    scrubbed,
    write_audit,
    write_rejected,
    write_rows,
)
from tuneline.evidence import Evidence, Measurement, measure

if TYPE_CHECKING:
    from tuneline.run import StepContext

CANARIES = "canaries.parquet"


def leaked_canaries(scrubber: Scrubber, canaries: Sequence[Canary]) -> list[bool]:
    """Send canaries through the scrubber; which of them can still be read in a row that is kept."""
    results = scrubber.scrub(
        [f"canary-{number}" for number in range(len(canaries))],
        [[{"role": "user", "content": canary.text}] for canary in canaries],
    )
    return [
        not result.refused and leaks(canary, result.messages[0]["content"])
        for canary, result in zip(canaries, results, strict=True)
    ]


def reason_to_reject(result: Scrubbed) -> str | None:
    """Why a row has to leave, None when it can stay."""
    if result.refused:
        return f"pii_refused: it holds {', '.join(result.refused)}, see data.pii_actions"
    if result.residual:
        return f"residual_pii: {result.residual} hits are left after scrubbing"
    return None


def run(ctx: StepContext) -> Evidence:
    """Scrub every row and measure what leaks."""
    config = ctx.config.data
    rows = rows_before(ctx)
    scrubber = make_scrubber(config, (m["content"] for row in rows for m in row.messages))
    workers = worker_count(len(rows))
    ctx.log(f"{len(rows)} rows, {workers} workers")
    # Equal source lines get equal stand-ins, so that they stay equal.
    results = scrubber.scrub(
        [row.row_id.split("-", 1)[0] for row in rows], [row.messages for row in rows], workers
    )
    kept: list[Row] = []
    left: list[tuple[Row, str]] = []
    for row, result in zip(rows, results, strict=True):
        reason = reason_to_reject(result)
        if reason is not None:
            left.append((row, reason))
        else:
            kept.append(scrubbed(row, result.messages, result.surrogates))
    write_rows(ctx.out / ROWS, kept)
    write_rejected(ctx, left)
    canaries = make_canaries(
        scrubbed_entities(config.pii_profile), SEED, languages=config.languages
    )
    leaked = leaked_canaries(scrubber, canaries)
    _write_audits(ctx.out, rows, results, canaries, leaked)
    return _conclude(ctx, results, canaries, leaked, scrubber.custom_entities)


def _write_audits(
    out: Path,
    rows: Sequence[Row],
    results: Sequence[Scrubbed],
    canaries: Sequence[Canary],
    leaked: Sequence[bool],
) -> None:
    reasons = [reason_to_reject(result) for result in results]
    write_audit(
        out / AUDIT,
        {
            "row_id": [row.row_id for row in rows],
            "kept": [reason is None for reason in reasons],
            "reason": [reason and reason.split(":")[0] for reason in reasons],
            "hits": [result.hits.total() for result in results],
            "residual_hits": [result.residual for result in results],
            "undeclared_language": [int(result.foreign is not None) for result in results],
        },
    )
    write_audit(
        out / CANARIES,
        {
            "entity": [canary.group for canary in canaries],
            "form": [canary.form for canary in canaries],
            "leaked": [int(leak) for leak in leaked],
        },
    )


def leak_limit(group: str, config: DataConfig) -> float:
    """The share of the canaries of an entity, or of an entity in a language, that may leak."""
    entity = group.partition(".")[0]
    given = config.pii_max_leak
    if isinstance(given, dict):
        for name in (group, entity):
            if name in given:
                return given[name]
        given = float(DataConfig.model_fields["pii_max_leak"].default)
    return config.pii_max_leak_ner if entity in NER_ENTITIES else given


def leaks_by_form(canaries: Sequence[Canary], leaked: Sequence[bool]) -> dict[str, float]:
    """The share that leaks of the canaries in each form of writing."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for canary, leak in zip(canaries, leaked, strict=True):
        outcomes[canary.form].append(leak)
    return {form: sum(flags) / len(flags) for form, flags in outcomes.items()}


def _conclude(
    ctx: StepContext,
    results: Sequence[Scrubbed],
    canaries: Sequence[Canary],
    leaked: Sequence[bool],
    custom: Sequence[str],
) -> Evidence:
    config = ctx.config.data
    hits: Counter[str] = sum((r.hits for r in results if r.hits), Counter())
    changed = sum(bool(r.hits) for r in results)
    staying = [r for r in results if reason_to_reject(r) is None]
    kept = len(staying)
    rejected = len(results) - kept
    uncovered = uncovered_languages(config.languages, config.pii_profile, config.spacy_models)
    foreign = Counter(r.foreign for r in results if r.foreign is not None)
    measurements = [
        measure("rows_in", len(results), "rows"),
        measure("rows_kept", kept, "rows", ">=", 1),
        measure("rows_lost", len(results) - kept - rejected, "rows", "==", 0),
        measure("rows_changed", changed, "rows"),
        measure("rows_rejected", rejected, "rows"),
        measure("rows_refused", sum(bool(r.refused) for r in results), "rows"),
        *(measure(f"found_{entity}", hits[entity], "hits") for entity in sorted(hits)),
        measure(
            "residual_pattern_hits",
            sum(r.residual for r in staying),
            "hits",
            "==",
            0,
        ),
        measure("profiles", "+".join(sorted(config.pii_profile)), "text"),
        measure("languages", "+".join(sorted(config.languages)), "text"),
        *_model_measurements(config),
        measure("uncovered_languages", len(uncovered), "languages", "==", 0),
        measure(
            "undeclared_language_share",
            foreign.total() / len(results),
            "share",
            "<=",
            config.max_undeclared_language_share,
            on_breach="warn",
        ),
        *(
            measure(f"leak_in_form_{form}", share, "share")
            for form, share in leaks_by_form(canaries, leaked).items()
        ),
        *_leak_measurements(config, canaries, leaked),
    ]
    if custom:
        measurements.append(measure("entities_without_canaries", "+".join(custom), "text"))
    worst = max(
        (m for m in measurements if m.name.startswith("leak_") and m.limit is not None),
        key=lambda m: float(m.value or 0) / (float(str(m.limit)) or 1e-9),
    )
    names = "+".join(sorted(config.pii_profile)).upper()
    summary = (
        f"{hits.total()} pieces of personal data replaced in "
        f"{changed} of {len(results)} rows (profile {names}); of "
        f"{len(canaries)} canaries {sum(leaked)} leaked, worst {worst.name.removeprefix('leak_')} "
        f"with {float(worst.value or 0):.0%}."
    )
    for language, missing in uncovered.items():
        summary += f" Not covered: {language} ({missing})."
    if foreign.total() > config.max_undeclared_language_share * len(results):
        (language, _), *_ = foreign.most_common(1)
        summary += (
            f" {foreign.total() / len(results):.1%} of the rows are in a language that "
            f"data.languages does not declare (most in {language}); there PII may be missed."
        )
    return ctx.conclude(
        summary,
        measurements,
        rows={ROWS: kept, REJECTED: rejected, AUDIT: len(results), CANARIES: len(canaries)},
    )


def _model_measurements(config: DataConfig) -> list[Measurement]:
    if not (config.pii_ner and recognised(config.pii_profile)):
        return []
    models = {code: config.spacy_models.get(code) for code in config.languages}
    return [
        measure(f"model_{code}", describe_model(package), "text")
        for code, package in models.items()
        if package is not None
    ]


def _leak_measurements(
    config: DataConfig, canaries: Sequence[Canary], leaked: Sequence[bool]
) -> list[Measurement]:
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for canary, leak in zip(canaries, leaked, strict=True):
        outcomes[canary.group].append(leak)
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
                on_breach="fail" if entity.partition(".")[0] in wanted else "warn",
            )
        )
    return measurements
