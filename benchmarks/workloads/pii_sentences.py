"""Make sentences with one piece of artificial personal data each, with labels.

They are the edited text that a detector must find all of; what leaks in a dataset is measured in
its own rows (`tuneline.data.pii.measure`). Values are random. Each is written plainly, in lower
case, in capitals and with spacing tricks, in sentences with and without a word that introduces it.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from stdnum import iban, luhn

from tuneline.data.pii.measure.plants import phrases
from tuneline.data.pii.replace.scrubber import Scrubber

ENGLISH = "en"
MONTHS = {
    "en": "January February March April May June July August September October November December",
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre "
    "diciembre",
}
FORMS = ("plain", "lower", "upper", "spaced")
PER_FORM = 8

# Given names, most of them not in the list of the detector.
_GIVEN = (
    "Maria James Aoife Bartek Chidi Delphine Emre Fergus Gudrun Hyun Ioana Jakub Keiko Lorena "
    "Mirko Nneka Oksana Paulo Renske Sanne Tamsin Umberto Vesna Wiebke Ximena Yosef David Linda "
    "Robert Susan Thomas Sarah"
).split()
_FAMILY = (
    "Okafor Lindqvist Moreau Castellano Whitaker Novotny Haugen Brennan Delacroix Fitzgerald "
    "Kowalczyk Marchetti Nakamura Petrov Ramirez Schneider Tanaka Vandenberg Yilmaz Zimmermann "
    "Ashford Holloway Pemberton Sinclair"
).split()
_CITIES = (
    "Chicago Manchester Toronto Melbourne Berlin Madrid Dublin Boston Seattle Amsterdam Vienna "
    "Houston Glasgow Lisbon Denver Stockholm"
).split()
_STREETS = "Maple Harbour Willow Station Church Orchard Meadow Bridge Chestnut Granville".split()


@dataclass(frozen=True)
class Sentence:
    """A value of an entity type in a text, in one of the forms and languages."""

    entity: str
    language: str
    form: str
    value: str
    text: str

    @property
    def group(self) -> str:
        """The group that is measured together: the entity, with its language unless English."""
        return _group_name(self.entity, self.language)


def _group_name(entity: str, language: str) -> str:
    return entity if language == ENGLISH else f"{entity}.{language}"


@cache
def _sentences() -> dict[str, dict[str, list[str]]]:
    import yaml

    text = resources.files("benchmarks.workloads").joinpath("pii_sentences.yaml").read_text("utf-8")
    sentences: dict[str, dict[str, list[str]]] = yaml.safe_load(text)
    return sentences


def sentence_groups(entities: Sequence[str], languages: Sequence[str]) -> list[tuple[str, str]]:
    """Return the planted entities, each with the languages in which it is written differently.

    An entity that is written alike in all languages is planted in one that has sentences for it.
    """
    known = [language for language in languages if language in _sentences()] or [ENGLISH]
    return [
        (entity, language)
        for entity in entities
        for language in (ENGLISH, *(name for name in known if name != ENGLISH))
        if entity in _sentences()[language] and (language in known or not _has(entity, known))
    ]


def group_names(entities: Sequence[str], languages: Sequence[str]) -> list[str]:
    """Return the names of all groups that are measured together."""
    return [_group_name(*group) for group in sentence_groups(entities, languages)]


def _has(entity: str, languages: Sequence[str]) -> bool:
    return any(entity in _sentences()[language] for language in languages)


def _digits(draw: random.Random, count: int) -> str:
    return "".join(draw.choice(string.digits) for _ in range(count))


def _token(draw: random.Random, alphabet: str, count: int) -> str:
    return "".join(draw.choice(alphabet) for _ in range(count))


def _group(text: str, size: int, separator: str) -> str:
    return separator.join(text[i : i + size] for i in range(0, len(text), size))


def _person(draw: random.Random, _: str) -> str:
    return f"{draw.choice(_GIVEN)} {draw.choice(_FAMILY)}"


def _email(draw: random.Random, form: str) -> str:
    user = f"{draw.choice(_GIVEN)}.{draw.choice(_FAMILY)}{draw.randint(1, 99)}".lower()
    host = draw.choice(["webpost", "inbox-mail", "firma", "uni.kiel"])
    domain = f"{host}.{draw.choice(['com', 'org', 'de', 'co.uk'])}"
    if form != "spaced":
        return f"{user}@{domain}"
    first, last = domain.rsplit(".", 1)
    tricks = (f"{user} @ {domain}", f"{user} (at) {domain}", f"{user}[at]{first}[dot]{last}")
    return draw.choice(tricks)


def _phone(draw: random.Random, form: str) -> str:
    area, exchange, line = draw.randint(201, 989), draw.randint(200, 999), _digits(draw, 4)
    if form == "spaced":
        tricks = (f"{area} . {exchange} . {line}", f"({area})  {exchange} - {line}")
        return draw.choice((*tricks, " ".join(f"{area}{exchange}{line}")))
    plain = (
        f"({area}) {exchange}-{line}",
        f"{area}-{exchange}-{line}",
        f"+1 {area} {exchange} {line}",
    )
    world = (
        f"+44 20 {_digits(draw, 4)} {_digits(draw, 4)}",
        f"+49 30 {draw.randint(10**6, 10**7)}",
    )
    return draw.choice(plain + world)


def _card(draw: random.Random, form: str) -> str:
    start = draw.choice(["4", "51", "55", "37", "6011"])
    digits = start + _digits(draw, (14 if start == "37" else 15) - len(start))
    digits += luhn.calc_check_digit(digits)
    if form == "spaced":
        return draw.choice([_group(digits, 2, " "), " ".join(digits), _group(digits, 4, " - ")])
    return draw.choice([digits, _group(digits, 4, " "), _group(digits, 4, "-")])


def _iban(draw: random.Random, form: str) -> str:
    country, account = draw.choice(
        [
            ("DE", _digits(draw, 18)),
            ("GB", "ABCD" + _digits(draw, 14)),
            ("NL", "WXYZ" + _digits(draw, 10)),
        ]
    )
    number = f"{country}{iban.calc_check_digits(f'{country}00{account}')}{account}"
    if form == "spaced":
        return draw.choice([_group(number, 4, " "), _group(number, 4, "-"), _group(number, 2, " ")])
    return number


def _ssn(draw: random.Random, form: str) -> str:
    parts = (
        f"{draw.randint(1, 665):03d}",
        f"{draw.randint(1, 99):02d}",
        f"{draw.randint(1, 9999):04d}",
    )
    return draw.choice([" ", "", " - ", "."] if form == "spaced" else ["-"]).join(parts)


def _ip(draw: random.Random, form: str) -> str:
    quad = [str(draw.randint(11, 223)) for _ in range(4)]
    if form == "spaced":
        return " . ".join(quad)
    six = (
        f"2a02:{draw.randint(4096, 65535):x}:{draw.randint(1, 65535):x}::{draw.randint(1, 65535):x}"
    )
    return draw.choice([".".join(quad), six])


def _mac(draw: random.Random, form: str) -> str:
    return _group(_token(draw, "0123456789ABCDEF", 12), 2, "-" if form == "spaced" else ":")


def _identity(draw: random.Random, form: str) -> str:
    number = f"{draw.choice(string.ascii_uppercase)}{_digits(draw, 8)}"
    return _group(number, 3, " ") if form == "spaced" else number


def _birth(draw: random.Random, form: str, language: str) -> str:
    day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(1940, 2005)
    name = phrases()[language]["month"][month - 1]
    if language != ENGLISH:
        named = f"{day} de {name} de {year}" if language == "es" else f"{day}. {name} {year}"
        if language == "fr":
            named = f"{day} {name} {year}"
        spaced = f"{day}. {month}. {year}" if language == "de" else f"{day} / {month} / {year}"
        return spaced if form == "spaced" else draw.choice([f"{day:02d}.{month:02d}.{year}", named])
    if form == "spaced":
        return f"{day}-{month}-{year}"
    return draw.choice(
        [f"{day}/{month}/{year}", f"{year}-{month:02d}-{day:02d}",
         f"{name} {day}, {year}", f"{day} {name} {year}"]
    )  # fmt: skip


def _street(draw: random.Random, form: str, language: str) -> str:
    number = draw.randint(2, 990)
    if language == "de":
        name = draw.choice("Linden Ahorn Bahnhof Kirch Garten Schul Berg Wiesen".split())
        kind = draw.choice(["straße", "strasse", "weg", "platz", "allee", "gasse"])
        return f"{name}{kind} {number}" + (" a" if form == "spaced" else "")
    if language == "fr":
        kind = draw.choice(["rue", "avenue", "boulevard", "place", "chemin", "impasse"])
        name = draw.choice(["Victor Hugo", "de la Gare", "des Lilas", "du Moulin", "Pasteur"])
        return f"{number}{' bis' if form == 'spaced' else ''} {kind} {name}"
    if language == "es":
        kind = draw.choice(["Calle", "Avenida", "Plaza", "Paseo", "Camino"])
        name = draw.choice(["Mayor", "de la Paz", "del Sol", "Miguel Hernández", "Real"])
        return f"{kind} {name}, {'nº ' if form == 'spaced' else ''}{number}"
    kind = draw.choice(["Street", "Road", "Avenue", "Lane", "Drive", "Court", "Boulevard"])
    address = f"{number} {draw.choice(_STREETS)} {kind}"
    return f"{address}, Apt {draw.randint(1, 40)}" if form == "spaced" else address


def _url(draw: random.Random, form: str) -> str:
    host = f"{draw.choice(['forum', 'photos', 'people'])}.{draw.choice(_FAMILY)}.org".lower()
    path = f"{draw.choice(_GIVEN)}{draw.randint(10, 99)}".lower()
    if form == "spaced":
        return f"www . {host.split('.')[1]} . org"
    return draw.choice([f"https://{host}/{path}", f"http://{host}/u?id={path}", f"www.{path}.org"])


def _date(draw: random.Random, form: str) -> str:
    day, month, year = draw.randint(1, 28), draw.randint(1, 12), draw.randint(1990, 2026)
    name = phrases()[ENGLISH]["month"][month - 1]
    if form == "spaced":
        return draw.choice([f"{day} / {month} / {year}", f"{year} - {month:02d} - {day:02d}"])
    return draw.choice(
        [f"{month}/{day}/{year}", f"{year}-{month:02d}-{day:02d}", f"{name} {day}",
         f"{day}.{month}.{year}", f"{name} {day}, {year}", f"the {day}th of {name}"]
    )  # fmt: skip


def _postal_code(draw: random.Random, form: str) -> str:
    code = str(draw.randint(10_001, 99_950))
    return " ".join(code) if form == "spaced" else draw.choice([code, f"{code}-{_digits(draw, 4)}"])


def _api_key(draw: random.Random, _: str) -> str:
    letters = string.ascii_letters + string.digits
    kinds = (("sk-", 40), ("sk-proj-", 44), ("ghp_", 36), ("xoxb-", 24), ("AIza", 35))
    prefix, count = draw.choice(kinds)
    return prefix + _token(draw, letters, count)


def _aws_key(draw: random.Random, _: str) -> str:
    return "AK" + "IA" + _token(draw, string.ascii_uppercase + "234567", 16)


def _password(draw: random.Random, _: str) -> str:
    return _token(draw, string.ascii_letters, 6) + _digits(draw, 3) + draw.choice("!$%&")


def _private_key(draw: random.Random, _: str) -> str:
    body = _group(_token(draw, string.ascii_letters + string.digits + "+/", 192), 64, "\n")
    kind = draw.choice(["RSA ", "EC ", "OPENSSH ", ""]) + "PRIVATE " + "KEY"
    return f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----"


_MAKERS: dict[str, Callable[[random.Random, str], str]] = {
    "PERSON": _person,
    "LOCATION": lambda draw, _: draw.choice(_CITIES),
    "EMAIL_ADDRESS": _email,
    "PHONE_NUMBER": _phone,
    "CREDIT_CARD": _card,
    "IBAN_CODE": _iban,
    "US_SSN": _ssn,
    "IP_ADDRESS": _ip,
    "MAC_ADDRESS": _mac,
    "ID_NUMBER": _identity,
    "URL": _url,
    "DATE": _date,
    "POSTAL_CODE": _postal_code,
    "AGE_OVER_89": lambda draw, _: str(draw.randint(91, 109)),
    "API_KEY": _api_key,
    "AWS_ACCESS_KEY": _aws_key,
    "PASSWORD": _password,
    "PRIVATE_KEY": _private_key,
}
# These are written differently in other languages.
_LOCAL_MAKERS: dict[str, Callable[[random.Random, str, str], str]] = {
    "BIRTH_DATE": _birth,
    "STREET_ADDRESS": _street,
}
# In another case these would be other values, so only the sentence around them changes.
_EXACT = frozenset({"API_KEY", "AWS_ACCESS_KEY", "PASSWORD", "PRIVATE_KEY"})


def make_sentences(
    entities: Sequence[str],
    seed: int,
    per_form: int = PER_FORM,
    languages: Sequence[str] = (ENGLISH,),
) -> list[Sentence]:
    """Make sentences: `per_form` of each form for each entity and language; the same for a seed."""
    made = []
    for entity, language in sentence_groups(entities, languages):
        # Each has its own generator, so that adding one does not change the others.
        own = f"{seed}:{entity}" if language == ENGLISH else f"{seed}:{entity}:{language}"
        draw = random.Random(own)  # noqa: S311 - reproducible, no secret
        frames = _sentences()[language][entity]
        for form in FORMS:
            for number in range(per_form):
                local = _LOCAL_MAKERS.get(entity)
                value = local(draw, form, language) if local else _MAKERS[entity](draw, form)
                frame = frames[number % len(frames)]
                if form in ("lower", "upper"):
                    frame = getattr(frame, form)()
                    value = value if entity in _EXACT else getattr(value, form)()
                text = frame.replace("{}", value)
                made.append(Sentence(entity, language, form, value, text))
    return made


def leaks(sentence: Sentence, scrubbed: str) -> bool:
    """Return True if the value of a sentence can still be read in the scrubbed text.

    Spaces, punctuation and case make no difference; one word of a name is enough.
    """
    if sentence.entity in ("PERSON", "LOCATION"):
        words = set(re.findall(r"[^\W\d_]+", scrubbed.casefold()))
        return any(word in words for word in sentence.value.casefold().split())
    return _bare(sentence.value) in _bare(scrubbed)


def leaked_sentences(scrubber: Scrubber, sentences: Sequence[Sentence]) -> list[bool]:
    """Scrub sentences, each as a user's turn; return for each whether its value can be read."""
    results = scrubber.scrub(
        [f"sentence-{number}" for number in range(len(sentences))],
        [[{"role": "user", "content": sentence.text}] for sentence in sentences],
    )
    return [
        not result.refused and leaks(sentence, result.messages[0]["content"])
        for sentence, result in zip(sentences, results, strict=True)
    ]


def _bare(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.casefold())
