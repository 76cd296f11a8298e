"""Make the recognisers of names that the settings of a scrubber ask for."""

from __future__ import annotations

from pathlib import Path

from tuneline.data.pii.entities import NER_ENTITIES, Recogniser
from tuneline.data.pii.languages import ENGLISH
from tuneline.data.pii.ner.entity_model import EntityModel
from tuneline.data.pii.ner.fetched import load_entity_model
from tuneline.data.pii.settings import Settings


def recognisers_of(settings: Settings) -> dict[str, Recogniser]:
    """Make the recogniser of names of each language.

    A model serves its own language, one that an address names serves all; cues are English, so
    English has a recogniser in any case.
    """
    if not settings.names:
        return {}
    served = [code for code in settings.languages if code in settings.models or code == ENGLISH]
    shared = _entity_model(settings)
    return {
        language: Recogniser(
            settings.models.get(language) if served and shared is None else None,
            settings.names,
            tuple(settings.allow),
            settings.common,
            english=language == ENGLISH,
            shared=shared,
        )
        for language in served or [ENGLISH]
    }


def _entity_model(settings: Settings) -> EntityModel | None:
    """Load the model that an address names, None where spaCy finds the names."""
    if settings.name_model is None:
        return None
    wanted = {*settings.profiled, *settings.names} - ({*NER_ENTITIES} - {*settings.names})
    return load_entity_model(Path(settings.name_model), wanted, settings.name_labels)
