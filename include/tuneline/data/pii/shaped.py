"""Write surrogates of dates, e-mail addresses and street addresses in the form of the original.

Each part of a value (a number, a word) gets a part of the same kind, drawn by a hash of the row
and of that part, so that the parts agree wherever a conversation mentions them. Separators, order,
case, numbers of digits and words such as "the" or "dot" stay. No other part stays as it was,
except for the decade of a year in digits, so that a surrogate is as old as the person.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

# Returns a number for a part of a value, the same one in a row.
Draw = Callable[[str], int]

MONTHS = (
    "January February March April May June July August September October November December".split()
)
_MONTHS_OF = {
    "en": MONTHS,
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November "
    "Dezember".split(),
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre "
    "décembre".split(),
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre "
    "diciembre".split(),
}
_ONES = "one two three four five six seven eight nine".split()
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
# Those up to nine also name a month, and end "twenty first".
_LOW_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth".split()
_HIGH_ORDINALS = (
    "tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth "
    "nineteenth twentieth thirtieth".split()
)
# Years that hold most of the living; a person of over 89 must not be known by one.
_FIRST_DECADE, _LAST_DECADE = 1940, 2020
_LAST_DAY = 28

_PIECE = re.compile(r"[^\W\d_]+|\d+")
# Words of a date that identify nobody; "two" in "two thousand" is one.
_KEPT_IN_DATE = re.compile(
    r"two thousand|nineteen(?= )|twenty(?=[ -](?:ten|eleven|twelve|\w+teen|\w+(?:st|nd|rd|th))\b)|"
    r"\b(?:the|of|and|de|oh|"
    r"hundred)\b|(?<=\d)(?:st|nd|rd|th)",
    re.IGNORECASE,
)

_AT = re.compile(r"\s*@\s*|\s*[(\[{<]?\bat\b[)\]}>]?\s*", re.IGNORECASE)
_SPELLED_SIGN = re.compile(r"\b(?:dot|underscore|dash|hyphen|minus|plus)\b", re.IGNORECASE)
_FREE_MAIL = re.compile(
    r"g(?:oogle)?mail|y(?:ahoo|mail)|hotmail|outlook|icloud|aol|proton|live\b|msn|gmx|mail\b|"
    r"comcast|verizon|rediff|btinternet|web\b|yandex|qq\b",
    re.IGNORECASE,
)
# Domains that are never issued (RFC 2606), by the kind of the original.
_RESERVED_TOPS = ("com", "org", "net")

_STREET_WORDS = frozenset(
    "street st avenue ave av road rd lane ln drive dr court ct way place pl square sq hill row "
    "walk circle cir approach trail nagar marg boulevard blvd terrace parkway pkwy highway hwy "
    "crescent cres close gardens mews alley strasse straße weg platz allee rue via calle ulica "
    "ul av avda plaza piazza vej vägen gatan katu tee apt apartment suite unit flat floor room "
    "building bldg box po p o psc cmr apo fpo dpo no number house plot door near north south "
    "east west n s e w ne nw se sw the of de la le du des del and at in cross sector corner "
    "upper lower old new is on my bis".split()
)
_ZEROS = ("zero", "oh")
# Words of an address of which each can stand for another of its group.
_ALIKE = (
    *(_ONES, _TEENS, _TENS, _ZEROS, _LOW_ORDINALS, _HIGH_ORDINALS),
    *map(
        str.split,
        (
            "street avenue road lane drive terrace boulevard",
            "st ave rd ln dr blvd",
            "court place square close gardens crescent",
            "ct pl sq cres",
            "apartment flat unit suite",
            "apt unit",
            "building house",
            "floor level",
            "north south east west",
            "n s e w",
            "ne nw se sw",
            "upper lower old new",
            "way walk row trail",
            "parkway highway",
            "pkwy hwy",
            "rue avenue place",
            "straße gasse allee",
            "strasse gasse allee",
            "via viale",
            "calle avenida",
        ),
    ),
)
_KINDS = {word: group for group in reversed(_ALIKE) for word in group}
_STREET_END = re.compile(
    r"(straße|strasse|gasse|weg|platz|allee|straat|laan|gatan|vägen|katu|kuja|vej|gade|veien|gata)$",
    re.IGNORECASE,
)
_STATES = (
    "AL AK AZ AR CA CO CT DE FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ NM "
    "NY NC ND OH OK OR PA RI SC SD TN TX UT VT VA WA WV WI WY".split()
)
_ORDINAL_ENDS = frozenset(("st", "nd", "rd", "th"))


def pick(words: Sequence[str], number: int, but: str = "") -> str:
    """Return one of some words by a number, never the one that is left out."""
    free = [word for word in words if word.casefold() != but.casefold()] or list(words)
    return free[number % len(free)]


def cased(made: str, like: str) -> str:
    """Return a word in the case of another one."""
    if like.islower():
        return made.lower()
    if like.isupper() and len(like) > 1:
        return made.upper()
    return made[:1].upper() + made[1:] if like[:1].isupper() else made


def other_chars(number: int, value: str) -> str:
    """Return a text of the same shape: other digits for digits, other letters for letters."""
    made = []
    for char in value:
        if char.isalnum():
            number = (number * 6364136223846793005 + 1442695040888963407) % 2**64
        place = number >> 33
        if char.isdigit():
            made.append(str((int(char) + 1 + place % 9) % 10))
        elif char.isalpha():
            letters = [letter for letter in string.ascii_lowercase if letter != char.lower()]
            letter = letters[place % len(letters)]
            made.append(letter.upper() if char.isupper() else letter)
        else:
            made.append(char)
    return "".join(made)


def _suffix(day: int) -> str:
    return {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th")


def _between(number: int, low: int, high: int, but: int) -> int:
    free = [value for value in range(low, high + 1) if value != but]
    return free[number % len(free)]


# Dates.


def like_date(draw: Draw, value: str, *, same_year: bool = False) -> str:
    """Return another date in the same form.

    Args:
        draw: source of chance.
        value: a date in digits, words or both.
        same_year: True if the year may stay.
    """
    numbers = re.findall(r"\d+", value)
    wordless = not re.search(r"[^\W\d_]{3,}", value)
    at = -1

    def other(match: re.Match[str]) -> str:
        nonlocal at
        piece = match[0]
        if not piece.isdigit():
            return _date_word(draw, piece)
        at += 1
        if _is_year(value, numbers, at, wordless):
            return piece if same_year and len(piece) == 4 else _year(draw(piece), piece)
        return _day(draw(piece), piece)

    parts, start = [], 0
    for kept in _KEPT_IN_DATE.finditer(value):
        parts += [_PIECE.sub(other, value[start : kept.start()]), kept[0]]
        start = kept.end()
    made = "".join([*parts, _PIECE.sub(other, value[start:])])
    return re.sub(
        r"(\d+)(st|nd|rd|th)\b",
        lambda m: m[1] + cased(_suffix(int(m[1])), m[2]),
        made,
        flags=re.IGNORECASE,
    )


def _is_year(value: str, numbers: Sequence[str], at: int, wordless: bool) -> bool:
    """Return True if one of the numbers of a date is its year."""
    if len(numbers[at]) >= 4:
        return True
    if wordless:
        # The last of three groups, unless the first one has four digits.
        return len(numbers) == 3 and at == 2 and len(numbers[0]) < 3
    return len(numbers) > 1 and at == len(numbers) - 1 and len(numbers[at]) == 2


def _year(number: int, piece: str) -> str:
    if len(piece) in (6, 8):
        return _run(number, piece)
    if len(piece) != 4 or not 1900 <= int(piece) < _LAST_DECADE + 10:
        return piece[0] + other_chars(number, piece[1:])
    decade = max(_FIRST_DECADE, int(piece) // 10 * 10)
    return str(_between(number, decade, decade + 9, int(piece)))


def _run(number: int, piece: str) -> str:
    """Return a date without separators: day, month and year in two digits each, or a year first."""
    year_first = len(piece) == 8 and piece[:2] in ("19", "20")
    sizes = (4, 2, 2) if year_first else (2, 2, len(piece) - 4)
    made, start = "", 0
    for place, size in enumerate(sizes):
        part = piece[start : start + size]
        is_year = place == (0 if year_first else 2)
        made += _year(number, part) if is_year else _day(number >> place, part)
        start += size
    return made


def _day(number: int, piece: str) -> str:
    """Return another day or month with as many digits; what is a day stays one."""
    value = int(piece)
    if len(piece) == 1:
        return str(_between(number, 1, 9, value))
    if piece[0] == "0":
        return f"{_between(number, 1, 9, value):02d}"
    low, high = (10, 12) if value <= 12 else (13, _LAST_DAY)
    return str(_between(number, low, high, value))


def _date_word(draw: Draw, word: str) -> str:
    """Return another month, ordinal or number for a word of a date."""
    lowered = word.casefold()
    short = [month[:3].casefold() for month in MONTHS]
    for names in (*_MONTHS_OF.values(), short):
        # "sept" is short as well.
        known = lowered[:3] if lowered == "sept" else lowered
        if known in [name.casefold() for name in names]:
            return cased(pick(names, draw(known), known), word)
    for words in (_LOW_ORDINALS, _HIGH_ORDINALS, _ONES, _TEENS, _TENS):
        if lowered in words:
            return cased(pick(words, draw(lowered), lowered), word)
    return word


# E-mail addresses.


def like_email(draw: Draw, value: str, given: Sequence[str], family: Sequence[str]) -> str:
    """Return another e-mail address in the same form, of a domain that is never issued.

    Args:
        draw: source of chance.
        value: an e-mail address, as it is written or spelled.
        given: first names for the words of the local part.
        family: last names for them.
    """
    sign = _AT.search(value)
    if sign is None:
        return _local(draw, value, given, family)
    local, host = value[: sign.start()], value[sign.end() :]
    return _local(draw, local, given, family) + sign[0] + _host(host)


def _local(draw: Draw, value: str, given: Sequence[str], family: Sequence[str]) -> str:
    def other(match: re.Match[str]) -> str:
        piece = match[0]
        if _SPELLED_SIGN.fullmatch(piece):
            return piece
        number = draw(piece)
        if piece.isdigit() or len(piece) < 4:
            return other_chars(number, piece)
        letter = string.ascii_lowercase[number // 64 % 26]
        # Enough of them, so that no two people of a dataset are likely to share one.
        made = pick([*(f"{name}{letter}" for name in given), *(letter + n for n in family)], number)
        return cased(made.lower(), piece)

    return _PIECE.sub(other, value)


def _host(host: str) -> str:
    """Return a reserved domain of the same kind, spelled alike."""
    top = re.split(r"[\W_]+|dot", host.strip().casefold())[-1]
    if _FREE_MAIL.search(host):
        made = "mail.example"
    else:
        other = pick(_RESERVED_TOPS, len(host), top)
        made = f"example.{other}" if top in _RESERVED_TOPS else "office.example"
    dot = re.search(r"\s*[(\[{]?\bdot\b[)\]}]?\s*|\s+\.\s+", host, re.IGNORECASE)
    made = made.replace(".", dot[0]) if dot else made
    return made.upper() if host.isupper() else made


# Street addresses.


def like_street(draw: Draw, value: str, streets: Sequence[str], towns: Sequence[str]) -> str:
    """Return another street address in the same form.

    Args:
        draw: source of chance.
        value: a street address, with or without unit, place and postal code.
        streets: names for streets.
        towns: names for places, after the first comma or number that follows a street.
    """
    kinds = [m.end() for m in _PIECE.finditer(value) if m[0].casefold() in _STREET_WORDS]
    behind = kinds[-1] if kinds and kinds[-1] < len(value) else len(value)
    comma = value.find(",", 1)
    placed = min(behind, comma if comma > 0 else behind)

    def other(match: re.Match[str]) -> str:
        piece = match[0]
        lowered = piece.casefold()
        if lowered in _KINDS and not _touches_digit(match):
            return cased(pick(_KINDS[lowered], draw(lowered), lowered), piece)
        if lowered in _STREET_WORDS or (lowered in _ORDINAL_ENDS and _follows_digit(match)):
            return piece
        number = draw(piece)
        if piece.isdigit():
            made = other_chars(number, piece)
            return made.replace("0", "1", 1) if made[0] == "0" and piece[0] != "0" else made
        if _touches_digit(match):
            return other_chars(number, piece)
        if piece.upper() in _STATES and match.start() >= placed:
            return cased(pick(_STATES, number, piece), piece)
        ending = _STREET_END.search(piece)
        names = towns if match.start() >= placed else streets
        made = pick(names, number, piece[: ending.start()] if ending else piece)
        return cased(made + ending[0].lower() if ending else made, piece)

    made = _PIECE.sub(other, value)
    return re.sub(
        r"(?<!\w)(\d+)(st|nd|rd|th)\b",
        lambda m: m[1] + cased(_ordinal_end(int(m[1])), m[2]),
        made,
        flags=re.IGNORECASE,
    )


def _ordinal_end(number: int) -> str:
    return "th" if number % 100 in (11, 12, 13) else _suffix(number % 10)


def _follows_digit(match: re.Match[str]) -> bool:
    return match.start() > 0 and match.string[match.start() - 1].isdigit()


def _touches_digit(match: re.Match[str]) -> bool:
    after = match.string[match.end() : match.end() + 1]
    return _follows_digit(match) or after.isdigit()
