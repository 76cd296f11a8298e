"""Draw surrogates for personal data: plausible, consistent within a row, and never anyone's.

A surrogate is drawn by a hash of the row and the value. Since the row is part of the key,
surrogates can't be matched across rows, and nobody can test whether a name is in the dataset by
computing its surrogate. Numbers lie in ranges that are never issued (RFC 5737, RFC 3849, RFC 2606,
555-01xx, a failing check digit). Separators, case and numbers of digits stay.

No surrogate shares an identifying token (see `tokens`) with any value of its row: another one is
drawn then, and after eight draws a placeholder such as `[PERSON]` takes the value's place.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from stdnum import luhn

_DRAWS = 8
_LOCALES = "en_US de_DE fr_FR es_ES it_IT pt_PT nl_NL".split()
# Words of which each can stand for another of its group.
_NUMBERS = (
    "zero one two three four five six seven eight nine",
    "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen",
    "twenty thirty forty fifty sixty seventy eighty ninety",
    "first second third fourth fifth sixth seventh eighth ninth",
    "tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth seventeenth nineteenth",
)
_DIGITS = _NUMBERS[0].split()
# Words that stay and identify nobody: parts of dates, spoken signs, kinds of streets and units.
_KEPT = frozenset(
    "the of and de del den der du da di la le el am st nd rd th nineteen hundred thousand plus "
    "dash hyphen minus underscore dot space then double triple street avenue ave road lane drive "
    "court place square hill row walk way circle boulevard blvd terrace parkway highway crescent "
    "close gardens alley straße strasse weg platz allee gasse ring ufer rue chemin impasse quai "
    "route via viale corso piazza calle avenida plaza paseo camino carretera rua travessa largo "
    "straat laan plein gracht apt apartment suite unit flat floor room building box number no "
    "north south east west upper lower old new www http https com org net info example mail gmail "
    "googlemail yahoo hotmail outlook icloud aol proton live gmx web office test".split()
)
_STREET_END = re.compile(
    r"(?i)(straße|strasse|str|gasse|weg|platz|allee|straat|laan|plein|gracht)$"
)
_PIECE = re.compile(r"(?<!['’])[^\W\d_]+(?:['’](?!s\b)[^\W\d_]+)*|\d+")
_TOKEN = re.compile(r"[^\W\d_]+|\d+")
_YEAR = re.compile(r"(?:19|20)\d\d")
_AT = re.compile(
    r"(?i)\s{0,3}@\s{0,3}|\s{0,3}[(\[{<]?\bat\b[)\]}>]?\s{0,3}|"
    r"\s(?=[\w-]{1,64}\s?(?:\.|dot\b)\s?\w{1,24}$)"
)
_ORDINAL, _ENDS = re.compile(r"\b(\d?)(\d)(?:st|nd|rd|th)\b"), {"1": "st", "2": "nd", "3": "rd"}
_EXPIRY = re.compile(r"(?:\d{1,2}|[^\W\d]{3,9}\.?)\W{1,3}(?:20)?\d\d")  # of a card

Draw: TypeAlias = Callable[[str], int]  # a number for a part of a value, the same one in a row


class Words(NamedTuple):
    """Words of a language: names, towns, and for a word the others of its group."""

    given: Sequence[str]
    family: Sequence[str]
    towns: Sequence[str]
    groups: Mapping[str, Sequence[str]]


@cache
def words_of(language: str) -> Words:
    """Return Faker's words in a language, the English ones for a language it is not asked for."""
    from faker import Faker

    fake = Faker(next((n for n in _LOCALES if n[:2] == language), "en_US"), use_weighting=False)
    fake.seed_instance(0)
    drawn = [
        sorted({word for word in (draw() for _ in range(1_000)) if word.isalpha() and word[2:]})
        for draw in (fake.first_name, fake.last_name, fake.city, fake.month_name, fake.day_of_week)
    ]
    short = [month[:3] for month in drawn[3]]
    groups = [*map(str.split, _NUMBERS), *drawn[3:], short]
    alike = {word.casefold(): group for group in groups for word in group}
    given, family, towns = drawn[:3]
    return Words(given, family, towns, alike | {"oh": _DIGITS, "sept": short})


def tokens(value: str, entity: str = "") -> set[str]:
    """Return the tokens of a value that identify somebody.

    They are words of at least three letters (not in dates) that are no number and not public such
    as "street" or "gmail", runs of at least three digits but years, zeros and those of the reserved
    ranges, and all digits together from four on.
    """
    pieces = _TOKEN.findall(value.casefold())
    public = _KEPT | words_of("en").groups.keys()
    found = {p for p in pieces if len(p) > 2 and p not in public and not p.isdecimal()}
    if entity in ("DATE", "BIRTH_DATE"):
        found = set()
    numbers = [piece for piece in pieces if piece.isdecimal()]
    digits = "".join(numbers) if entity != "DATE" else ""
    found |= {
        n for n in numbers if len(n) > 2 and n not in ("555", "192") and not _YEAR.fullmatch(n)
    }
    return {t for t in found | ({digits} if len(digits) > 3 else set()) if t.strip("0")}


class Surrogates:
    """The surrogates of one row.

    Args:
        key: key of the row, such as the hash of its turns.
        seed: seed of the draws.
        language: language of the row, ISO 639-1.
        known: surrogates that are settled already, `given` of another instance.
        masked: entities that get a typed placeholder such as `[PERSON]` instead.

    Attributes:
        words: words of the row's language.
        given: surrogates by entity and value.
        values: entity of each surrogate in use.
    """

    def __init__(
        self,
        key: str,
        seed: int,
        language: str = "en",
        known: Mapping[tuple[str, str], str] | None = None,
        masked: frozenset[str] = frozenset(),
    ) -> None:
        self._masked = masked
        self._key = f"{seed}:{key}"
        self.words = words_of(language)
        self.given: dict[tuple[str, str], str] = dict(known or {})
        self._names: dict[str, str] = {}
        self._avoided: set[str] = set()
        self.values: dict[str, str] = {}

    def avoid(self, values: Iterable[tuple[str, str]]) -> None:
        """Share no token with some values of the row: entity and value of each."""
        for entity, value in values:
            self._avoided |= tokens(value, entity)

    def of(self, entity: str, value: str) -> str:
        """Return the surrogate of a value, the same one each time."""
        key = (entity, value)
        if key not in self.given:
            self.given[key] = f"[{entity}]" if entity in self._masked else self._drawn(*key)
        self.values[self.given[key].strip()] = entity
        return self.given[key]

    def _drawn(self, entity: str, value: str) -> str:
        self.avoid([(entity, value)])
        maker = _MAKERS.get(entity)
        for attempt in range(_DRAWS if maker else 0):
            made = maker(self, partial(self._number, entity, attempt), value) if maker else ""
            if made.casefold() != value.casefold() and not tokens(made, entity) & self._avoided:
                return made
        return "90+" if entity == "AGE_OVER_89" else f"[{entity}]"

    def _number(self, entity: str, attempt: int, part: str) -> int:
        canonical = re.sub(r"[\W_]+", "", part.casefold())
        text = f"{self._key}:{entity}:{canonical}:{attempt or ''}".encode("utf-8", "replace")
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")

    def name(self, draw: Draw, word: str, *, family: bool) -> str:
        """Return a name that no other person of the row has, as long as one is left."""
        key = word.casefold()
        if key not in self._names:
            names, number = self.words.family if family else self.words.given, draw(word)
            taken = {*self._names.values()}
            free = (names[(number + step) % len(names)] for step in range(len(names)))
            fits = (n for n in free if n not in taken and n.casefold() not in self._avoided)
            self._names[key] = next(fits, names[number % len(names)])
        return self._names[key]


def pick(words: Sequence[str], number: int, but: str = "") -> str:
    """Return one of some words by a number, never the one that is left out."""
    made = words[number % len(words)]
    return made if made.casefold() != but else words[(number + 1) % len(words)]


def cased(made: str, like: str) -> str:
    """Return a word in the case of another one."""
    if like.islower():
        return made.lower()
    return made.upper() if like.isupper() and len(like) > 1 else made


def other_chars(number: int, value: str) -> str:
    """Return a text of the same shape: other digits for digits, other letters for letters."""
    made = ""
    for char in value:
        number = (number * 6364136223846793005 + 1442695040888963407) % 2**64
        if char.isdecimal():
            # No zero in front.
            digits = string.digits[1:] if not made and char != "0" else string.digits
            made += pick(digits, number >> 33, char)
        elif char.isalpha():
            made += cased(pick(string.ascii_lowercase, number >> 33, char.lower()), char + char)
        else:
            made += char
    return made


def _rewritten(
    draw: Draw,
    value: str,
    word: Callable[[re.Match[str]], str],
    groups: Mapping[str, Sequence[str]] = MappingProxyType({}),
    number: Callable[[re.Match[str]], str] | None = None,
) -> str:
    """Write each piece of a value anew; public words stay, words of a group change within it."""

    def other(match: re.Match[str]) -> str:
        piece, lowered = match[0], match[0].casefold()
        if lowered in _KEPT or value[match.end() : match.end() + 9].casefold() == " thousand":
            return piece
        if lowered in groups:
            return cased(pick(groups[lowered], draw(lowered), lowered), piece)
        if piece.isdecimal() and number:
            return number(match)
        if piece.isdecimal() or len(piece) < 3:
            return other_chars(draw(piece), piece)
        return cased(word(match), piece)

    return _PIECE.sub(other, value)


def _person(row: Surrogates, draw: Draw, value: str) -> str:
    last = max((m.start() for m in _PIECE.finditer(value) if m[0].isalpha()), default=0)
    return _rewritten(
        draw, value, lambda m: row.name(draw, m[0], family=m.start() == last and last > 0)
    )


def _email(row: Surrogates, draw: Draw, value: str) -> str:
    """Return another mailbox, or the name of another user for a value without a host."""
    sign = _AT.search(value)

    def word(match: re.Match[str]) -> str:
        # Enough of them, so that no two people of a dataset are likely to share one.
        number = draw(match[0])
        return pick(row.words.family, number) + string.ascii_lowercase[number // 4096 % 26]

    made = _rewritten(draw, value[: sign.start()] if sign else value, word)
    if sign is None:
        return made
    host = value[sign.end() :]
    dot = re.search(r"(?i)\s{0,3}\bdot\b\s{0,3}", host)
    other = pick(("mail.example", "example.com", "example.net", "example.org"), draw(host))
    return made + sign[0] + cased(other.replace(".", dot[0] if dot else "."), host)


def _street(row: Surrogates, draw: Draw, value: str) -> str:
    comma = value.find(",", 1) % (len(value) + 1)

    def word(match: re.Match[str]) -> str:
        ending = _STREET_END.search(match[0])
        names = row.words.towns if match.start() > comma else row.words.family
        return pick(names, draw(match[0])) + (ending[0].lower() if ending else "")

    return _rewritten(draw, value, word, row.words.groups)


def _date(row: Surrogates, draw: Draw, value: str, *, same_year: bool = False) -> str:
    """Return another date in the same form; a year keeps its decade, so that an age does."""
    pieces = list(_PIECE.finditer(value))
    two_digits = len(pieces) > 2 and not any(_YEAR.fullmatch(piece[0]) for piece in pieces)
    words = {piece[0].casefold() for piece in pieces if piece[0].isalpha() and len(piece[0]) > 2}
    if words - _KEPT - row.words.groups.keys():  # an unknown word may be a number
        return value

    def number(match: re.Match[str]) -> str:
        piece, low, high = match[0], 13, 28
        if len(piece) == 4 or (two_digits and match.start() == pieces[-1].start()):
            if same_year:
                return piece
            # The year of birth of nobody over 89.
            low = int(piece) // 10 * 10 if len(piece) == 2 else max(1940, int(piece) // 10 * 10)
            high = low + 9
        elif len(piece) > 2:
            return other_chars(draw(piece), piece)
        elif int(piece) <= 12:
            low, high = (1, 9) if int(piece) < 10 else (10, 12)
        drawn = [str(value).zfill(len(piece)) for value in range(low, high + 1)]
        return pick(drawn, draw(piece), piece)

    made = _rewritten(draw, value, lambda match: match[0], row.words.groups, number)
    return _ORDINAL.sub(lambda m: m[1] + m[2] + _ENDS.get(m[2] if m[1] != "1" else "", "th"), made)


_Maker: TypeAlias = Callable[[Surrogates, Draw, str], str]


def _number(make: Callable[[int, str], str], least: int = 0) -> _Maker:
    """Return a maker of numbers, which takes fragments and numbers in words as well."""

    def maker(row: Surrogates, draw: Draw, value: str) -> str:
        digits = sum(map(str.isdecimal, value))
        words = {match[0].casefold() for match in _PIECE.finditer(value)}
        if words & row.words.groups.keys():
            free = [word for word in _DIGITS if word not in words] or _DIGITS
            return _rewritten(draw, value, lambda m: pick(free, draw(f"{m[0]}{m.start()}")))
        if not digits:  # the name of a user
            return _email(row, draw, value)
        return make(draw(value), value) if digits >= least else other_chars(draw(value), value)

    return maker


def _in_form(value: str, chars: str, changes: Callable[[str], bool] = str.isdecimal) -> str:
    """Return a value with other digits from the end on; the grouping stays."""
    given = iter(reversed(chars))
    return "".join([next(given, "0") if changes(c) else c for c in reversed(value)][::-1])


def _phone(number: int, value: str) -> str:
    count = sum(map(str.isdecimal, value))
    local = pick(("202", "303", "404", "505", "606"), number // 100) + f"55501{number % 100:02d}"
    lead = "1" if value.strip().startswith(("+", "1")) else "0"
    return _in_form(value, local.rjust(count, lead)[-count:])


def _card(number: int, value: str) -> str:
    digits = "4" + str(number % 1000).zfill(sum(map(str.isdecimal, value)) - 2)
    # With any check digit but the right one, no such card can exist.
    wrong = (int(luhn.calc_check_digit(digits)) + 1 + number // 1000 % 9) % 10
    return _in_form(value, f"{digits}{wrong}")


def _iban(number: int, value: str) -> str:
    # XX is not a country, and no IBAN has the check digits 00.
    made = f"XX00TEST{number % 10**10:010d}".ljust(sum(map(str.isalnum, value)), "0")
    return _in_form(value, made, str.isalnum)


# The secrets, and the hits of the user's own recognisers, get a placeholder.
_MAKERS: dict[str, _Maker] = {
    "PERSON": _person,
    "EMAIL_ADDRESS": _email,
    "BIRTH_DATE": _date,
    "DATE": partial(_date, same_year=True),
    "STREET_ADDRESS": _street,
    "LOCATION": lambda row, draw, value: cased(pick(row.words.towns, draw(value)), value),
    "PHONE_NUMBER": _number(_phone, least=7),
    "CREDIT_CARD": lambda row, draw, value: (
        _date if _EXPIRY.fullmatch(value) else _number(_card, least=13)
    )(row, draw, value),
    # Numbers with the area 000 are never issued.
    "US_SSN": _number(lambda n, value: _in_form(value, f"00000{n % 10_000:04d}"), least=9),
    "ID_NUMBER": _number(other_chars),
    "IBAN_CODE": _number(_iban),
    # ZIP codes below 005 are not in use.
    "POSTAL_CODE": _number(
        lambda n, value: _in_form(re.sub(r"[^\W\d]", "X", value), f"{n % 100:02d}")
    ),
    "IP_ADDRESS": lambda row, draw, value: (
        f"2001:db8::{draw(value) % 65536:x}" if ":" in value else f"192.0.2.{draw(value) % 254 + 1}"
    ),
    "URL": lambda row, draw, value: f"https://www.example.com/{draw(value) % 100_000:05d}",
    "PASSWORD": lambda row, draw, value: (
        "[PASSWORD]" if re.search(r"[^\W\d]", value) else other_chars(draw(value), value)
    ),
}
