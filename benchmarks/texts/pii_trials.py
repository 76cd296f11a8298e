"""Run the systems of the PII benchmark: texts in, spans of personal data out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.contest.peers import version_of
from benchmarks.contest.trial import Job, Trial, read_lines
from benchmarks.workloads.labelled_text import NAMED, SHAPED, Span, detection_scores
from tuneline import __version__

LANGUAGE = "en"

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
        for start in range(0, len(texts), job["batch"]):
            some = texts[start : start + job["batch"]]
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
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NoOpNlpEngine

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    engine = NoOpNlpEngine([{"lang_code": LANGUAGE, "model_name": "none"}])
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=[LANGUAGE])

    def work(texts: Sequence[str]) -> Found:
        return [
            _spans(analyzer.analyze(text=text, language=LANGUAGE, entities=list(SHAPED)))
            for text in texts
        ]

    return _trial(job, version_of("presidio-analyzer"), work, SHAPED)


def presidio_recogniser(job: Job) -> Trial:
    """Try Presidio's batch engine with a spaCy model."""
    from presidio_analyzer import AnalyzerEngine, BatchAnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    models = [{"lang_code": LANGUAGE, "model_name": job["model"]}]
    settings = {"nlp_engine_name": "spacy", "models": models}
    engine = NlpEngineProvider(nlp_configuration=settings).create_engine()
    analyzer = AnalyzerEngine(nlp_engine=engine, supported_languages=[LANGUAGE])
    batch = BatchAnalyzerEngine(analyzer_engine=analyzer)
    entities = [*SHAPED, *NAMED]

    def work(texts: Sequence[str]) -> Found:
        results = batch.analyze_iterator(
            texts, language=LANGUAGE, batch_size=job["batch"], entities=entities
        )
        return [_spans(found) for found in results]

    version = f"{version_of('presidio-analyzer')}, spacy {version_of('spacy')}"
    return _trial(job, version, work, entities)


def _spans(results: Sequence[Any]) -> list[Span]:
    return [Span(result.start, result.end, result.entity_type) for result in results]


def _trial(
    job: Job, version: str, work: Callable[[Sequence[str]], Found], entities: Sequence[str]
) -> Trial:
    rows = read_lines(job["rows"])

    def score(found: Found) -> dict[str, float]:
        return detection_scores(rows, found, entities) if job["labelled"] else {}

    return Trial(version, [row["text"] for row in rows], work, score)
