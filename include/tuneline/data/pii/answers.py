"""Find what a turn answers to a question for a name, address, e-mail, password or date of birth.

After such a question nearly anything can be the value: only filler and ordinary sentences are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tuneline.data.pii.answer_words import FILLER
from tuneline.data.pii.answered_names import ANSWER_WORD, named_people, spelled_names
from tuneline.data.pii.hits import Hit
from tuneline.data.pii.mailboxes import told_mailboxes
from tuneline.data.pii.matching import LETTERED_POSTCODE
from tuneline.data.pii.name_words import NameWords
from tuneline.data.pii.safe_harbor import NUMBERED_DATE, SPOKEN_DATE
from tuneline.data.pii.stretches import asked_dates, asked_numbers
from tuneline.data.pii.words import is_ordinary

# Words of a short answer, and of one that holds more than a value.
_SHORT, _LONG = 3, 14
_STREET_START = re.compile(
    r"(?:\b(?:p\.? ?o\.? ?box|flat|unit|apt|apartment|house|plot|lot|suite|door|h)\b|\d|"
    r"\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b)",
    re.IGNORECASE,
)
_IN_STREETS = re.compile(
    r",|\b(?:street|road|lane|avenue|drive|close|court|house|cottage|farm|hill|park|way)\b",
    re.IGNORECASE,
)
_ADDRESS_END = re.compile(
    r"[!?;\n]|\.(?= |$)(?<!\bst\.)(?<!\bave\.)(?<!\brd\.)(?<!\bapt\.)(?<!\bdr\.)|"
    r",? (?:and|but|my|you|u|its|it's|theres|lol|haha|we|they|guys|next to|not|till?|who|where|"
    r"buzz|corner house|thanks?|thank you|please|pls|plz|is|was|"
    r"ok|okay|if|when|since|so|because|can|"
    r"could|that|it|i|the (?:phone|card|account)|phone|mobile|cell|e-?mail|for|sir|mam|ma'am)\b",
    re.IGNORECASE,
)
_FLOOR = frozenset("floor top ground basement upper lower rear first second third house".split())
_PASSWORD_LEAD = re.compile(
    r"^\W*(?:(?:i (?:tried|used|use|typed|put|set|entered)|tried|sure|yes|yeah|ok|okay|um|"
    r"uh|oh|well|so|its|got it|"
    r"it's|it is|it was|i think|think|maybe|my|"
    r"and|got|it|shows?|says?|now|the|password|passcode|pass|pin|code|is|was|should be|"
    r"might be|probably|be|try|use|here|hi|"
    r"new one|one|thanks?)\b\W*)*",
    re.IGNORECASE,
)
_PASSWORD_TAIL = re.compile(
    r"(?:\W+(?:thanks?|thank you|thx|pls|please|i think|i guess|right|ok|lol|sir|mam|maam|"
    r"all lower ?case|lower ?case|then|last try|maybe|again|now|for now|always|i mean|ta|"
    r"cheers))*\W?$",
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"\b(?:don'?t|dont|do not|can'?t|cannot|forgot|forgotten|remember|reset|why|didn'?t|not|isn'?t|"
    r"never (?:had|got|set|received|mind|did)|"
    r"what|how|know|sent|email|text|work(?:s|ing)?|wrong|locked|change[d]?|which|no|have|need|"
    r"secs?|seconds?|moment|minutes?|wait|hang on|looking|checking|calling|coming|trying|doing|"
    r"going|press|whats|hows|wheres|whos)\b",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"\W*(?:(?:and|but|so|ok|oh|then) )*(?:is (?:it|that|there|this)|are|can|could|do|does|will|"
    r"would|should|did) ",
    re.IGNORECASE,
)
# All that somebody says to close a subject.
_CLOSING = re.compile(
    r"(?:\W*\b(?:ok|okay|alright|aight|oh|ah|yes|great|good|super|perfect|cool|nice|fine|thank you|"
    r"thanks?|thx|ty|ta|cheers|done|got it|lol|sorry|bye|please|so much|very much|a lot|again|sir|"
    r"ma'?a?m|bro|man|mate|much appreciated|gracias|asante|dzi[eę]k\w*|danke|merci|salamat|"
    r"obrigad[oa]|grazie|shukran|diolch|jesus|god|omg)\b)+\W*",
    re.IGNORECASE,
)
# Parts of an answer with several values ("0081 and sugarplum"), and the words that only link them.
_APART = re.compile(
    r"(?:,|;| /|/ |\b(?:and|or|then|either|both|same as|as always|like always|but)\b)\W*",
    re.IGNORECASE,
)
# A sentence has one of these; a password of words hardly ever does.
_IN_SENTENCES = frozenset(
    "am are asked at be been before can could did do does doing dont for from get give given go "
    "going got had has have he her him his how if into it its just let like made make me might "
    "must need of off ok our out put said same say says see send she should so than that thats "
    "their them there they this to too took u us want was we went were when where while who will "
    "with would you your late soon much many expired balance i im ill ive come coming "
    "whats".split()
)
# Words that are all of a turn and no password.
_EXCLAIMED = frozenset(
    "bro cool cya done gracias great hah haha lovely nah nice nope omg oops perfect thnx ugh "
    "worked wow yay yep".split()
)
_ARTICLES = frozenset("a an the this that these those any some".split())
_VALUES_NAMED = frozenset("exp expiry expires code pin cvv cvc card number account dob zip".split())
_DATE_DIGITS = re.compile(
    r"(?<![\w./-])(?:\d{1,2}[ ./-]{1,3}\d{1,2}[ ./-]{1,3}(?:\d{4}|\d{2})|\d{8}|\d{6}|"
    r"\d{1,2}[/.-]\d{4}|\d{4}[ ./-]\d{1,2}[ ./-]\d{1,2}|(?:19|20)\d{2})(?![\w/-]|\.\d)"
)
_YEAR_ALONE = re.compile(
    r"^\W*(?:(?:in|the year|it's|its|yes|uh|um)\W+)*(['’]?\d{2})\W*$", re.IGNORECASE
)
_MIXED = re.compile(
    r"(?<![\w@])(?=\S{0,40}[a-z])(?!\d{1,4}(?:st|nd|rd|th|[ap]m|gb|mb|x)\b)"
    r"(?=\S{0,40}(?:\d|[#$%&*+=^~_]))([^\s\"“”@]{5,40}[^\s\"“”@.,!?])(?!\S*@)",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"(?<![\w@.'’-])[\w-]+(?![\w@'’]|\.\w)")
_LEAST_LOCATOR, _LEAST_USER = 5, 3
_MAIL_WORDS = re.compile(r"(?<![\w@.])[\w.+-]{4,}(?![\w@])")
# One whose host is no provider.
_AT_ANY = re.compile(
    r"(?<![\w@.+-])([\w.+-]{3,64})(?: ?@ ?| at )([a-z][\w-]{2,63})(?![\w@])", re.IGNORECASE
)
# An address that breaks off after its host, as an answer.
_AT_PROVIDER = re.compile(
    r"[\w.+-]+(?: (?:dot|underscore|dash|hyphen) [\w+-]+)*(?: ?@ ?| at )"
    r"(?:gmail|googlemail|yahoo|hotmail|outlook|icloud|aol|proton(?:mail)?|gmx|web|live)\b(?!\.)",
    re.IGNORECASE,
)


def answers(text: str, wanted: frozenset[str], words: NameWords, *, user: bool) -> Iterator[Hit]:
    """Yield the values other than numbers with which a turn answers.

    Args:
        text: a turn.
        wanted: topics that the turn before asked for.
        words: names and ordinary words.
        user: True if the turn is not the assistant's, which has no passwords or addresses.
    """
    if not user:
        return
    rest = text
    if "birth" in wanted:
        for match in _YEAR_ALONE.finditer(text):
            yield Hit(match.start(1), match.end(1), "BIRTH_DATE")
        births = list(_births(text))
        yield from births
        for hit in births:
            # Its digits begin no address.
            rest = rest[: hit.start] + " " * (hit.end - hit.start) + rest[hit.end :]
    if "secret" in wanted or "code" in wanted:
        said = text
        for start, end, _ in asked_numbers(text, wanted):
            # They are one value, which is not cut where a password would be.
            said = said[:start] + " " * (end - start) + said[end:]
        yield from _passwords(said, digits="secret" not in wanted)
        if "secret" in wanted:
            yield from _mixed(text)
    if "address" in wanted:
        yield from _addresses(rest, words, alone="name" not in wanted)
        yield from _postcodes(text)
    yield from _named_accounts(text, wanted, words)
    if "name" in wanted:
        yield from spelled_names(text)
        yield from named_people(text, words)
    if ("email" in wanted and "address" not in wanted) or wanted - {"user"} == {"account"}:
        yield from _mailboxes(text, words, asked="email" in wanted)


def _named_accounts(text: str, wanted: frozenset[str], words: NameWords) -> Iterator[Hit]:
    """Yield the one word of an answer to a question for an account or a user name."""
    if wanted.isdisjoint(("user", "account", "reference")):
        return
    own = [word for word in _TOKEN.finditer(text) if word[0].casefold() not in FILLER]
    if len(own) != 1:
        return
    said, word = own[0][0], own[0][0].casefold()
    # A user name can be any word, a code or the name of an account none that a dictionary has.
    user = "user" in wanted and not _leaves_open(text) and not _NO_ANSWER.search(text)
    known = words.is_everyday(word) or word in words.common or is_ordinary(word)
    if (user and len(said) >= _LEAST_USER) or (
        not wanted.isdisjoint(("account", "reference"))
        and len(said) >= _LEAST_LOCATOR
        and (said.isupper() or not known)
    ):
        yield Hit(*own[0].span(), "ID_NUMBER")


def _leaves_open(text: str) -> bool:
    """Return True if a turn gives no value: it closes the subject or asks something itself."""
    return _CLOSING.fullmatch(text) is not None or _QUESTION.match(text) is not None


def _postcodes(text: str) -> Iterator[Hit]:
    """Yield the postal codes of a place that was asked for."""
    for match in LETTERED_POSTCODE.finditer(text):
        yield Hit(match.start(), match.end(), "STREET_ADDRESS")


def _births(text: str) -> Iterator[Hit]:
    for start, end in asked_dates(text):
        yield Hit(start, end, "BIRTH_DATE")
    for pattern in (NUMBERED_DATE, SPOKEN_DATE, _DATE_DIGITS):
        for match in pattern.finditer(text):
            yield Hit(match.start(), match.end(), "BIRTH_DATE")


def _passwords(text: str, *, digits: bool) -> Iterator[Hit]:
    """Yield the parts of an answer that can be a password of any words.

    Args:
        text: an answer.
        digits: True if it is one with a digit, as one-time codes are.
    """
    if _leaves_open(text):
        return
    at = 0
    for apart in (*_APART.finditer(text), None):
        end = len(text) if apart is None else apart.start()
        span = _password_part(text[at:end])
        if span is not None and (not digits or any(map(str.isdigit, text[at:end]))):
            yield Hit(at + span[0], at + span[1], "PASSWORD")
        at = end if apart is None else apart.end()


def _password_part(text: str) -> tuple[int, int] | None:
    lead = _PASSWORD_LEAD.match(text)
    tail = _PASSWORD_TAIL.search(text)
    start, end = lead.end() if lead else 0, tail.start() if tail else len(text)
    value = text[start:end].rstrip()
    said = value.casefold().replace("’", "").replace("'", "").split()
    if len(value) < 3 or len(said) > 4 or _NO_ANSWER.search(value):
        return None
    if said[0].rstrip(".!,") in _EXCLAIMED and (len(said) == 1 or not said[0].isalpha()):
        return None
    if len(said) > 1 and (said[0] in _ARTICLES or not _IN_SENTENCES.isdisjoint(said)):
        return None
    if len(said) > 1 and not _VALUES_NAMED.isdisjoint(said):
        # Several values with their names ("exp 4/27 code 5519").
        return None
    return start, start + len(value)


def _mixed(text: str) -> Iterator[Hit]:
    """Yield the words of an answer with digits or signs among their letters."""
    for match in _MIXED.finditer(text):
        yield Hit(match.start(1), match.end(1), "PASSWORD")


def _addresses(text: str, words: NameWords, *, alone: bool) -> Iterator[Hit]:
    """Yield the part of an answer from the house number to the end of the address."""
    first = _STREET_START.search(text)
    if first is None:
        longest = _SHORT + (5 if _IN_STREETS.search(text) else 2)
        if alone and len(text.split()) <= longest:
            own = [w for w in ANSWER_WORD.finditer(text) if w[0].casefold() not in FILLER]
            if own and not all(words.is_everyday(w[0].casefold()) for w in own):
                yield Hit(own[0].start(), own[-1].end(), "STREET_ADDRESS")
        return
    start = first.start()
    before = list(re.finditer(r"[^\W_]+(?:['’][^\W_]+)*", text[:start]))
    for word in reversed(before):
        if not alone and "," in text[word.end() : start]:
            # The name was asked for as well, and stands before the address.
            break
        # A place or the letters of a postcode stand before the number.
        if word[0].casefold() in _FLOOR:
            start = word.start()
            continue
        if word[0].casefold() in FILLER or words.is_everyday(word[0].casefold()):
            break
        start = word.start()
    end = len(text.rstrip())
    stop = _ADDRESS_END.search(text, first.end())
    if stop is not None:
        end = stop.start()
    if len(text[start:end].split()) <= _LONG:
        yield Hit(start, end, "STREET_ADDRESS")


def _mailboxes(text: str, words: NameWords, *, asked: bool) -> Iterator[Hit]:
    """Yield the names of mailboxes and accounts that are no words."""
    for match in _AT_PROVIDER.finditer(text):
        yield Hit(match.start(), match.end(), "EMAIL_ADDRESS")
    for start, end in told_mailboxes(text, asked=asked):
        yield Hit(start, end, "EMAIL_ADDRESS")
    found = list(_MAIL_WORDS.finditer(text))
    for match in _AT_ANY.finditer(text):
        parts = (match[1].casefold(), match[2].casefold())
        if "@" in match[0] or not any(p in FILLER or words.is_everyday(p) for p in parts):
            yield Hit(match.start(), match.end(), "EMAIL_ADDRESS")
    if len(text.split()) > _SHORT + 2:
        return
    for match in found:
        word = match[0].casefold().strip(".-")
        if word not in FILLER and words.is_strange(word):
            yield Hit(match.start(), match.end(), "EMAIL_ADDRESS")
