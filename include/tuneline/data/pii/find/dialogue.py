"""Read a question for data and its answer together."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from tuneline.data.pii.find.entities import PLACES, Hit
from tuneline.data.pii.find.patterns import MONTH, OLD, find_patterns
from tuneline.data.pii.find.token_model import Word
from tuneline.data.tables.rows import Message
from tuneline.machine.linear_pattern import WORD, LinearPattern

# Words for what is asked for, in the languages of the model.
_CUES = {
    "EMAIL_ADDRESS": r"e-?mail|mail ?address|correo|courriel|adresse mail|mailadres\w*",
    "PASSWORD": r"pass(?:word|code|phrase|wort)|(?:your|the) pass|pin|otp|one[- ]time|"
    r"security (?:code|answer)|cvv2?|cvc|maiden name|contraseña|clave|mot de passe|kennwort|senha|"
    r"wachtwoord",
    "BIRTH_DATE": r"birth\w*|dob|d\.o\.b|geburts\w+|geboren|nacimiento|naissance|nascita|"
    r"nascimento|geboorte\w*",
    "STREET_ADDRESS": r"address|where (?:do you|are you) liv\w+|adresse|anschrift|wohn\w+|"
    r"dirección|domicilio|indirizzo|endereço|adres",
    "CREDIT_CARD": r"expir\w*|exp date|valid (?:until|thru)|gültig bis|caducidad|scadenza",
    "PHONE_NUMBER": r"(?:phone|mobile|cell|contact) (?:number|no)|phone|telef\w*|handy\w*|"
    r"rufnummer|móvil|celular",
    "ID_NUMBER": r"(?:number|nummer|número|numéro|numero)|\w+nummer|digits|ssn|"
    r"social security|user ?name|user ?id|member id|account id|login",
    "AGE_OVER_89": r"age|how old|alter|wie alt|edad|cuántos años|âge|età|idade|leeftijd",
    "PERSON": r"name|nombre|nom|nome|naam|who am i \w+ (?:to|with)|sie heißen|(?:te|se) llama\w*",
}
_ASKED = {
    topic: LinearPattern(rf"(?i)(?:^|[^{WORD}])(?:{cues})(?:$|[^{WORD}])")
    for topic, cues in _CUES.items()
}
_REQUEST = LinearPattern(
    rf"(?i)(?:^|[^{WORD}])(?:provide|enter|share|give|tell|send|type|confirm|verify|need|require|"
    r"(?:may|can|could) (?:i|we) (?:please )?(?:have|get|know)|do you have|what|which|who|where|"
    r"bitte|brauche|wie|welche\w*|por favor|necesito|cuál|qué|dígame|veuillez|besoin|quel\w*|"
    rf"per favore|qual\w*|preciso|mi serve|alstublieft|graag|wat|welk\w*)(?:$|[^{WORD}])"
)
# "the name of the shop" is somebody else's.
_OTHERS = LinearPattern(r"(?i)\b(?:name|number|address)e?s? of\b")
_NEVER = LinearPattern(r"(?i)\b(?:don'?t|do not|never|nicht|nunca|jamais)\b")
_SENTENCE = re.compile(r"[^.?!\n]+[.?!\n]*")
# Characters at the end of a turn in which the question is looked for.
_END = 400
# Words of a piece of a number, of a question without a verb ("Account number?"), of an answer that
# is only a value or holds one, and of a date.
_PIECE, _BARE, _SHORT, _LONG, _DATE_WORDS = 2, 7, 4, 16, 8
# Digits of a number in an answer that is not short.
_FEW_DIGITS = 3
_NUMBER = LinearPattern(
    rf"(#?[{WORD}]*\d[{WORD}/.,-]*(?:[ -](?:[{WORD}][{WORD}]?[{WORD}]?)?\d[{WORD}/.-]*)*)"
)
_NAME = LinearPattern(r"^\pL[\pL'.-]*(?: \pL[\pL'.-]*){0,3}$")
# Digits of a date; more of them are no day, month or year.
_DIGITS = re.compile(r"(?<!\d)\d{1,4}(?!\d)")
# Signs around a value.
_SIGNS = " .!,;:'\""
_MONTH_OF = LinearPattern(rf"(?i)\b(?:{MONTH})\b")
_NUMBERED = frozenset({"BIRTH_DATE", "CREDIT_CARD", "PHONE_NUMBER", "ID_NUMBER", "PASSWORD"})
# An answer that is only an age over 89; a price or a year, which identifies nobody.
_OLD = LinearPattern(rf"(?i)^{OLD}\b[^\d]*$")
_QUANTITY = LinearPattern(r"^(?:\d+[.,]\d\d|(?:19|20)\d\d)$")
# What a model may call the words of an answer.
_PARTS = {"STREET_ADDRESS": PLACES, "PERSON": frozenset({"PERSON"})}
# What stands between the name of a value and the value, and what begins an answer.
_IS = LinearPattern(
    r"(?i)^\s*(?:(?:number|no|id|details|as|is|are|was|would be|will be|:|=|ist|lautet|es|est|è|é)"
    r"(?:\s+|$))*"
)
_LEAD = LinearPattern(
    r"(?i)\W*(?:(?:yes|yeah|ya|sure|ok|oh|um|well|hi|it'?s|it is|i'?m|i am|this is|my)\W+)+"
)
# An answer of these alone holds no value.
_FILLER = frozenset(
    "yes no yeah yep nope ok okay sure thanks thank you please hi hello sorry what why wait hold "
    "on moment ja nein nee danke bitte sí si gracias oui non merci sim não obrigado grazie prego "
    "of course right correct done great good i don't know have dont not now it is the a".split()
)


def _topics_of(text: str) -> frozenset[str]:
    """Return the entity types for which the end of a turn asks."""
    found: set[str] = set()
    for sentence in _SENTENCE.findall(text[-_END:]):
        bare = len(sentence.split()) <= _BARE and not sentence.endswith(".")
        if (bare or any(_REQUEST.finditer(sentence))) and not any(_NEVER.finditer(sentence)):
            own = _OTHERS.sub(" ", sentence)
            found |= {topic for topic, cue in _ASKED.items() if any(cue.finditer(own))}
    return frozenset(found - {"STREET_ADDRESS"} if "EMAIL_ADDRESS" in found else found)


def expected(messages: Sequence[Message]) -> list[frozenset[str]]:
    """Return what each turn is asked for; a number in pieces leaves a question open ("go on")."""
    topics, piece = frozenset[str](), False
    found: list[frozenset[str]] = []
    for message in messages:
        said, user = message["content"], message["role"] == "user"
        found.append(topics if user else frozenset())
        short = len(said.split()) <= _PIECE
        if user:
            piece = short and any(map(str.isdigit, said))
        elif message["role"] == "assistant":
            topics = _topics_of(said) or (topics if piece and short else frozenset())
    return found


def answers(text: str, topics: frozenset[str], words: Sequence[Word]) -> Iterator[Hit]:
    """Yield the values in an answer to a question for some entity types; `words` are a model's."""
    if not topics or len(text.split()) > _LONG or "?" in text:
        return
    for topic in topics:
        start, end = _value(text, topic)
        value = text[start:end]
        size = len(value.split())
        for first, last in _NUMBER.spans(value) if topic in _NUMBERED else ():
            number = value[first:last].rstrip(".,")
            enough = size <= _SHORT or sum(map(str.isdigit, number)) >= _FEW_DIGITS
            if enough and not (topic == "ID_NUMBER" and _QUANTITY.match(number)):
                yield Hit(start + first, start + first + len(number), topic)
        kinds = _PARTS.get(topic, frozenset())
        parts = [word for word in words if start <= word.start < end and word.entity in kinds]
        if topic == "STREET_ADDRESS" and parts:
            yield Hit(parts[0].start, parts[-1].end, topic)
        elif parts:
            yield from (Hit(word.start, word.end, topic) for word in parts)
        elif _is_whole(value, topic, size):
            yield Hit(start, end, topic)


def _is_whole(value: str, topic: str, size: int) -> bool:
    """Return True if all of an answer, of a number of words, is the value that was asked for."""
    said = value.casefold()
    filler = {word.strip(".,!") for word in said.split()} & _FILLER
    short = bool(value) and size <= _SHORT and not filler
    digit = any(map(str.isdigit, value))
    mail = size <= 2 or "dot" in said or "@" in said
    taken = {
        "PASSWORD": short,
        "EMAIL_ADDRESS": short and mail,
        "ID_NUMBER": short and digit and not _QUANTITY.match(value),
        "PERSON": short and _NAME.match(value),
        "BIRTH_DATE": size <= _DATE_WORDS and any(_MONTH_OF.finditer(value)),
        "AGE_OVER_89": _OLD.match(value),
    }
    return bool(taken.get(topic))


def _value(text: str, topic: str) -> tuple[int, int]:
    """Return where the value in an answer stands: after the words that name it, before others."""
    start = 0
    cues = [(*match.span(), kind) for kind in _ASKED for match in _ASKED[kind].finditer(text)]
    if own := [last for _, last, kind in cues if kind == topic]:
        start = max(own)
    elif lead := _LEAD.match(text):
        start = lead.end()
    after = [first for first, _, kind in cues if kind != topic and first >= start]
    start += next(_IS.finditer(text[start:])).end()
    value = text[start : min(after, default=len(text))]
    trimmed = value.strip(_SIGNS)
    start += value.find(trimmed)
    return start, start + len(trimmed)


def birth_dates_in(text: str, births: Collection[str]) -> Iterator[Hit]:
    """Yield the dates in a text that are known as dates of birth, in any form with their numbers.

    At least two numbers must be the same, such as day and year.
    """
    known = [_numbers_in(birth) for birth in births]
    for date in find_patterns(text, {"DATE"}) if known else ():
        numbers = _numbers_in(text[date.start : date.end])
        if len(numbers) > 1 and any(numbers <= birth for birth in known):
            yield Hit(date.start, date.end, "BIRTH_DATE")


def _numbers_in(text: str) -> set[int]:
    return {int(digits) for digits in _DIGITS.findall(text)}
