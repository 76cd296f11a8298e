"""Define the kinds of values that are planted, with the forms in which people give them.

The shares of the forms follow the register of the dataset where it shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from tuneline.data.pii.canaries import dates, numbers, people, places, secrets
from tuneline.data.pii.canaries.canary import (
    BARE,
    DISCLOSED,
    MISTYPED,
    OBFUSCATED,
    PARTIAL,
    SPLIT,
    Value,
    group_name,
)
from tuneline.data.pii.canaries.lists import lists
from tuneline.data.pii.canaries.register import Register
from tuneline.data.pii.languages import ENGLISH

Maker = Callable[[Random, str, Register, str], Value]

# Shares of the forms before the register of the dataset is taken into account.
_USUAL = {DISCLOSED: 0.6, MISTYPED: 0.06, SPLIT: 0.02}
# A dataset in which numbers stand alone gives half of its values so.
_BARE_LEAST, _BARE_PART = 0.1, 0.5
# Share of mailboxes whose host was said before, or is the one of another ("same domain").
_MAILBOX = 0.2
# Splitting a value over turns takes a dialogue in at least this share of the rows.
DIALOGUE = 0.05
_ALL = (MISTYPED, PARTIAL, OBFUSCATED, SPLIT)


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        make: makes up a value.
        forms: its forms besides disclosed and bare.
        entity: the entity type that it is part of.
        cased: True if another case makes it another value.
        number: True if it may stand in place of any number of the dataset.
        weights: shares of forms that differ from the usual ones.
        doubt: shares of forms that the dataset shows for the kind.
    """

    make: Maker
    forms: tuple[str, ...] = ()
    entity: str = ""
    cased: bool = False
    number: bool = False
    weights: Mapping[str, float] | None = None
    doubt: Callable[[Register], Mapping[str, float]] | None = None

    def shares(self, register: Register) -> dict[str, float]:
        """Return the share of each form, given the register of a dataset."""
        wanted = {
            **_USUAL,
            BARE: _BARE_LEAST + _BARE_PART * register.bare,
            PARTIAL: register.partial,
            OBFUSCATED: register.spelled,
            SPLIT: _USUAL[SPLIT] + register.across,
            **(self.weights or {}),
            **({} if self.doubt is None else self.doubt(register)),
        }
        if register.multi_turn < DIALOGUE:
            wanted[SPLIT] = 0.0
        forms = (DISCLOSED, BARE, *self.forms)
        total = sum(wanted[form] for form in forms)
        return {form: wanted[form] / total for form in forms}


def _unchecked(register: Register) -> Mapping[str, float]:
    """Return the share of numbers that fail their checksum, as odds against those that pass."""
    invalid = min(register.invalid, 0.9)
    passing = _USUAL[DISCLOSED] + _BARE_LEAST + _BARE_PART * register.bare
    return {MISTYPED: passing * invalid / (1 - invalid)}


def _garbled(register: Register) -> Mapping[str, float]:
    """Return the shares of e-mail addresses that are spelled or lack a sign or host, as odds."""
    odd = min(register.garbled + register.broken, 0.9)
    plain = _USUAL[DISCLOSED] + _BARE_LEAST + _BARE_PART * register.bare
    part = plain / (1 - odd)
    return {
        OBFUSCATED: part * register.garbled,
        MISTYPED: part * register.broken,
        PARTIAL: _MAILBOX * register.multi_turn,
    }


KINDS: dict[str, Kind] = {
    # A first name alone is the most frequent mention of a person.
    "PERSON": Kind(people.person, _ALL, weights={PARTIAL: 0.45, MISTYPED: 0.03, OBFUSCATED: 0.03}),
    "LOCATION": Kind(places.place),
    "EMAIL_ADDRESS": Kind(people.email, _ALL, doubt=_garbled),
    "PHONE_NUMBER": Kind(numbers.phone, _ALL, number=True),
    "CREDIT_CARD": Kind(numbers.card, _ALL, number=True, doubt=_unchecked),
    "IBAN_CODE": Kind(numbers.account, (MISTYPED, PARTIAL, OBFUSCATED)),
    # Whoever asks for one mostly asks for its last four digits.
    "US_SSN": Kind(numbers.ssn, _ALL, number=True, weights={PARTIAL: 0.6}),
    "IP_ADDRESS": Kind(numbers.network_address, (PARTIAL, OBFUSCATED)),
    "MAC_ADDRESS": Kind(numbers.hardware_address, (OBFUSCATED,)),
    "ID_NUMBER": Kind(numbers.identity, _ALL, number=True),
    "BIRTH_DATE": Kind(dates.birth_date, (PARTIAL, OBFUSCATED, SPLIT)),
    "STREET_ADDRESS": Kind(places.address, _ALL, weights={PARTIAL: 0.3}),
    "URL": Kind(people.url, (OBFUSCATED,)),
    "DATE": Kind(dates.date, (OBFUSCATED,)),
    "POSTAL_CODE": Kind(numbers.postal_code, (OBFUSCATED,)),
    "AGE_OVER_89": Kind(dates.high_age, (OBFUSCATED,)),
    "API_KEY": Kind(secrets.api_key, cased=True),
    "AWS_ACCESS_KEY": Kind(secrets.aws_key, cased=True),
    "PASSWORD": Kind(secrets.password, cased=True),
    "PIN": Kind(secrets.pin, (OBFUSCATED,), entity="PASSWORD"),
    "PRIVATE_KEY": Kind(secrets.private_key, cased=True),
}
# Words that the kinds need around them, without which nobody could say what they are.
NEEDS_WORDS = frozenset({"PIN", "PASSWORD", "POSTAL_CODE", "AGE_OVER_89", "DATE", "LOCATION"})


def entity_of(kind: str) -> str:
    """Return the entity type of a kind."""
    return KINDS[kind].entity or kind


def planted_groups(entities: Iterable[str], languages: Sequence[str]) -> list[tuple[str, str]]:
    """Return the kinds of entity types, each with the languages that have words for it.

    A kind that is written alike in all languages is planted in the first one declared.
    """
    wanted = set(entities)
    phrases = lists("phrases")
    known = [language for language in languages if language in phrases] or [ENGLISH]
    found = []
    for kind, entry in KINDS.items():
        if kind not in wanted and entry.entity not in wanted:
            continue
        own = [language for language in known if kind in phrases[language]["kinds"]]
        found += [(kind, language) for language in own or [ENGLISH]]
    return found


def group_names(entities: Iterable[str], languages: Sequence[str]) -> list[str]:
    """Return the names of all groups that are measured together."""
    return [group_name(*group) for group in planted_groups(entities, languages)]
