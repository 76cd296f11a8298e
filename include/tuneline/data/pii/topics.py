"""Find what kind of personal data a text speaks of or asks for, by its words.

The words decide the type of a number nearby and, if one side of a conversation asks, what the next
turn of the other side may hold.
"""

from __future__ import annotations

import re
from collections.abc import Set
from functools import lru_cache
from typing import NamedTuple

from tuneline.data.pii.caseless import Caseless, CaselessWords

# Entity type that a topic stands for. Order numbers and the like are the business's own.
ENTITY_OF = {
    "secret": "PASSWORD",
    "code": "PASSWORD",
    "card": "CREDIT_CARD",
    "ssn": "US_SSN",
    "phone": "PHONE_NUMBER",
    "email": "EMAIL_ADDRESS",
    "birth": "BIRTH_DATE",
    "address": "STREET_ADDRESS",
    "account": "ID_NUMBER",
    # Booking, case and the like: one per person and occasion.
    "reference": "ID_NUMBER",
    "business": "ID_NUMBER",
    "name": "PERSON",
}
NUMBER_TOPICS = frozenset(
    {"secret", "code", "card", "ssn", "phone", "account", "reference", "business"}
)

_WORDS = (
    # What only looks like a topic.
    (
        "none",
        r"(?:error|promo\w*|discount|coupon|voucher|qr|status|dress|country|currency|source|"
        r"fault|bar|colou?r|product|item)[ -]?codes?|mail(?:ed|ing)? (?:it|them|me)|"
        r"pin (?:it|this|that)|account (?:manager|balance|type|history|settings)|"
        r"in (?:any|that|this|which) case|case of|just in case|social media|"
        r"(?:product|brand|file|domain|street|company|business|host) names?|"
        r"named after|card (?:reader|game)s?|"
        # "Address" and "reach" as verbs.
        r"address(?:es|ed|ing)? (?:this|that|the|these|those|your|my|it)\b(?! ?\d)",
    ),
    ("email", r"e-?mails?(?: address(?:es)?)?|mail id|gmail|inbox"),
    (
        "account",
        r"sort code|routing|iban|swift|user ?name|user ?id|log "
        r"?in (?:id|name)|login|insta(?:gram)?|badge|"
        r"handle|passport|visa number|driv(?:er|ing)'?s? licen[cs]e|licen[cs]e|permit|"
        r"(?:medical |patient |health )?record(?: number| no)?|mrn|insurance|policy|claim|"
        r"customer (?:number|id|no|reference)|client (?:number|id|no)|(?:control|chip|badge|"
        r"employee|staff|student|patient|meter|device|vehicle|national|identity|identification) "
        r"?(?:number|id|no)s?|chip|member(?:ship)?|m[a-z]?mber|loyalty|frequent flyer|rewards?|"
        r"(?:licen[cs]e|product|activation|software|registration|full|serial) keys?|"
        r"(?:number|licen[cs]e|registration) plate|plate|\bvin|imei|serial|subscriber|"
        r"accounts?|acc?t|a/c|acc|pnr|ids?|identification|check(?:ing)?|savings",
    ),
    (
        "secret",
        r"pass ?(?:word|code|phrase|key|wd)s?|pass?w(?:or|ro|o|r)[dt]s?|pwd?|"
        r"pass(?= (?:is|was|:|=))|"
        # Questions for security.
        r"(?:first|favou?rite|childhood|eldest|oldest|best) (?:[a-z']+ )?(?:pets?|school|teacher|"
        r"cars?|food|movie|film|book|colou?r|team|band|singer|song|friend|street|job|boss|dog|cat)\b(?:'?s)?"
        r"(?: names?)?|pet'?s?'? names?|(?:password )?hint|(?:grow|grew) up|"
        r"(?:memorable|secret|security|safe) (?:words?|phrase|answer|question)s?|"
        r"memorable (?:place|name|date)|wi-?fi key|"
        r"(?:code|safe|key|secret|magic) ?words?|combos?|digits you press|"
        r"psk|passkey|p[a-z]{0,2}s[a-z]{0,2}w[a-z]{0,2}r?d|"
        r"network key|m?tan|pass ?number|safe ?word|token|"
        r"p\.?i\.?n\.?(?: code)?s?|"
        r"puk|otp|o\.t\.p|cvv2?|cvc|csc|security (?:code|number|answer|pin)|"
        r"(?:three|four|six|[346])[ -]?digits? (?:code|pin|number)|on the back(?: of)?|"
        r"one[- ]time|authenticat\w+|2fa|combination|key ?pad(?! meter)|"
        r"(?:verification|confirm\w*|access|door|gate|entry|reset|log ?in|sms|safe|key ?safe|alarm|"
        r"entrance|temporary|temp|bank|unlock|new|old|secret|my|your|otp|puk|last|"
        r"text) (?:key )?codes?",
    ),
    (
        "ssn",
        r"s\.?s\.?n\.?|socials?(?: security)?(?: number)?|aadha+r|nhs|national insurance|"
        r"ni number|tax(?:payer)? (?:id|number)|itin|sin number|pan (?:card|number)",
    ),
    (
        "birth",
        r"(?:month|day)(?:,? (?:and )?(?:day|month|year)){1,2}|"
        r"birth ?days?|birth ?dates?|date of birth|births?|born|d\.?o\.?b\.?|b-?day|birthed",
    ),
    (
        "phone",
        r"(?:tele)?phones?|ph|tel|area codes?|mobile|mob|cell(?:ular|phone)?|land ?line|"
        r"whats ?app|fax|sms|"
        r"text (?:me|him|her|us|you|it)|call(?:ed|ing|s)? (?:me|us|back|him|her|you|on|at|from)|"
        r"call ?back|reach (?:me|us|him|her|you|them)|ring (?:me|us)|dial|"
        r"contact (?:me|us|you|number|no|info\w*|details?)|extension|ext|number to (?:reach|call)|"
        r"(?:her|his|their|best|contact|registered|reachable|alternate) number",
    ),
    (
        "card",
        r"(?:(?:credit|debit|bank|gift|charge) ?)?cards?(?: number| no)?|visa|master ?card|amex",
    ),
    (
        "address",
        r"address(?:es)?|zip(?: ?codes?)?|post ?codes?|postal(?: codes?)?|apartment|apt|city|"
        r"where (?:do|are|does|should|shall|can|would|is) (?:you|we|i|it|he|she|they)|"
        r"deliver(?:y|ed|ing)? (?:to|it)|ship(?:ped|ping)? (?:to|it|address)|"
        r"(?:and|which|what) (?:flat|unit|house|apartment|door)|"
        r"(?:live|lives|living|reside|resides|located|moved|moving) (?:at|in|on|to)|"
        r"home address|house number|(?:and the|your|which|what) (?:flat|unit|house|building)|"
        r"street|"
        r"locat(?:ed|ion)",
    ),
    (
        "reference",
        r"ref|reference(?: (?:number|code|no))?|record locator|pnr|"
        # All that is asked for ("whats ur confirmation").
        r"(?:confirmation|reservation|booking)(?=\W*$)|"
        # Most of these words are said of other things, too ("a phone case").
        r"(?:booked|booking|reservation|ticket|tkt|case|conf|confirmation|itinerary|control|"
        r"report|receipt|request|application|complaint|authori[sz]ation|approval|incident|enquiry|"
        r"inquiry|docket|quote|quotation)"
        r"(?: (?:number|num|code|no|id|ref(?:erence)?)|"
        r"(?=[ :#,]*(?:is |was )?(?:[a-z]{1,7}[-/]){0,2}[a-z]{0,7}[-/]?\d))|"
        # A number with letters is nobody's phone number.
        r"(?:your|the|my) (?:new )?(?:number|no)(?= (?:is|was|will be) [a-z]{1,5}-?\d)",
    ),
    (
        "business",
        r"orders?|invoice|tracking|transaction|parcel|shipment|package|receipt|booking|reservation|"
        r"ticket|case|confirmation|itinerary|control|shipping (?:number|id)|request (?:number|id)",
    ),
    (
        "name",
        r"names?|nam|surnames?|nicknames?|maiden names?|"
        r"who(?:'s|s|m)?|holder|speaking (?:with|to)|(?:should|may|can|do|shall) i "
        r"(?:call|address)|passengers?|travell?ers?|guests?|sender|receiver|recipient|"
        r"(?:what|how) (?:should|shall|may|can|do) (?:i|we) (?:call|address)",
    ),
    (
        "code",
        r"codes?|(?:typed|keyed|punched)(?: in)?|(?:texted|messaged) (?:me|us)|"
        r"(?:text|sms|message|msg|screen|app|letter|sticker|slip)(?: you sent)? "
        r"(?:says|said|reads|shows|has)",
    ),
    # "Number" alone names nothing, but shows that a number follows.
    ("number", r"numbers?|num|digits?|no\.?(?= ?(?:is|:|#|\d))"),
)
_TOPIC = CaselessWords(
    r"(?<![\w@?&/.=])(?:"
    + "|".join(rf"(?P<{topic}>(?:{words})(?!\w))" for topic, words in _WORDS)
    + ")"
)
# In a text without any of these no topic can be found; looking for them is faster.
_ASKS = Caseless(
    r"\?|\b(?:what|whats|may|can|could|please|pls|plz|kindly|provide|share|tell|need|"
    r"needs|give|confirm|verify|enter|which|where|who|whos|whom|when|have your|your|let me know|"
    r"send|say|asks?|required?|state|spell|repeat|read|get)\b"
)
# What makes a password of any words the answer: a question, or a demand for it.
_DEMANDS = Caseless(
    r"\?|:\W*$|\b(?:what|whats|which|please|pls|plz|kindly|provide|share|tell|give|enter|type|"
    r"key in|confirm|verify|spell|repeat|state|try|need (?:your|the|a|you|to know)|have your|"
    r"(?:can|could|may|will|would) (?:i|you|we|u)|let me (?:know|have)|read|say|send me)\b"
)
_FORBIDS = Caseless(
    r"\b(?:don'?t|don’t|do not|never|not) (?:\w+ )?(?:tell|share|give|send|say|type|put)\b"
)
_STATES = Caseless(
    r"\b(?:stays?|remains?|will|won'?t|has been|have been|was|were|is (?:now|not|the same)|isn'?t|"
    r"expires?|works?|goes|takes|comes|i'?ve|i'?ll|we'?ve|we'?ll)\b"
)
# The name of an account can be any word.
_USER = Caseless(
    r"\b(?:user ?(?:name|id)|log ?in (?:name|id)|(?:your|the|ur) (?:user|login|handle)|online id|"
    r"screen ?name|gamer ?tag)s?\b"
)
_SPELL = re.compile(r"\bspell(?:ed|ing)?\b", re.IGNORECASE)
# "And the postcode" goes on with a question.
_AND = re.compile(r"\W*and\b", re.IGNORECASE)
_SENTENCES = re.compile(r"(?<=[.!?])\s+")
# A turn of so few words asks even without a word for it ("name and e-mail").
_SHORT = 7
# The value was not the right one; the next turn tries another.
_AGAIN = re.compile(
    r"\W*(?:(?:sorry|hm+|no|nope|unfortunately|i'?m afraid|i am afraid|ok|okay|well)\W+){0,3}"
    r"(?:no|nope|again|wrong|(?:that|it|this|neither|none|both)(?:'?s|\W+(?:is|was|does|did|one))?"
    r"(?:n'?t|\W+not)?\W+(?:it|right|match(?:es)?|work(?:ed|ing)?|correct|wrong|invalid|that one)|"
    r"(?:was |got )?(?:rejected|declined|not accepted|not recogni[sz]ed)|"
    r"(?:try|say|type|check|repeat)(?: (?:it|that|another|a different|the other))?"
    r"(?: (?:one|again|once more))?|"
    r"(?:any|some|an)(?:thing)?\W?other(?: (?:one|you \w+(?: \w+){0,3}))?|i have a different one|"
    r"missing a digit|one digit short)\b.{0,40}",
    re.IGNORECASE | re.DOTALL,
)
# What is asked for was named by the one who will answer ("my password fails" "what do you type?").
_WHAT = re.compile(
    r"\b(?:which (?:one|is it|of)|"
    r"what (?:is|was|does|did|do|are|have) (?:it|you|they|that|the one)|"
    r"what(?:'s| is) (?:it|that)|(?:read|type|say|spell|repeat|tell me|send|give me) "
    r"(?:it|that|the one|them))\b",
    re.IGNORECASE,
)
# What is known from the words before only, having no shape of its own.
_SHAPELESS = frozenset({"secret", "code", "ssn", "account", "card"})
_ACCEPTED = re.compile(
    r"\W*(?:(?:yes|ok|okay|great|perfect|lovely|brilliant|thanks?|thank you|"
    r"that(?:'s| is| one)?)\W+){0,3}"
    r"(?:correct|accepted|verified|that works|works?|matches|done|updated|unlocked|cleared|"
    r"you are (?:through|verified)|you're (?:through|verified)|"
    r"(?:i(?:'ve| have)? |i can )?(?:found|see) (?:you|your|it|the)|sent|booked|noted)\b",
    re.IGNORECASE,
)
_GO_ON = re.compile(
    r"\W*(?:(?:and|ok|okay|yes|go|on|the|next|last|ahead|rest|continue|then|got|it|sure|"
    r"alright|great|thanks|thank|you|mhm|uh|huh|right|of)\W+){0,5}"
    r"(?:next|last|ahead|rest|continue|then|on|it|one|sure|and|mhm|four|digits|part)?\W*",
    re.IGNORECASE,
)


class Topic(NamedTuple):
    """A mention of a topic: characters start to end of a text."""

    start: int
    end: int
    name: str


@lru_cache(maxsize=10_000)
def topics(text: str) -> tuple[Topic, ...]:
    """Return the topics that a text mentions, in order."""
    return tuple(
        Topic(match.start(), match.end(), match.lastgroup)
        for match in _TOPIC.finditer(text)
        if match.lastgroup not in (None, "none")
    )


def asks(text: str) -> bool:
    """Return True if a turn asks or tells the other side to say something."""
    return _ASKS.found_in(text) or _AND.match(text) is not None


@lru_cache(maxsize=10_000)
def asked(text: str) -> frozenset[str]:
    """Return the topics that a turn asks for, or seems to."""
    found = {topic.name for topic in topics(text)}
    # The last of several sentences may ask without a word of asking ("Done. And the postcode"),
    # and so may a list ("Name, date of birth and address then").
    words = len(last_sentence(text).split())
    listed = len(found - {"none", "number"}) > 1 and words <= 2 * _SHORT
    if not asks(text) and words > _SHORT and not listed:
        # Long statements ask for nothing, but a number after one is of their kind.
        return _without_words(found & NUMBER_TOPICS)
    if "number" in found and not found & NUMBER_TOPICS:
        found.add("account")
    if _SPELL.search(text) and not found:
        found.add("name")
    if "account" in found and _USER.found_in(text):
        found.add("user")
    if (not _DEMANDS.found_in(text) and _STATES.found_in(text)) or _FORBIDS.found_in(text):
        return _without_words(found - {"number"})
    return frozenset(found - {"number"})


def _without_words(found: Set[str]) -> frozenset[str]:
    """Return topics with a code in place of a password, which can be any words."""
    return frozenset("code" if topic == "secret" else topic for topic in found)


def last_sentence(text: str) -> str:
    """Return the last sentence of a text."""
    return _SENTENCES.split(text.strip())[-1]


def goes_on(text: str) -> bool:
    """Return True if a turn asks for more of the same ("next", "that's not it")."""
    return _GO_ON.fullmatch(text) is not None or _AGAIN.fullmatch(text) is not None


def meant(text: str, before: str) -> frozenset[str]:
    """Return what a turn asks for without naming it, by what the turn before spoke of."""
    if _WHAT.search(text) is None:
        return frozenset()
    return frozenset(topic.name for topic in topics(before)) & _SHAPELESS


def accepts(text: str) -> bool:
    """Return True if a turn says that the value was right, and asks for nothing."""
    return "?" not in text and _ACCEPTED.match(text) is not None
