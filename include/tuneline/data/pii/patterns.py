"""Find personal data and secrets that have a shape, by patterns and checksums (tier 1).

This is fast enough for every row: a text without digits, `@` or a key word is passed over at once,
and each pattern runs only if the text holds the characters that it needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

from tuneline.data.pii.addresses import street_addresses, streets_of_home
from tuneline.data.pii.births import birth_dates
from tuneline.data.pii.caseless import Caseless
from tuneline.data.pii.checksums import digits_of, is_ipv4, is_phone_anywhere, is_ssn
from tuneline.data.pii.hits import Hit, resolve
from tuneline.data.pii.identifiers import find_identifiers, follows_version
from tuneline.data.pii.languages import shapes
from tuneline.data.pii.matching import any_case
from tuneline.data.pii.numbers import numbers_near_words
from tuneline.data.pii.parts import LONGEST, parts
from tuneline.data.pii.passwords import password_words
from tuneline.data.pii.plates import plates
from tuneline.data.pii.safe_harbor import find_demanded
from tuneline.data.pii.spoken import has_digit_words, says_number
from tuneline.data.pii.user_names import user_names

# An address of payments ("suresh.k@okbank"); what administers a machine is nobody's.
_NO_DOMAIN = any_case(
    r"(?<![\w@.+-])(?!(?:root|admin|user|ubuntu|git|you|me|name|support|info)@)"
    r"[a-z][\w.+-]{2,}@[a-z]{3,15}(?![\w@.:-])"
)

# Unusual dashes, spaces and digits are replaced by one character each, so that positions stay.
_PLAIN = {
    **dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d"), "-"),
    **dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u200a\u202f\u3000\u200b\u2060\u00ad"), " "),
    **{ord("\uff10") + digit: str(digit) for digit in range(10)},
    ord("\uff20"): "@",
    ord("\uff0e"): ".",
}
# A number after one of these words is the shop's, not a person's.
_BUSINESS = any_case(
    r"(?:order|ticket|case|ref|reference|invoice|tracking|serial|sku|item|article|product|booking|"
    r"confirmation|transaction|parcel|shipment|part|model|version|isbn|ean|upc)\W{0,3}"
    r"(?:number|no|nr|id|code)?\W{0,3}(?:is|was)?\W{0,4}$|#\s?$"
)
_PHONE_WORDS = any_case(
    r"\b(?:phone|telephone|tel|call(?:ed|ing)?|mobile|cell(?:phone)?|whatsapp|fax|sms|text me|"
    r"ring|dial|reach (?:me|us|him|her)|contact (?:me|number)|answering|messages? to)\b"
    r"(?:[^\d\n]{0,40}|\W{0,3}\n)\(?$"
)
_PHONE_KIND_AFTER = any_case(r"\W{0,2}(?:office|fax|mobile|cell|home|work)\b")

# Repeats are bounded and start at a boundary: a page of letters must not take quadratic time.
# Providers that everybody knows.
_MAIL_HOST = r"(?:gmail|googlemail|yahoo|ymail|hotmail|outlook|icloud|aol|proton(?:mail)?|gmx)"
# A slip of the keyboard in the signs, or a name of a provider alone.
_EMAIL_SLIP = Caseless(
    r"(?<![\w.+%-])[\w+%-]{1,64}(?:\.[\w+%-]{1,64}){0,4}(?: ?@{1,2} ?)(?:"
    r"[a-z][\w-]{1,62}(?:\.[a-z][\w-]{1,62}){0,3}(?:,|;|, | )(?:com|net|org|co\.uk|co|io|"
    r"de|fr|es|it|nl)\b"
    r"|[a-z][\w-]{1,62}(?:\.[a-z][\w-]{1,62}){0,3},[a-z]{2,3}(?:\.[a-z]{2})?(?![\w.-])"
    r"|[a-z][\w-]{1,62}(?:\.[a-z][\w-]{1,62}){1,4}"
    rf"|{_MAIL_HOST}(?![\w.]))"
)
_TOP_DOMAINS = r"(?:com|org|net|edu|gov|io|co|example|info|de|fr|es|it|nl|eu|us|uk|ca|au)\b"
_DOT = r"(?:\.| \. | ?\(dot\) ?| ?\[dot\] ?| ?\{dot\} ?)"
_MAILBOX = r"(?<![\w.+%-])[\w+%-]{1,64}+"
_LABEL = r"[\w-]{1,63}"
# In brackets, or with the word's sign between others, "at" is nothing but the sign.
_SIGN_AT = r"(?: ?[(\[{<*\"']at[)\]}>*\"'] ?|[_-]at[_-])"
_SIGN_DOT = r"(?:\.| ?[(\[{<*\"']dot[)\]}>*\"'] ?|[_-]dot[_-]| dot )"
_BOX = r"[a-z0-9+%]{1,64}(?:[_-][a-z0-9+%]{1,64}){0,4}?"
_EMAIL_SIGNED = Caseless(
    rf"(?<![\w.+%-]){_BOX}(?:{_SIGN_DOT}{_BOX}){{0,4}}{_SIGN_AT}"
    rf"[a-z0-9]{{1,63}}(?:-[a-z0-9]{{1,63}}){{0,4}}?(?:{_SIGN_DOT}[a-z0-9-]{{1,63}}){{1,4}}(?!\w)"
)
# Spoken in words. Signs and numbers of the mailbox may be words too; "dot" and an end that domains
# have are what tells it from a place.
_ENDS = (
    r"(?:com|org|net|edu|gov|info|biz|io|dev|app|tech|design|online|shop|store|cloud|email|mail|"
    r"agency|studio|example|health|bank|eu|[a-z]{2})"
)
_NUMBER_WORDS = (
    r"(?:zero|oh|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|"
    r"fifteen|sixteen|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|"
    r"ninety|double|triple|\d{1,4})"
)
_SPOKEN_SIGN = r"(?: (?:dot|point|period|underscore|dash|hyphen|minus|plus) | ?[._+-] ?)"
# Without the signs that part them, so that there is one way to read a mailbox.
_PLAIN_WORD = r"[^\W_]{1,64}"
_SPOKEN_BOX = (
    rf"(?<![\w.+%'’-])(?:[a-z] ){{0,20}}{_PLAIN_WORD}(?:{_SPOKEN_SIGN}{_PLAIN_WORD}){{0,5}}"
    rf"(?: {_NUMBER_WORDS}){{0,5}}"
)
_EMAIL_SPOKEN = Caseless(
    rf"{_SPOKEN_BOX} (?:at|@) (?!the |a |my |our |your |\d)\w{{1,63}}+"
    rf"(?:(?: (?:dash|hyphen|minus) | ?- ?)\w{{1,63}}+){{0,6}}"
    rf"(?:(?: dot | ?\. ?)[\w-]{{2,63}}){{0,2}}(?: dot | ?\. ?)(?<=dot )(?!is |it |if |so |"
    rf"or |to |on )"
    rf"{_ENDS}(?!\w)(?: dot [a-z]{{2}}(?!\w))?"
    rf"|{_SPOKEN_BOX} at (?:[a-z] ){{2,5}}(?:dot [\w-]{{2,63}} ){{0,2}}dot {_ENDS}(?!\w)"
    rf"|{_SPOKEN_BOX} at (?!the |a |my |our |your |\d)(?:[\w-]{{2,63}} ){{2,3}}dot "
    r"(?:com|net|org|edu|co dot uk|ac dot uk|com dot au)(?!\w)"
)
_EMAIL_SPACED = any_case(
    rf"{_MAILBOX}(?:(?:\.| \. )[\w+%-]{{1,64}}){{0,4}} ?"
    r"(?:@|\(at\)|\[at\]|\{at\}|<at>) ?"
    rf"{_LABEL}(?:{_DOT}{_LABEL}){{0,4}}{_DOT}{_TOP_DOMAINS}"
    rf"|{_MAILBOX}(?:(?:\.| dot )[\w+%-]{{1,64}}){{0,4}} at "
    rf"{_LABEL}(?: dot {_LABEL}){{0,4}} dot {_TOP_DOMAINS}"
)
# With a provider that everybody knows, the signs in between may be spelled or lost.
_PROVIDER = (
    r"(?:g ?mail|googlemail|yahoo|ymail|hot ?mail|outlook|i ?cloud|aol|proton(?:mail)?|"
    r"live|msn|gmx|"
    r"comcast|verizon|rediffmail|btinternet|bigpond|mail)"
)
_MAIL_PROVIDERS = re.compile(_PROVIDER)
_BRACKETED = re.compile(r"[(\[{<*\"']at[)\]}>*\"']")
_LETTERED = r"(?<!\w)\w(?: [\w.-]){3,40}"
_SIGN = r"(?: ?(?:\.|dot|underscore|dash|hyphen|_|-) ?)"
_EMAIL_PROVIDER = any_case(
    rf"(?:{_LETTERED}|{_MAILBOX}(?:(?: (?:dot|underscore|dash|hyphen) | ?[._-] ?)[\w+%-]{{1,64}}+)"
    rf"{{0,4}})(?: ?@ ?| ?[(\[]?\bat\b[)\]]? ?| ){_PROVIDER}{_SIGN}"
    r"(?:co(?:m|{0}(?:uk|in|nz|za|jp))?|com{0}(?:au|br|mx|ph)|net|me|org|de|fr|es|it|in|ca|ph)\b".replace(
        "{0}", _SIGN
    )
    + rf"|{_LETTERED}(?: ?@ ?| at ){_LABEL}{_SIGN}(?:com|net|org|me|co|io|edu|uk|de|in)\b"
)
# "at" for the sign, a mailbox that is no word.
_EMAIL_AT = any_case(
    rf"(?<![\w.+%-])(?=[\w.+%-]{{0,64}}[\d._])[\w+%-][\w.+%-]{{2,63}} at "
    rf"{_LABEL}(?:\.{_LABEL}){{0,3}}\.{_TOP_DOMAINS}"
)
# The provider alone, of a mailbox with a sign or number.
_EMAIL_HALF = Caseless(
    rf"(?<![\w.+%-])(?:{_PLAIN_WORD}(?: (?:dot|underscore|dash|hyphen) |[._-])){{1,5}}{_PLAIN_WORD}"
    rf"(?: {_NUMBER_WORDS}){{0,4}} at {_MAIL_HOST}\b"
    rf"|(?<![\w.+%-])(?=[a-z_.-]{{0,40}}\d)[\w.+%-]{{3,64}} at {_MAIL_HOST}\b"
    r"|(?<![\w.+%-])(?=[a-z_.-]{0,40}[\d_.])[\w.+%-]{3,64} (?:gmail|googlemail|yahoo|ymail|hotmail|"
    r"outlook|icloud|aol|protonmail|gmx) (?:com|co uk|net|de)\b"
)
_EMAIL_STRIPPED = any_case(
    r"(?<![\w.])(?=[\w.]{0,64}[\d.])\w[\w.]{3,63} ?"
    r"(?:gmail|yahoo|hotmail|outlook|icloud|aol|protonmail)\.com\b"
)
# What is left of a number that is hidden ("•••• 8802").
_HIDDEN = re.compile(r"(?<![•*·])(?:[•*·]{2,}+[ -]?){1,4}+(\d{2,4})(?![\w.,])")
_SSN_NAMED = any_case(
    r"\b(?:ssn|social security|social)\b[^\d\n]{0,30}"
    r"(\d{3}[-. ]{0,3}\d{2}[-. ]{0,3}\d{4}|\d(?:[ -]{1,3}\d){8}|\d{4})(?!\d)"
)
# Written so that nobody follows it, or with its end hidden.
_IPV4_APART = any_case(
    r"(?<![\w.])\d{1,3}(?P<dot> \. | dot |\[\.\]|\(\.\)|\[dot\]| ?\(dot\) ?)\d{1,3}"
    r"(?:(?P=dot)\d{1,3}){2}(?!\w)|(?<![\w.])\d{1,3}\.\d{1,3}(?:\.\d{1,3})?(?:\.(?:x{1,3}|\*)){1,2}(?!\w|\.\w)"
)
_EXTENSION = r"(?: ?(?:x|ext\.?|extension) ?\d{1,5})?"
_PHONE_WORLD = any_case(
    r"(?<![\w+])(?<!\d[ -])(?:\+ ?[1-9]|00 ?[1-9]\d{0,2}(?=[ ./()-]))(?:[ .()/-]{0,3}\d){6,14}"
    + _EXTENSION
    + r"(?!\d)"
)
_PHONE_US = any_case(
    r"(?<![\w.+-])(?:1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]?\d{4}"
    + _EXTENSION
    + r"(?![\w-]|\.\d)"
)
_PHONE_NATIONAL = re.compile(
    r"(?<![\w.,-])(?<!\d[ -])\(?0\d{1,4}\)?(?:[ ./-]{1,2}\d{2,5}){1,4}(?![\w-])"
)
_PHONE_NAMED = any_case(r"(?<![\w.])\(?\d(?:[ ()./-]{0,3}\d){5,14}" + _EXTENSION + r"(?!\w)")
_ID_NAMED = any_case(
    r"\b(?:passport|driv(?:er|ing)'?s? licen[cs]e|medical record|mrn|patient|national id|"
    r"identity card|tax id|health insurance|nhs|(?:account|policy|member(?:ship)?|beneficiary|"
    r"device|certificate)(?= (?:number|no|id)\b)|(?:licen[cs]e|number) plate|vin)\b"
    r"(?: (?:number|no|nr|id|code)\b)?\.?"
    r"(?: (?:is|was))?[\s:#]{1,3}((?=[A-Z-]*\d)[A-Z0-9]"
    # A part after a space has digits, or stands before one that does.
    r"(?:(?:-|(?<!-) (?=[A-Z]{0,3} ?\d))?[A-Z0-9]){4,17})(?![\w-])"
)
_DIGIT = re.compile(r"\d")
_OCTET = re.compile(r"\d+")
_ROADS = (" road", " street", " lane", " avenue", " drive", " close", " court", " way", " terrace")
_DIGITS = re.compile(r"\d(?:\D{0,3}\d){3}")


def find(text: str, languages: Sequence[str] = (), demanded: Collection[str] = ()) -> list[Hit]:
    """Return the personal data and secrets of a text, without overlaps, in order.

    Args:
        text: any text.
        languages: languages whose patterns apply in addition to the English ones.
        demanded: types of `safe_harbor.DEMANDED_ONLY` to look for as well.
    """
    plain = text if text.isascii() else text.translate(_PLAIN)
    hits = list(find_identifiers(plain))
    for at, part in parts(plain, hits):
        if len(part) <= LONGEST:
            found = [*_all(part, languages), *(Hit(*f) for f in find_demanded(part, demanded))]
            hits += [Hit(at + hit.start, at + hit.end, hit.entity) for hit in found]
    return resolve(plain, hits)


def _all(text: str, languages: Sequence[str]) -> Iterator[Hit]:
    lowered = text.lower()
    yield from _emails(text, lowered)
    yield from (Hit(*span, "BIRTH_DATE") for span in birth_dates(text, lowered))
    yield from (Hit(*span, "PASSWORD") for span in password_words(text, lowered))
    yield from (Hit(*span, "ID_NUMBER") for span in user_names(text, lowered))
    yield from _places_and_numbers(text, lowered, languages)


def _places_and_numbers(text: str, lowered: str, languages: Sequence[str]) -> Iterator[Hit]:
    digit = _DIGIT.search(text) is not None
    spoken = has_digit_words(lowered)
    # The fields of a JSON answer are no sentence; its strings are looked at one by one.
    # A house may be one word ("eighty pepys road").
    if digit or spoken or (any(kind in lowered for kind in _ROADS) and says_number(lowered)):
        yield from (Hit(*span, "STREET_ADDRESS") for span in street_addresses(text, lowered))
    if (digit or spoken) and not text.startswith("{"):
        yield from (Hit(*found) for found in numbers_near_words(text))
    yield from (Hit(*span, "STREET_ADDRESS") for span in streets_of_home(text, lowered))
    if not digit:
        return
    yield from (Hit(*span, "ID_NUMBER") for span in plates(text, lowered))
    if _DIGITS.search(text) or " dot " in lowered:
        yield from _numbers(text, lowered)
    for language in languages:
        for shape in shapes(language):
            yield from _hits(text, shape.pattern, shape.entity, shape.valid)


def _hits(
    text: str, pattern: re.Pattern[str], entity: str, valid: Callable[[str], bool] | None = None
) -> Iterator[Hit]:
    """Yield the hits of a pattern; its first group, if it has one, is the hit."""
    group = min(1, pattern.groups)
    for match in pattern.finditer(text):
        if valid is None or valid(match[group]):
            yield Hit(match.start(group), match.end(group), entity)


def _whole(text: str, pattern: Caseless, entity: str) -> Iterator[Hit]:
    """Yield the matches of a pattern that ignores case."""
    for match in pattern.finditer(text):
        yield Hit(match.start(), match.end(), entity)


def _emails(text: str, lowered: str) -> Iterator[Hit]:
    if not ("@" in text or "at" in lowered or "mail" in lowered or "com" in lowered):
        return
    if "@" in text:
        yield from _whole(text, _EMAIL_SLIP, "EMAIL_ADDRESS")
        yield from _hits(text, _NO_DOMAIN, "EMAIL_ADDRESS")
    if "dot" in lowered or _BRACKETED.search(lowered):
        yield from _whole(text, _EMAIL_SIGNED, "EMAIL_ADDRESS")
        if " at " in lowered or "@" in text:
            yield from _whole(text, _EMAIL_SPOKEN, "EMAIL_ADDRESS")
    if " @" in text or "@ " in text or "dot" in lowered or "at)" in lowered or "at]" in lowered:
        yield from _hits(text, _EMAIL_SPACED, "EMAIL_ADDRESS")
    if (" at" in lowered or "@" in text or "com" in lowered) and _MAIL_PROVIDERS.search(lowered):
        yield from _hits(text, _EMAIL_PROVIDER, "EMAIL_ADDRESS")
        yield from _whole(text, _EMAIL_HALF, "EMAIL_ADDRESS")
    if " at " in lowered and "." in lowered:
        yield from _hits(text, _EMAIL_AT, "EMAIL_ADDRESS")
    if ".com" in lowered:
        yield from _hits(text, _EMAIL_STRIPPED, "EMAIL_ADDRESS")


def _numbers(text: str, lowered: str) -> Iterator[Hit]:
    if "••" in text or "**" in text or "··" in text:
        yield from _hits(text, _HIDDEN, "CREDIT_CARD")
    if "social" in lowered or "ssn" in lowered:
        yield from _hits(text, _SSN_NAMED, "US_SSN", lambda t: len(digits_of(t)) == 4 or is_ssn(t))
    if text.count(".") >= 3 or "dot" in lowered:
        for match in _IPV4_APART.finditer(text):
            # In place of octets that are hidden, of which two are shown at least.
            octets = [*_OCTET.findall(match[0]), "1", "1"]
            if is_ipv4(".".join(octets[:4])) and not follows_version(text, match.start()):
                yield Hit(match.start(), match.end(), "IP_ADDRESS")
    yield from _phones(text)
    yield from _hits(text, _ID_NAMED, "ID_NUMBER")


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
