"""Run the patterns and lists that a team already has for Presidio, over tokens alone.

No model is loaded, so a recogniser that needs the entities of one finds nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tuneline.data.pii.find.entities import Hit
from tuneline.errors import UserError, first_line

FIELD = "data.pii_recognizers"
# Characters of a text that a recogniser sees at once, whose patterns may backtrack, and those that
# neighbouring parts share.
PART, OVERLAP = 2_000, 200


class CustomRecognisers:
    """Presidio's analyzer with a user's recognisers; UserError if they can't be used."""

    def __init__(
        self, given: Sequence[str | Mapping[str, Any]], languages: Sequence[str], least_score: float
    ) -> None:
        try:
            from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        except ImportError:
            raise UserError(
                f"{FIELD}: Presidio is not installed; .venv-ml/bin/pip install -r "
                "requirements/presidio.txt -c requirements/ml.constraints.txt, or build the image "
                "with EXTRAS=requirements/presidio.txt"
            ) from None
        logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
        every = [made for entry in given for made in _load(entry)]
        served = {recogniser.supported_language for recogniser in every}
        self._languages = [language for language in languages if language in served]
        if not self._languages:
            raise UserError(
                f"{FIELD}: they serve {', '.join(sorted(served)) or 'no language'}, and "
                f"data.languages declares {', '.join(languages)}; set supported_language"
            )
        own = [one for one in every if one.supported_language in self._languages]
        self.entities = tuple(sorted({name for one in own for name in one.supported_entities}))
        self._analyzer = AnalyzerEngine(
            registry=RecognizerRegistry(own, supported_languages=self._languages),
            nlp_engine=_tokenizers(self._languages),
            supported_languages=self._languages,
            default_score_threshold=least_score,
        )

    def find(self, text: str) -> Iterator[Hit]:
        """Yield the hits of the recognisers of each language."""
        for at in range(0, max(1, len(text) - OVERLAP), PART - OVERLAP):
            for language in self._languages:
                for hit in self._analyzer.analyze(text[at : at + PART], language=language):
                    yield Hit(at + hit.start, at + hit.end, hit.entity_type)


def _tokenizers(languages: Sequence[str]) -> Any:
    """Make an NLP engine that only splits texts into words, so that context words are seen."""
    import spacy
    from presidio_analyzer.nlp_engine import SpacyNlpEngine
    from spacy.language import Language

    def lowered(doc: Any) -> Any:
        for token in doc:
            token.lemma_ = token.lower_
        return doc

    Language.component("tuneline_lowered", func=lowered)
    engine: Any = SpacyNlpEngine([{"lang_code": code, "model_name": code} for code in languages])
    engine.nlp = {code: spacy.blank(code) for code in languages}
    for pipeline in engine.nlp.values():
        pipeline.add_pipe("tuneline_lowered")
    return engine


def _load(entry: str | Mapping[str, Any]) -> list[Any]:
    """Make the recognisers of a YAML file or of an entry that is written out."""
    try:
        if not isinstance(entry, str):
            return _written_out(entry)
        document = yaml.safe_load(Path(entry).read_text("utf-8"))
        if not isinstance(document, dict) or "recognizers" not in document:
            raise TypeError("it has no list `recognizers`, as Presidio's YAML files do")
        return [made for one in document["recognizers"] for made in _written_out(one)]
    except Exception as error:  # Presidio may raise anything
        named = entry if isinstance(entry, str) else entry.get("name", "an entry without a name")
        raise UserError(
            f"{FIELD}: {named!r} can't be loaded ({type(error).__name__}: {first_line(error)}); "
            "give a YAML file, or an entry as in Presidio's list `recognizers`"
        ) from None


def _written_out(entry: Mapping[str, Any]) -> list[Any]:
    """Make a recogniser for each language of an entry; none if the entry is not enabled."""
    from presidio_analyzer import PatternRecognizer

    settings = {"supported_language": "en", **entry}
    settings.pop("type", None)
    if settings.pop("enabled", True) is False:
        return []
    languages = settings.pop("supported_languages", None) or [settings["supported_language"]]
    made = []
    for language in languages:
        own = {"language": language} if isinstance(language, str) else dict(language)
        one = {**settings, "supported_language": own.pop("language"), **own}
        made.append(PatternRecognizer.from_dict(one))
    return made
