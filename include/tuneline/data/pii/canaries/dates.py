"""Make up dates of birth, other dates, and high ages."""

from __future__ import annotations

import datetime
from random import Random

from tuneline.data.pii.canaries.canary import OBFUSCATED, PARTIAL, SPLIT, Value
from tuneline.data.pii.canaries.register import Register

MONTHS = {
    "en": "January February March April May June July August September October November December",
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre "
    "diciembre",
}
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
)
_TENS = {
    2: "twenty",
    3: "thirty",
    4: "forty",
    5: "fifty",
    6: "sixty",
    7: "seventy",
    8: "eighty",
    9: "ninety",
}
# Share of dates that are written in digits alone.
_IN_DIGITS = 0.5
_ONES = "one two three four five six seven eight nine".split()


def _spoken_year(year: int) -> str:
    if year >= 2000:
        return f"two thousand {_ONES[year % 10 - 1] if year % 10 else ''}".strip()
    tens, ones = divmod(year % 100, 10)
    return f"nineteen {_TENS[tens]}{' ' + _ONES[ones - 1] if ones else ''}"


def _day_of_year(draw: Random, day: int, name: str) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th")
    return draw.choice(
        [f"{name} {day}", f"{day} {name}", f"{name} {day}{suffix}", f"the {day}{suffix} of {name}"]
    )


def _written(draw: Random, register: Register, date: datetime.date, language: str) -> str:
    """Write a date in one of the usual ways of a language."""
    day, month, year = date.day, date.month, date.year
    name = MONTHS.get(language, MONTHS["en"]).split()[month - 1]
    if language != "en":
        of = " de " if language == "es" else " "
        return draw.choice(
            [f"{day:02d}.{month:02d}.{year}", f"{day}{of}{name}{of}{year}", f"{day}/{month}/{year}"]
        )
    name = draw.choice([name, name[:3]])
    short = draw.choice([str(year), f"{year % 100:02d}"])
    numbers = draw.choice([(month, day), (month, day), (day, month)])
    if draw.random() < _IN_DIGITS:
        return register.date_sign(draw).join([*map(str, numbers), short])
    return draw.choice(
        [
            f"{year}-{month:02d}-{day:02d}",
            f"{_day_of_year(draw, day, name)} {year}",
            f"{name} {day}, {year}",
            f"{_day_of_year(draw, day, name)} {short}",
        ]
    )


def _date(draw: Random, form: str, register: Register, language: str, year: int) -> Value:
    day, month = draw.randint(1, 28), draw.randint(1, 12)
    public = frozenset(["the", "of", "de", str(year), "nineteen", "two", "thousand"])
    name = MONTHS.get(language, MONTHS["en"]).split()[month - 1]
    if form == PARTIAL:
        return Value((_day_of_year(draw, day, draw.choice([name, name[:3]])),), public)
    if form == SPLIT:
        return Value((f"{day} {name}", str(year)), public - {str(year)})
    if form == OBFUSCATED:
        spaced = f"{day:02d} {month:02d} {draw.choice([year, year % 100])}"
        run = f"{day:02d}{month:02d}{year}"
        spoken = f"{name} {_ORDINALS[day % 12]} {_spoken_year(year)}"
        return Value((draw.choice([spaced, run, spoken if language == "en" else spaced]),), public)
    return Value((_written(draw, register, datetime.date(year, month, day), language),), public)


def _month_of_year(draw: Random, language: str) -> Value:
    month, year = draw.randint(1, 12), draw.randint(2001, 2027)
    name = MONTHS.get(language, MONTHS["en"]).split()[month - 1]
    short = f"{month}/{year}"
    return Value(
        (draw.choice([f"{name} {year}", f"{name[:3]} {year}", short]),), frozenset([str(year)])
    )


def birth_date(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up a date of birth."""
    return _date(draw, form, register, language, draw.randint(1935, 2009))


def date(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up the date of an event; a year alone may stay."""
    shape = draw.random()
    if form != OBFUSCATED and shape < 0.15:
        return _month_of_year(draw, language)
    if form != OBFUSCATED and shape < 0.6:
        form = PARTIAL
    return _date(draw, form, register, language, draw.randint(2001, 2027))


def high_age(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up an age over 89."""
    age = draw.randint(90, 108)
    if form == OBFUSCATED and age < 100:
        tens, ones = divmod(age, 10)
        return Value((f"{_TENS[tens]}{draw.choice([' ', '-']) + _ONES[ones - 1] if ones else ''}",))
    return Value((str(age),))
