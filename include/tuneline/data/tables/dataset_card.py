"""The parts of `dataset.json`, and the dataset's card in Markdown.

After Gebru et al. ("Datasheets for Datasets", 2021), as far as it can be measured; without text of
a row and without a time, so that the same input gives the same bytes.
"""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from tuneline.artifacts.data import DatasetDocument, Removed, Reproduce, SourceKept, SourceNote
from tuneline.config import DataConfig
from tuneline.data.tables.rows import SPLITS, Row
from tuneline.evidence import Evidence, Record
from tuneline.machine.markdown import render

UNDECLARED = "not declared"
NO_CLASS = "(none)"
# Of more files the card gives the sums of each source; `dataset.json` lists them all.
MOST_FILES = 50

# The settings by which each item takes rows out or changes them.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "schema_validation": ("format", "system_prompt", "label_field", "max_rejected_share"),
    "pii_scrubbing": ("pii_profile", "languages", "pii_ner", "pii_actions", "pii_max_left"),
    "deduplication": (
        "near_duplicate_jaccard",
        "label_conflicts",
        "repeated_phrases",
        "repeated_phrase_share",
        "holdout_share",
        "validation_share",
    ),
    "token_length_audit": ("max_tokens", "too_long", "max_too_long_share"),
    "distribution_balancing": (
        "balancing",
        "max_class_ratio",
        "max_upsampling",
        "max_train_rows",
        "max_holdout_rows",
    ),
}


def count_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Count rows by split, and by class within each split; the fields of `DatasetDocument`."""
    splits = Counter(row.split for row in rows)
    classes: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        classes[row.split][NO_CLASS if row.label is None else row.label] += 1
    return {
        "rows": len(rows),
        "splits": {split: splits[split] for split in SPLITS},
        "classes": {split: dict(sorted(classes[split].items())) for split in SPLITS},
    }


def describe_sources(
    sources: Iterable[SourceNote], rows: Sequence[Row], config: DataConfig
) -> list[SourceKept]:
    """Add to every source file its licence and the number of its records in the dataset."""
    # A row that was split at its turns is one row of its file.
    places = {(row.source_file, row.source_line) for row in rows}
    kept = Counter(name for name, _ in places)
    return [
        SourceKept(
            **source.model_dump(),
            license=config.license_of(source.address),
            records_kept=kept[source.name],
        )
        for source in sources
    ]


def describe_removed(
    reasons: Mapping[str, Iterable[str | None]], config: DataConfig
) -> list[Removed]:
    """Count the rows that each item took out, by reason; None is a row that it kept."""
    steps = []
    for item, codes in reasons.items():
        counts = Counter(code for code in codes if code)
        steps.append(
            Removed(
                item=item,
                rows=counts.total(),
                reasons=dict(sorted(counts.items(), key=lambda e: (-e[1], e[0]))),
                settings={name: getattr(config, name) for name in SETTINGS[item]},
            )
        )
    return steps


def describe_measures(entry: Evidence | Record) -> list[dict[str, Any]]:
    """Return name, value and unit of an item's measurements, with their limits if they have one."""
    wanted = {"name", "value", "unit", "rule", "limit"}
    return [
        measurement.model_dump(mode="json", include=wanted, exclude_none=True)
        for measurement in entry.measurements
    ]


def reproduce(config: DataConfig, base_model: str) -> Reproduce:
    """Return the command that makes the dataset again, and the settings that are not defaults."""
    settings = config.model_dump(mode="json", exclude_defaults=True)
    for name in ("source", "engine"):
        settings.pop(name, None)
    sources = shlex.join(config.sources)
    command = (
        f"tuneline data prepare --input {sources} --base-model {shlex.quote(base_model)} "
        "--config data.yaml --out DIR"
    )
    return Reproduce(command=command, settings={"data": settings})


def card(document: DatasetDocument) -> str:
    """Write the card for people, in Markdown."""
    assert document.reproduce is not None
    settings = yaml.safe_dump(document.reproduce.settings, sort_keys=False, allow_unicode=True)
    return render(
        "tuneline.data.tables",
        "dataset_card.jinja",
        d=document,
        classes=sorted({label for counts in document.classes.values() for label in counts}),
        summed=len(document.sources) > MOST_FILES,
        undeclared=UNDECLARED,
        settings=settings.rstrip(),
    )
