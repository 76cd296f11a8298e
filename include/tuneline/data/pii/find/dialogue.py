"""Read a question for data and its answer together, and find a value again where it is repeated."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from tuneline.data.pii.find.entities import Hit
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
# Words of a piece of a number, of a question without a verb ("Account number?"), and of an answer
# that is only a value or holds one.
_PIECE, _BARE, _SHORT, _LONG = 2, 7, 4, 16
_NUMBER = LinearPattern(
    rf"(#?[{WORD}]*\d[{WORD}/.,-]*(?:[ -](?:[{WORD}][{WORD}]?[{WORD}]?)?\d[{WORD}/.-]*)*)"
)
_NAME = LinearPattern(r"^\pL[\pL'.-]*(?: \pL[\pL'.-]*){0,3}$")
_WORD = re.compile(r"\w+")
# A longer value is hardly said twice.
_MOST = 12
_MONTHS = LinearPattern(
    r"(?i)\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mär|mai|okt|dez|ene|abr|ago|dic|"
    r"janv|févr|avr|juin|juil|août|déc|gen|mag|giu|lug|set|ott|mei|out)"
)
_NUMBERED = frozenset({"BIRTH_DATE", "CREDIT_CARD", "PHONE_NUMBER", "ID_NUMBER", "PASSWORD"})
# A price or year is no number of a person; an answer with fewer digits that is not short is none.
_QUANTITY = LinearPattern(r"^(?:\d+[.,]\d\d|(?:19|20)\d\d)$")
_FEW_DIGITS, _DATE_WORDS = 3, 8
_PARTS = frozenset({"STREET_ADDRESS", "LOCATION", "POSTAL_CODE"})
# What stands between the name of a value and the value, and what begins an answer.
_IS = LinearPattern(
    r"(?i)^\s*(?:(?:number|no|id|details|as|is|are|was|would be|will be|:|=|ist|lautet|es|est|è|é)"
    r"(?:\s+|$))*"
)
_LEAD = LinearPattern(
    r"(?i)^\W*(?:(?:yes|yeah|ya|sure|ok|oh|um|well|hi|it'?s|it is|i'?m|i am|this is|my)\W+)+"
)
# An answer of these alone holds no value.
_FILLER = frozenset(
    "yes no yeah yep nope ok okay sure thanks thank you please hi hello sorry what why wait hold "
    "on moment ja nein nee danke bitte sí si gracias oui non merci sim não obrigado grazie prego "
    "of course right correct done great good i don't know have dont not now it is the a".split()
)


def topics_of(text: str) -> frozenset[str]:
    """Return the entity types for which the end of a turn asks."""
    found: set[str] = set()
    for sentence in _SENTENCE.findall(text[-_END:]):
        bare = len(sentence.split()) <= _BARE and not sentence.endswith(".")
        if (bare or any(_REQUEST.finditer(sentence))) and not any(_NEVER.finditer(sentence)):
            own = _OTHERS.sub(" ", sentence)
            found |= {topic for topic, cue in _ASKED.items() if any(cue.finditer(own))}
    return frozenset(found - {"STREET_ADDRESS"} if "EMAIL_ADDRESS" in found else found)


def expected(messages: Sequence[Message]) -> list[frozenset[str]]:
    """Return the entity types that each turn is expected to answer.

    A number that is given in pieces leaves the question open ("ok", "go on").
    """
    topics: frozenset[str] = frozenset()
    found: list[frozenset[str]] = []
    piece = False
    for message in messages:
        said, user = message["content"], message["role"] == "user"
        found.append(topics if user else frozenset())
        size = len(said.split())
        if user:
            piece = size <= _PIECE and any(map(str.isdigit, said))
        elif message["role"] == "assistant":
            topics = topics_of(said) or (topics if piece and size <= _PIECE else frozenset())
    return found


def answers(text: str, topics: frozenset[str], words: Sequence[Word]) -> Iterator[Hit]:
    """Yield the values in an answer to a question for data.

    Args:
        text: the turn after the question.
        topics: entity types that it asks for.
        words: words of which a model thinks that they may be personal data.
    """
    if not topics or len(text.split()) > _LONG or "?" in text:
        return
    for topic in topics:
        start, end = _value(text, topic)
        value = text[start:end]
        size = len(value.split())
        likely = [word for word in words if start <= word.start < end]
        said = value.casefold()
        filler = {word.casefold().strip(".,!") for word in value.split()} & _FILLER
        if topic in _NUMBERED:
            for match in _NUMBER.finditer(value):
                number = match[0].rstrip(".,")
                enough = sum(map(str.isdigit, number)) >= _FEW_DIGITS or size <= _SHORT
                if enough and not (topic == "ID_NUMBER" and _QUANTITY.match(number)):
                    yield Hit(start + match.start(), start + match.start() + len(number), topic)
        whole = size <= _SHORT and not filler and value
        digits = any(map(str.isdigit, value))
        if (
            (topic == "PASSWORD" and whole)
            or (topic == "EMAIL_ADDRESS" and whole and (size <= 2 or "dot" in said or "@" in said))
            or (topic == "ID_NUMBER" and whole and digits and not _QUANTITY.match(value))
            or (topic == "BIRTH_DATE" and size <= _DATE_WORDS and any(_MONTHS.finditer(value)))
        ):
            yield Hit(start, end, topic)
        if topic == "STREET_ADDRESS":
            parts = [word for word in likely if word.entity in _PARTS]
            if parts:
                yield Hit(parts[0].start, parts[-1].end, topic)
            elif any(map(str.isdigit, value)) and size > 2:
                yield Hit(start, end, topic)
        if topic == "PERSON":
            names = [word for word in likely if word.entity == "PERSON"]
            yield from (Hit(word.start, word.end, topic) for word in names)
            if not names and not filler and size <= _SHORT and _NAME.match(value):
                yield Hit(start, end, topic)


def _value(text: str, topic: str) -> tuple[int, int]:
    """Return where the value in an answer stands: after the words that name it, before others."""
    start, end = 0, len(text)
    cues = [(*match.span(), kind) for kind in _ASKED for match in _ASKED[kind].finditer(text)]
    own = [last for _, last, kind in cues if kind == topic]
    if own:
        start = max(own)
    elif (lead := next(_LEAD.finditer(text), None)) is not None:
        start = lead.end()
    after = [first for first, last, kind in cues if kind != topic and first >= start]
    end = min(after, default=end)
    start = start + next(_IS.finditer(text[start:])).end()
    value = text[start:end]
    trimmed = value.strip(" .!,;:'\"")
    start += value.find(trimmed)
    return start, start + len(trimmed)


def repeats_of(
    values: Iterable[tuple[str, str]],
) -> Callable[[str, Sequence[Word]], Iterator[Hit]]:
    """Return a finder of the values of a row, as whole words in any case.

    It takes a text and its words that a model takes for personal data. A single word of a name
    counts where it has a capital or a model takes it for one, since most names are words as well
    ("mark", "will").

    Args:
        values: values with their entity types.
    """
    entities: dict[tuple[str, ...], str] = {}
    for value, entity in values:
        parts = tuple(_WORD.findall(value.casefold()))
        if 0 < len(parts) <= _MOST:
            entities.setdefault(parts, entity)
            entities.setdefault(("".join(parts),), entity)
        if entity == "PERSON":
            entities.update({(part,): entity for part in parts if len(part) > 2})
    sizes: dict[str, set[int]] = {}
    for parts in entities:
        sizes.setdefault(parts[0], set()).add(len(parts))

    def find(text: str, words: Sequence[Word]) -> Iterator[Hit]:
        likely = {word.start for word in words if word.entity == "PERSON"}
        spans = [match.span() for match in _WORD.finditer(text)] if sizes else []
        said = [text[start:end].casefold() for start, end in spans]
        for at, word in enumerate(said):
            for size in sizes.get(word, ()):
                found = entities.get(tuple(said[at : at + size]))
                start, end = spans[at][0], spans[min(at + size, len(spans)) - 1][1]
                named = found != "PERSON" or size > 1 or text[start].isupper() or start in likely
                if found and named:
                    yield Hit(start, end, found)

    return find
