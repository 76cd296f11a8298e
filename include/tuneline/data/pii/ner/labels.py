"""Map the labels of a model that recognises entities to our entity types.

Labels of CoNLL, OntoNotes, WikiNER and of the public models for personal data are known, in any
spelling ("B-FIRST_NAME", "I-firstname1"). A configuration maps others, or these differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tuneline.errors import UserError

# Labels in capitals, without prefix, signs and digits.
_KNOWN = {
    "PERSON": "PER PERS PERSON NAME FULLNAME PREFIXNAME GIVENNAME FIRSTNAME MIDDLENAME LASTNAME "
    "SURNAME FAMILYNAME PATIENT DOCTOR STAFF HCW",
    "LOCATION": "LOC LOCATION GPE CITY PLACE TOWN",
    "STREET_ADDRESS": "ADDRESS STREETADDRESS STREET BUILDINGNUM BUILDINGNUMBER SECONDARYADDRESS",
    "EMAIL_ADDRESS": "EMAIL EMAILADDRESS MAIL",
    "PHONE_NUMBER": "PHONE PHONENUMBER TEL TELEPHONE TELEPHONENUM MOBILE FAX",
    "CREDIT_CARD": "CREDITCARD CREDITCARDNUMBER CARD CARDNUMBER",
    "IBAN_CODE": "IBAN IBANCODE",
    "US_SSN": "SSN USSSN SOCIALNUM SOCIALNUMBER SOCIALSECURITYNUMBER",
    "ID_NUMBER": "ID IDNUM IDNUMBER IDCARD IDCARDNUM ACCOUNTNUM ACCOUNTNUMBER DRIVERLICENSE "
    "DRIVERLICENSENUM PASSPORT PASSPORTNUM TAXNUM TAXNUMBER USERNAME MEDICALRECORD",
    "PASSWORD": "PASSWORD PASS PIN",
    "BIRTH_DATE": "DOB DATEOFBIRTH BIRTHDATE",
    "IP_ADDRESS": "IP IPADDRESS IPV",
    "MAC_ADDRESS": "MAC MACADDRESS",
    "URL": "URL",
    "DATE": "DATE",
    "POSTAL_CODE": "ZIP ZIPCODE POSTCODE POSTALCODE",
}
_ENTITY_OF = {label: entity for entity, labels in _KNOWN.items() for label in labels.split()}
_PREFIX = re.compile(r"^[BIOELSU][-_]")
# The label of tokens outside of every entity.
OUTSIDE = "O"


@dataclass(frozen=True)
class Labels:
    """The labels of a model.

    Attributes:
        entity: entity type by label, with its prefix, for those that are used.
        ignored: labels without prefix that name no entity type that is looked for.
    """

    entity: Mapping[str, str]
    ignored: tuple[str, ...]


def bare(label: str) -> str:
    """Return a label without the prefix that says where in an entity a token stands."""
    return _PREFIX.sub("", label)


def begins(label: str) -> bool:
    """Return True if a token with this label begins a new entity."""
    return label[:2] in ("B-", "B_", "S-", "S_", "U-", "U_")


def map_labels(
    labels: Iterable[str], given: Mapping[str, str], wanted: Iterable[str], model: str
) -> Labels:
    """Map the labels of a model to the entity types that are looked for.

    Args:
        labels: every label of the model.
        given: `data.pii_ner_labels`, entity type by label without prefix; wins.
        wanted: entity types that are looked for.
        model: address of the model, for errors.

    Raises:
        UserError: if no label maps to any entity type, or `given` names an unknown one.
    """
    wanted = frozenset(wanted)
    unknown = sorted(set(given.values()) - _KNOWN.keys())
    if unknown:
        raise UserError(
            f"data.pii_ner_labels: no entity is called {', '.join(unknown)}; there are "
            + ", ".join(_KNOWN)
        )
    every = [label for label in labels if label != OUTSIDE]
    mapped = {label: found for label in every if (found := _entity(bare(label), given))}
    if not mapped:
        raise UserError(
            f"data.pii_ner: the labels of {model} ({', '.join(sorted(set(map(bare, every))))}) "
            "name no kind of personal data; name another model, or say what they mean in "
            "data.pii_ner_labels, such as {LABEL_1: PERSON}"
        )
    used = {label: entity for label, entity in mapped.items() if entity in wanted}
    return Labels(used, tuple(sorted({bare(label) for label in every if label not in used})))


def _entity(label: str, given: Mapping[str, str]) -> str | None:
    if label in given:
        return given[label]
    return _ENTITY_OF.get(re.sub(r"[\W\d_]+", "", label.upper()))
