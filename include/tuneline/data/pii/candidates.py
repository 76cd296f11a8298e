"""Find the numbers and codes of a text that are no quantity, price, date, time or version."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tuneline.data.pii.caseless import Caseless
from tuneline.data.pii.checksums import digits_of
from tuneline.data.pii.matching import MONTH
from tuneline.data.pii.spoken import spoken_numbers

_UNITS = (
    r"%|percent|pct|per ?cent|dollars?|bucks?|euros?|eur|usd|gbp|cad|pounds?|quid|pence|cents?|"
    r"rupees?|rupaye|rs|inr|pesos?|yen|naira|rand|btc|eth|lakhs?|crores?|grand|"
    r"kilo(?:gram|meter|metre)?s?|[kmg]bps|k[gmb]?|[cm]m|[gmt]b|m[gl]|mah|ml|"
    r"lbs?|oz|ounces?|litres?|liters?|inch(?:es)?|feet|foot|ft|miles?|mph|k?hz|k?wh?|volts?|watts?|"
    r"px|pixels?|dpi|fps|degrees?|bar|psi|gigs?|megs?|"
    r"seconds?|secs?|min(?:ute)?s?|hours?|hrs?|days?|business days?|nights?|weeks?|months?|"
    r"years?|yrs?|times?|x|people|persons?|men|women|pax|children|kids|adults|pieces?|pcs|pairs?|"
    r"points?|pts|words?|pages?|rows?|megapixels?|am|pm|st|nd|rd|"
    r"th|of (?:them|these|those)|[a-z]{3,14}s"
)
# Words that end in "s" and follow a number without being what is counted.
_NOT_COUNTED = (
    r"(?:is|was|this|thats|whats|thanks|yes|plus|address|has|his|its|pls|does|always|expires?|ends|as|us|less|"
    r"shes|hes|whos|lets|heres|theres|wheres|hows|perhaps|ones|these|those|sometimes|says|works|needs|numbers|digits|keeps|wants|belongs|"
    r"shows|gives|unless|besides|cards|pins|sorry\w*)\b"
)
_NAMED_BEFORE = (
    r"(?:v|ver|version|firmware|build|release|line|block|port|value|kb|driver|ios|android|windows|"
    r"win|model|type|size|gen|generation|series|step|pages?|chapter|gate(?! code)|platform|room|"
    r"seat|row|aisle|bus|train|route|"
    r"flight|level|season|episodes?|channel|errors?|err|fault|"
    r"http|status|iso|form|section|press|exit|"
    r"highway|building|floor|berth|coach|locker|store|shop|branch|top|option|galaxy|iphone|pixel|"
    r"rtx|gtx|ryzen|core|boeing|airbus|playstation|xbox|channel|rule|article|act|fy|"
    r"reading|score|age[d]?|code error|error code|error number)"
)
_AMOUNT = r"\d[\d,]*(?:\.\d+)?"
# What explains a number; it is then no candidate.
_EXPLAINED = Caseless(
    # Each alternative begins with a sign, a digit or the first letter of a word.
    r"(?=[\d$€£₹¥.#]|\b[a-z])(?:"
    rf"(?:[$€£₹¥]|\b(?:rs|inr|usd|eur|gbp|cad|aud|php|ngn|btc)\b\.?) ?{_AMOUNT}k?"
    rf"|(?<![\w.-])\d{{1,6}}(?:[,.]\d+)?(?:(?: ?[-x×] ?| to | by | or | and ){_AMOUNT})?"
    rf"(?: ?|-(?![kx]\b))(?!{_NOT_COUNTED})(?:{_UNITS})(?![\w@])"
    r"|(?<![\w,.-])\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\w-])"
    r"|(?<![\w.,-])\d{1,6}[.,]\d{1,2}(?![\w]|[.,-]\d)|(?<![\w.])0?\.\d+(?!\w)"
    r"|(?<![\w:.-])\d{1,2}[:.]\d{2}(?::\d{2})?(?: ?[ap]\.?m)?(?![\w:.-])"
    r"|(?<![\w/-])\d{1,4} ?/ ?\d{1,2}(?: ?/ ?\d{2,4})?(?![\w/-])"
    r"|(?<![\w-])\d{4}-\d{1,2}-\d{1,2}(?![\w-])"
    # Without a day and a month it is no date ("55-10-98").
    r"|(?<![\w.-])(?=0?\d[.-]|[12]\d[.-]|3[01][.-])(?:\d{1,2}[.-](?:0?\d|1[0-2])|"
    r"(?:0?\d|1[0-2])[.-]\d{1,2})[.-](?:\d{4}|\d{2})(?![\w-])"
    rf"|(?<!\w)\d{{1,2}}(?: of)? {MONTH}\b,?(?: (?:19|20)\d\d(?!\d))?"
    rf"|\b{MONTH} \d{{1,2}}(?:st|nd|rd|th)?\b(?:,? (?:19|20)\d\d(?!\d))?"
    rf"|\b{MONTH} (?:19|20)\d\d(?!\d)"
    rf"|\b{_NAMED_BEFORE}\b\W{{0,2}}(?:number |code |no\.? |#)?(?:is |of )?[a-z]?\d[\d.]*(?!\d)"
    r"|#\d{1,3}(?!\d)|\bx ?\d{1,3}(?!\d)|(?<!\d)\d{1,2}-year)"
)
_RUN = re.compile(
    r"(?<![\w@])(?P<plus>plus ?)?\(?\+?\(?\d+(?:(?:[ .-]|\) ?|\)-| - | \. |"
    r"  )\(?\d+)*(?![^\W\d_]|@|[.,]?\d)",
    re.IGNORECASE,
)
# "Plus" begins the code of a country, or adds a number to another.
_COUNTRY_DIGITS = 8
_SEVERAL = re.compile(r"\d[^\d]{0,3}\d|\d[a-z]|[a-z-]\d", re.IGNORECASE)
_CODE = re.compile(
    r"(?<![\w@./-])(?=[a-z-]{0,12}\d)(?=[\d-]*[a-z])[a-z\d]+(?:-[a-z\d]+){0,4}(?![\w@/-]|"
    r"\.[a-z\d])",
    re.IGNORECASE,
)
# "CMP/331/0748".
_SLASHED = re.compile(r"(?<![\w@./-])(?=\d*[A-Z])[A-Z\d]{2,8}(?:/[A-Z\d]{1,8}){1,4}(?![\w/])")
# "53 771 206-K": the letter checks the digits.
_CHECKED = re.compile(r"(?<![\w.,-])\d{1,3}(?:[ .]\d{3}){1,3}[ -]?[A-Z](?![\w-])")
CHECKED_DIGITS = 7
_DIGIT_LETTER = re.compile(r"\d[ -]?[A-Z](?![\w-])")
_CODE_PLAIN = re.compile(
    r"\d{1,6}(?:st|nd|rd|th|am|pm|[kmgt]b?|[kc]?m|mm|x|s|k[gm]|m[lg]|hz|in|ft|h|hrs?|min|"
    r"mins|yrs?|d|w|p|mah|kwh|lbs?|mbps|gbps|year|day)|\d+x\d+(?:x\d+)?|covid-?\d+|"
    # Error codes and addresses of memory.
    r"plus\d+|10\d\d-[a-z]{1,4}|sa\d{3}|kb\d{6,7}|0x[\da-f]+|\d+-in-\d+|mp[34]|[hv]\d|a[1-5]|[345]g|b2[bc]",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A number or code: characters start to end of a text.

    Attributes:
        value: its text.
        digits: number of its digits.
        letters: True if it holds letters.
        spoken: True if it is written as words, digit by digit.
    """

    start: int
    end: int
    value: str
    digits: int
    letters: bool
    spoken: bool = False


def _without_explained(text: str) -> str:
    """Return the text with a mark for each character of the numbers that their words explain."""
    parts, at = [], 0
    for match in _EXPLAINED.finditer(text):
        parts += [text[at : match.start()], "~" * (match.end() - match.start())]
        at = match.end()
    return "".join([*parts, text[at:]])


# A row's texts are looked at for what they say, for what was asked, and again for what is left.
@lru_cache(maxsize=10_000)
def candidates_in(text: str) -> Sequence[Candidate]:
    """Return the numbers and codes that are no quantity, price, date, time or version."""
    spoken = [
        Candidate(s.start, s.end, text[s.start : s.end], s.digits, False, s.plain)
        for s in spoken_numbers(text)
    ]
    spoken = [c for c in spoken if c.digits >= 3]
    if not _SEVERAL.search(text):
        return spoken
    plain = _without_explained(text)
    found = spoken
    taken = [(c.start, c.end) for c in spoken]
    for match in _CODE.finditer(plain):
        if not _CODE_PLAIN.fullmatch(match[0]):
            digits = len(digits_of(match[0]))
            found.append(Candidate(match.start(), match.end(), match[0], digits, True))
            taken.append(match.span())
    slashed = _SLASHED.finditer(text) if "/" in text else ()
    checked = _CHECKED.finditer(text) if _DIGIT_LETTER.search(text) else ()
    for match in (*slashed, *checked):
        digits = len(digits_of(match[0]))
        if digits >= (4 if "/" in match[0] else CHECKED_DIGITS):
            found.append(Candidate(match.start(), match.end(), match[0], digits, True))
            taken.append(match.span())
    for match in _RUN.finditer(plain):
        if any(match.start() < end and start < match.end() for start, end in taken):
            continue
        digits = len(digits_of(match[0]))
        if digits >= 3:
            start = match.start() if digits >= _COUNTRY_DIGITS else match.end("plus")
            start = max(start, match.start())
            found.append(Candidate(start, match.end(), text[start : match.end()], digits, False))
    return sorted(found, key=lambda c: c.start)


def key_of(value: str) -> str:
    """Return the letters and digits of a number, by which its spellings are equal."""
    return re.sub(r"[\W_]+", "", value.casefold())
