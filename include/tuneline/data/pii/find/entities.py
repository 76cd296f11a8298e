"""Name the types of personal data, those that each profile demands, and what a search looks for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tuneline.config import DataConfig
from tuneline.config.data import RAMPART
from tuneline.data.pii.find.texts import Shared
from tuneline.errors import UserError
from tuneline.machine.redaction import SECRETS


@dataclass(frozen=True, slots=True)
class Hit:
    """A span of a text, characters start to end, of an entity type."""

    start: int
    end: int
    entity: str


# Where hits overlap, the type that is earlier in this list stays.
ENTITIES = (
    *SECRETS,
    *"URL EMAIL_ADDRESS IBAN_CODE CREDIT_CARD US_SSN IP_ADDRESS MAC_ADDRESS BIRTH_DATE "
    "PHONE_NUMBER ID_NUMBER STREET_ADDRESS PERSON LOCATION POSTAL_CODE AGE_OVER_89 DATE".split(),
)
# Parts of an address.
PLACES = frozenset({"STREET_ADDRESS", "LOCATION", "POSTAL_CODE"})
# What a team's own recogniser finds is more than a number.
_RANK = {entity: rank for rank, entity in enumerate(ENTITIES)}
_OF_A_TEAM = _RANK["ID_NUMBER"] - 0.5
# Ordinary content unless a profile demands them: 45 CFR 164.514(b)(2)(i) removes all elements of
# dates but the year, geographic units smaller than a state, web addresses and ages over 89.
DEMANDED_ONLY = frozenset({"URL", "DATE", "POSTAL_CODE", "AGE_OVER_89", "PERSON", "LOCATION"})
PROFILES: dict[str, frozenset[str]] = {
    # Article 4(1): anything that identifies a person, directly or by number or location.
    "gdpr": frozenset(ENTITIES) - DEMANDED_ONLY | {"PERSON"},
    # The identifiers of the safe-harbor method (45 CFR 164.514(b)(2)) that text can hold.
    "hipaa": frozenset(ENTITIES),
    # PCI DSS 3.2 and 3.3: account numbers; secrets stand for sensitive authentication data.
    "pci": frozenset({"CREDIT_CARD", *SECRETS}),
}


def demanded(profiles: Iterable[str]) -> frozenset[str]:
    """Return the entity types that profiles demand."""
    return frozenset().union(*(PROFILES[name] for name in profiles))


def scrubbed_entities(profiles: Iterable[str]) -> tuple[str, ...]:
    """Return the entity types that are scrubbed: the demanded ones and all that always identify."""
    wanted = demanded(profiles)
    return tuple(name for name in ENTITIES if name in wanted or name not in DEMANDED_ONLY)


# Those of the usual model, which the patterns and questions for data know as well.
MEASURED = ("de", "en", "es", "fr", "it", "nl", "pt")


def uncovered_languages(config: DataConfig) -> dict[str, str]:
    """Return the declared languages in which the search was not measured, each with the reason."""
    # A team that names another model answers for its languages.
    usual = set(config.pii_models) <= {RAMPART}
    return {
        language: f"the search was measured in {', '.join(MEASURED)}; name a model in data.pii_ner"
        for language in sorted(set(config.languages))
        if usual and language not in MEASURED
    }


def resolve(hits: Iterable[Hit]) -> list[Hit]:
    """Return hits without overlaps, in order."""
    merged: list[Hit] = []
    for hit in sorted(set(hits), key=lambda h: (h.start, -h.end)):
        if merged and hit.start < merged[-1].end:
            last = merged[-1]
            first = min(last, hit, key=lambda h: (_RANK.get(h.entity, _OF_A_TEAM), h.start - h.end))
            merged[-1] = Hit(last.start, max(last.end, hit.end), first.entity)
        else:
            merged.append(hit)
    return merged


@dataclass(frozen=True)
class Settings:
    """The settings of a search and of the replacement of its hits; picklable for workers."""

    entities: tuple[str, ...] = scrubbed_entities(["gdpr"])
    # ISO 639-1.
    languages: tuple[str, ...] = ("en",)
    # Directories of the models that find personal data; without one patterns alone do.
    models: tuple[Path, ...] = ()
    # True if these read scripts without spaces; the usual one guesses at each of their characters.
    unspaced: bool = False
    # Entity type by label of such a model, for labels that are not known.
    labels: Mapping[str, str] = field(default_factory=dict)
    # Presidio recognisers of the user, and the lowest score of a hit that counts.
    recognizers: tuple[str | Mapping[str, Any], ...] = ()
    least_score: float = 0.4
    # Parts that the dataset's rows share; None if each batch shows its own.
    shared: Shared | None = None
    # Field of a JSON answer that is left alone, and texts that never count, casefolded.
    label_field: str | None = None
    allow: frozenset[str] = frozenset()
    # Action on the hits of an entity; the default is to replace them.
    actions: Mapping[str, str] = field(default_factory=dict)
    # True for a second look, which cuts long texts at other places than the first.
    shifted: bool = False
    # Seed of the surrogates.
    seed: int = 7

    def entities_with(self, action: str) -> frozenset[str]:
        """Return the entities whose hits get an action."""
        return frozenset(entity for entity, given in self.actions.items() if given == action)


# Labels of CoNLL, OntoNotes, WikiNER and of the public models for personal data, in capitals,
# without prefix, signs, digits and NUM or NUMBER at the end.
_LABELS = {
    "PERSON": "PER PERS PERSON NAME FULLNAME PREFIXNAME GIVENNAME FIRSTNAME MIDDLENAME LASTNAME "
    "SURNAME FAMILYNAME PATIENT DOCTOR STAFF HCW",
    "LOCATION": "LOC LOCATION GPE CITY PLACE TOWN STATE",
    "STREET_ADDRESS": "ADDRESS STREETADDRESS STREET STREETNAME BUILDING SECONDARYADDRESS",
    "EMAIL_ADDRESS": "EMAIL EMAILADDRESS MAIL",
    "PHONE_NUMBER": "PHONE TEL TELEPHONE MOBILE FAX",
    "CREDIT_CARD": "CREDITCARD CARD",
    "IBAN_CODE": "IBAN IBANCODE",
    "US_SSN": "SSN USSSN SOCIAL SOCIALSECURITY",
    "ID_NUMBER": "ID IDCARD ACCOUNT BANKACCOUNT ROUTING GOVERNMENTID DRIVERLICENSE DRIVERSLICENSE "
    "PASSPORT TAXID TAX USERNAME MEDICALRECORD",
    "PASSWORD": "PASSWORD PASS PIN",
    "BIRTH_DATE": "DOB DATEOFBIRTH BIRTHDATE",
    "IP_ADDRESS": "IP IPADDRESS IPV",
    "MAC_ADDRESS": "MAC MACADDRESS",
    "URL": "URL",
    "DATE": "DATE",
    "POSTAL_CODE": "ZIP ZIPCODE POSTCODE POSTALCODE",
}
_ENTITY_OF = {label: entity for entity, labels in _LABELS.items() for label in labels.split()}
_PREFIX = re.compile(r"^[BIOELSU][-_]")
_ENDING = re.compile(r"(?:NUM|NUMBER)$")


class Labels(NamedTuple):
    """The labels of a model: entity type by label, and names of labels that are not looked for."""

    entity: Mapping[str, str]
    ignored: tuple[str, ...]


def map_labels(
    labels: Iterable[str], given: Mapping[str, str], wanted: Collection[str], model: str
) -> Labels:
    """Map the labels of a model, in any spelling, to entity types; UserError if none maps."""
    if unknown := sorted(set(given.values()) - _LABELS.keys()):
        raise UserError(
            f"data.pii_ner_labels: no entity is called {', '.join(unknown)}; there are "
            + ", ".join(_LABELS)
        )
    mapped: dict[str, str] = {}
    # "O" is the label of what is outside of every entity.
    names = {label: _PREFIX.sub("", label) for label in labels if label != "O"}
    for label, name in names.items():
        bare = _ENDING.sub("", re.sub(r"[\W\d_]+", "", name.upper()))
        if entity := given.get(name) or _ENTITY_OF.get(bare):
            mapped[label] = entity
    if not mapped:
        raise UserError(
            f"data.pii_ner: the labels of {model} ({', '.join(sorted(set(names.values())))}) "
            "name no kind of personal data; name another model, or say what they mean in "
            "data.pii_ner_labels, such as {LABEL_1: PERSON}"
        )
    ignored = {name for label, name in names.items() if mapped.get(label) not in wanted}
    return Labels(mapped, tuple(sorted(ignored)))
