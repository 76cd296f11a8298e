"""Decide which numbers of a text identify somebody: the digit rule.

A number that is no quantity, price, date, time, model or version is an identifier if words near it
say so, if the turn before asked for one, if it is all that a turn holds, or if it has enough digits
for the strength of the profile. A checksum can make its type sure; a mistyped number fails it and
is as personal as before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tuneline.data.pii.caseless import Caseless
from tuneline.data.pii.checksums import digits_of
from tuneline.data.pii.spoken import spoken_numbers
from tuneline.data.pii.topics import ENTITY_OF, NUMBER_TOPICS, Topic, topics

# A number in this many rows, and in this share of them, belongs to nobody: a hotline, a model.
LEAST_ROWS, LEAST_SHARE = 20, 0.001
# Characters before and after a number in which a word can name its type.
BEFORE, AFTER = 60, 24
# Fewest digits of a number by the topic that a word nearby, or a question, gives it.
_LEAST = {"secret": 3, "code": 3, "card": 4, "ssn": 4, "phone": 4, "account": 4, "business": 4}
_YEAR = re.compile(r"(?:19|20)\d\d")


@dataclass(frozen=True)
class DigitRule:
    """The strength of the rule for numbers that no word explains.

    Attributes:
        least: fewest digits of a number that identifies somebody.
        business: True if numbers of orders, tickets and the like count.
        frequent: numbers of the dataset that belong to nobody, from `frequent_numbers`.
    """

    least: int
    business: bool
    frequent: frozenset[str] = frozenset()


_UNITS = (
    r"%|percent|pct|per ?cent|dollars?|bucks?|euros?|eur|usd|gbp|cad|pounds?|quid|pence|cents?|"
    r"rupees?|rupaye|rs|inr|pesos?|yen|naira|rand|btc|eth|lakhs?|crores?|grand|"
    r"kilo(?:gram|meter|metre)?s?|[kmg]bps|k[gmb]?|[cm]m|[gmt]b|m[gl]|mah|ml|"
    r"lbs?|oz|ounces?|litres?|liters?|inch(?:es)?|feet|foot|ft|miles?|mph|k?hz|k?wh?|volts?|watts?|"
    r"px|pixels?|dpi|fps|degrees?|bar|psi|gigs?|megs?|"
    r"seconds?|secs?|min(?:ute)?s?|hours?|hrs?|days?|business days?|nights?|weeks?|months?|"
    r"years?|yrs?|times?|x|people|persons?|pax|children|kids|adults|pieces?|pcs|pairs?|"
    r"points?|pts|words?|pages?|rows?|megapixels?|am|pm|st|nd|rd|"
    r"th|of (?:them|these|those)|[a-z]{3,14}s"
)
# Words that end in "s" and follow a number without being what is counted.
_NOT_COUNTED = (
    r"(?:is|was|this|thanks|yes|plus|address|has|his|its|pls|does|always|expires?|ends|as|us|less|"
    r"perhaps|ones|these|those|sometimes|says|works|needs|numbers|digits|keeps|wants|belongs|"
    r"shows|gives|unless|besides|cards|pins|sorry\w*)\b"
)
_MONTHS = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_NAMED_BEFORE = (
    r"(?:v|ver|version|firmware|build|release|driver|ios|android|windows|win|model|type|size|gen|"
    r"generation|series|step|pages?|chapter|gate|platform|room|seat|row|aisle|bus|train|route|"
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
    rf"(?: ?|-)(?!{_NOT_COUNTED})(?:{_UNITS})(?![\w@])"
    r"|(?<![\w,.-])\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\w-])"
    r"|(?<![\w.,-])\d{1,6}[.,]\d{1,2}(?![\w]|[.,-]\d)|(?<![\w.])0?\.\d+(?!\w)"
    r"|(?<![\w:.-])\d{1,2}[:.]\d{2}(?::\d{2})?(?: ?[ap]\.?m)?(?![\w:.-])"
    r"|(?<![\w/-])\d{1,4} ?/ ?\d{1,2}(?: ?/ ?\d{2,4})?(?![\w/-])"
    r"|(?<![\w-])\d{4}-\d{1,2}-\d{1,2}(?![\w-])"
    r"|(?<![\w.-])\d{1,2}[.-]\d{1,2}[.-](?:\d{4}|\d{2})(?![\w-])"
    rf"|(?<!\w)\d{{1,2}}(?: of)? {_MONTHS}\b,?(?: (?:19|20)\d\d(?!\d))?"
    rf"|\b{_MONTHS} \d{{1,2}}(?:st|nd|rd|th)?\b(?:,? (?:19|20)\d\d(?!\d))?"
    rf"|\b{_MONTHS} (?:19|20)\d\d(?!\d)"
    rf"|\b{_NAMED_BEFORE}\b\W{{0,2}}(?:number |code |no\.? |#)?(?:is |of )?[a-z]?\d[\d.]*(?!\d)"
    r"|#\d{1,3}(?!\d)|\bx ?\d{1,3}(?!\d)|(?<!\d)\d{1,2}-year)"
)
_RUN = re.compile(
    r"(?<![\w@])\(?\+?\(?\d+(?:(?:[ .-]|\) ?|\)-| - | \. |  )\(?\d+)*(?![^\W\d_]|@|[.,]?\d)"
)
_GROUP = re.compile(r"\d+")
_SEVERAL = re.compile(r"\d[^\d]{0,3}\d|\d[a-z]|[a-z-]\d", re.IGNORECASE)
_CODE = re.compile(
    r"(?<![\w@./-])(?=[a-z-]{0,12}\d)(?=[\d-]*[a-z])[a-z\d]+(?:-[a-z\d]+){0,4}(?![\w@/-]|"
    r"\.[a-z\d])",
    re.IGNORECASE,
)
_CODE_PLAIN = re.compile(
    r"\d+(?:st|nd|rd|th|am|pm|[kmgt]b?|[kc]?m|mm|x|s|k[gm]|m[lg]|hz|in|ft|h|hrs?|min|"
    r"mins|yrs?|d|w|p|mah|kwh|lbs?|mbps|gbps|year|day)|\d+x\d+(?:x\d+)?|covid-?\d+|"
    r"\d+-in-\d+|mp[34]|[hv]\d|a[1-5]|[345]g|b2[bc]",
    re.IGNORECASE,
)
_QUANTITY_BEFORE = re.compile(
    r"\b(?:paid|pay(?:ing)?|costs?|charged?|about|around|over|under|than|only|up to|at least|least|"
    r"most|limit|balance|amount|total|fee|bill|price[ds]?|owed?|worth|spen[dt]|deposit(?:ed)?|"
    r"transfer(?:red)?|withdr[ae]w|sent|send|bought|approximately|nearly|almost|roughly|another|"
    r"every|plus|minus|times|extra|just|maximum|minimum|max|"
    r"min|earn(?:ed)?|refund(?:ed)?|receiv\w+|"
    r"ordered|save|raise|upto|between)\W{1,2}(?:of |is |was |to |by )?$",
    re.IGNORECASE,
)
_YEAR_BEFORE = re.compile(
    r"\b(?:in|since|from|until|till|by|of|year|before|after|during|the|for|around|summer|spring|"
    r"winter|fall|autumn)\W{1,2}$",
    re.IGNORECASE,
)
_ENDS = re.compile(
    r"\b(?:ends?|ended|ending|finish\w*|terminat\w+|last (?:four|4|three|3|five|5|digits?)"
    r"(?: digits?| numbers?)?)(?: [a-z']{1,9}){0,6}\W{0,3}$",
    re.IGNORECASE,
)
# Words between the name of a number and the number itself.
_LINK = re.compile(
    r"(?:\W|\b(?:number|num|no|nr|id|code|is|was|are|be|it|its|"
    r"s|should|must|as|ends?|ending|in|with|"
    r"last|four|4|digits?|of|the|to|from|set|set up|my|your|his|her|our|and|i|we|put|enter(?:ed)?|"
    r"that|this|has|have|got|says?|asks?|shows?|changed?|use[ds]?|using|try|tried|new|old|also|a|"
    r"uh|um|here|called|named|under|on|for|file|starts?|says|typed?|gave|give|am|at|which|"
    r"x+|real|full|same|still|now|just|currently|please|pls|back|me|him|her|us|you)\b)*",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?]\s[^.!?]*$")
_CHAIN = re.compile(
    r"\W*(?:\b(?:and|or|not|no|then|sorry|i mean|wait|nope|but)\b\W*)*", re.IGNORECASE
)
# What may stand around a number that is all that a turn holds.
_FILLER = Caseless(
    r"\b(?:its?|it's|it is|is|that is|thats|that's|this|here|you|go|are|yes|yeah|yep|yup|"
    r"sure|ok|okay|oh|uh|um|hm+|so|and|the|my|mine|number|num|no|sorry|i|think|guess|"
    r"mean|believe|have|got|thank|thanks|please|pls|plz|sir|madam|maam|mam|one|sec|"
    r"second|let|me|see|check|found|be|would|should|it|of|course|alright|right|hi|hello|"
    r"hey|well|a|as|for|was|actually|again|correct|says|just|with|ends?|ending|in|on|to|"
    r"digits?|lol|same|name)\b|\W|\d"
)


@dataclass(frozen=True, slots=True)
class _Candidate:
    start: int
    end: int
    value: str
    digits: int
    letters: bool
    spoken: bool = False


def frequent_numbers(texts: Iterable[str]) -> frozenset[str]:
    """Return the numbers and codes of so many texts that they identify nobody."""
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        total += 1
        if _GROUP.search(text):
            counts.update({_key(c.value) for c in _candidates(text)})
    least = max(LEAST_ROWS, LEAST_SHARE * total)
    return frozenset(number for number, count in counts.items() if count >= least)


def numbers_near_words(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the numbers that words of the same text name: start, end and entity."""
    yield from identifiers(text, frozenset(), None)


def identifiers(
    text: str, wanted: frozenset[str], rule: DigitRule | None
) -> Iterator[tuple[int, int, str]]:
    """Yield the numbers that identify somebody: start, end and entity.

    Args:
        text: a turn.
        wanted: topics that the turn before asked for.
        rule: rule for numbers that no word of the text explains; None takes none of them.
    """
    candidates = _candidates(text)
    if not candidates:
        return
    bare = rule is not None and _is_bare(text, candidates)
    previous: tuple[int, str] | None = None
    for candidate in candidates:
        entity = _entity(text, candidate, wanted, rule, bare)
        chained = previous is not None and _CHAIN.fullmatch(text, previous[0], candidate.start)
        if entity is None and chained and candidate.digits >= 4 and previous is not None:
            entity = previous[1]
        previous = None
        if entity is not None:
            previous = (candidate.end, entity)
            yield candidate.start, candidate.end, entity


def alike(text: str, lengths: frozenset[int]) -> Iterator[tuple[int, int, str]]:
    """Yield the bare numbers that have as many digits as a PIN of the same conversation.

    Args:
        text: a turn.
        lengths: digits of the PINs and codes that were found in the conversation.
    """
    for candidate in _candidates(text):
        plain = candidate.value.isdigit() and candidate.digits in lengths
        before = text[max(0, candidate.start - BEFORE) : candidate.start]
        dated = _is_dated(before, candidate) or _is_round(candidate)
        if plain and not dated and not _is_quantity(before, candidate, adjacent=False):
            yield candidate.start, candidate.end, "PASSWORD"


def _entity(
    text: str,
    candidate: _Candidate,
    wanted: frozenset[str],
    rule: DigitRule | None,
    bare: bool,
) -> str | None:
    """Return the entity type of a candidate, None if it identifies nobody."""
    before = text[max(0, candidate.start - BEFORE) : candidate.start]
    near, adjacent = _nearest(text, candidate)
    business = rule is not None and rule.business
    unwanted = (near == "business" and not business) or (near == "code" and rule is None)
    if unwanted or _is_quantity(before, candidate, adjacent):
        return None
    named = _named(before, candidate, near, adjacent, within=rule is not None)
    if named is not None or rule is None:
        return named
    topics_wanted = wanted & NUMBER_TOPICS - (frozenset() if business else {"business"})
    if _fits_any(topics_wanted, candidate) and not _is_dated(before, candidate):
        return _wanted_entity(candidate, topics_wanted)
    other = bool({"address", "birth"} & wanted) and candidate.digits < 9
    free = (bare and candidate.digits >= 4) or _is_free(before, candidate, rule)
    return _by_shape(candidate) if free and not other else None


def _named(
    before: str, candidate: _Candidate, near: str | None, adjacent: bool, *, within: bool
) -> str | None:
    """Return the type that a word nearby or "ends in" gives a candidate.

    Args:
        before: text before the candidate.
        candidate: a number.
        near: topic that is nearest to it.
        adjacent: True if only links are between the two.
        within: True if any word of the same sentence counts for a long number.
    """
    ends = _ENDS.search(before) is not None and 3 <= candidate.digits <= 6
    weighs = within and _SENTENCE_END.search(before) is None and _weighs(candidate)
    if near is not None and (adjacent or ends or weighs) and _fits(near, candidate):
        return ENTITY_OF[near]
    return "ID_NUMBER" if ends and not candidate.letters else None


def _nearest(text: str, candidate: _Candidate) -> tuple[str | None, bool]:
    """Return the topic that names a candidate, and whether nothing but links is between."""
    found: Topic | None = None
    after: Topic | None = None
    for topic in topics(text):
        if topic.start >= candidate.end:
            after = after or topic
        elif topic.end <= candidate.start and topic.name in (*NUMBER_TOPICS, "email", "address"):
            found = topic
    if found is not None and candidate.start - found.end <= BEFORE:
        adjacent = _LINK.fullmatch(text, found.end, candidate.start) is not None
        if found.name in NUMBER_TOPICS:
            return found.name, adjacent
        if adjacent:
            return None, False
    if after is not None and after.name in NUMBER_TOPICS and after.start - candidate.end <= AFTER:
        apart = _SENTENCE_END.search(text[candidate.end : after.start]) is not None
        between = None if apart else _LINK.fullmatch(text, candidate.end, after.start)
        return (after.name, True) if between and after.name != "business" else (None, False)
    return None, False


def _weighs(candidate: _Candidate) -> bool:
    """Return True if a candidate is long enough for a name that is some words away."""
    return candidate.digits >= (4 if candidate.letters else 5) and not _is_round(candidate)


def _is_round(candidate: _Candidate) -> bool:
    return candidate.value.endswith("000") and candidate.digits <= 7


def _fits(topic: str, candidate: _Candidate) -> bool:
    if candidate.letters:
        return topic in ("account", "secret", "code", "business", "ssn") and candidate.digits >= 2
    return candidate.digits >= _LEAST[topic]


def _fits_any(wanted: Iterable[str], candidate: _Candidate) -> bool:
    return any(_fits(topic, candidate) for topic in wanted)


def _is_quantity(before: str, candidate: _Candidate, adjacent: bool) -> bool:
    if candidate.digits > 7 or candidate.letters:
        return False
    return not adjacent and _QUANTITY_BEFORE.search(before) is not None


def _is_dated(before: str, candidate: _Candidate) -> bool:
    """Return True if a candidate reads as a year."""
    return bool(_YEAR.fullmatch(candidate.value) and _YEAR_BEFORE.search(before))


def _is_free(before: str, candidate: _Candidate, rule: DigitRule) -> bool:
    """Return True if a number that nothing explains is an identifier by strength of profile."""
    if _key(candidate.value) in rule.frequent or _is_round(candidate):
        return False
    if candidate.spoken:
        return candidate.digits >= 4
    groups = _GROUP.findall(candidate.value)
    if candidate.letters:
        longest = max(map(len, groups))
        return longest >= rule.least or candidate.digits > rule.least
    if len(groups) > 2 and max(map(len, groups)) <= 2:
        return False
    return candidate.digits >= rule.least


def _wanted_entity(candidate: _Candidate, wanted: frozenset[str]) -> str:
    shaped = _by_shape(candidate)
    entities = sorted({ENTITY_OF[topic] for topic in wanted if _fits(topic, candidate)})
    return shaped if shaped in entities or not entities else entities[0]


def _by_shape(candidate: _Candidate) -> str:
    """Return the likeliest type of a number of which only the digits are known."""
    if candidate.letters or candidate.digits < 7:
        return "ID_NUMBER"
    groups = [len(group) for group in _GROUP.findall(candidate.value)]
    if candidate.digits == 9:
        return "US_SSN" if groups == [3, 2, 4] else "ID_NUMBER"
    if candidate.digits in (7, 10, 11, 12) or candidate.value.lstrip("(").startswith("+"):
        return "PHONE_NUMBER"
    return "CREDIT_CARD" if 13 <= candidate.digits <= 19 else "ID_NUMBER"


def _key(value: str) -> str:
    return re.sub(r"[\W_]+", "", value.casefold())


def _is_bare(text: str, candidates: Iterable[_Candidate]) -> bool:
    """Return True if a text holds nothing but numbers and filler."""
    rest, at = [], 0
    for candidate in candidates:
        rest.append(text[at : candidate.start])
        at = candidate.end
    rest.append(text[at:])
    return _FILLER.covers(" ".join(rest))


def _without_explained(text: str) -> str:
    """Return the text with a mark for each character of the numbers that their words explain."""
    parts, at = [], 0
    for match in _EXPLAINED.finditer(text):
        parts += [text[at : match.start()], "~" * (match.end() - match.start())]
        at = match.end()
    return "".join([*parts, text[at:]])


# A row's texts are looked at for what they say, for what was asked, and again for what is left.
@lru_cache(maxsize=10_000)
def _candidates(text: str) -> Sequence[_Candidate]:
    """Return the numbers and codes that are no quantity, price, date, time or version."""
    spoken = [
        _Candidate(s.start, s.end, text[s.start : s.end], s.digits, False, s.plain)
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
            found.append(_Candidate(match.start(), match.end(), match[0], digits, True))
            taken.append(match.span())
    for match in _RUN.finditer(plain):
        if any(match.start() < end and start < match.end() for start, end in taken):
            continue
        digits = len(digits_of(match[0]))
        if digits >= 3:
            found.append(_Candidate(match.start(), match.end(), match[0], digits, False))
    return sorted(found, key=lambda c: c.start)
