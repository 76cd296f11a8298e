"""Define patterns that depend on the language, and identify the language of a text.

English is part of `patterns` and always on; other languages are used if they are declared. A
language is identified by its function words (after Grefenstette, "Comparing two language
identification schemes", 1995) or by its script: enough to measure the share of rows in a language
that nobody declared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import NamedTuple

from tuneline.data.pii.checksums import digits_of

ENGLISH = "en"


class Shape(NamedTuple):
    """A pattern of an entity type; its first group, if it has one, is the hit."""

    entity: str
    pattern: re.Pattern[str]
    valid: Callable[[str], bool] | None = None


_NUMBER = r"(\+?\(?\d(?:[ ()./-]{0,3}\d){5,14})(?!\w)"
_CODE = r"((?=[A-Z-]*\d)[A-Z0-9](?:[ -]?[A-Z0-9]){4,17})(?![\w-])"
_CREDENTIAL = r"[\"']?((?=\S*\d)(?=\S*[^\W\d])[^\s\"',;]{6,40})"
_DATE = (
    r"\d{1,2} ?[./-] ?\d{1,2} ?[./-] ?\d{2,4}|\d{4}-\d{2}-\d{2}|"
    r"\d{1,2}\.?(?: de)? (?:%s)(?: de)? \d{4}"
)
_WORDS = {
    "de": {
        "phone": r"telefon\w*|tel|handy\w*|mobil(?:nummer|telefon)?|rufnummer|fax|anruf\w*|"
        r"ruf\w*(?: sie)? (?:mich|uns)|erreich\w*",
        "birth": r"geboren(?: am)?|geb\.|geburtsdatum|geburtstag",
        "months": "januar|februar|märz|april|mai|juni|juli|august|september|oktober|november|"
        "dezember",
        "identity": r"(?:reisepass|pass|personalausweis|ausweis|führerschein|versicherten|"
        r"patienten|steuer|sozialversicherungs|rentenversicherungs)-?(?:nummer|nr\.?|id)",
        "is": "ist|lautet",
        "password": "passwort|kennwort",
    },
    "fr": {
        "phone": r"téléphone|telephone|tél|tel|portable|mobile|fax|appel\w*|joindre|rappel\w*",
        "birth": r"née?(?: le)?|date de naissance",
        "months": "janvier|février|mars|avril|mai|juin|juillet|août|septembre|octobre|novembre|"
        "décembre",
        "identity": r"(?:passeport|carte d'identité|permis de conduire|numéro fiscal|carte vitale|"
        r"sécurité sociale)(?: (?:numéro|no|n°))?",
        "is": "est|numéro",
        "password": "mot de passe",
    },
    "es": {
        "phone": r"teléfono|telefono|tel|móvil|movil|celular|fax|whatsapp|llám\w*|llam\w*|"
        r"contactar\w*",
        "birth": r"nac[ií](?:d[oa])?(?: el)?|fecha de nacimiento",
        "months": "enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|"
        "diciembre",
        "identity": r"(?:pasaporte|dni|nie|documento de identidad|carn[eé] de conducir|"
        r"seguridad social|número fiscal)(?: (?:número|no|n°))?",
        "is": "es|número",
        "password": "contraseña|clave",
    },
}
_NAME = r"[^\W\d_][^\W\d_'’.-]*"
_ADDRESSES = {
    "de": r"(?<!\w)(?:[^\W\d_]{2,30}(?:straße|strasse|str\.|weg|platz|allee|gasse|ufer|damm)|"
    r"(?!(?:de[rnms]|die|das|ein|eine[nmrs]?|mein\w*|kein\w*|dieser?|diesem|am|im|auf|vom|zum)\b)"
    rf"{_NAME} (?:straße|strasse|str\.|weg|platz|allee|gasse|ufer|damm)) \d{{1,4}} ?[a-z]?\b"
    rf"(?:,? (?:D-)?\d{{5}} {_NAME})?",
    "fr": r"(?<![\w.,-])\d{1,4}(?: bis| ter)?,? (?:rue|avenue|boulevard|bd|place|chemin|impasse|"
    rf"allée|quai|route) (?:de la |de l'|du |des |de |d')?{_NAME}(?:[ -]{_NAME}){{0,1}}"
    rf"(?:,? \d{{5}} {_NAME})?",
    "es": r"(?<!\w)(?:calle|c/|avenida|avda\.?|plaza|paseo|camino|carretera) (?:de la |del |de )?"
    rf"{_NAME}(?: {_NAME}){{0,2}},? (?:n[º°.]{{0,2}} ?)?\d{{1,4}}\b(?:,? \d{{5}} {_NAME})?",
}
_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"


def is_dni(text: str) -> bool:
    """Return True if the letter of a Spanish identity number fits (Real Decreto 1553/2005, 11)."""
    number = text.upper().replace("-", "").replace(" ", "")
    digits = number[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return digits.isdigit() and number[-1] == _DNI_LETTERS[int(digits) % 23]


def is_nir(text: str) -> bool:
    """Return True if the key of a French social security number fits (INSEE: 97 - number % 97)."""
    digits = digits_of(text)
    return len(digits) == 15 and 97 - int(digits[:13]) % 97 == int(digits[13:])


_CHECKED = {
    "fr": Shape("ID_NUMBER", re.compile(r"(?<!\d)[12](?: ?\d){14}(?!\d)"), is_nir),
    "es": Shape(
        "ID_NUMBER", re.compile(r"(?<!\w)(?:\d{8}|[XYZxyz]\d{7})[ -]?[A-Za-z](?!\w)"), is_dni
    ),
}
PATTERN_LANGUAGES = frozenset({ENGLISH, *_WORDS})


@cache
def shapes(language: str) -> tuple[Shape, ...]:
    """Return the patterns of a language, each of which needs a digit; none for English."""
    words = _WORDS.get(language)
    if words is None:
        return ()
    gap = rf"\W{{0,3}}(?:{words['is']})?\W{{0,3}}"
    found = [
        ("PASSWORD", rf"\b(?:{words['password']})\b{gap}{_CREDENTIAL}"),
        ("ID_NUMBER", rf"\b(?:{words['identity']})(?!\w){gap}{_CODE}"),
        (
            "BIRTH_DATE",
            rf"\b(?:{words['birth']})[^\d\n]{{0,12}}?\b({_DATE % words['months']})(?!\d)",
        ),
        ("PHONE_NUMBER", rf"\b(?:{words['phone']})\b[^\d\n+(]{{0,30}}{_NUMBER}"),
        ("STREET_ADDRESS", _ADDRESSES[language]),
    ]
    patterns = [Shape(entity, re.compile(text, re.IGNORECASE)) for entity, text in found]
    return (*patterns, *([_CHECKED[language]] if language in _CHECKED else []))


# The commonest words of each language that the others do not have.
_FUNCTION_WORDS = {
    "en": "the of and to is that it for you with was this are have my what can be please from when",
    "de": "der das und ist nicht ich ein eine zu den mit auf für von wie wir sie haben bitte mein",
    "fr": "le les des et est je vous pas une dans pour avec nous qui du au sur mon ma c'est",
    "es": "el los las y es en un por con para se mi su del está cómo gracias puedo quiero",
    "it": "il lo gli di che non sono per una della mio mia con è questo grazie posso vorrei come",
    "pt": "o os as um uma não você para meu minha com isso está obrigado posso quero são mas",
    "nl": "het een van ik niet zijn je dat voor met mijn wat kan naar heb graag hoe worden",
}
_SCRIPTS = {
    "Greek": "\u0370-\u03ff",
    "Cyrillic": "\u0400-\u04ff",
    "Hebrew": "\u0590-\u05ff",
    "Arabic": "\u0600-\u06ff",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
    "Chinese or Japanese": "\u3040-\u30ff\u4e00-\u9fff",
    "Korean": "\uac00-\ud7af",
}
_SCRIPT_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_WORD = re.compile(r"[^\W\d_]+")
# Two words may be a quotation; more of them show the language.
LEAST_WORDS = 3
# Characters at the beginning of a text that are looked at.
LOOKED_AT = 600


@cache
def _own_words() -> dict[str, frozenset[str]]:
    lists = {language: set(words.split()) for language, words in _FUNCTION_WORDS.items()}
    return {
        language: frozenset(
            word
            for word in words
            if sum(word in other for other in lists.values()) == 1 and len(word) > 1
        )
        for language, words in lists.items()
    }


def _counts(text: str) -> dict[str, int]:
    words = set(_WORD.findall(text[:LOOKED_AT].lower()))
    return {language: len(words & own) for language, own in _own_words().items()}


def foreign_language(text: str, declared: Iterable[str]) -> str | None:
    """Return the language or script of a text that is in none of the declared languages.

    Returns:
        The code of a language, the name of a script, or None if it is declared or unknown.
    """
    declared = set(declared)
    if not text.isascii():
        letters = len(_WORD.findall(text)) and sum(map(str.isalpha, text))
        for script, pattern in _SCRIPT_LETTERS.items():
            if letters and len(pattern.findall(text)) > letters / 2:
                return script
    counts = _counts(text)
    language = max(counts, key=lambda name: counts[name])
    home = max((counts.get(name, 0) for name in declared), default=0)
    if language in declared or counts[language] < LEAST_WORDS or counts[language] <= 2 * home:
        return None
    return language


def likeliest(text: str, languages: Sequence[str]) -> str:
    """Return the most likely language of a text, the first one if it is unknown."""
    if len(languages) == 1:
        return languages[0]
    counts = _counts(text)
    return max(languages, key=lambda name: counts.get(name, 0))
