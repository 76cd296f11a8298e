"""Stand-ins for personal data: plausible, the same for the same person in a row, real for nobody.

A stand-in is drawn by a hash of the source row and the value. Keyed by row, it can't be matched
across rows, and nobody can test whether a name is in the dataset by computing its stand-in.
Numbers lie in ranges that are never issued (RFC 5737, RFC 3849, RFC 2606, 555-01xx, a failing
check digit), so that a stand-in is no personal data itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from tuneline.data.pii.checksums import digits_of, luhn
from tuneline.data.pii.secrets import SECRETS

_CONSTANT = {
    **{entity: f"[{entity}]" for entity in SECRETS},
    "MAC_ADDRESS": "[MAC_ADDRESS]",
    "AGE_OVER_89": "90+",
}
_MONTHS = "January February March April May June July August September October November".split()


@cache
def name_lists() -> dict[str, tuple[str, ...]]:
    """The word lists of `pii_names.yaml`."""
    import yaml

    text = resources.files("tuneline.data.pii").joinpath("names.yaml").read_text("utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return {name: tuple(str(words).split()) for name, words in document.items()}


class StandIns:
    """Gives the stand-ins of one row.

    Args:
        key: what belongs to the row alone, such as the hash of its source line.
        seed: another seed gives other stand-ins.
        known: stand-ins that are settled already, `given` of another instance.
        masked: entities that get a typed placeholder such as `[PERSON]` instead.

    Attributes:
        given: stand-ins by entity and canonical value.
        values: the stand-ins that were given out, with their entity.
    """

    def __init__(
        self,
        key: str,
        seed: int,
        known: Mapping[tuple[str, str], str] | None = None,
        masked: frozenset[str] = frozenset(),
    ) -> None:
        self._masked = masked
        self._key = f"{seed}:{key}"
        self.given: dict[tuple[str, str], str] = dict(known or {})
        self._names: dict[str, str] = {}
        self.values: dict[str, str] = {}

    def of(self, entity: str, value: str) -> str:
        """The stand-in of a value; the same one whenever the value comes again.

        Upper and lower case, spaces and punctuation make no difference.
        """
        if entity in self._masked:
            made = f"[{entity}]"
        elif entity == "PERSON":
            made = self._person(value)
        else:
            key = (entity, _canonical(value))
            if key not in self.given:
                self.given[key] = self._make(entity, value)
            made = self.given[key]
        self.values[made] = entity
        return made

    def _number(self, entity: str, value: str) -> int:
        text = f"{self._key}:{entity}:{_canonical(value)}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    def _make(self, entity: str, value: str) -> str:
        number = self._number(entity, value)
        if entity in _CONSTANT:
            return _CONSTANT[entity]
        makers = {
            "EMAIL_ADDRESS": _email,
            "PHONE_NUMBER": _phone,
            "CREDIT_CARD": _card,
            "IBAN_CODE": _iban,
            "US_SSN": _ssn,
            "IP_ADDRESS": _ip,
            "BIRTH_DATE": _date,
            "ID_NUMBER": lambda n, _: f"X0000{n % 10_000:04d}",
            "STREET_ADDRESS": _street,
            "DATE": _same_year,
            "URL": lambda n, _: f"https://www.example.com/{n % 100_000:05d}",
            "POSTAL_CODE": lambda n, _: f"00000-{n % 10_000:04d}",
            "LOCATION": lambda n, _: _pick(name_lists()["towns"], n),
        }
        # What a recogniser of the user's own finds gets a placeholder.
        return makers[entity](number, value) if entity in makers else f"[{entity}]"

    def _person(self, value: str) -> str:
        """A name with as many words: first words from given names, the last from family names."""
        words = value.split()
        made = []
        for position, word in enumerate(words):
            key = _canonical(word)
            if key not in self._names:
                family = position == len(words) - 1 and len(words) > 1
                names = name_lists()["stand_in_last" if family else "stand_in_first"]
                self._names[key] = self._unused(names, self._number("PERSON", word))
            made.append(self._names[key])
        return _like(" ".join(made), value)

    def _unused(self, names: Sequence[str], number: int) -> str:
        """A name that stands for nobody else in the row, while there is one."""
        taken = set(self._names.values())
        free = [name for name in names if name not in taken] or list(names)
        return free[number % len(free)]


def _canonical(value: str) -> str:
    return re.sub(r"[\W_]+", "", value.casefold())


def _pick(words: Sequence[str], number: int) -> str:
    return words[number % len(words)]


def _like(made: str, value: str) -> str:
    """Write a name in the case of the one it stands for."""
    if value.islower():
        return made.lower()
    return made.upper() if value.isupper() and len(value) > 2 else made


def _email(number: int, _: str) -> str:
    lists = name_lists()
    first = _pick(lists["stand_in_first"], number)
    last = _pick(lists["stand_in_last"], number // 97)
    return f"{first}.{last}{number // 9973 % 90 + 10}@mail.example".lower()


def _phone(number: int, value: str) -> str:
    local = f"555-01{number % 100:02d}"
    area = _pick(("202", "303", "404", "505", "606"), number // 100)
    return f"+1 {area} {local}" if value.strip().startswith("+") else f"{area}-{local}"


def _card(number: int, value: str) -> str:
    digits = f"400000000000{number % 1000:03d}"
    # Any check digit but the right one: no such card can exist.
    digits += next(check for check in "0123456789" if not luhn(digits + check))
    separator = next((c for c in value if c in " -"), "")
    return separator.join(digits[i : i + 4] for i in range(0, 16, 4))


def _iban(number: int, _: str) -> str:
    # XX is no country, and no IBAN has the check digits 00.
    return f"XX00TEST{number % 10**10:010d}"


def _ssn(number: int, value: str) -> str:
    last = f"{number % 10_000:04d}"
    # Numbers with the area 000 are never issued; of a partial number only the end is named.
    return last if len(digits_of(value)) == 4 else f"000-00-{last}"


def _ip(number: int, value: str) -> str:
    return f"2001:db8::{number % 65536:x}" if ":" in value else f"192.0.2.{number % 254 + 1}"


def _date(number: int, _: str) -> str:
    return f"{number % 28 + 1} {_pick(_MONTHS, number // 28)} {1950 + number // 400 % 50}"


def _same_year(number: int, value: str) -> str:
    """Another day of the year that was named, which may stay."""
    year = re.search(r"(?:19|20)\d{2}", value)
    day = f"{number % 28 + 1} {_pick(_MONTHS, number // 28)}"
    return f"{day} {year[0]}" if year else day


def _street(number: int, _: str) -> str:
    return f"{number % 90 + 10} {_pick(name_lists()['streets'], number // 90)} Street"
