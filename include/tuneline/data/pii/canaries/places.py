"""Make up street addresses and name places."""

from __future__ import annotations

from functools import cache
from random import Random

from tuneline.data.pii.canaries.canary import MISTYPED, OBFUSCATED, PARTIAL, SPLIT, Value
from tuneline.data.pii.canaries.lists import digits, words
from tuneline.data.pii.canaries.numbers import postal_code
from tuneline.data.pii.canaries.people import names
from tuneline.data.pii.canaries.register import Register
from tuneline.data.pii.languages import ENGLISH

# Share of addresses in English text that are written as in other countries.
_ABROAD = 0.15
# Shares of streets without their kind ("19 pinecrest"), and of houses with a name for a number.
_NO_KIND, _HOUSE_NAMES = 0.15, 0.12
_HOUSES = ("Cottage", "House", "Farm", "Lodge", "Mill")
_BUILDINGS = ("Court", "Tower", "Barn", "Arms", "Flats", "Granary")
# Words of places that are said by what is near, which identify nobody.
_NEARBY = frozenset(
    "the on of and opposite corner church school bakery court tower barn arms flats granary".split()
)
_LOCAL = ("de", "fr", "es")
_SMALL = "no number h flat block near po box nº bis calle rue avenue weg straße".split()


def place(draw: Random, form: str, register: Register, language: str) -> Value:
    """Name a town."""
    return Value((draw.choice(words("places", language if language in _LOCAL else "en")),))


@cache
def _public() -> frozenset[str]:
    """Return the words of addresses that identify nobody."""
    entries = (*words("regions"), *words("streets", "kinds"), *words("streets", "units"))
    return frozenset(
        [
            *_SMALL,
            *map(str.lower, _HOUSES),
            *(word.casefold() for entry in entries for word in entry.split()),
        ]
    )


def _street(draw: Random, language: str) -> str:
    number = str(draw.randint(1, 9999) if draw.random() < 0.5 else draw.randint(1, 180))
    family = names(draw)[1]
    if language == "de":
        kind = draw.choice(["straße", "weg", "str.", "allee", "gasse", "platz"])
        return f"{family}{kind} {number[:3]}"
    if language == "fr":
        return f"{number[:3]} {draw.choice(['rue', 'avenue', 'chemin', 'place'])} {family}"
    if language == "es":
        return f"{draw.choice(['calle', 'avenida', 'paseo', 'camino'])} {family} {number[:3]}"
    if draw.random() < _ABROAD:
        return f"{draw.choice(words('streets', 'abroad'))} {number[:3]}"
    name = draw.choice(words("streets", "whole"))
    if draw.random() < 0.6:
        first, last = (draw.choice(words("streets", part)) for part in ("first", "last"))
        name = draw.choice([first + last, first, family])
    street = f"{name} {draw.choice(words('streets', 'kinds')).title()}"
    house = f"{family} {draw.choice(_HOUSES)},"
    shape = draw.random()
    if shape < _NO_KIND:
        street = name
    return f"{house if shape > 1 - _HOUSE_NAMES else number} {street}"


def _landmarks(draw: Random, town: str) -> list[str]:
    """Return a place as it is said without a number: by road, building or what is near."""
    road, other = (draw.choice(words("streets", "whole")) for _ in range(2))
    kind = draw.choice(words("streets", "kinds"))
    building = f"{draw.choice(words('streets', 'first'))} {draw.choice(_BUILDINGS)}"
    return [
        f"{road} {kind}",
        f"{road} {kind}, {town}",
        f"{building}, {town}",
        f"the {building.lower()} on {road}",
        f"opposite the {road} {draw.choice(['church', 'school', 'bakery'])}",
        f"corner of {road} and {other}",
    ]


def address(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up a street address, alone or with unit, town, region and postal code."""
    public = _public()
    street = _street(draw, language)
    town = place(draw, form, register, language).text
    code = postal_code(draw, PARTIAL, register, language).text
    region = draw.choice(words("regions"))
    region = region.upper() if len(region) == 2 else region.title()
    unit = f"{draw.choice(words('streets', 'units'))} {draw.randint(1, 40)}{draw.choice(['', 'B'])}"
    if form == PARTIAL:
        number = f"number {draw.randint(2, 90)}"
        pieces = [f"{town} {code}", unit, number, code, f"{town} {region}"]
        if language == ENGLISH:
            pieces += [town, *_landmarks(draw, town)]
        return Value((draw.choice([street, draw.choice(pieces)]),), public | _NEARBY)
    if form == SPLIT:
        return Value((street, f"{town} {code}"), public)
    if form == OBFUSCATED:
        box = f"PO Box {digits(draw, 4)}, {town}"
        indian = f"h no {draw.randint(2, 990)} sector {draw.randint(1, 60)} {town}"
        crossing = f"near {draw.choice(words('streets', 'whole'))} temple {town}"
        return Value((draw.choice([box, indian, crossing]),), public | {"temple", "sector"})
    if form == MISTYPED:
        street = street.replace(" ", "", 1)
    shapes = (
        street,
        street,
        f"{street}, {town}",
        f"{street}, {unit}",
        f"{street}, {town}, {region} {code}",
        f"{street} {unit}, {town} {code}",
    )
    return Value((draw.choice(shapes),), public)
