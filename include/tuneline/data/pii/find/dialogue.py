"""Read a question for data and its answer together, and find a value again where it is repeated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tuneline.data.pii.find.entities import Hit
from tuneline.data.pii.find.token_model import Word
from tuneline.machine.linear_pattern import WORD, LinearPattern

# What is asked for, in the languages of the model; the first group that matches decides.
_TOPICS = {
    "EMAIL_ADDRESS": r"e-?mail|correo|courriel|adresse mail|mailadres\w*",
    "PASSWORD": r"pass(?:word|code|phrase|wort)|pin|otp|one[- ]time|security (?:code|answer)|cvv2?|cvc|"
    r"maiden name|contraseña|clave|mot de passe|kennwort|senha|wachtwoord",
    "BIRTH_DATE": r"birth\w*|dob|d\.o\.b|geburts\w+|geboren|nacimiento|naissance|nascita|nascimento|"
    r"geboorte\w*",
    "STREET_ADDRESS": r"address|street|where do you live|adresse|anschrift|wohn\w+|dirección|domicilio|"
    r"indirizzo|endereço|adres",
    "PHONE_NUMBER": r"phone|mobile|cell|tel\w*|contact number|handy\w*|rufnummer|móvil|celular|numéro de",
    "ID_NUMBER": r"(?:account|card|social|ssn|member\w*|policy|claim|booking|confirmation|order|"
    r"reference|customer|licen[cs]e|passport|routing|id|last (?:four|4)|konto\w*|kunden\w*|"
    r"cuenta|tarjeta|compte|carte|conto|conta|rekening\w*|klant\w*)[^.?!\n]{0,40}|number|digits|nummer|"
    r"número|numéro|numero|user ?name|user ?id|login",
    "PERSON": r"name|who am i (?:speaking|talking|chatting)|nombre|nom|nome|naam|heißen|llama\w*",
}
_ASKED = {
    topic: LinearPattern(rf"(?i)(?:^|[^{WORD}])(?:{cues})(?:$|[^{WORD}])")
    for topic, cues in _TOPICS.items()
}
# A sentence that asks has a question mark or one of these.
_REQUEST = LinearPattern(
    rf"(?i)(?:^|[^{WORD}])(?:please|may i|can (?:you|i|we)|could|provide|enter|share|give|tell|send|"
    r"confirm|verify|need|require|what|which|bitte|brauche|por favor|necesito|veuillez|besoin|"
    rf"per favore|alstublieft|graag)(?:$|[^{WORD}])|\?|:\s*$"
)
_SENTENCE = re.compile(r"[^.?!\n]+[.?!\n]*")
# Characters at the end of a turn in which the question is looked for.
_END = 400
# Words of an answer that may hold only a value.
_SHORT, _LONG = 4, 16
_NUMBER = re.compile(r"#?\w*\d[\w/.,-]*(?:[ -]\w{0,4}\d[\w/.-]*)*")
_TOKEN = re.compile(r"\S+")
_NAME = re.compile(r"[^\W\d_][^\W\d_'’.-]*(?: [^\W\d_][^\W\d_'’.-]*){0,3}")
# An answer of these alone holds no value.
_FILLER = frozenset(
    "yes no yeah yep nope ok okay sure thanks thank you please hi hello sorry what why wait hold on "
    "moment ja nein nee danke bitte sí si no gracias oui non merci sim não obrigado grazie prego "
    "of course right correct done great good i don't know know have dont not now it is the a".split()
)


def topics_of(text: str) -> frozenset[str]:
    """Return the entity types for which the end of a turn asks."""
    found: set[str] = set()
    for sentence in _SENTENCE.findall(text[-_END:]):
        if next(_REQUEST.finditer(sentence), None) is None:
            continue
        found |= {topic for topic, cue in _ASKED.items() if next(cue.finditer(sentence), None)}
    if found & {"EMAIL_ADDRESS", "PASSWORD"}:
        found -= {"STREET_ADDRESS"}
    return frozenset(found)


def answers(text: str, topics: frozenset[str], words: Sequence[Word]) -> Iterator[Hit]:
    """Yield the values in an answer to a question for data.

    Args:
        text: the turn after the question.
        topics: entity types that it asks for.
        words: words of which a model thinks that they may be personal data.
    """
    size = len(text.split())
    if not topics or size > _LONG or "?" in text:
        return
    said = {word.casefold().strip(".,!") for word in text.split()}
    value = size <= _SHORT and not said <= _FILLER
    for topic in ("BIRTH_DATE", "PHONE_NUMBER", "ID_NUMBER", "PASSWORD"):
        if topic in topics:
            for match in _NUMBER.finditer(text):
                if sum(map(str.isdigit, match[0])) >= 3 or size <= _SHORT:
                    yield Hit(match.start(), match.start() + len(match[0].rstrip(".,")), topic)
    if value and topics & {"PASSWORD", "EMAIL_ADDRESS"}:
        topic = "PASSWORD" if "PASSWORD" in topics else "EMAIL_ADDRESS"
        yield Hit(len(text) - len(text.lstrip()), len(text.rstrip(" .!")), topic)
    if "STREET_ADDRESS" in topics and any(map(str.isdigit, text)) and size > 2:
        yield Hit(len(text) - len(text.lstrip()), len(text.rstrip(" .!")), "STREET_ADDRESS")
    if "PERSON" in topics:
        yield from (Hit(w.start, w.end, "PERSON") for w in words if w.entity == "PERSON")
        whole = text.strip(" .!,")
        if value and _NAME.fullmatch(whole) and said.isdisjoint(_FILLER):
            start = text.index(whole)
            yield Hit(start, start + len(whole), "PERSON")


def repeated(
    values: Mapping[str, str], texts: Iterable[str], words: Mapping[str, Sequence[Word]]
) -> dict[str, list[Hit]]:
    """Return where the values of a row stand in its texts as whole words, in any case.

    A single word of a name counts where it has a capital or a model takes it for one, since most
    names are words as well.

    Args:
        values: entity type by value.
        texts: texts of the row.
        words: words of each text that a model takes for personal data.
    """
    entities: dict[str, str] = {}
    for value, entity in values.items():
        entities.setdefault(" ".join(value.casefold().split()), entity)
        if entity == "PERSON":
            for part in value.casefold().split():
                if len(part) > 2:
                    entities.setdefault(part.strip(".,'"), entity)
    if not entities:
        return {}
    ordered = sorted(entities, key=len, reverse=True)
    either = "|".join(re.escape(value).replace(r"\ ", r"\s+") for value in ordered)
    pattern = re.compile(rf"(?<![\w@])(?:{either})(?![\w@])", re.IGNORECASE)
    found: dict[str, list[Hit]] = {}
    for text in texts:
        likely = {word.start for word in words.get(text, ()) if word.entity == "PERSON"}
        for match in pattern.finditer(text):
            entity = entities.get(" ".join(match[0].casefold().split()), "PERSON")
            single = entity == "PERSON" and not match[0].count(" ")
            if not single or match[0][:1].isupper() or match.start() in likely:
                found.setdefault(text, []).append(Hit(*match.span(), entity))
    return found
