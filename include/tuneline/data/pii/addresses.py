"""Find street addresses, with the unit, place and postal code that follow a street."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneline.data.pii.matching import LETTERED_POSTCODE, ONES, TENS, Span, any_case, spans
from tuneline.data.pii.postal import postal_addresses
from tuneline.data.pii.spoken import says_number

# Words that end a street's name; the second kind also means something else in ordinary text.
_STREET_KINDS = (
    "street|avenue|ave|road|rd|lane|ln|approach|trail|nagar|marg|boulevard|blvd|terrace|parkway|"
    "pkwy|highway|hwy|crescent|"
    "close|gardens|mews|alley|strasse|straße"
)
_STREET_KINDS_UNSURE = (
    "st|drive|dr|court|ct|crt|way|place|pl|square|sq|hill|row|walk|circle|cir|cottages?|estate|holt|"
    "hollow|rise|grove|villas?|heights|house|gate|green|wharf|quay|parade|bend|ridge|glen|vale|view"
)
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
_SPOKEN_DIGITS = f"zero|oh|{ONES}"
_NAMED_STREET = (
    r"((?:(?:\d{1,3}(?:st|nd|rd|th)|[^\W\d_][\w'.-]*) ){1,3}?)(?:(?:"
    + _STREET_KINDS
    + r")|(?P<unsure>"
    + _STREET_KINDS_UNSURE
    + r"))\b(?:"
    + _PLACE_AFTER
    + r")"
)
_ADDRESS = any_case(
    r"(?<![\w.,:#-])(?:(?:(?:unit|flat|apt|shop|lot) )?\d{1,4}/\d{1,5}|\d{1,5}[a-z]?|"
    r"\d{1,5}(?=[^\W\d_]{3}))(?:,? |(?<=\d)(?=[^\W\d_]{3}))" + _NAMED_STREET
)
# The number of the house in words, which few texts have.
_ADDRESS_SPOKEN = any_case(
    rf"(?<![\w.,#-])(?:(?:{_SPOKEN_DIGITS})(?: (?:{_SPOKEN_DIGITS})){{1,4}}|(?:{TENS})"
    rf"(?: (?:{TENS}|{_SPOKEN_DIGITS})){{0,3}}(?: uh| um)?),? " + _NAMED_STREET
)
_ADDRESS_WORDS = any_case(
    r"\b(?:live[sd]?|living|address|ship|send|sent|post|mail|"
    r"deliver(?:ed|y)?|forward(?:ed|ing)?|\bat|redirect(?:ed)?|moved?|moving|located|"
    r"house|home|flat|door|drop|bring|collect|picked? up|taxi|ride|drive|visit|meet)\b"
    r"[^\d\n]{0,30}(?:\d{1,6} )?$"
)
_IS_ADDRESS = any_case(r"\W{1,3}is (?:the|my|our|her|his) [a-z ]{0,12}address")
# As addresses are written in India: "flat no 12 …", with a postal code of six digits or without.
_FLAT_NUMBER = any_case(
    r"\b(?:flat|h|house|plot|door|shop) (?:no|number)\b\.? ?#?\d[\w/-]{0,9}"
    rf"{_PLACE_WORDS}{{1,7}}(?:,? ?-? ?\d{{6}}(?!\d))?"
)
# A unit, or the words before it, shows that any street is an address.
_WITH_UNIT = any_case(
    r"(?<![\w.,:#-])\d{1,5}[a-z]?,?(?: [^\W\d_][\w'.-]*){1,4}(?: \d{1,4})?,?"
    r" (?:apt|apartment|suite|unit)"
    rf"\.? #?\w{{1,5}}\b(?:{_PLACE_WORDS}{{1,6}}?,? \d{{5}}(?!\d))?"
)
_AFTER_CUE = any_case(
    r"\b(?:live[sd]?|living|resid\w+|located|staying) (?:at|on)|\baddress(?:(?:es)? (?:is|to|:)|:)?"
)
_ANY_STREET = any_case(
    rf"\W{{1,3}}(\d{{1,5}}[a-z]?,?{_PLACE_WORDS}{{1,4}}?(?: \d{{1,4}}(?!\d))?"
    rf"(?:{_PLACE_WORDS}{{0,4}}?,? \d{{5}}(?!\d)|{_PLACE_WORDS}(?=\W*$))?)(?![\w])"
)
_MILITARY = any_case(
    r"\b(?:psc|unit|cmr) \d{1,5},? box \d{1,5}(?:,? (?:apo|fpo|dpo),? [a-z]{2}(?: \d{5})?)?"
)
_MILITARY_PLACE = any_case(
    r"\b(?:[^\W\d_][\w'’.-]* ){1,2}(?:apo|fpo|dpo),? (?:aa|ae|ap) \d{5}(?!\d)"
)
_POST_OFFICE = any_case(r"[afd]po,? a")
_PO_BOX = any_case(
    r"\bp\.? ?o\.? ?box \d{1,6}\b|\b(?:rural |county )?(?:route|rr) \d{1,4},? box \d{1,6}\b"
)
# Other forms of addresses, with the words of which each holds one.
_FORMS = (
    (_FLAT_NUMBER, (" no", " number")),
    (_WITH_UNIT, (" apt", " apartment", " suite", " unit")),
    (_MILITARY, ("box ",)),
    (_PO_BOX, ("box ",)),
)
_CUE_HINTS = ("address", "liv", "resid", "locat", "stay")
_NOT_IN_STREET = frozenset(
    "a an and are at away be by can charge day days down euros dollars for from go have hours "
    "hour i if in is it items km left me mile miles minutes minute months my no of off on one or "
    "order orders other our out parcels people per pm am right so than that the this times to "
    "under until up was way weeks week when with within years year you your block blocks pounds "
    "percent points steps star bed bedroom bedrooms storey story".split()
)
# What may follow a street, in this order of preference.
_MOST_PARTS = 5
_COUNTRIES = (
    "usa|united states|uk|united kingdom|england|scotland|wales|ireland|canada|australia|"
    "new zealand|south africa|india|germany|austria|switzerland|france|belgium|netherlands|"
    "luxembourg|italy|spain|portugal|denmark|sweden|norway|finland|iceland|estonia|latvia|"
    "lithuania|poland|czech republic|slovakia|slovenia|croatia|serbia|hungary|romania|bulgaria|"
    "greece|cyprus|turkey|ukraine|russia|brazil|argentina|chile|mexico|uruguay|colombia|peru|"
    "japan|china|korea|taiwan|singapore|malaysia|philippines|indonesia|thailand|vietnam|pakistan|"
    "bangladesh|sri lanka|nepal|egypt|tunisia|morocco|nigeria|ghana|kenya|israel|greenland"
)
_PLACE = r"(?: {1,2}[^\W\d_][\w'’.-]*)"
_ZIP = r"(?:\d{4,6}(?:-\d{3,4})?|[a-z]{1,2}\d[a-z\d]? ?\d[a-z]{2}|[a-z]\d[a-z] ?\d[a-z]\d)(?![\w-])"
_NEXT_PART = tuple(
    map(
        any_case,
        (
            r",? ?(?:apt|apartment|suite|unit|flat|floor|room|bldg|building)\b\.? ?#?\w{1,6}(?!\w)",
            rf",? {_ZIP}",
            rf",?{_PLACE}{{1,4}}?,? {{1,2}}{_ZIP}",
            r",? (?:\d{4,5}|\d{2}-\d{3}|\d{3} \d{2}) (?-i:[A-ZÀ-Þ])[\w'’-]{2,}(?= ?[,.;?!)]|\W*$)",
            r",? (?:bât(?:iment)?|bat|esc|escalier|étage|porte|app?t|lgh|st|th|tv|mf)\.? "
            r"(?:[a-z]|\d{1,3}|t[vh])(?!\w)",
            rf",?{_PLACE}{{1,3}}?,? {{1,2}}(?:{_STATES}|{_COUNTRIES})\b(?: \d{{4,6}}(?!\d))?",
            rf",{_PLACE}{{1,3}}(?=,|[.?!](?: |$)|\W*$)",
            rf"{_PLACE}{{1,4}}(?=\W*$)",
        ),
    )
)
# The first part of a British postal code.
_OUTWARD = re.compile(r", ?[A-Z]{1,2}\d{1,2}[A-Z]?(?![\w-])")
_HOUSE_BEFORE = re.compile(r"(?<![\w.,:#$€£-])(\d{1,6}) $")
# Lines of an envelope: few words, one with a house number, a later one with a postal code.
_LINE = re.compile(r"[^\n]+")
_LINE_WORDS = 6
_STREET_LINE = any_case(r"\d{1,6}[a-z]?,? [^\W\d_].*|[^\W\d_].* \d{1,5}[a-z]?")
_CODE_LINE = any_case(rf"(?<!\w){_ZIP}$")
# Words that end an address.
_NOT_IN_PLACE = frozenset(
    "a about after again also am an and any are asap as because been before but by call can card "
    "could do does door for from give had has have he her here hi his i if im is it its just later "
    "let lets living me moved my near next not now number ok okay on or order our phone please pls "
    "plz right she since sir so soon still than thank thanks that the their them then they this to "
    "today tomorrow tonight until up us was we well were what when where which while who will with "
    "would yes you your".split()
)
# Looking for these is faster than the patterns, of which each holds one.
_ABROAD_HINTS = (
    *"straße strasse str. gasse weg allee platz straat laan gatan vägen katu kuja tie vej".split(),
    *"gade gata veien utca stræde via rua avenida avda calle rue ulica trg praça plaza".split(),
    *"strada corso chemin piazz impasse quai boulevard allée avenue".split(),
    *("ul ", "ul.", "place "),
)
# Streets as they are written elsewhere: the number last, or the kind of street first.
_ABROAD = tuple(
    map(
        any_case,
        (
            r"(?<![\w@-])(?:\d{1,5} )?[^\W\d_][\w'’-]{2,}(?:straße|strasse|str\.|gasse|weg|allee|"
            r"platz|straat|laan|gatan|vägen|katu|kuja|tie|vej|gade|veien|gata|utca|stræde)"
            r" \d{1,4}[a-z]?(?: [a-h](?: \d{1,3})?)?(?![\w%]|[.,:]\d)",
            r"(?<![\w@./-])(?:\d{1,6},? )?(?:via|viale|piazza|piazzetta|rua|avenida|avda|calle|rue|"
            r"ulica|ul|trg|praça|plaza|strada|corso|chemin)\.?(?: [^\W\d_][\w'’.-]*){1,4},? \d{1,4}"
            r"(?:[a-z]|/\d{1,4}|(?=\W|$))",
            r"(?<![\w@-])\d{1,4},? (?:bis |ter )?(?:rue|avenue|boulevard|place|chemin|allée|"
            r"impasse|quai|via|viale|calle|rua)(?: (?:de|du|des|la|le|les|l|d|da|do))*"
            r"(?: [^\W\d_][\w'’.-]*){1,2}",
        ),
    )
)
_LONG_HOUSE = re.compile(r"\d{3}")
_SHORT_KINDS = frozenset("st dr ct pl sq cir".split())
# A street without a number, where somebody lives.
_LIVES_ON = any_case(
    r"\b(?:live[sd]?|living|resid\w+|moved?|staying) (?:on|at|to) ((?:[^\W\d_][\w'’.-]* ){1,3}"
    r"(?:street|avenue|ave|road|lane|boulevard|blvd|terrace|parkway|crescent|close|gardens|drive))\b"
)


def street_addresses(text: str, lowered: str) -> Iterator[Span]:
    """Yield the street addresses of a text: characters start to end.

    Args:
        text: any text.
        lowered: the text in lower case.
    """
    yield from postal_addresses(text)
    found = list(_streets(text, lowered))
    if any(hint in lowered for hint in _ABROAD_HINTS):
        found += [match.span() for pattern in _ABROAD for match in pattern.finditer(text)]
    for begin, end in found:
        # A street may have a number for a name ("3485 615 benedum drive").
        house = _HOUSE_BEFORE.search(text, max(0, begin - 64), begin)
        start = house.start(1) if house and text[begin].isdigit() else begin
        yield start, _address_end(text, end)
    if text.count("\n") > 1:
        yield from _blocks(text)


def streets_of_home(text: str, lowered: str) -> Iterator[Span]:
    """Yield streets without a number where somebody lives or moves to.

    Args:
        text: any text.
        lowered: the text in lower case.
    """
    if any(hint in lowered for hint in ("liv", "resid", "mov", "stay")):
        yield from spans(text, _LIVES_ON)


def _blocks(text: str) -> Iterator[Span]:
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
                yield own.start() + lead, own.start() + len(own[0].rstrip())
            street = None


def _address_end(text: str, end: int) -> int:
    """Return the end of an address whose street ends at `end`."""
    for _ in range(_MOST_PARTS):
        for pattern in (*_NEXT_PART, _OUTWARD):
            match = pattern.match(text, end)
            if match and _NOT_IN_PLACE.isdisjoint(re.findall(r"[^\W\d_]+", match[0].casefold())):
                end = match.end()
                break
        else:
            break
    return end


def _streets(text: str, lowered: str) -> Iterator[Span]:
    spoken = _ADDRESS_SPOKEN.finditer(text) if says_number(lowered) else ()
    for match in (*_ADDRESS.finditer(text), *spoken):
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
        yield (match.start(), match.end())
    for pattern, hints in _FORMS:
        if any(hint in lowered for hint in hints):
            yield from spans(text, pattern)
    if _POST_OFFICE.search(text):
        yield from spans(text, _MILITARY_PLACE)
    if any(hint in lowered for hint in _CUE_HINTS):
        for cue in _AFTER_CUE.finditer(text):
            street = _ANY_STREET.match(text, cue.end())
            if street and not _NOT_IN_STREET.intersection(street[1].lower().split()):
                yield (street.start(1), street.end(1))
    # Without a street, where something else speaks of a place.
    for match in LETTERED_POSTCODE.finditer(text):
        before = re.sub(r"\d", "", text[max(0, match.start() - 40) : match.start()])
        if _ADDRESS_WORDS.search(before):
            yield (match.start(), match.end())
