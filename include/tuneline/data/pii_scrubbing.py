"""pii_scrubbing: surrogates replace personal data and secrets, and the leak rate is measured.

Tier 1 (patterns and checksums) runs on every row, tier 2 (names) where a profile demands it.
Inside a row the same value gets the same surrogate in every turn; a JSON answer stays valid JSON.
In every run a labelled canary set goes through the same code. The share of it that can still be
read afterwards is the residual leak rate, and its limit decides the verdict.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
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
    rows_before,
    scrubbed,
    write_audit,
    write_decisions,
    write_rows,
)
from tuneline.evidence import Evidence, Measurement, measure

if TYPE_CHECKING:
    from tuneline.run import StepContext

CANARIES = "canaries.parquet"


@dataclass(frozen=True)
class Trial:
    """The canaries and, for each, whether it leaked."""

    canaries: Sequence[Canary]
    leaked: Sequence[bool]

    def outcomes(self, key: Callable[[Canary], str]) -> dict[str, list[bool]]:
        """Return the outcomes of the canaries with the same key."""
        found: dict[str, list[bool]] = defaultdict(list)
        for canary, leak in zip(self.canaries, self.leaked, strict=True):
            found[key(canary)].append(leak)
        return found


def leaked_canaries(scrubber: Scrubber, canaries: Sequence[Canary]) -> list[bool]:
    """Scrub canaries; return for each whether it can still be read in a row that is kept."""
    results = scrubber.scrub(
        [f"canary-{number}" for number in range(len(canaries))],
        [[{"role": "user", "content": canary.text}] for canary in canaries],
    )
    return [
        not result.refused and leaks(canary, result.messages[0]["content"])
        for canary, result in zip(canaries, results, strict=True)
    ]


def reason_to_reject(result: Scrubbed) -> str | None:
    """Return the reason for which a row is rejected, None if it stays."""
    if result.refused:
        return f"pii_refused: it holds {', '.join(result.refused)}, see data.pii_actions"
    if result.residual:
        return f"residual_pii: {result.residual} hits are left after scrubbing"
    return None


def leak_limit(group: str, config: DataConfig) -> float:
    """Return the share of canaries that may leak of an entity, or of `entity.language`."""
    entity = group.partition(".")[0]
    given = config.pii_max_leak
    if isinstance(given, dict):
        for name in (group, entity):
            if name in given:
                return given[name]
        given = float(DataConfig.model_fields["pii_max_leak"].default)
    return config.pii_max_leak_ner if entity in NER_ENTITIES else given


def _row_measurements(results: Sequence[Scrubbed]) -> list[Measurement]:
    """Return the numbers of rows and hits."""
    hits = _hits(results)
    staying = [result for result in results if reason_to_reject(result) is None]
    rejected = len(results) - len(staying)
    return [
        measure("rows_in", len(results), "rows"),
        measure("rows_kept", len(staying), "rows", ">=", 1),
        measure("rows_lost", len(results) - len(staying) - rejected, "rows", "==", 0),
        measure("rows_changed", sum(bool(r.hits) for r in results), "rows"),
        measure("rows_rejected", rejected, "rows"),
        measure("rows_refused", sum(bool(r.refused) for r in results), "rows"),
        *(measure(f"found_{entity}", hits[entity], "hits") for entity in sorted(hits)),
        measure("residual_pattern_hits", sum(r.residual for r in staying), "hits", "==", 0),
    ]


def _hits(results: Sequence[Scrubbed]) -> Counter[str]:
    return sum((r.hits for r in results if r.hits), Counter())


def _coverage_measurements(config: DataConfig, results: Sequence[Scrubbed]) -> list[Measurement]:
    """Return the profiles, languages and models in force, and the share of undeclared languages."""
    models: list[Measurement] = []
    if config.pii_ner and recognised(config.pii_profile):
        packages = {code: config.spacy_models.get(code) for code in config.languages}
        models = [
            measure(f"model_{code}", describe_model(package), "text")
            for code, package in packages.items()
            if package is not None
        ]
    return [
        measure("profiles", "+".join(sorted(config.pii_profile)), "text"),
        measure("languages", "+".join(sorted(config.languages)), "text"),
        *models,
        measure("uncovered_languages", len(_uncovered(config)), "languages", "==", 0),
        measure(
            "undeclared_language_share",
            _foreign(results).total() / len(results),
            "share",
            "<=",
            config.max_undeclared_language_share,
            on_breach="warn",
        ),
    ]


def _uncovered(config: DataConfig) -> dict[str, str]:
    return uncovered_languages(config.languages, config.pii_profile, config.spacy_models)


def _foreign(results: Sequence[Scrubbed]) -> Counter[str]:
    return Counter(r.foreign for r in results if r.foreign is not None)


def _leak_measurements(config: DataConfig, trial: Trial) -> list[Measurement]:
    """Return the leak rate of each entity, with its limit."""
    wanted = demanded(config.pii_profile)
    measurements = []
    for group, flags in trial.outcomes(lambda canary: canary.group).items():
        share = sum(flags) / len(flags)
        measurements.append(
            measure(
                f"leak_{group}",
                share,
                "share",
                "<=",
                leak_limit(group, config),
                noise=sqrt(share * (1 - share) / len(flags)),
                # An entity that no profile demands is scrubbed too, but can't fail the item.
                on_breach="fail" if group.partition(".")[0] in wanted else "warn",
            )
        )
    return measurements


def _summary(
    config: DataConfig,
    results: Sequence[Scrubbed],
    trial: Trial,
    leak_rates: Sequence[Measurement],
) -> str:
    worst = max(leak_rates, key=lambda m: float(m.value or 0) / (float(str(m.limit)) or 1e-9))
    summary = (
        f"{_hits(results).total()} pieces of personal data replaced in "
        f"{sum(bool(r.hits) for r in results)} of {len(results)} rows "
        f"(profile {'+'.join(sorted(config.pii_profile)).upper()}); of {len(trial.canaries)} "
        f"canaries {sum(trial.leaked)} leaked, worst {worst.name.removeprefix('leak_')} with "
        f"{float(worst.value or 0):.0%}."
    )
    for language, missing in _uncovered(config).items():
        summary += f" Not covered: {language} ({missing})."
    foreign = _foreign(results)
    if foreign.total() > config.max_undeclared_language_share * len(results):
        (language, _), *_ = foreign.most_common(1)
        summary += (
            f" {foreign.total() / len(results):.1%} of the rows are in a language that "
            f"data.languages does not declare (most in {language}); personal data in them may be "
            "missed."
        )
    return summary


def run(ctx: StepContext) -> Evidence:
    """Scrub every row and measure the leak rate."""
    config = ctx.config.data
    rows = rows_before(ctx)
    scrubber = make_scrubber(config, (m["content"] for row in rows for m in row.messages))
    workers = worker_count(len(rows))
    ctx.log(f"{len(rows)} rows, {workers} workers")
    # Equal source lines get equal surrogates, so that they stay equal.
    results = scrubber.scrub(
        [row.row_id.split("-", 1)[0] for row in rows], [row.messages for row in rows], workers
    )
    reasons = [reason_to_reject(result) for result in results]
    kept = [
        scrubbed(row, result.messages, result.surrogates)
        for row, result, reason in zip(rows, results, reasons, strict=True)
        if reason is None
    ]
    write_rows(ctx.out / ROWS, kept)
    left = write_decisions(
        ctx,
        rows,
        reasons,
        hits=[result.hits.total() for result in results],
        residual_hits=[result.residual for result in results],
        undeclared_language=[int(result.foreign is not None) for result in results],
    )
    entities = scrubbed_entities(config.pii_profile)
    canaries = make_canaries(entities, SEED, languages=config.languages)
    trial = Trial(canaries, leaked_canaries(scrubber, canaries))
    columns = {
        "entity": [canary.group for canary in canaries],
        "form": [canary.form for canary in canaries],
        "leaked": [int(leak) for leak in trial.leaked],
    }
    write_audit(ctx.out / CANARIES, columns)
    leak_rates = _leak_measurements(config, trial)
    measurements = [
        *_row_measurements(results),
        *_coverage_measurements(config, results),
        *(
            measure(f"leak_in_form_{form}", sum(flags) / len(flags), "share")
            for form, flags in trial.outcomes(lambda canary: canary.form).items()
        ),
        *leak_rates,
    ]
    if scrubber.custom_entities:
        custom = "+".join(scrubber.custom_entities)
        measurements.append(measure("entities_without_canaries", custom, "text"))
    return ctx.conclude(
        _summary(config, results, trial, leak_rates),
        measurements,
        rows={ROWS: len(kept), REJECTED: left, AUDIT: len(rows), CANARIES: len(canaries)},
    )
