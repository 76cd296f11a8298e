"""Find the letters and groups that belong to a number ("hx 209 441")."""

from __future__ import annotations

import re

from tuneline.data.pii.candidates import CHECKED_DIGITS, Candidate
from tuneline.data.pii.matching import Span
from tuneline.data.pii.stretches import with_letters

# Before and after a number that identifies: letters of a plate, policy or serial number.
_LETTERS_BEFORE = re.compile(r"(?<![\w@'’-])([a-z]{1,3})[ -]$", re.IGNORECASE)
_SLASHED_BEFORE = re.compile(r"(?<![\w/])(?:[A-Z]{1,5}/){1,3}$")
# Letters that are read out one by one, or by a word that begins with them ("w as in whiskey").
_READ_BEFORE = re.compile(
    r"(?<![\w@'’-])((?:(?:[a-z] (?:(?:as in|for|like) [a-z]+,? )?){2,6}|"
    r"[a-z] (?:as in|for|like) [a-z]+,? ))$",
    re.IGNORECASE,
)
_LETTERS_AFTER = re.compile(r"[ -]([a-z]{1,3})(?=\W{0,2}$)", re.IGNORECASE)
# The letter that checks the digits of a long number.
_LETTER_AFTER = re.compile(r"[ -][B-HJ-Z](?![\w'’.])")
_GROUPS_AFTER = re.compile(r"(?: \d{2,6}){1,5}(?![\w.,:/%]\d|\w)")
_SHORT_WORDS = frozenset(
    "a i am an and any are as at be box but buy by can day did do due eg eh end eur euro far few "
    "for gbp get go got had has he her hey hi him his how id ids if im in inr is it its ive just "
    "lb let lol lot man may me mr mrs ms my new nil no nor not now nr num of off oh ok old on one "
    "or our out pay pls plz ref re rs say see set she sir six so sum ten thx the then to too try "
    "two uh um up us usd use via was way we who why x ya yes you yr yup zip "
    # Labels and sighs.
    "ac acc ah apt bin dl dni dob doc ext grp hah hm mem mob nie pin pnr po pol reg ssn tel "
    "vin".split()
)


def whole_code(text: str, candidate: Candidate, entity: str) -> tuple[int, int, str]:
    """Return a number with its letters and groups: start, end and entity."""
    start, end = _with_parts(text, candidate, entity)
    checked = _LETTER_AFTER.match(text, end) if candidate.digits >= CHECKED_DIGITS else None
    return (start, checked.end(), "ID_NUMBER") if checked else (start, end, entity)


def _with_parts(text: str, candidate: Candidate, entity: str) -> Span:
    start, end = candidate.start, candidate.end
    slashed = _SLASHED_BEFORE.search(text, max(0, start - 200), start)
    if slashed:
        return slashed.start(), end
    if entity in ("ID_NUMBER", "US_SSN") and candidate.spoken:
        return with_letters(text, start, end)
    if entity != "ID_NUMBER":
        return start, end
    lead = _LETTERS_BEFORE.search(text, max(0, start - 200), start)
    if lead and lead[1].casefold() not in _SHORT_WORDS:
        start = lead.start(1)
    read = _READ_BEFORE.search(text, max(0, candidate.start - 200), candidate.start)
    if read:
        start = read.start(1)
    if candidate.letters:
        more = _GROUPS_AFTER.match(text, end)
        end = more.end() if more else end
    tail = _LETTERS_AFTER.match(text, end)
    if tail and tail[1].casefold() not in _SHORT_WORDS:
        end = tail.end(1)
    return start, end
