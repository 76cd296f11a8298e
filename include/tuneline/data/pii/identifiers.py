"""Find what has a fixed form: secrets, e-mail addresses, cards, accounts, addresses of machines.

RE2 runs these patterns, so their time is linear in the text; checksums confirm the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneline.data.pii.checksums import iban_end, is_card, is_ipv4, is_ipv6, is_ssn
from tuneline.data.pii.hits import Hit
from tuneline.machine.linear_pattern import WORD, LinearPattern
from tuneline.machine.secret_shapes import find_secrets

_EMAIL = LinearPattern(
    rf"(?:^|[^{WORD}.+%'-])([{WORD}+%'-]+(?:\.[{WORD}+%'-]+)*@"
    rf"[\pL\pN][{WORD}-]*(?:\.[\pL\pN](?:[{WORD}-]*[\pL\pN])?)+)"
)
_IBAN_START = LinearPattern(r"(?:^|[^A-Za-z0-9])([A-Za-z]{2}[ -]?\d[ -]?\d)")
_SSN = LinearPattern(rf"(?:^|[^{WORD}-])(\d{{3}}(?:-\d\d-|\.\d\d\.| \d\d )\d{{4}})")
_IPV4 = LinearPattern(rf"(?:^|[^{WORD}.])(\d{{1,3}}(?:\.\d{{1,3}}){{3}})")
_IPV6 = LinearPattern(rf"(?:^|[^{WORD}:])((?:[0-9A-Fa-f]{{0,4}}:){{2,8}}[0-9A-Fa-f]{{0,4}})")
_MAC = LinearPattern(
    rf"(?i)(?:^|[^{WORD}:-])((?:[0-9a-f]{{2}}:){{5}}[0-9a-f]{{2}}|(?:[0-9a-f]{{2}}-){{5}}[0-9a-f]{{2}})"
)
_NUMBER = re.compile(r"\d(?:\D{0,3}\d){3}")
_DIGITS = LinearPattern(r"\d(?:[ .-]{0,3}\d){11,}")
_LEAST_CARD, _MOST_CARD = 12, 19
_VERSION = re.compile(
    r"\b(?:v|ver|version|firmware|build|release|driver|ios|android)\W{0,3}$", re.IGNORECASE
)
# The longest of these words and the signs after it, with the character before it.
_VERSION_REACH = 12


def find_identifiers(text: str) -> Iterator[Hit]:
    """Yield the secrets and identifiers of a text that have a fixed form; they may overlap."""
    yield from (Hit(*secret) for secret in find_secrets(text))
    if "@" in text:
        yield from (Hit(*span, "EMAIL_ADDRESS") for span in _EMAIL.spans(text))
    colons = text.count(":")
    if colons >= 2:
        for start, end in _IPV6.spans(text):
            if not _goes_on(text, end, "_:") and is_ipv6(text[start:end]):
                yield Hit(start, end, "IP_ADDRESS")
    if colons >= 5 or text.count("-") >= 5:
        for start, end in _MAC.spans(text):
            if not _goes_on(text, end, "_:-"):
                yield Hit(start, end, "MAC_ADDRESS")
    if _NUMBER.search(text):
        yield from _numbers(text)


def _numbers(text: str) -> Iterator[Hit]:
    yield from (Hit(*span, "CREDIT_CARD") for span in _cards(text))
    for start, _ in _IBAN_START.spans(text):
        if (stop := iban_end(text, start)) is not None:
            yield Hit(start, stop, "IBAN_CODE")
    for start, end in _SSN.spans(text):
        if not _goes_on(text, end, "_-") and is_ssn(text[start:end]):
            yield Hit(start, end, "US_SSN")
    if text.count(".") >= 3:
        for start, end in _IPV4.spans(text):
            ends = not _goes_on(text, end, "_") and not _is_number(text, end)
            if ends and is_ipv4(text[start:end]) and not follows_version(text, start):
                yield Hit(start, end, "IP_ADDRESS")


def follows_version(text: str, start: int) -> bool:
    """Return True if the number that starts at a character is the version of something."""
    return _VERSION.search(text[max(0, start - _VERSION_REACH) : start]) is not None


def _goes_on(text: str, end: int, signs: str) -> bool:
    """Return True if a letter, a digit or one of some signs follows."""
    return end < len(text) and (text[end].isalnum() or text[end] in signs)


def _is_number(text: str, at: int) -> bool:
    """Return True if the rest of a text begins with a digit, maybe after a full stop."""
    return text[at : at + 2].removeprefix(".")[:1].isdigit()


def _cards(text: str) -> Iterator[tuple[int, int]]:
    """Yield the numbers of payment cards: the longest one from each of the digits of a run."""
    for start, end in _DIGITS.spans(text):
        digits = [place for place in range(start, end) if text[place].isdigit()]
        first = 0
        while first + _LEAST_CARD <= len(digits):
            place = digits[first]
            most = min(first + _MOST_CARD, len(digits))
            ends = [digits[last - 1] + 1 for last in range(most, first + _LEAST_CARD - 1, -1)]
            stop = next((at for at in ends if not _is_number(text, at)), None)
            if stop is None or (place and (text[place - 1].isdigit() or text[place - 1] == ".")):
                first += 1
                continue
            if is_card(text[place:stop]):
                yield place, stop
            first = digits.index(stop - 1, first) + 1
