"""Define the entity types that each compliance profile demands, and the languages covered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tuneline.data.pii.digit_rule import DigitRule
from tuneline.data.pii.entities import NER_ENTITIES
from tuneline.data.pii.hits import PATTERN_ENTITIES
from tuneline.data.pii.languages import PATTERN_LANGUAGES
from tuneline.data.pii.safe_harbor import DEMANDED_ONLY
from tuneline.machine.secret_shapes import SECRETS

# GDPR article 4(1): anything that identifies a person, directly or by number or location.
_GDPR = (
    "PERSON EMAIL_ADDRESS PHONE_NUMBER STREET_ADDRESS IP_ADDRESS MAC_ADDRESS CREDIT_CARD "
    "IBAN_CODE US_SSN ID_NUMBER BIRTH_DATE"
)
# The identifiers of the safe-harbor method (45 CFR 164.514(b)(2)) that text can hold.
_HIPAA = (
    "PERSON LOCATION STREET_ADDRESS BIRTH_DATE PHONE_NUMBER EMAIL_ADDRESS US_SSN ID_NUMBER "
    "IP_ADDRESS MAC_ADDRESS CREDIT_CARD IBAN_CODE URL DATE POSTAL_CODE AGE_OVER_89"
)
# PCI DSS 3.2 and 3.3: account numbers; secrets stand for sensitive authentication data.
_PCI = "CREDIT_CARD"

PROFILES: dict[str, frozenset[str]] = {
    name: frozenset([*entities.split(), *SECRETS])
    for name, entities in (("gdpr", _GDPR), ("hipaa", _HIPAA), ("pci", _PCI))
}

# Fewest digits of a number that no word explains and that still identifies somebody. HIPAA counts
# any unique number, those of orders included; GDPR those that stand for a person's booking or case;
# cards have at least twelve.
LEAST_DIGITS = {"hipaa": 5, "gdpr": 7, "pci": 12}


def digit_rule(profiles: Iterable[str]) -> DigitRule:
    """Return the digit rule of the strictest of some profiles."""
    profiles = list(profiles)
    return DigitRule(
        min(LEAST_DIGITS[name] for name in profiles),
        business="hipaa" in profiles,
        references=bool({"hipaa", "gdpr"}.intersection(profiles)),
    )


def demanded(profiles: Iterable[str]) -> frozenset[str]:
    """Return the entity types that profiles demand."""
    return frozenset().union(*(PROFILES[name] for name in profiles))


def recognised(profiles: Iterable[str]) -> tuple[str, ...]:
    """Return the demanded entity types that take a recogniser."""
    wanted = demanded(profiles)
    return tuple(entity for entity in NER_ENTITIES if entity in wanted)


def demanded_only(profiles: Iterable[str]) -> tuple[str, ...]:
    """Return the demanded entity types that are looked for on demand only."""
    wanted = demanded(profiles)
    return tuple(entity for entity in DEMANDED_ONLY if entity in wanted)


def scrubbed_entities(profiles: Iterable[str]) -> tuple[str, ...]:
    """Return the scrubbed entity types: all that have a pattern, and the demanded ones."""
    profiles = list(profiles)
    return (*PATTERN_ENTITIES, *demanded_only(profiles), *recognised(profiles))


def uncovered_languages(
    languages: Iterable[str], profiles: Iterable[str], models: Mapping[str, str]
) -> dict[str, str]:
    """Return the declared languages that are not covered, each with what it lacks.

    Args:
        languages: declared languages.
        profiles: compliance profiles in force.
        models: spaCy package by language.
    """
    names = recognised(profiles)
    missing = {}
    for language in sorted(set(languages)):
        if language not in PATTERN_LANGUAGES:
            missing[language] = (
                "there are no patterns for its phone numbers, addresses and identity numbers"
            )
        elif names and language not in models:
            missing[language] = f"finding names takes a model, data.spacy_models.{language}"
    return missing
