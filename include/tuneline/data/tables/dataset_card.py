"""The parts of `dataset.json`, and the dataset's card in Markdown.

The card follows what Gebru et al. ("Datasheets for Datasets", 2021) ask of composition,
collection and preprocessing, as far as it can be measured. It holds no text of a row and no
time, so that the same input gives the same bytes.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from tuneline.artifacts.data import (
    DatasetDocument,
    PromptFormat,
    Removed,
    Reproduce,
    SourceKept,
    SourceNote,
)
from tuneline.config import DataConfig
from tuneline.data.tables.rows import SPLITS, Row
from tuneline.evidence import Evidence, Record

UNDECLARED = "not declared"
NO_CLASS = "(none)"
# Of more files the card gives the sums of each source; `dataset.json` lists them all.
MOST_FILES = 50

# The settings by which each item takes rows out or changes them.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "schema_validation": ("format", "system_prompt", "label_field", "max_rejected_share"),
    "pii_scrubbing": ("pii_profile", "languages", "pii_ner", "pii_actions", "pii_max_leak"),
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
    """Add to every source file its licence and the number of its records in the dataset.

    Args:
        sources: the files as schema_validation read them.
        rows: the dataset.
        config: the settings that declare the licences.
    """
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
    """Count the rows that each item took out, by reason.

    Args:
        reasons: by item the reject's code of each row that came in, None for a kept one.
        config: the settings.
    """
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
    settings.pop("source", None)
    sources = shlex.join(config.sources)
    command = (
        f"tuneline data prepare --input {sources} --base-model {shlex.quote(base_model)} "
        "--config data.yaml --out DIR"
    )
    return Reproduce(command=command, settings={"data": settings})


def card(document: DatasetDocument) -> str:
    """Write the card for people, in Markdown."""
    assert document.format is not None
    assert document.reproduce is not None
    parts = [
        f"# Dataset {document.name}",
        f"Version `{document.version}`: a hash over the turns, split, class and weight of "
        f"all {document.rows} rows, in any order.",
        "## Rows",
        _rows_table(document),
        "## Sources",
        _sources_table(document.sources),
        "## What was taken out, and why",
        *_removed(document.removed),
        "## Personal data",
        _pii(document.pii),
        "## Format",
        _format(document.format),
        "## Make it again",
        _reproduce(document.reproduce),
    ]
    return "\n\n".join(parts) + "\n"


def _rows_table(document: DatasetDocument) -> str:
    classes = sorted({label for counts in document.classes.values() for label in counts})
    lines: list[list[Any]] = [["class", *SPLITS]]
    lines += [[c, *(document.classes[s].get(c, 0) for s in SPLITS)] for c in classes]
    lines.append(["all", *(document.splits[s] for s in SPLITS)])
    return _table(lines)


def _sources_table(sources: Sequence[SourceKept]) -> str:
    if len(sources) <= MOST_FILES:
        lines: list[list[Any]] = [
            ["file", "licence", "SHA-256", "form", "records", "in the dataset"]
        ]
        for s in sources:
            shown = [s.origin or s.name, s.license or UNDECLARED, s.sha256, s.form or "unknown"]
            lines.append([*shown, s.records, s.records_kept])
        return _table(lines)
    summed: list[list[Any]] = [["source", "licence", "files", "records", "in the dataset"]]
    for address in dict.fromkeys(s.address for s in sources):
        files = [s for s in sources if s.address == address]
        sums = [sum(s.records for s in files), sum(s.records_kept for s in files)]
        summed.append([address, files[0].license or UNDECLARED, len(files), *sums])
    return _table(summed) + "\n\n`dataset.json` lists every file with its SHA-256."


def _removed(removed: Sequence[Removed]) -> list[str]:
    lines: list[list[Any]] = [["step", "reason", "rows"]]
    limits: list[list[Any]] = [["step", "settings"]]
    for step in removed:
        lines += [[step.item, reason, rows] for reason, rows in step.reasons.items()]
        if not step.reasons:
            lines.append([step.item, "nothing", 0])
        shown = ", ".join(f"{name} {_printed(value)}" for name, value in step.settings.items())
        limits.append([step.item, shown])
    return [
        _table(lines),
        "Every rejected row lies in quarantine with its reason, file and line.",
        _table(limits),
    ]


def _pii(measures: Sequence[Mapping[str, Any]]) -> str:
    lines = [["measure", "value", "limit"]]
    for m in measures:
        limit = f"{m['rule']} {_printed(m['limit'])}" if "rule" in m else ""
        lines.append([m["name"], f"{_printed(m.get('value'))} {m['unit']}", limit])
    return _table(lines)


def _format(form: PromptFormat) -> str:
    return _table(
        [
            ["", ""],
            ["prompt format", form.target],
            ["SHA-256 of the chat template", form.template_sha256],
            ["base model", form.base_model],
            ["its digest", form.base_digest],
            ["longest row, tokens", form.tokens_max],
            ["limit, tokens", form.limit],
        ]
    )


def _reproduce(given: Reproduce) -> str:
    settings = yaml.safe_dump(given.settings, sort_keys=False, allow_unicode=True).rstrip()
    return f"```\n{given.command}\n```\n\n`data.yaml`:\n\n```yaml\n{settings}\n```"


def _printed(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value) if isinstance(value, str) else json.dumps(value)


def _table(lines: Sequence[Sequence[Any]]) -> str:
    head, *body = ([_cell(value) for value in line] for line in lines)
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(value: Any) -> str:
    """Escape a text so that it can't break out of its cell."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    for character in "\\`|*<[]":
        text = text.replace(character, f"\\{character}")
    return text
