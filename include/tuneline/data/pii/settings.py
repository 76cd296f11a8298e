"""Settings of a scrubber, made from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneline.config import DataConfig
from tuneline.data.pii.digit_rule import DigitRule
from tuneline.data.pii.languages import ENGLISH
from tuneline.data.pii.profiles import (
    demanded_only,
    digit_rule,
    recognised,
    scrubbed_entities,
)
from tuneline.data.pii.shared_parts import Shared

SEED = 7


@dataclass(frozen=True)
class Settings:
    """The settings of a scrubber; each worker makes its own scrubber from them.

    Attributes:
        names: types of `NER_ENTITIES` to find.
        demanded: types of `DEMANDED_ONLY` to find.
        models: spaCy package by language; without one only cues find names.
        name_model: directory of a model that finds names in all languages instead of spaCy.
        name_labels: entity by label of that model, for labels that are not known.
        profiled: entity types that the profiles have scrubbed.
        languages: declared languages.
        recognizers: Presidio recognisers of the user.
        least_score: lowest Presidio score of a hit that counts.
        digits: rule for numbers that no word explains; None takes none of them.
        common: words of the dataset that are not names.
        shared: parts that the dataset's rows share; None if each batch shows its own.
        label_field: field of a JSON answer that is left alone.
        allow: texts that are never personal data, casefolded.
        actions: action on the hits of an entity; the default is to replace them.
        seed: seed of the surrogates.
    """

    names: tuple[str, ...] = ()
    demanded: tuple[str, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)
    name_model: str | None = None
    name_labels: Mapping[str, str] = field(default_factory=dict)
    profiled: tuple[str, ...] = ()
    languages: tuple[str, ...] = (ENGLISH,)
    recognizers: tuple[str | Mapping[str, Any], ...] = ()
    least_score: float = 0.4
    digits: DigitRule | None = None
    common: frozenset[str] = frozenset()
    shared: Shared | None = None
    label_field: str | None = None
    allow: frozenset[str] = frozenset()
    actions: Mapping[str, str] = field(default_factory=dict)
    seed: int = SEED

    def entities_with(self, action: str) -> frozenset[str]:
        """Return the entities whose hits get an action."""
        return frozenset(entity for entity, given in self.actions.items() if given == action)


def settings_of(config: DataConfig) -> Settings:
    """Return the settings that a configuration asks for."""
    return Settings(
        names=recognised(config.pii_profile),
        demanded=demanded_only(config.pii_profile),
        models=config.name_models if config.pii_ner else {},
        name_labels=config.pii_ner_labels,
        profiled=scrubbed_entities(config.pii_profile),
        languages=tuple(config.languages),
        recognizers=tuple(config.pii_recognizers),
        least_score=config.pii_recognizer_score,
        digits=digit_rule(config.pii_profile),
        label_field=config.label_field,
        allow=frozenset(text.casefold() for text in config.pii_allow),
        actions=config.pii_actions,
    )
