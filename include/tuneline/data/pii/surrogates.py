"""Draw surrogates for personal data: plausible, consistent within a row, and never anyone's.

A surrogate is drawn by a hash of the source row and the value. Since the row is part of the key,
surrogates can't be matched across rows, and nobody can test whether a name is in the dataset by
computing its surrogate. Numbers lie in ranges that are never issued (RFC 5737, RFC 3849, RFC 2606,
555-01xx, a failing check digit), so that a surrogate is not personal data itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib import resources
from typing import Any

from tuneline.data.pii.checksums import digits_of, luhn
from tuneline.data.pii.shaped import Draw, like_date, like_email, like_street, other_chars
from tuneline.machine.secret_shapes import SECRETS

_CONSTANT = {
    **{entity: f"[{entity}]" for entity in SECRETS},
    "MAC_ADDRESS": "[MAC_ADDRESS]",
    "AGE_OVER_89": "90+",
}
_DIGIT_WORDS = "zero one two three four five six seven eight nine".split()
# Letters of a policy or plate that was taken for a telephone number.
_CAPITALS = re.compile(r"[A-Z]{2}/|[A-Z]{2,}\d")
# When a card expires.
_MONTH_OF_YEAR = re.compile(r"(?:\d{1,2}|[^\W\d]{3,9}\.?)\W{1,3}(?:20)?\d\d")
# Words of a spoken number that are no digits.
_BETWEEN_DIGITS = frozenset("plus dash hyphen space then and".split())
_DIGIT_SAID = re.compile(
    rf"\b(?:{'|'.join(_DIGIT_WORDS)}|oh|double|triple|treble)\b", re.IGNORECASE
)


@cache
def name_lists(file: str = "names.yaml") -> dict[str, tuple[str, ...]]:
    """Return the word lists of a file of this package."""
    import yaml

    text = resources.files("tuneline.data.pii").joinpath(file).read_text("utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return {name: tuple(str(words).split()) for name, words in document.items()}


class Surrogates:
    """The surrogates of one row.

    Args:
        key: key of the row, such as the hash of its source line.
        seed: seed of the draws.
        known: surrogates that are settled already, `given` of another instance.
        masked: entities that get a typed placeholder such as `[PERSON]` instead.

    Attributes:
        given: surrogates by entity and value in lower case.
        values: entity of each surrogate in use.
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
        """Return the surrogate of a value, the same one each time.

        Upper and lower case, spaces and punctuation make no difference.
        """
        if entity in self._masked:
            made = f"[{entity}]"
        elif entity == "PERSON":
            made = self._person(value)
        else:
            key = (entity, value.casefold())
            if key not in self.given:
                self.given[key] = self._make(entity, value)
            made = self.given[key]
        self.values[made] = entity
        return made

    def _number(self, entity: str, value: str) -> int:
        text = f"{self._key}:{entity}:{_canonical(value)}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    def _make(self, entity: str, value: str) -> str:
        if entity == "PASSWORD" and not re.search(r"[^\W\d]", value):
            return other_chars(self._number(entity, value), value)
        if entity == "CREDIT_CARD" and _MONTH_OF_YEAR.fullmatch(value):
            return like_date(lambda part: self._number(entity, part), value)
        if entity in _CONSTANT:
            return _CONSTANT[entity]
        if entity in _SHAPED:
            return _SHAPED[entity](lambda part: self._number(entity, part), value)
        # The hits of a recogniser of the user get a placeholder.
        maker = _MAKERS.get(entity)
        return maker(self._number(entity, value), value) if maker else f"[{entity}]"

    def _person(self, value: str) -> str:
        """Return a name of as many words: the last one a family name, the others given names."""
        words = value.split()
        made = []
        for position, word in enumerate(words):
            key = _canonical(word)
            if key not in self._names:
                family = position == len(words) - 1 and len(words) > 1
                names = name_lists()["surrogate_last" if family else "surrogate_first"]
                self._names[key] = self._unused(names, self._number("PERSON", word))
            made.append(self._names[key])
        return _like(" ".join(made), value)

    def _unused(self, names: Sequence[str], number: int) -> str:
        """Return a name that no other person of the row has, as long as one is left."""
        taken = set(self._names.values())
        free = [name for name in names if name not in taken] or list(names)
        return free[number % len(free)]


def _canonical(value: str) -> str:
    return re.sub(r"[\W_]+", "", value.casefold())


def _pick(words: Sequence[str], number: int) -> str:
    return words[number % len(words)]


def _like(made: str, value: str) -> str:
    """Return a surrogate name in the case of the original."""
    if value.islower():
        return made.lower()
    return made.upper() if value.isupper() and len(value) > 2 else made


def _email(draw: Draw, value: str) -> str:
    lists = name_lists()
    return like_email(draw, value, lists["surrogate_first"], lists["surrogate_last"])


def _digits_in(value: str, digits: str) -> str:
    """Return a value with its digits replaced, from the end on; the grouping stays."""
    given = iter(reversed(digits))
    changed = [next(given, "0") if char.isdigit() else char for char in reversed(value)]
    return "".join(reversed(changed))


def _spoken(number: int, value: str) -> str:
    """Return words for digits instead of words for digits."""

    # A word of the value is left out, as long as there are others.
    said = set(re.findall(r"[a-z]+", value.lower()))
    free = [word for word in _DIGIT_WORDS if word not in said] or _DIGIT_WORDS

    def other(match: re.Match[str]) -> str:
        nonlocal number
        if match[0].lower() in _BETWEEN_DIGITS:
            return match[0]
        number = (number * 6364136223846793005 + 1442695040888963407) % 2**64
        return free[(number >> 33) % len(free)]

    return _other_digits(number, re.sub(r"[A-Za-z]+", other, value))


def _other_digits(number: int, value: str) -> str:
    return re.sub(r"\d+", lambda match: other_chars(number, match[0]), value)


def _numeric(maker: Callable[[int, str], str]) -> Callable[[int, str], str]:
    """Return a maker that takes numbers written as words, too."""
    return lambda number, value: (
        maker(number, value)
        if re.search(r"\d", value) and not _DIGIT_SAID.search(value)
        else _spoken(number, value)
    )


def _phone(number: int, value: str) -> str:
    count = len(digits_of(value))
    if count < 7 or _CAPITALS.search(value):
        return other_chars(number, value)
    area = _pick(("202", "303", "404", "505", "606"), number // 100)
    local = f"{area}55501{number % 100:02d}"
    lead = "1" if value.strip().startswith(("+", "1")) else "0"
    return _digits_in(value, local.rjust(count, lead)[-count:])


def _card(number: int, value: str) -> str:
    count = len(digits_of(value))
    if count < 13:
        return other_chars(number, value)
    digits = "4" + f"{number % 1000:03d}".rjust(count - 2, "0")
    # With any check digit but the right one, no such card can exist.
    digits += next(check for check in "0123456789" if not luhn(digits + check))
    return _digits_in(value, digits)


def _iban(number: int, _: str) -> str:
    # XX is not a country, and no IBAN has the check digits 00.
    return f"XX00TEST{number % 10**10:010d}"


def _ssn(number: int, value: str) -> str:
    count = len(digits_of(value))
    if count != 9:
        return other_chars(number, value)
    # Numbers with the area 000 are never issued.
    return _digits_in(value, f"00000{number % 10_000:04d}")


def _ip(number: int, value: str) -> str:
    return f"2001:db8::{number % 65536:x}" if ":" in value else f"192.0.2.{number % 254 + 1}"


def _street(draw: Draw, value: str) -> str:
    return like_street(draw, value, name_lists()["streets"], name_lists()["towns"])


_MAKERS: dict[str, Callable[[int, str], str]] = {
    "PHONE_NUMBER": _numeric(_phone),
    "CREDIT_CARD": _numeric(_card),
    "IBAN_CODE": _iban,
    "US_SSN": _numeric(_ssn),
    "IP_ADDRESS": _ip,
    "ID_NUMBER": _numeric(other_chars),
    "URL": lambda n, _: f"https://www.example.com/{n % 100_000:05d}",
    "POSTAL_CODE": lambda n, _: f"00000-{n % 10_000:04d}",
    "LOCATION": lambda n, _: _pick(name_lists()["towns"], n),
}
# What is written anew part by part.
_SHAPED: dict[str, Callable[[Draw, str], str]] = {
    "EMAIL_ADDRESS": _email,
    "BIRTH_DATE": like_date,
    "STREET_ADDRESS": _street,
    "DATE": partial(like_date, same_year=True),
}
