"""Make up numbers that identify: phones, cards, accounts, social security numbers, addresses."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tuneline.data.pii.canaries.canary import (
    MISTYPED,
    OBFUSCATED,
    PARTIAL,
    SPLIT,
    Value,
)
from tuneline.data.pii.canaries.lists import digits, letters, words
from tuneline.data.pii.canaries.people import names
from tuneline.data.pii.canaries.register import Register
from tuneline.data.pii.checksums import check_digit, iban

SPOKEN = "zero one two three four five six seven eight nine".split()
# The last digits that people give instead of a whole number.
_LAST = 4
# Share of obfuscated telephone numbers that are read out in groups.
_READ_OUT = 0.5
# Share of numbers in groups of other sizes than usual, in text without punctuation.
_ODD = 0.2
# Share of accounts and documents that are no number: codes of bookings, names of accounts.
_NOT_NUMBERS = 0.3
_BETWEEN = (" ", " ", " ", "-", ", ", ".", " / ", "  ")


def _groups(text: str, sizes: Sequence[int]) -> list[str]:
    """Cut a text into groups of these sizes; the last one takes the rest."""
    found, at = [], 0
    for size in sizes[:-1]:
        found.append(text[at : at + size])
        at += size
    return [group for group in (*found, text[at:]) if group]


def _mistyped(draw: Random, number: str) -> str:
    """Return a number with a digit too many, too few, wrong, or with two swapped."""
    at = draw.randrange(1, len(number) - 1)
    other = draw.choice("0123456789")
    return draw.choice(
        [
            number[:at] + number[at + 1 :],
            number[:at] + other + number[at:],
            number[:at] + other + number[at + 1 :],
            number[:at] + other + number[at + 1 :],
            number[: at - 1] + number[at] + number[at - 1] + number[at + 1 :],
        ]
    )


def _spelled(draw: Random, number: str) -> str:
    """Return the characters of a number one by one, some as words."""
    if draw.random() < 0.4:
        return " ".join(number)
    zero = draw.choice(["zero", "oh"])
    names = [zero, *SPOKEN[1:]]
    return " ".join(names[int(char)] if char.isdigit() else char for char in number)


# Words of a number read out that are no digits of it.
SAID_WITH = frozenset(["plus", "double", "dash"])


def read_out(draw: Random, number: str, sizes: Sequence[int], *, country: str = "") -> Value:
    """Return a number as it is read out: digits in groups, equal ones together, country first."""
    zero = draw.choice(["zero", "oh"])
    pause = draw.choice([" ", ", ", " dash "])
    said = pause.join(
        _in_words(group, zero) for group in ([country] if country else []) + _groups(number, sizes)
    )
    return Value((f"plus {said}" if country else said,), SAID_WITH)


def _in_words(group: str, zero: str) -> str:
    words, at = [], 0
    while at < len(group):
        twice = group[at : at + 2] == group[at] * 2
        word = zero if group[at] == "0" else SPOKEN[int(group[at])]
        words.append(f"double {word}" if twice else word)
        at += 2 if twice else 1
    return " ".join(words)


def oddly_grouped(draw: Random, number: str) -> str:
    """Return a number in groups of any sizes, with any signs between them."""
    found, at = "", 0
    usual = draw.choice(_BETWEEN)
    while at < len(number):
        size = draw.choice([1, 1, 2, 2, 3, 4])
        sign = usual if draw.random() < 0.8 else draw.choice(_BETWEEN)
        found += (sign if at else "") + number[at : at + size]
        at += size
    return found


def _piece(draw: Random, number: str) -> Value:
    """Return the piece of a telephone or card number that people give in its place."""
    shape = draw.random()
    if shape < 0.6:
        return Value((number[-_LAST:],))
    if shape < 0.75:
        return Value((number[-3:],))
    if shape < 0.85:
        return Value((_in_words(number[-2:], "oh"),), SAID_WITH)
    return Value((number[:_LAST],))


def given_number(
    draw: Random, form: str, register: Register, number: str, sizes: Sequence[int]
) -> Value:
    """Return a number as a person gives it.

    Args:
        draw: source of chance.
        form: one of the forms.
        register: register of the dataset, for how it separates groups of digits.
        number: digits, perhaps with letters.
        sizes: usual sizes of its groups.
    """
    if form == PARTIAL:
        return Value((number[-_LAST:],))
    if form == OBFUSCATED:
        return Value((_spelled(draw, number),))
    if form == MISTYPED:
        number = _mistyped(draw, number)
    groups = _groups(number, sizes)
    if form == SPLIT:
        return Value(tuple(groups))
    if draw.random() < _ODD * register.unmarked:
        return Value((oddly_grouped(draw, number),))
    return Value((register.separator(draw).join(groups),))


def phone(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up a telephone number."""
    area, local = digits(draw, 3, "23456789"), digits(draw, 7, "23456789")
    if language != "en":
        prefix = {"de": "0151", "fr": "06", "es": "6"}.get(language, "0")
        return given_number(draw, form, register, prefix + digits(draw, 8), (4, 3, 4))
    national = (
        (area + local, (3, 3, 4)),
        (area + local, (3, 3, 4)),
        (area + local, (5, 5)),
        ("07" + digits(draw, 9), (5, 6)),
        ("0" + digits(draw, 9), (4, 3, 3)),
        (local, (3, 4)),
        ("9" + digits(draw, 9), (5, 5)),
    )
    number, sizes = draw.choice(national)
    if form == OBFUSCATED and draw.random() < _READ_OUT:
        country = draw.choice(["", "1", "44", "91", "61", "234", "63"])
        return read_out(
            draw, number.removeprefix("0") if country else number, sizes, country=country
        )
    if form == PARTIAL:
        return _piece(draw, number)
    value = given_number(draw, form, register, number, sizes)
    shape = draw.random()
    if form in (OBFUSCATED, SPLIT) or shape > 0.25:
        return value
    if shape < 0.1 and sizes == (3, 3, 4):
        return Value((f"({area}) {local[:3]}-{local[3:]}",))
    country = draw.choice(["1", "44", "91", "61", "234", "63"])
    return Value((f"+{country} {value.text.removeprefix('0')}",))


def card(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up the number of a payment card, with its check digit unless mistyped."""
    start, length = draw.choice([("4", 16), ("5", 16), ("4", 16), ("2", 16), ("6", 16), ("3", 15)])
    body = start + digits(draw, length - 2, "0123456789")
    number = body + check_digit(body)
    sizes = (4, 6, 5) if length == 15 else (4, 4, 4, 4)
    if form == PARTIAL:
        masked = draw.choice(["", "", "", "xxxx ", "**** ", "..."])
        if not masked:
            return _piece(draw, number)
        return Value((masked + number[-_LAST:],), frozenset(["xxxx"]))
    return given_number(draw, form, register, number, sizes)


def ssn(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up a US social security number; mistyped ones may be of no area that is issued."""
    number = digits(draw, 9)
    if form != MISTYPED:
        number = f"{draw.randint(1, 665):03d}{draw.randint(1, 99):02d}{draw.randint(1, 9999):04d}"
    value = given_number(draw, form, register, number, (3, 2, 4))
    usual = form in (PARTIAL, OBFUSCATED, SPLIT, MISTYPED) or draw.random() < 0.6
    return value if usual else Value(("-".join(_groups(number, (3, 2, 4))),))


def identity(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up the number of an account, member, policy or document."""
    whole = form not in (PARTIAL, OBFUSCATED, SPLIT, MISTYPED)
    if whole and draw.random() < _NOT_NUMBERS:
        return Value((draw.choice([_locator, _user_name, _slashed, _user_name])(draw),))
    shape = draw.random()
    if shape < 0.55:
        count = draw.choice([6, 7, 8, 8, 9, 9, 10, 10, 12])
        number, sizes = digits(draw, count, "0123456789"), ((4, 4, 4) if count > 6 else (3, 3))
        return given_number(draw, form, register, number, sizes)
    head = letters(draw, draw.choice([1, 1, 2, 2, 3]))
    tail = digits(draw, draw.choice([5, 6, 7, 8]))
    number = head + tail if shape < 0.85 else f"{digits(draw, 3)}{head}{digits(draw, 4)}"
    if not whole:
        return given_number(draw, form, register, number, (3, 3, 4))
    joined = draw.choice(["", "", "-", " "])
    return Value((head + joined + tail if shape < 0.85 else number,))


def _locator(draw: Random) -> str:
    """Make up the code of a booking: six letters, up to two of them digits."""
    code = list(letters(draw, 6))
    for at in draw.sample(range(6), draw.choice([0, 1, 1, 2])):
        code[at] = draw.choice("23456789")
    return "".join(code)


def _user_name(draw: Random) -> str:
    """Make up the name of an account, of a name or of two words."""
    first, last = (name.casefold().replace(" ", "") for name in names(draw))
    word = draw.choice(words("streets", "first")).casefold()
    number = digits(draw, draw.choice([1, 2, 4]))
    return draw.choice(
        [
            first[:1] + last,
            f"{first}.{last}",
            f"{last}_{number}",
            word + last,
            f"{first}{number}",
            word + first,
        ]
    )


def _slashed(draw: Random) -> str:
    """Make up a number with letters between signs ("MOT/5581023", "4402-9917-X")."""
    return draw.choice(
        [
            f"{letters(draw, 3)}/{digits(draw, 7)}",
            f"{letters(draw, 2)}/{digits(draw, 4)}/{digits(draw, 6)}",
            f"{digits(draw, 4)}-{digits(draw, 4)}-{letters(draw, 1)}",
        ]
    )


def account(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up an IBAN, with its check digits unless mistyped."""
    country, inner = draw.choice(
        [
            ("DE", digits(draw, 18)),
            ("GB", letters(draw, 4) + digits(draw, 14)),
            ("NL", letters(draw, 4) + digits(draw, 10)),
            ("FR", digits(draw, 23)),
            ("ES", digits(draw, 20)),
        ]
    )
    number = iban(country, inner)
    if form == OBFUSCATED:
        return Value((draw.choice([" ", "-"]).join(_groups(number, (2,) * 20)),))
    sizes = (4,) * -(-len(number) // 4)
    if form in (PARTIAL, MISTYPED, SPLIT):
        return given_number(draw, form, register, number, sizes)
    return Value((draw.choice(["", " "]).join(_groups(number, sizes)),))


def network_address(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up an IP address."""
    quad = [str(draw.randint(11, 223)) for _ in range(4)]
    if form == OBFUSCATED:
        return Value((draw.choice([" . ", " dot ", "[.]"]).join(quad),), frozenset(["dot"]))
    if form == PARTIAL:
        return Value((".".join([*quad[:2], "x", "x"]),), frozenset(["x"]))
    six = ":".join(["2a0" + digits(draw, 1), *(f"{draw.randint(1, 65535):x}" for _ in range(7))])
    return Value((draw.choice([".".join(quad), ".".join(quad), six]),))


def hardware_address(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up a MAC address."""
    pairs = [letters(draw, 2, "0123456789ABCDEF") for _ in range(6)]
    if form == OBFUSCATED:
        return Value((draw.choice([" ", " : ", ""]).join(pairs),))
    return Value((draw.choice([":", ":", "-"]).join(pairs),))


def postal_code(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up a postal code of the United States, Britain, Canada or India."""
    five = digits(draw, 5, "0123456789")
    pair = letters(draw, 1), letters(draw, 2)
    british = f"{draw.choice(pair)}{draw.randint(1, 28)} {digits(draw, 1)}{letters(draw, 2)}"
    canadian = (
        f"{pair[0]}{digits(draw, 1)}{pair[1][0]} {digits(draw, 1)}{pair[1][1]}{digits(draw, 1)}"
    )
    if form == OBFUSCATED:
        return Value((_spelled(draw, five),))
    if language != "en":
        return Value((five,))
    shapes = [
        five,
        five,
        five,
        f"{five}-{digits(draw, 4)}",
        british,
        british,
        canadian,
        digits(draw, 6),
    ]
    return Value((draw.choice(shapes),))
