"""Find personal data and secrets that have a shape, by patterns and checksums (tier 1).

This is fast enough for every row: a text without digits, `@` or a key word is passed over at once,
and each pattern runs only if the text holds the characters that it needs.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from tuneline.data.pii.checksums import (
    digits_of,
    iban_end,
    is_card,
    is_ipv4,
    is_ipv6,
    is_phone_anywhere,
    is_ssn,
)
from tuneline.data.pii.languages import shapes
from tuneline.data.pii.numbers import numbers_near_words
from tuneline.data.pii.safe_harbor import NUMBERED_DATE, SPOKEN_DATE, find_demanded
from tuneline.data.pii.secrets import SECRET_SHAPES, SECRETS
from tuneline.data.pii.spoken import has_digit_words


def _any_case(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Hit:
    """A span of a text, characters start to end, of an entity type."""

    start: int
    end: int
    entity: str


# If two hits overlap, the one whose type is earlier in this list stays.
PATTERN_ENTITIES = (
    *SECRETS,
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "CREDIT_CARD",
    "US_SSN",
    "IP_ADDRESS",
    "MAC_ADDRESS",
    "ID_NUMBER",
    "BIRTH_DATE",
    "PHONE_NUMBER",
    "STREET_ADDRESS",
)
# An address or number inside a URL is part of it; other types come last.
_RANK = {
    entity: rank
    for rank, entity in enumerate((*SECRETS, "URL", *PATTERN_ENTITIES[len(SECRETS) :], "DATE"))
}

# Types that a part of a street address can be taken for.
_PARTS = frozenset({"ID_NUMBER", "PHONE_NUMBER"})

# Unusual dashes, spaces and digits are replaced by one character each, so that positions stay.
_PLAIN = {
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"), "-"),
    **dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u200a\u202f\u3000\u200b\u2060\u00ad"), " "),
    **{ord("\uff10") + digit: str(digit) for digit in range(10)},
    ord("\uff20"): "@",
    ord("\uff0e"): ".",
}
# A number after one of these words is the shop's, not a person's.
_BUSINESS = _any_case(
    r"(?:order|ticket|case|ref|reference|invoice|tracking|serial|sku|item|article|product|booking|"
    r"confirmation|transaction|parcel|shipment|part|model|version|isbn|ean|upc)\W{0,3}"
    r"(?:number|no|nr|id|code)?\W{0,3}(?:is|was)?\W{0,4}$|#\s?$"
)
_PHONE_WORDS = _any_case(
    r"\b(?:phone|telephone|tel|call(?:ed|ing)?|mobile|cell(?:phone)?|whatsapp|fax|sms|text me|"
    r"ring|dial|reach (?:me|us|him|her)|contact (?:me|number)|answering|messages? to)\b"
    r"(?:[^\d\n]{0,40}|\W{0,3}\n)\(?$"
)
_PHONE_KIND_AFTER = _any_case(r"\W{0,2}(?:office|fax|mobile|cell|home|work)\b")
_VERSION = _any_case(r"\b(?:v|ver|version|firmware|build|release|driver|ios|android)\W{0,3}$")

# Repeats are bounded and start at a boundary: a page of letters must not take quadratic time.
_EMAIL = re.compile(
    r"(?<![\w.+%'-])[\w+%'-]{1,64}(?:\.[\w+%'-]{1,64}){0,8}@"
    r"[^\W_][\w-]{0,62}(?:\.[^\W_](?:[\w-]{0,61}[^\W_])?){1,8}"
)
_TOP_DOMAINS = r"(?:com|org|net|edu|gov|io|co|example|info|de|fr|es|it|nl|eu|us|uk|ca|au)\b"
_DOT = r"(?:\.| \. | ?\(dot\) ?| ?\[dot\] ?| ?\{dot\} ?)"
_MAILBOX = r"(?<![\w.+%-])[\w+%-]{1,64}"
_LABEL = r"[\w-]{1,63}"
_EMAIL_SPACED = _any_case(
    rf"{_MAILBOX}(?:(?:\.| \. )[\w+%-]{{1,64}}){{0,4}} ?"
    r"(?:@|\(at\)|\[at\]|\{at\}|<at>) ?"
    rf"{_LABEL}(?:{_DOT}{_LABEL}){{0,4}}{_DOT}{_TOP_DOMAINS}"
    rf"|{_MAILBOX}(?:(?:\.| dot )[\w+%-]{{1,64}}){{0,4}} at "
    rf"{_LABEL}(?: dot {_LABEL}){{0,4}} dot {_TOP_DOMAINS}"
)
# With a provider that everybody knows, the signs in between may be spelled or lost.
_PROVIDER = (
    r"(?:gmail|googlemail|yahoo|ymail|hotmail|outlook|icloud|aol|proton(?:mail)?|live|msn|gmx|"
    r"comcast|verizon|rediffmail|btinternet|bigpond|mail)"
)
_MAIL_PROVIDERS = re.compile(_PROVIDER)
_LETTERED = r"(?<!\w)\w(?: \w){3,30}"
_SIGN = r"(?: ?(?:\.|dot|underscore|dash|hyphen|_|-) ?)"
_EMAIL_PROVIDER = _any_case(
    rf"(?:{_LETTERED}|{_MAILBOX}(?:(?: (?:dot|underscore|dash|hyphen) | ?[._-] ?)[\w+%-]{{1,64}})"
    rf"{{0,4}})(?: ?@ ?| ?[(\[]?\bat\b[)\]]? ?| ){_PROVIDER}{_SIGN}"
    r"(?:co(?:m|{0}(?:uk|in|nz|za|jp))?|com{0}(?:au|br|mx|ph)|net|me|org|de|fr|es|it|in|ca|ph)\b".replace(
        "{0}", _SIGN
    )
    + rf"|{_LETTERED}(?: ?@ ?| at ){_LABEL}{_SIGN}(?:com|net|org|me|co|io|edu|uk|de|in)\b"
)
_EMAIL_STRIPPED = _any_case(
    r"(?<![\w.])(?=[\w.]{0,64}[\d.])\w[\w.]{3,63} ?"
    r"(?:gmail|yahoo|hotmail|outlook|icloud|aol|protonmail)\.com\b"
)
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[ -]?\d[ -]?\d")
_CARD = re.compile(r"(?<![\d.])\d(?:[ .-]{0,3}\d){11,18}(?!\.?\d)")
_SSN = re.compile(r"(?<![\w-])\d{3}([-. ])\d{2}\1\d{4}(?![\w-])")
_SSN_NAMED = _any_case(
    r"\b(?:ssn|social security|social)\b[^\d\n]{0,30}"
    r"(\d{3}[-. ]{0,3}\d{2}[-. ]{0,3}\d{4}|\d(?:[ -]{1,3}\d){8}|\d{4})(?!\d)"
)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
_IPV4_SPACED = re.compile(r"(?<![\w.])\d{1,3}(?: \. \d{1,3}){3}(?![\w])")
_IPV6 = re.compile(r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:|:){2,8}[0-9A-Fa-f]{0,4}(?![\w:])")
_MAC = _any_case(r"(?<![\w:-])(?:[0-9A-F]{2}([:-]))(?:[0-9A-F]{2}\1){4}[0-9A-F]{2}(?![\w:-])")
_EXTENSION = r"(?: ?(?:x|ext\.?|extension) ?\d{1,5})?"
_PHONE_WORLD = _any_case(
    r"(?<![\w+])(?<!\d[ -])(?:\+ ?[1-9]|00 ?[1-9]\d{0,2}(?=[ ./()-]))(?:[ .()/-]{0,3}\d){6,14}"
    + _EXTENSION
    + r"(?!\d)"
)
_PHONE_US = _any_case(
    r"(?<![\w.+-])(?:1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]?\d{4}"
    + _EXTENSION
    + r"(?![\w-]|\.\d)"
)
_PHONE_NATIONAL = re.compile(
    r"(?<![\w.,-])(?<!\d[ -])\(?0\d{1,4}\)?(?:[ ./-]{1,2}\d{2,5}){1,4}(?![\w-])"
)
_PHONE_NAMED = _any_case(r"(?<![\w.])\(?\d(?:[ ()./-]{0,3}\d){5,14}" + _EXTENSION + r"(?!\w)")
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = (
    r"(?:\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}-\d{2}-\d{2}|"
    rf"{_DAY}(?: of)? {_MONTH}\.?,? \d{{4}}|{_MONTH}\.? {_DAY},? \d{{4}})"
)
_BIRTH = _any_case(
    r"\b(?:born(?: on)?|date of birth|birth ?date|birthday|d\.?o\.?b\.?)\b[^\d\n]{0,12}?\b("
    + _DATE
    + r")(?!\d)"
)
BIRTH_REACH = 40
_BIRTH_WORD = _any_case(
    r"\b(?:born|date of birth|birth ?date|birth ?day|d\.?o\.?b\b\.?)(?: (?:is|was|on|in|the))*"
)
_BORN_IN = re.compile(r"(?<!\d)(?:19|20)\d{2}(?!\d)")
_SHORT_DATE = re.compile(
    r"(?<![\w./-])(?:\d{1,2}[./ -]\d{1,2}[./ -](?:\d{4}|\d{2})|\d{8}|(?:19|20)\d{2})(?![\w/-]|\.\d)"
)
_PASSWORD_HINTS = ("pass", "pwd", "memorable", "secret", "security", "wifi key", "wi-fi key")
_PASSWORD_CUE = _any_case(
    r"\b(?:pass ?(?:word|code|phrase|key)|pwd|(?:memorable|secret|security|safe) (?:word|phrase|"
    r"answer)|wi-?fi key|network key)"
    r"(?P<link>(?: (?:i|we) (?:have|use|used|set|chose|typed|put|got|remember))?(?: (?:on|for|at|of) [a-z ]{1,24})?(?: ?(?:is|was|it'?s|:|=|(?:re)?set to|changed to)"
    r"(?: now)?)+)?"
    r"[ \"'‘“]+"
)
_PASSWORD_VALUE = _any_case(r"([^\s\"“”]+(?:(?<![.,;:!?]) (?!\W)[^\s\"“”]+){0,3})")
# The value before the word; what asks or points is none.
_PASSWORD_AFTER = _any_case(
    r"(?<!\S)[\"'‘“]?(?!(?:what|whats|this|that|these|it|which|where|here|how|who|why|there|and|so|one|"
    r"below|above|because|when|if|whatever|problem|issue|reason|question|i|he|she|but|or|error|also)\b)"
    r"([^\s\"“”’]{3,})[\"'’”]? (?:is|was) (?:the|my|our|his|her|your) (?:[a-z-]{2,8} )?"
    r"(?:pass ?(?:word|code|phrase)|pwd|pass)\b(?! (?:manager|policy|reset))"
)
# What follows the word without being one.
_NOT_PASSWORDS = frozenset(
    "a about accepted after again all already also always an and any are as asked at back be "
    "because been before being blocked but by can cannot changed code correct could did does "
    "done don't dont email enabled entered entry even expired failed field for form forgotten from "
    "get gone good had has have help hint how i if ill im in incorrect instead invalid is isn't "
    "isnt it it's its just keeps know last like link locked log login longer lost manager may me "
    "missing more must my needed needs never no not now number of off ok okay old on once one only "
    "or our out over page please pls policy prompt properly protected protection recovery rejected "
    "required requirements reset resets resetting right safe same saved screen secure security "
    "set shared should shown so some still strong stolen supposed than that the their them then "
    "there they this thanks though through to today too too try twice typed u under unknown until "
    "up updated use used valid very visible was we weak well were what when where which while who "
    "why will with without won't wont work working works would wrong you your".split()
)
# What became of a password, and how.
_STATE_WORD = re.compile(r"[a-z]{2,}(?:ed|ly|ing)")
# Where a password of words ends.
_AFTER_PASSWORD = frozenset(
    "a and are but can could do does doesn't doesnt for from has have how i i'm im if in is isn't "
    "isnt it it's its keeps my not now of on or please pls so thanks that the then this to was "
    "what when where which why will with won't wont works would you your".split()
)
# A street without a number, where somebody lives.
_LIVES_ON = _any_case(
    r"\b(?:live[sd]?|living|resid\w+|moved?|staying) (?:on|at|to) ((?:[^\W\d_][\w'’.-]* ){1,3}"
    r"(?:street|avenue|ave|road|lane|boulevard|blvd|terrace|parkway|crescent|close|gardens|drive))\b"
)
_ID_NAMED = _any_case(
    r"\b(?:passport|driv(?:er|ing)'?s? licen[cs]e|medical record|mrn|patient|national id|"
    r"identity card|tax id|health insurance|nhs|(?:account|policy|member(?:ship)?|beneficiary|"
    r"device|certificate)(?= (?:number|no|id)\b)|(?:licen[cs]e|number) plate|vin)\b"
    r"(?: (?:number|no|nr|id|code)\b)?\.?"
    r"(?: (?:is|was))?[\s:#]{1,3}((?=[A-Z-]*\d)[A-Z0-9](?:[ -]?[A-Z0-9]){4,17})(?![\w-])"
)
# Words that end a street's name; the second kind also means something else in ordinary text.
_STREET_KINDS = (
    "street|avenue|ave|road|rd|lane|ln|approach|trail|nagar|marg|boulevard|blvd|terrace|parkway|"
    "pkwy|highway|hwy|crescent|"
    "close|gardens|mews|alley|strasse|straße"
)
_STREET_KINDS_UNSURE = "st|drive|dr|court|ct|way|place|pl|square|sq|hill|row|walk|circle|cir"
_STATES = (
    "alabama|alaska|arizona|arkansas|california|colorado|"
    "connecticut|delaware|florida|georgia|hawaii|"
    "idaho|illinois|indiana|iowa|kansas|kentucky|louisiana|maine|maryland|massachusetts|michigan|"
    "minnesota|mississippi|missouri|montana|nebraska|nevada|new hampshire|new jersey|new mexico|"
    "new york|north carolina|north dakota|ohio|oklahoma|oregon|pennsylvania|rhode island|"
    "south carolina|south dakota|tennessee|texas|utah|vermont|virginia|washington|west virginia|"
    "wisconsin|wyoming"
)
_PLACE_WORDS = r"(?:,? (?!(?:and|my|the|is|please|thanks|phone|card|account|but)\b)[a-z][\w'-]*)"
_PLACE_AFTER = (
    r"(?:\.?,? (?:(?:number |no )?(?:apt|apartment|suite|unit|flat|floor|#)\.? ?\w{1,5}\b|#\d+))?"
    rf"(?:{_PLACE_WORDS}{{0,5}}?,? (?:\d{{5}}(?:[- ]\d{{4}})?|\d{{6}}|"
    rf"[A-Z]{{1,2}}\d[A-Z0-9]? ?\d[A-Z]{{2}})"
    rf"(?!\w)|{_PLACE_WORDS}{{1,3}},? (?:{_STATES})\b)?"
    r"(?:,? [A-Z][\w'-]+(?: [A-Z][\w'-]+){0,2},? (?:[A-Z]{2},? )?(?:\d{5}(?:-\d{4})?|"
    r"[A-Z]{1,2}\d[A-Z0-9]? ?\d[A-Z]{2})\b)?"
)
_SPOKEN_DIGITS = "zero|oh|one|two|three|four|five|six|seven|eight|nine"
_ADDRESS = _any_case(
    r"(?<![\w.,#-])(?:\d{1,5}[a-zA-Z]?|\d{1,5}(?=[^\W\d_]{3})|(?:"
    + _SPOKEN_DIGITS
    + r")(?: (?:"
    + _SPOKEN_DIGITS
    + r")){1,4})(?:,? |(?<=\d)(?=[^\W\d_]{3}))"
    r"((?:(?:\d{1,3}(?:st|nd|rd|th)|[^\W\d_][\w'.-]*) ){1,3}?)(?:(?:"
    + _STREET_KINDS
    + r")|(?P<unsure>"
    + _STREET_KINDS_UNSURE
    + r"))\b(?i:"
    + _PLACE_AFTER
    + r")"
)
_ADDRESS_WORDS = _any_case(
    r"\b(?:live[sd]?|living|address|ship|send|sent|post|mail|"
    r"deliver(?:ed|y)?|moved?|moving|located|"
    r"house|home|flat|door|drop|bring|collect|picked? up|taxi|ride|drive|visit|meet)\b"
    r"[^\d\n]{0,30}$"
)
_IS_ADDRESS = _any_case(r"\W{1,3}is (?:the|my|our|her|his) [a-z ]{0,12}address")
# Postal codes with letters, where something else speaks of a place.
_CODE_ALONE = _any_case(
    r"(?<![\w-])(?:[a-z]{1,2}\d[a-z\d]? ?\d[a-z]{2}|[a-z]\d[a-z] ?\d[a-z]\d)(?![\w-])"
)
# As addresses are written in India: "flat no 12 …", with a postal code of six digits or without.
_FLAT_NUMBER = _any_case(
    r"\b(?:flat|h|house|plot|door|shop) (?:no|number)\b\.? ?#?\d[\w/-]{0,9}"
    rf"{_PLACE_WORDS}{{1,7}}(?:,? ?-? ?\d{{6}}(?!\d))?"
)
# A unit, or the words before it, shows that any street is an address.
_WITH_UNIT = _any_case(
    r"(?<![\w.,#-])\d{1,5}[a-z]?,?(?: [^\W\d_][\w'.-]*){1,4}(?: \d{1,4})?,?"
    r" (?:apt|apartment|suite|unit)"
    rf"\.? #?\w{{1,5}}\b(?:{_PLACE_WORDS}{{1,6}}?,? \d{{5}}(?!\d))?"
)
_AFTER_CUE = _any_case(
    r"\b(?:live[sd]?|living|resid\w+|located|staying) (?:at|on)|\baddress(?:(?:es)? (?:is|to|:)|:)?"
)
_ANY_STREET = _any_case(
    rf"\W{{1,3}}(\d{{1,5}}[a-z]?,?{_PLACE_WORDS}{{1,4}}?(?: \d{{1,4}}(?!\d))?"
    rf"(?:{_PLACE_WORDS}{{0,4}}?,? \d{{5}}(?!\d)|{_PLACE_WORDS}(?=\W*$))?)(?![\w])"
)
_MILITARY = _any_case(
    r"\b(?:psc|unit|cmr) \d{1,5},? box \d{1,5}(?:,? (?:apo|fpo|dpo),? [a-z]{2}(?: \d{5})?)?"
)
_PO_BOX = _any_case(r"\bp\.? ?o\.? ?box \d{1,6}\b")
_NOT_IN_STREET = frozenset(
    "a an and are at away be by can charge day days down euros dollars for from go have hours "
    "hour i if in is it items km left me mile miles minutes minute months my no of off on one or "
    "order orders other our out parcels people per pm am right so than that the this times to "
    "under until up was way weeks week when with within years year you your block blocks pounds "
    "percent points steps star".split()
)
# What may follow a street, in this order of preference.
_MOST_PARTS = 5
_PLACE = r"(?: [^\W\d_][\w'’.-]*)"
_ZIP = r"(?:\d{4,6}(?:-\d{3,4})?|[a-z]{1,2}\d[a-z\d]? ?\d[a-z]{2}|[a-z]\d[a-z] ?\d[a-z]\d)(?![\w-])"
_NEXT_PART = tuple(
    map(
        _any_case,
        (
            r",? ?(?:apt|apartment|suite|unit|flat|floor|room|bldg|building)\b\.? ?#?\w{1,6}(?!\w)",
            rf",? {_ZIP}",
            rf",?{_PLACE}{{1,4}}?,? {_ZIP}",
            rf",?{_PLACE}{{1,3}}?,? (?:{_STATES})\b",
            rf",{_PLACE}{{1,3}}(?=,|\W*$)",
            rf"{_PLACE}{{1,4}}(?=\W*$)",
        ),
    )
)
_HOUSE_BEFORE = re.compile(r"(?<![\w.,:#$€£-])(\d{1,6}) $")
# Lines of an envelope: few words, one with a house number, a later one with a postal code.
_LINE = re.compile(r"[^\n]+")
_LINE_WORDS = 6
_STREET_LINE = _any_case(r"\d{1,6}[a-z]?,? [^\W\d_].*|[^\W\d_].* \d{1,5}[a-z]?")
_CODE_LINE = _any_case(rf"(?<!\w){_ZIP}$")
# Words that end an address.
_NOT_IN_PLACE = frozenset(
    "a about after again also am an and any are asap as because been before but by call can card "
    "could do does door for from give had has have he her here hi his i if im is it its just later "
    "let lets living me moved my near next not now number ok okay on or order our phone please pls "
    "plz right she since sir so soon still than thank thanks that the their them then they this to "
    "today tomorrow tonight until up us was we well were what when where which while who will with "
    "would yes you your".split()
)
# Streets as they are written elsewhere: the number last, or the kind of street first.
_ABROAD = tuple(
    map(
        _any_case,
        (
            r"(?<![\w@-])(?:\d{1,5} )?[^\W\d_][\w'’-]{2,}(?:straße|strasse|str\.|gasse|weg|allee|platz|"
            r"straat|laan|gatan|vägen|katu|kuja|tie|vej|gade|veien|gata|utca|stræde)"
            r" \d{1,4}[a-z]?(?![\w%]|[.,:]\d)",
            r"(?<![\w@./-])(?:\d{1,6},? )?(?:via|viale|piazza|piazzetta|rua|avenida|avda|calle|rue|ulica|ul|"
            r"trg|praça|plaza|strada|corso|chemin)\.?(?: [^\W\d_][\w'’.-]*){1,4},? \d{1,4}"
            r"(?:[a-z]|/\d{1,4}|(?=\W|$))",
            r"(?<![\w@-])\d{1,4},? (?:bis |ter )?(?:rue|avenue|boulevard|place|chemin|allée|impasse|quai|"
            r"via|viale|calle|rua)(?: (?:de|du|des|la|le|les|l|d|da|do))*(?: [^\W\d_][\w'’.-]*){1,2}",
        ),
    )
)
_LONG_HOUSE = re.compile(r"\d{3}")
_SHORT_KINDS = frozenset("st dr ct pl sq cir".split())
_DIGIT = re.compile(r"\d")
_DIGITS = re.compile(r"\d(?:\D{0,3}\d){3}")


def find(text: str, languages: Sequence[str] = (), demanded: Collection[str] = ()) -> list[Hit]:
    """Return the personal data and secrets of a text, without overlaps, in order.

    Args:
        text: any text.
        languages: languages whose patterns apply in addition to the English ones.
        demanded: types of `safe_harbor.DEMANDED_ONLY` to look for as well.
    """
    plain = text if text.isascii() else text.translate(_PLAIN)
    hits = _all(plain, languages)
    if demanded:
        return resolve([*hits, *(Hit(*found) for found in find_demanded(plain, demanded))])
    return resolve(hits)


def resolve(hits: Iterator[Hit] | list[Hit]) -> list[Hit]:
    """Drop hits that overlap one of an earlier type, or a longer one of the same type."""
    chosen: list[Hit] = []
    hits = list(hits)
    streets = [hit for hit in hits if hit.entity == "STREET_ADDRESS"]
    if streets:
        # The parts of an address are no numbers of their own ("Boise, ID 83709").
        hits = [hit for hit in hits if hit.entity not in _PARTS or not _within(hit, streets)]
    ranked = sorted(hits, key=lambda h: (_RANK.get(h.entity, len(_RANK)), h.start - h.end, h.start))
    for hit in ranked:
        # Chosen hits do not overlap each other, so only two of them can overlap this one.
        at = bisect_left(chosen, hit.start, key=lambda other: other.start)
        free_before = at == 0 or chosen[at - 1].end <= hit.start
        if free_before and (at == len(chosen) or hit.end <= chosen[at].start):
            chosen.insert(at, hit)
    return chosen


def _within(hit: Hit, longer: Sequence[Hit]) -> bool:
    size = hit.end - hit.start
    return any(
        other.start <= hit.start and hit.end <= other.end and size < other.end - other.start
        for other in longer
    )


def _all(text: str, languages: Sequence[str]) -> Iterator[Hit]:
    lowered = text.lower()
    # Looking for a word in a text is about a hundred times faster than a pattern.
    for entity, hints, pattern in SECRET_SHAPES:
        for hint in hints:
            if hint in lowered:
                yield from _hits(text, pattern, entity)
                break
    yield from _emails(text, lowered)
    colons = text.count(":")
    if colons >= 2:
        yield from _hits(text, _IPV6, "IP_ADDRESS", is_ipv6)
    if colons >= 5 or text.count("-") >= 5:
        yield from _hits(text, _MAC, "MAC_ADDRESS")
    digit = _DIGIT.search(text) is not None
    spoken = has_digit_words(lowered)
    # The fields of a JSON answer are no sentence; its strings are looked at one by one.
    if digit or spoken:
        yield from _addresses(text)
    if (digit or spoken) and not text.startswith("{"):
        yield from (Hit(*found) for found in numbers_near_words(text))
    if "born" in lowered or "birth" in lowered or "dob" in lowered or "d.o.b" in lowered:
        yield from _births(text)
    if any(hint in lowered for hint in _PASSWORD_HINTS):
        yield from _passwords(text)
        yield from _named_after(text)
    if " on " in lowered or " at " in lowered:
        yield from _hits(text, _LIVES_ON, "STREET_ADDRESS")
    if not digit:
        return
    if _DIGITS.search(text):
        yield from _numbers(text, lowered)
    for language in languages:
        for shape in shapes(language):
            yield from _hits(text, shape.pattern, shape.entity, shape.valid)


def _hits(
    text: str, pattern: re.Pattern[str], entity: str, valid: Callable[[str], bool] | None = None
) -> Iterator[Hit]:
    """Yield the hits of a pattern; its first group, if it has one, is the hit."""
    group = 1 if pattern.groups and not pattern.pattern.count(r"\1") else 0
    for match in pattern.finditer(text):
        if valid is None or valid(match[group]):
            yield Hit(match.start(group), match.end(group), entity)


def _emails(text: str, lowered: str) -> Iterator[Hit]:
    if not ("@" in text or "at" in lowered or "mail" in lowered or "com" in lowered):
        return
    if "@" in text:
        yield from _hits(text, _EMAIL, "EMAIL_ADDRESS")
    if " @" in text or "@ " in text or "dot" in lowered or "at)" in lowered or "at]" in lowered:
        yield from _hits(text, _EMAIL_SPACED, "EMAIL_ADDRESS")
    if (" at" in lowered or "@" in text or "com" in lowered) and _MAIL_PROVIDERS.search(lowered):
        yield from _hits(text, _EMAIL_PROVIDER, "EMAIL_ADDRESS")
    if ".com" in lowered:
        yield from _hits(text, _EMAIL_STRIPPED, "EMAIL_ADDRESS")


def _numbers(text: str, lowered: str) -> Iterator[Hit]:
    for match in _IBAN_START.finditer(text):
        end = iban_end(text, match.start())
        if end is not None:
            yield Hit(match.start(), end, "IBAN_CODE")
    yield from _hits(text, _CARD, "CREDIT_CARD", is_card)
    yield from _hits(text, _SSN, "US_SSN", is_ssn)
    if "social" in lowered or "ssn" in lowered:
        yield from _hits(text, _SSN_NAMED, "US_SSN", lambda t: len(digits_of(t)) == 4 or is_ssn(t))
    for pattern in (_IPV4, _IPV4_SPACED):
        for match in pattern.finditer(text):
            if is_ipv4(match[0]) and not _VERSION.search(text, 0, match.start()):
                yield Hit(match.start(), match.end(), "IP_ADDRESS")
    yield from _phones(text)
    yield from _hits(text, _ID_NAMED, "ID_NUMBER")


def _births(text: str) -> Iterator[Hit]:
    """Yield the dates after a word for birth, in digits or as they are said."""
    yield from _hits(text, _BIRTH, "BIRTH_DATE")
    for cue in _BIRTH_WORD.finditer(text):
        for pattern in (NUMBERED_DATE, SPOKEN_DATE, _SHORT_DATE):
            match = pattern.search(text, cue.end(), cue.end() + BIRTH_REACH)
            if match and "?" not in text[cue.end() : match.start()]:
                yield Hit(match.start(), match.end(), "BIRTH_DATE")
                year = _BORN_IN.search(text, cue.end(), match.start())
                if year:
                    yield Hit(year.start(), year.end(), "BIRTH_DATE")
                break


def _passwords(text: str) -> Iterator[Hit]:
    """Yield the words after "password is" and the like, if they can be one."""
    for cue in _PASSWORD_CUE.finditer(text):
        words = _PASSWORD_VALUE.match(text, cue.end())
        if words is None:
            continue
        said = words[1].casefold().split()
        first = said[0].strip("'\".,!?")
        if first in _NOT_PASSWORDS or _STATE_WORD.fullmatch(first):
            continue
        if cue["link"] is None and (_is_sentence(said) or said[-1].endswith("?")):
            continue
        end = words.start(1)
        for word in re.finditer(r"\S+", words[1]):
            if end > words.start(1) and word[0].casefold() in _AFTER_PASSWORD:
                break
            end = words.start(1) + word.end()
        yield Hit(words.start(1), words.start(1) + len(text[words.start(1) : end].rstrip(".,!?'\"")),
                  "PASSWORD")


def _named_after(text: str) -> Iterator[Hit]:
    for match in _PASSWORD_AFTER.finditer(text):
        if match[1].casefold() not in _NOT_PASSWORDS:
            yield Hit(match.start(1), match.end(1), "PASSWORD")


def _is_sentence(said: Sequence[str]) -> bool:
    return len(said) > 3 or not _AFTER_PASSWORD.isdisjoint(said)


def _phones(text: str) -> Iterator[Hit]:
    for pattern, needs_word in (
        (_PHONE_WORLD, False),
        (_PHONE_US, False),
        (_PHONE_NATIONAL, False),
        (_PHONE_NAMED, True),
    ):
        for match in pattern.finditer(text):
            before = text[max(0, match.start() - 60) : match.start()]
            after = _PHONE_KIND_AFTER.match(text, match.end())
            named = bool(_PHONE_WORDS.search(before) or after)
            if (needs_word and not named) or _BUSINESS.search(before):
                continue
            if pattern is _PHONE_NATIONAL and not named:
                count = len(digits_of(match[0]))
                if not 9 <= count <= 12 or not is_phone_anywhere(match[0]):
                    continue
            yield Hit(match.start(), match.end(), "PHONE_NUMBER")


def _addresses(text: str) -> Iterator[Hit]:
    """Yield street addresses with the unit, place and postal code that follow."""
    for hit in _streets(text):
        # A street may have a number for a name ("3485 615 benedum drive").
        house = _HOUSE_BEFORE.search(text, 0, hit.start)
        start = house.start(1) if house and text[hit.start].isdigit() else hit.start
        yield Hit(start, _address_end(text, hit.end), hit.entity)
    if text.count("\n") > 1:
        yield from _blocks(text)


def _blocks(text: str) -> Iterator[Hit]:
    """Yield the lines of addresses that are written as on an envelope, from street to code."""
    street: int | None = None
    lines = list(_LINE.finditer(text))
    for number, line in enumerate(lines):
        said = line[0].strip()
        if not said or len(said.split()) > _LINE_WORDS:
            street = None
        elif street is None:
            street = number if _STREET_LINE.fullmatch(said) else None
        elif _CODE_LINE.search(said):
            for own in lines[street : number + 1]:
                lead = len(own[0]) - len(own[0].lstrip())
                yield Hit(own.start() + lead, own.start() + len(own[0].rstrip()), "STREET_ADDRESS")
            street = None


def _address_end(text: str, end: int) -> int:
    """Return the end of an address whose street ends at `end`."""
    for _ in range(_MOST_PARTS):
        for pattern in _NEXT_PART:
            match = pattern.match(text, end)
            if match and _NOT_IN_PLACE.isdisjoint(re.findall(r"[^\W\d_]+", match[0].casefold())):
                end = match.end()
                break
        else:
            break
    return end


def _streets(text: str) -> Iterator[Hit]:
    for match in _ADDRESS.finditer(text):
        words = match[1].lower().replace(".", "").split()
        if _NOT_IN_STREET.intersection(words):
            continue
        named = all(word[0].isupper() for word in match[1].split()) and not text.isupper()
        before = text[max(0, match.start() - 40) : match.start()]
        sure = match["unsure"] in _SHORT_KINDS and _LONG_HOUSE.match(match[0])
        # All that a turn says, besides a word or two.
        whole = len(text.split()) <= len(match[0].split()) + 2
        told = whole or _ADDRESS_WORDS.search(before) or _IS_ADDRESS.match(text, match.end())
        if match["unsure"] and not sure and not named and not told:
            continue
        yield Hit(match.start(), match.end(), "STREET_ADDRESS")
    for pattern in (_FLAT_NUMBER, _WITH_UNIT, _MILITARY):
        yield from _hits(text, pattern, "STREET_ADDRESS")
    for cue in _AFTER_CUE.finditer(text):
        street = _ANY_STREET.match(text, cue.end())
        if street and not _NOT_IN_STREET.intersection(street[1].lower().split()):
            yield Hit(street.start(1), street.end(1), "STREET_ADDRESS")
    yield from _hits(text, _PO_BOX, "STREET_ADDRESS")
    for pattern in _ABROAD:
        yield from _hits(text, pattern, "STREET_ADDRESS")
    for match in _CODE_ALONE.finditer(text):
        before = re.sub(r"\d", "", text[max(0, match.start() - 40) : match.start()])
        if _ADDRESS_WORDS.search(before):
            yield Hit(match.start(), match.end(), "STREET_ADDRESS")
