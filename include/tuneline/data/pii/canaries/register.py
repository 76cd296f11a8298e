"""Measure the register of a dataset: how its writers set case, punctuation and numbers.

Only shapes are counted (runs of digits, words for digits, capitals); what a number means is not
asked, so that nothing of the detector decides what a canary looks like.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from tuneline.data.pii.checksums import check_digit
from tuneline.data.tables.rows import Message

# A run of at least five digits in groups, without an amount's or a decimal's signs beside it.
NUMBER = re.compile(r"(?<![\w$€£.,/:-])\+?\(?\d(?:[ .()-]{0,2}\d){4,}(?![\w%]|[.,:/]\d)")
_DATE = re.compile(r"\d{4}([-. ])\d{1,2}\1\d{1,2}|\d{1,2}([-. ])\d{1,2}\2(?:\d{4}|\d{2})")
_DIGIT_WORDS = "zero oh one two three four five six seven eight nine double"
_SPOKEN = re.compile(rf"(?i)\b(?:(?:{'|'.join(_DIGIT_WORDS.split())})\b[ ,-]*){{4,}}")
_ENDS = re.compile(r"(?i)\blast (?:four|4|three|3)\b|\bend(?:s|ing)? (?:in|with|on)\b")
_SINGLES = re.compile(r"(?<!\w)\d(?: \d){3,}(?!\w)")
_WORD = re.compile(r"[^\W\d_]+")
# A piece of a number that is given over several turns.
_PIECE = re.compile(r"\W*\d{2,6}\W*")
_MARKS = re.compile(r"[,.;:!?]")
_TRIPLE = re.compile(r"(?<![\w./-])\d{1,2}([-/. ])\d{1,2}\1(?:\d{4}|\d{2})(?![\w/-])")
_MAIL = re.compile(r"(?<!\S)[\w.+-]+@[\w-]+\.\w[\w.]*")
_GARBLED = re.compile(r"(?i)\w\s+@|@\s+\w|[(\[]at[)\]]|\bat\s+[\w-]+\s+dot\s+\w")
# The sign or the dot before the ending is lost.
_BROKEN = re.compile(
    r"(?i)(?<![@\w])(?:gmail|yahoo|hotmail|outlook|aol|icloud)\b[ .]*com\b|"
    r"@(?:gmail|yahoo|hotmail|outlook|aol|icloud) ?com\b"
)
# A turn that holds hardly more than a number is a bare answer.
_BARE_WORDS = 2
# Shares are drawn towards the usual ones as if this many values had shown them.
PRIOR = 10
_USUAL = {"": 0.6, " ": 0.2, "-": 0.2}
_USUAL_DATES = {"/": 0.5, "-": 0.2, ".": 0.15, " ": 0.15}
# A word counts as misspelt if it occurs once and is a slip away from one that occurs as often.
_FREQUENT, _LEAST_LETTERS = 8, 5


Shares = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Register:
    """The register of a dataset's user turns.

    Attributes:
        lower: share of turns without a capital.
        unmarked: share of turns without punctuation.
        bare: share of numbers that are (nearly) a turn of their own.
        spelled: share of numbers that are given digit by digit, or in words.
        partial: share of numbers of which only the end is given.
        across: share of rows in which a number is given over successive turns.
        invalid: share of numbers with the length of a card's whose check digit is wrong.
        garbled: share of e-mail addresses that are spaced or spelled.
        broken: share of e-mail addresses that lack a sign.
        misspelt: share of words with a slip of the keys.
        multi_turn: share of rows with more than one user turn.
        separators: share of each separator of groups of digits.
        date_signs: share of each sign between day, month and year.
    """

    lower: float = 0.0
    unmarked: float = 0.0
    bare: float = 0.15
    spelled: float = 0.04
    partial: float = 0.15
    across: float = 0.0
    invalid: float = 0.25
    garbled: float = 0.14
    broken: float = 0.06
    misspelt: float = 0.0
    multi_turn: float = 0.0
    separators: Shares = tuple(_USUAL.items())
    date_signs: Shares = tuple(_USUAL_DATES.items())

    def separator(self, draw: Random) -> str:
        """Draw a separator of groups of digits."""
        return _drawn(draw, self.separators)

    def date_sign(self, draw: Random) -> str:
        """Draw a sign between day, month and year."""
        return _drawn(draw, self.date_signs)


def _drawn(draw: Random, shares: Shares) -> str:
    names, weights = zip(*shares, strict=True)
    return str(draw.choices(names, weights=weights)[0])


def numbers_in(text: str) -> list[re.Match[str]]:
    """Return the runs of five digits and more in a text, dates left out."""
    return [match for match in NUMBER.finditer(text) if not _DATE.fullmatch(match[0].strip())]


def measure_register(rows: Iterable[Sequence[Message]]) -> Register:
    """Measure the register of rows.

    Args:
        rows: turns of each row.
    """
    rows = list(rows)
    users = [[m["content"] for m in row if m["role"] == "user"] for row in rows]
    turns = [text for row in users for text in row if _WORD.search(text)]
    found = [(text, match) for row in users for text in row for match in numbers_in(text)]
    spelled = sum(bool(_SPOKEN.search(t) or _SINGLES.search(t)) for row in users for t in row)
    ends = sum(_ENDS.search(m["content"]) is not None for row in rows for m in row)
    count = len(found) + spelled
    bare = sum(len(_WORD.findall(text)) <= _BARE_WORDS for text, _ in found)
    return Register(
        lower=_share(sum(text == text.lower() for text in turns), len(turns)),
        unmarked=_share(sum(not _MARKS.search(text) for text in turns), len(turns)),
        bare=_drawn_share(bare, len(found), Register.bare),
        spelled=_drawn_share(spelled, count, Register.spelled),
        partial=_drawn_share(ends, len(found) + ends, Register.partial),
        across=_share(sum(map(_given_in_pieces, users)), len(users)),
        invalid=_invalid([match[0] for _, match in found]),
        garbled=_mails_like(_GARBLED, turns, Register.garbled),
        broken=_mails_like(_BROKEN, turns, Register.broken),
        misspelt=_misspelt(turns),
        multi_turn=_share(sum(len(row) > 1 for row in users), len(users)),
        separators=_separators([match[0] for _, match in found]),
        date_signs=_date_signs(turns),
    )


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0


def _drawn_share(count: int, total: int, usual: float) -> float:
    """Return a share that few observations leave near the usual one."""
    return (count + PRIOR * usual) / (total + PRIOR)


def _given_in_pieces(turns: Sequence[str]) -> bool:
    pieces = [_PIECE.fullmatch(text) is not None for text in turns]
    return any(first and second for first, second in pairwise(pieces))


def _separators(numbers: Sequence[str]) -> Shares:
    """Return the share of each sign after the first group of digits; none if there is one group."""
    signs = (re.search(r"(?<=\d)[ .-](?=[ .()-]*\d)", number) for number in numbers)
    return _towards(Counter(sign[0] if sign else "" for sign in signs), _USUAL)


def _date_signs(turns: Sequence[str]) -> Shares:
    signs = Counter(match[1] for text in turns for match in _TRIPLE.finditer(text))
    return _towards(signs, _USUAL_DATES)


def _towards(counts: Counter[str], usual: Mapping[str, float]) -> Shares:
    total = counts.total()
    return tuple(
        (sign, _drawn_share(counts[sign], total, usual.get(sign, 0.0)))
        for sign in sorted({*counts, *usual})
    )


def _invalid(numbers: Sequence[str]) -> float:
    """Return the share of long numbers whose last digit is not the check digit of a card."""
    long = [run for run in (re.sub(r"\D", "", n) for n in numbers) if 14 <= len(run) <= 17]
    wrong = sum(check_digit(run[:-1]) != run[-1] for run in long)
    # A made-up number passes by chance one time in ten.
    return min(1.0, _drawn_share(wrong, len(long), Register.invalid) / 0.9)


def _mails_like(pattern: re.Pattern[str], turns: Sequence[str], usual: float) -> float:
    """Return the share of the e-mail addresses that have a form."""
    like = sum(pattern.search(text) is not None for text in turns)
    every = (_MAIL, _GARBLED, _BROKEN)
    count = sum(any(one.search(text) for one in every) for text in turns)
    return _drawn_share(like, count, usual)


def _misspelt(turns: Sequence[str]) -> float:
    """Return the share of words that are a slip of the keys away from a frequent one."""
    counts = Counter(word for text in turns for word in _WORD.findall(text.lower()))
    frequent = {w for w, n in counts.items() if n >= _FREQUENT and len(w) >= _LEAST_LETTERS}
    slips = {slip for word in frequent for slip in _slips(word)}
    wrong = sum(n for word, n in counts.items() if n == 1 and word in slips)
    return _share(wrong, sum(n for word, n in counts.items() if len(word) >= _LEAST_LETTERS))


def _slips(word: str) -> set[str]:
    inner = range(1, len(word) - 1)
    return {
        *(word[:i] + word[i + 1 :] for i in inner),
        *(word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in inner),
        *(word[:i] + word[i] + word[i:] for i in inner),
    } - {word}


def misspell(draw: Random, text: str, share: float) -> str:
    """Return a text in which a share of the longer words has a slip of the keys."""
    return _WORD.sub(
        lambda match: (
            draw.choice(sorted(_slips(match[0])))
            if len(match[0]) >= _LEAST_LETTERS and draw.random() < share
            else match[0]
        ),
        text,
    )
