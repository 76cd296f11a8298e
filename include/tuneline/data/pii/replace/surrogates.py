"""Draw surrogates for personal data: plausible, consistent within a row, and never anyone's.

The row is part of the key, so that surrogates can't be matched across rows, nor tell whether a name
is in the dataset. Numbers lie in ranges that are never issued (RFC 5737, RFC 3849, RFC 2606,
555-01xx, a failing check digit). After eight draws that share a token with a value of the row, a
placeholder such as `[PERSON]` takes its place.
"""

from __future__ import annotations

import hashlib
import random
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from faker import Faker

_DRAWS = 8
_LOCALES = "en_US de_DE fr_FR es_ES it_IT pt_PT nl_NL".split()
# Words that identify nobody: of names and signs, and of surrogates.
_KEPT = frozenset(
    "the of and de del den der du da di la le el www http https com org net example test".split()
)
_NAME = re.compile(r"(?<!['’])[^\W\d_]+(?:['’](?!s\b)[^\W\d_]+)*|\d+")
_TOKEN = re.compile(r"[^\W\d_]+|\d+")
_WORD = re.compile(r"\w+")
_CHAR = re.compile(r"[^\W_]")
_YEAR = re.compile(r"(?:19|20)\d\d")

Draw: TypeAlias = Callable[[str], int]  # a number for a part of a value, the same one in a row


@cache
def _faker(language: str) -> Faker:
    from faker import Faker

    locale = next((name for name in _LOCALES if name[:2] == language), "en_US")
    return Faker(locale, use_weighting=False)


@cache
def words_of(language: str, kind: str) -> Sequence[str]:
    """Return Faker's words of a kind such as `last_name`; English ones for an unknown language."""
    fake = _faker(language)
    fake.seed_instance(0)
    drawn = {getattr(fake, kind)() for _ in range(1_000)}
    return sorted(word for word in drawn if word.isalpha() and len(word) > 2)


def tokens(value: str, entity: str = "") -> set[str]:
    """Return the tokens of a value that identify somebody.

    They are words of at least three letters but those of all surrogates, runs of at least three
    digits but years and those of reserved ranges, and all digits together from four on.
    """
    pieces = [piece for piece in _TOKEN.findall(value.casefold()) if piece not in _KEPT]
    numbers = [piece for piece in pieces if piece.isdecimal()]
    found = {n for n in numbers if n not in ("555", "192") and not _YEAR.fullmatch(n)}
    if entity != "DATE":
        found |= {digits for digits in ["".join(numbers)] if len(digits) > 3}
    if entity not in ("DATE", "BIRTH_DATE"):
        found.update(set(pieces) - set(numbers))
    return {token for token in found if len(token) > 2 and token.strip("0")}


@dataclass
class Surrogates:
    """The surrogates of one row, drawn by its key, such as the hash of its prompt, and a seed."""

    key: str
    seed: int
    language: str = "en"
    # Entities that get a typed placeholder such as `[PERSON]` instead.
    masked: frozenset[str] = frozenset()
    # Surrogates by entity and value, with those that are settled already.
    given: dict[tuple[str, str], str] = field(default_factory=dict)
    # Entity of each value, by its letters and digits.
    kinds: dict[str, str] = field(default_factory=dict)
    # Entity of each surrogate in use, and the word that takes a word's place in any value.
    values: dict[str, str] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    # Tokens that no surrogate may have.
    avoided: set[str] = field(default_factory=set)

    def avoid(self, values: Iterable[tuple[str, str]]) -> None:
        """Share no token with some values of the row: entity and value of each."""
        for entity, value in values:
            self.avoided |= tokens(value, entity)

    def of(self, entity: str, value: str) -> str:
        """Return the surrogate of a value, the same one each time, whatever it is taken for."""
        words = "".join(_CHAR.findall(value.casefold()))
        key = (self.kinds.setdefault(words, entity), value)
        if key not in self.given:
            self.given[key] = self._drawn(*key)
        self.values[self.given[key].strip()] = key[0]
        return self.given[key]

    def _drawn(self, entity: str, value: str) -> str:
        pieces = _WORD.findall(value.casefold())
        if pieces and entity in _BY_WORD - self.masked and self.words.keys() >= {*pieces}:
            made = _WORD.sub(lambda word: cased(self.words[word[0].casefold()], word[0]), value)
            return cased(made, value)  # a part follows the whole
        self.avoid([(entity, value)])
        for attempt in range(_DRAWS if entity in _MAKERS.keys() - self.masked else 0):
            draw = partial(self._draw, entity, attempt)
            made = cased(_MAKERS[entity](self, draw, value), value)
            if made.casefold() != value.casefold() and not tokens(made, entity) & self.avoided:
                words = _WORD.findall(made)
                pairs = zip(pieces, words, strict=True) if len(words) == len(pieces) else ()
                for piece, word in pairs:
                    self.words.setdefault(piece, word)
                return made
        return f"[{entity}]"

    def _draw(self, entity: str, attempt: int, part: str) -> int:
        canonical = re.sub(r"[\W_]+", "", part.casefold())
        text = f"{self.seed}:{self.key}:{entity}:{canonical}:{attempt or ''}"
        digest = hashlib.sha256(text.encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:8], "big")

    def fake(self, number: int) -> Faker:
        """Return what draws addresses in the row's language."""
        fake = _faker(self.language)
        fake.seed_instance(number)
        return fake


def cased(made: str, like: str) -> str:
    """Return a text in the case of another one."""
    if like.islower():
        return made.lower()
    return made.upper() if like.isupper() and len(like) > 1 else made


def other_chars(number: int, value: str) -> str:
    """Return a text of the same shape: other digits, none of them zero, and other letters."""
    draw = random.Random(number)  # noqa: S311 - reproducible, no secret

    def other(match: re.Match[str]) -> str:
        chars = "123456789" if match[0].isdecimal() else string.ascii_lowercase
        return cased(draw.choice(chars.replace(match[0].lower(), "")), match[0] * 2)

    return _CHAR.sub(other, value)


def _names(row: Surrogates, draw: Draw, value: str, first: str, last: str) -> str:
    """Return other words; the same word gets the same one, and no two people share one."""
    end = max((m.start() for m in _NAME.finditer(value) if m[0].isalpha()), default=0) or None

    def other(match: re.Match[str]) -> str:
        piece, number = match[0], draw(match[0])
        if (word := piece.casefold()) in _KEPT:
            return piece
        if word not in row.words and (piece.isdecimal() or len(piece) < 3):
            return other_chars(number, piece)
        if word not in row.words:
            names = words_of(row.language, last if match.start() == end else first)
            free = (names[(number + step) % len(names)] for step in range(len(names)))
            taken = row.avoided.union(map(str.casefold, row.words.values()))
            row.words[word] = next((n for n in free if n.casefold() not in taken), names[0])
        return cased(row.words[word], piece)

    return _NAME.sub(other, value)


def _date(row: Surrogates, draw: Draw, value: str, *, same_year: bool = False) -> str:
    """Return another date, in the same form if it is in digits; its year keeps the decade."""
    pieces = _TOKEN.findall(value.casefold())
    year_at = value.rfind(pieces[-1]) if len(pieces) > 2 and not _YEAR.search(value) else -1

    def other(match: re.Match[str]) -> str:
        piece, number = match[0], draw(match[0])
        if len(piece) == 4 or match.start() == year_at:
            # The year of birth of nobody over 89.
            decade = max(piece[:-1], "194" if len(piece) == 4 else "")
            return piece if same_year else f"{decade}{(int(piece[-1]) + 1 + number % 9) % 10}"
        if len(piece) > 2:
            return other_chars(number, piece)
        low, high = ((1, 9), (10, 12), (13, 28))[(int(piece) > 9) + (int(piece) > 12)]
        made = low + (int(piece) - low + 1 + number % (high - low)) % (high - low + 1)
        return str(made).zfill(len(piece))

    if not any(map(str.isalpha, pieces)):
        return re.sub(r"\d+", other, value)
    number, months = draw(value), words_of(row.language, "month_name")
    day, month, year = number % 28 + 1, months[number // 28 % 12], _YEAR.search(value)
    if {str(day), month.casefold()} & {*pieces}:
        return value  # another one is drawn
    return f"{day} {month} {re.sub('.+', other, year[0]) if year else ''}".strip()


def _number(make: Callable[[int, str], str]) -> _Maker:
    """Return a maker of numbers: what `make` returns for letters and digits stands at their end."""

    def maker(_: Surrogates, draw: Draw, value: str) -> str:
        number, words = draw(value), value.split()
        if len(words) > 1 and not any(map(str.isdecimal, value)):  # a number in words
            value = "0" * len(words)
        bare = "".join(_CHAR.findall(value))
        chars = iter(make(number, bare).rjust(len(bare), "0")[-len(bare) :])
        return _CHAR.sub(lambda _: next(chars), value)

    return maker


def _card(number: int, bare: str) -> str:
    from stdnum import luhn

    digits = "4" + str(number % 1000).zfill(len(bare) - 2)
    # With any check digit but the right one, no such card can exist.
    return f"{digits}{(int(luhn.calc_check_digit(digits)) + 1 + number // 1000 % 9) % 10}"


_Maker: TypeAlias = Callable[[Surrogates, Draw, str], str]
# The secrets, and the hits of the user's own recognisers, get a placeholder.
_MAKERS: dict[str, _Maker] = {
    "PERSON": partial(_names, first="first_name", last="last_name"),
    "EMAIL_ADDRESS": lambda row, draw, value: row.fake(draw(value)).ascii_safe_email(),
    "BIRTH_DATE": _date,
    "DATE": partial(_date, same_year=True),
    "STREET_ADDRESS": partial(_names, first="city", last="city"),
    "LOCATION": partial(_names, first="city", last="city"),
    "PHONE_NUMBER": _number(
        lambda number, bare: f"{number % 8 + 2}0255501{number // 8 % 100:02d}".rjust(len(bare), "1")
    ),
    "CREDIT_CARD": _number(_card),
    # Numbers with the area 000 are never issued.
    "US_SSN": _number(lambda number, bare: f"{number % 10_000:04d}"),
    "ID_NUMBER": _number(other_chars),
    # XX is not a country, and no IBAN has the check digits 00.
    "IBAN_CODE": _number(
        lambda number, bare: f"XX00TEST{number % 10**10:010d}".ljust(len(bare), "0")[: len(bare)]
    ),
    # ZIP codes below 005 are not in use.
    "POSTAL_CODE": _number(lambda number, bare: f"{number % 100:02d}"),
    "IP_ADDRESS": lambda row, draw, value: (
        f"2001:db8::{draw(value) % 65536:x}" if ":" in value else f"192.0.2.{draw(value) % 254 + 1}"
    ),
    "URL": lambda row, draw, value: f"https://www.example.com/{draw(value) % 100_000:05d}",
    "AGE_OVER_89": lambda row, draw, value: "90+",
}
_BY_WORD = _MAKERS.keys() - {"EMAIL_ADDRESS", "URL", "IP_ADDRESS", "AGE_OVER_89"}
