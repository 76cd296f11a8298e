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
    """Try tier 1: patterns and checksums."""
    from tuneline.data.pii.patterns import find

    def work(texts: Sequence[str]) -> Found:
        return [[Span(h.start, h.end, h.entity) for h in find(text)] for text in texts]

    return _trial(job, __version__, work, SHAPED)


def tuneline_recogniser(job: Job) -> Trial:
    """Try tiers 1 and 2: patterns, and names by cues and spaCy."""
    from tuneline.data.pii.cases import common_words
    from tuneline.data.pii.entities import Recogniser
    from tuneline.data.pii.hits import resolve
    from tuneline.data.pii.patterns import find

    words = common_words([row["text"] for row in read_lines(job["rows"])])
    recogniser = Recogniser(job["model"], NAMED, (), words)

    def work(texts: Sequence[str]) -> Found:
        # The model is loaded once, but these words are counted again for each dataset.
        common_words(texts)
        named = recogniser.find(texts)
        return [
            [Span(h.start, h.end, h.entity) for h in resolve(text, [*find(text), *hits])]
            for text, hits in zip(texts, named, strict=True)
        ]

    version = f"{__version__}, {version_of('spacy')}"
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
    """Try Presidio's batch engine with the same spaCy model as ours."""
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
