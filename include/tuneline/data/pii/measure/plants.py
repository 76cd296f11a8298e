"""Make up values of each kind of personal data, in the forms in which people give them.

Nothing here reads the detector's patterns or lists. Names are faker's of many countries, each as
likely as the next, so that rare ones count; all else is made by the templates of `phrases.yaml`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, resources
from random import Random
from textwrap import wrap
from typing import Any

ENGLISH = "en"
# How a value is given. Mistyped: a digit or a sign too many, too few or wrong, so that checksums
# fail. Partial: some of its digits, or one of its parts. Obfuscated: spelled, spaced or in words.
# Split: over several turns.
FORMS = ("disclosed", "bare", "mistyped", "partial", "obfuscated", "split")
DISCLOSED, BARE, MISTYPED, PARTIAL, OBFUSCATED, SPLIT = FORMS
# A value is drawn among this many, see `Kind.draw`.
CANDIDATES = 12
# Splitting a value over turns takes a dialogue in at least this share of the rows.
DIALOGUE = 0.05
_TOKEN = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Register:
    """The register of a dataset's user turns: shares, near the usual ones where little was seen."""

    # Of turns without a capital, and without punctuation.
    lower: float = 0.0
    unmarked: float = 0.0
    # True if no turn holds a sign at a word, and if no letter stands next to a digit.
    stripped: bool = False
    spaced: bool = False
    # Of numbers that are (nearly) a turn of their own, and of which only the end is given.
    bare: float = 0.15
    partial: float = 0.15
    # Of rows in which a number is given over successive turns, and with several user turns.
    across: float = 0.0
    multi_turn: float = 0.0
    # Of e-mail addresses that are spaced, spelled or lack a sign.
    garbled: float = 0.2
    # Number of turns with a code of letters and digits.
    codes: int = 0


@dataclass(frozen=True)
class Value:
    """A made-up value in parts for turns, and its words (casefolded) that identify nobody."""

    parts: tuple[str, ...]
    public: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        """The whole value."""
        return " ".join(self.parts)


def tokens_of(text: str) -> list[str]:
    """Return the words and runs of digits of a text, casefolded."""
    return [match.casefold() for match in _TOKEN.findall(text)]


def identifying(text: str, start: int, end: int, public: frozenset[str]) -> list[int]:
    """Return the numbers of the tokens in a span of a text that are not public."""
    return [
        number
        for number, match in enumerate(_TOKEN.finditer(text))
        if match.start() < end and match.end() > start and match[0].casefold() not in public
    ]


@cache
def phrases() -> dict[str, dict[str, Any]]:
    """Return the phrases of each language."""
    import yaml

    text = resources.files("tuneline.data.pii.measure").joinpath("phrases.yaml").read_text("utf-8")
    content: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return content


def _words(language: str, *path: str) -> Any:
    """Return an entry of the phrases: the language's own, or what is written alike in all."""
    entry = phrases()[language]
    for name in path:
        entry = entry.get(name, {})
    return entry if entry or language == ENGLISH else _words(ENGLISH, *path)


# Shares of people with a name of the language's countries, and of names in no list.
_AT_HOME, _RARE = 0.4, 0.2
_PLAIN = re.compile(r"[\w'’ -]{2,}")


@cache
def _listed(provider: str, *keys: str) -> list[str]:
    """Return the plain entries of the first of some lists that one of faker's providers has."""
    lists = vars(import_module(f"faker.providers.{provider}").Provider)
    entries = next(lists[key] for key in keys if key in lists)
    return [entry for entry in dict.fromkeys(entries) if _PLAIN.fullmatch(entry)]


def _name(draw: Random, language: str) -> tuple[str, str]:
    """Return a given name and a surname of one country."""
    at_home = draw.random() < _AT_HOME
    country = f"person.{draw.choice(_words(language, 'home' if at_home else 'world'))}"
    given = _listed(country, "first_romanized_names", "first_names")
    family = _listed(country, "last_romanized_names", "unisex_last_names", "last_names")
    rare = [draw.random() < _RARE for _ in range(2)]
    return (
        _made("GIVEN_RARE", DISCLOSED, draw, language).text if rare[0] else draw.choice(given),
        _made("FAMILY_RARE", DISCLOSED, draw, language).text if rare[1] else draw.choice(family),
    )


_RANGES = {
    "d": range(1, 29),
    "m": range(1, 13),
    "y": range(1940, 2020),
    "octet": range(11, 224),
    "age": range(90, 109),
}
_SIGNS = {
    "#": string.digits,
    "?": "ABCDEFGHJKLMNPQRSTUVWXYZ",
    "*": string.ascii_letters + string.digits,
    "%": "0123456789ABCDEF",
}


class _Gaps(dict[str, Any]):
    """The words for the gaps of a template; a number tells gaps of one list apart."""

    def __init__(self, draw: Random, form: str, language: str) -> None:
        super().__init__()
        self.draw, self.form, self.language = draw, form, language

    def __missing__(self, gap: str) -> Any:
        name, draw = gap.rstrip(string.digits), self.draw
        number = gap[len(name) :]
        if name in ("Given", "Family"):
            given, family = _name(draw, self.language)
            self.update({f"Given{number}": given, f"Family{number}": family})
        elif name in ("given", "family"):
            self[gap] = re.sub(r"[\W_]", "", self[gap.capitalize()]).casefold()
        elif name == "spelled":
            self[gap] = draw.choice([" ", "-"]).join(self["Given"])
        elif name == "city":
            country = draw.choice(_words(ENGLISH, "listed_cities"))
            self[gap] = draw.choice(_listed(f"address.{country}", "cities"))
        elif name in _RANGES:
            self[gap] = draw.choice(_RANGES[name])
        elif _words(self.language, "values", name.upper()):
            self[gap] = _made(name.upper(), self.form, draw, self.language).text
        else:
            word = draw.choice(_words(self.language, name.lower()))
            self[gap] = word[0].upper() + word[1:] if name[0].isupper() else word
        return self[gap]


def _made(kind: str, form: str, draw: Random, language: str) -> Value:
    """Make up a value by one of the templates of a kind, for its form if there are some."""
    templates = _words(language, "values", kind)
    template = draw.choice(templates.get(form, templates["whole"]))
    signs = re.sub("[#?*%]", lambda match: draw.choice(_SIGNS[match[0]]), template)
    gaps = _Gaps(draw, form, language)
    parts = tuple(signs.format_map(gaps).split(" | "))
    # The year of a date identifies nobody.
    if kind in KINDS and KINDS[kind].number:
        parts = _number(kind, form, parts[0].split(), draw)
    public = _words(language, "public", kind) or ""
    return Value(parts, frozenset([*public.split(), str(gaps.get("y"))]))


def _number(kind: str, form: str, groups: list[str], draw: Random) -> tuple[str, ...]:
    """Return the parts of a number as a person gives it, from groups of the usual sizes."""
    from stdnum import iban, luhn

    if kind == "CREDIT_CARD":
        groups[-1] += luhn.calc_check_digit("".join(groups))
    elif kind == "IBAN_CODE":
        country, account = groups
        groups = wrap(country + iban.calc_check_digits(f"{country}00{account}") + account, 4)
    number = "".join(groups)
    if form == PARTIAL:
        return (draw.choice([*[number[-4:]] * 4, number[-3:], number[:4]]),)
    if form == OBFUSCATED:
        words = [draw.choice(["zero", "oh"]), *phrases()[ENGLISH]["digit"][1:]]
        spoken = words if draw.random() < 0.6 else string.digits
        return (" ".join(spoken[int(sign)] if sign.isdigit() else sign for sign in number),)
    if form == MISTYPED and draw.random() < 0.5:
        # Groups of other sizes than usual.
        sign = draw.choice([" ", " ", "-", "."])
        return ("".join(f"{digit}{draw.choice(['', sign])}" for digit in number).rstrip(sign),)
    if form == MISTYPED:
        # A digit too few, too many, or wrong.
        group = draw.randrange(len(groups))
        at, other = draw.randrange(len(groups[group])), draw.choice(string.digits)
        digits = draw.choice(["", groups[group][at] + other, other, other])
        groups[group] = groups[group][:at] + digits + groups[group][at + 1 :]
    return tuple(groups) if form == SPLIT else (draw.choice(["", "", "", " ", "-"]).join(groups),)


# Shares of the forms before the register of the dataset is taken into account.
_USUAL = {DISCLOSED: 0.6, MISTYPED: 0.1, OBFUSCATED: 0.04, SPLIT: 0.02}
# A dataset in which numbers stand alone gives half of its values so.
_BARE_LEAST, _BARE_PART = 0.1, 0.5
# Share of mailboxes whose host was said before, or is the one of another ("same domain").
_MAILBOX = 0.2


@dataclass(frozen=True)
class Kind:
    """A kind of value, with its traits in `phrases.yaml`."""

    name: str
    # The entity type that it is part of.
    entity: str = ""
    number: bool = False
    cased: bool = False
    ornate: bool = False
    needs_words: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)

    def shares(self, register: Register) -> dict[str, float]:
        """Return the weight of each form, given the register of a dataset."""
        bare = _BARE_LEAST + _BARE_PART * register.bare
        wanted = {**_USUAL, BARE: bare, PARTIAL: register.partial, **self.weights}
        if self.name == "EMAIL_ADDRESS":
            # Half of the garbled ones are spelled, half mistyped, as odds against those in order.
            odds = (wanted[DISCLOSED] + bare) * register.garbled / (1 - register.garbled)
            wanted[OBFUSCATED] = wanted[MISTYPED] = odds / 2
            wanted[PARTIAL] = _MAILBOX * register.multi_turn
        dialogue = register.multi_turn >= DIALOGUE
        wanted[SPLIT] = _USUAL[SPLIT] + register.across if dialogue else 0.0
        templates = phrases()[ENGLISH]["values"][self.name]
        return {
            form: wanted[form]
            for form in FORMS
            if self.number or form in (DISCLOSED, BARE) or form in templates
        }

    def draw(self, draw: Random, register: Register, language: str) -> tuple[str, Value]:
        """Draw a form and a value, as likely as it has words and numbers: leaks count these."""
        shares = self.shares(register)
        forms = draw.choices(list(shares), weights=list(shares.values()), k=CANDIDATES)
        values = [_made(self.name, form, draw, language) for form in forms]
        sizes = [len(identifying(v.text, 0, len(v.text), v.public)) for v in values]
        return draw.choices(list(zip(forms, values, strict=True)), weights=sizes)[0]


KINDS: dict[str, Kind] = {
    name: Kind(name, **entry.get("traits", {}))
    for name, entry in phrases()[ENGLISH]["kinds"].items()
}


def entity_of(kind: str) -> str:
    """Return the entity type of a kind; the name itself if it is one."""
    return (kind in KINDS and KINDS[kind].entity) or kind


def group_entity(group: str) -> str:
    """Return the entity type of a group."""
    return entity_of(group.partition(".")[0])


def group_name(kind: str, language: str) -> str:
    """Return the name of a group: the kind, with its language unless English."""
    return kind if language == ENGLISH else f"{kind}.{language}"


def planted_groups(entities: Iterable[str], languages: Sequence[str]) -> list[tuple[str, str]]:
    """Return the kinds of entity types, each with the languages that have words for it, or one."""
    wanted = set(entities)
    known = [language for language in languages if language in phrases()] or [ENGLISH]
    found = []
    for kind, entry in KINDS.items():
        if kind in wanted or entry.entity in wanted:
            own = [language for language in known if kind in phrases()[language]["kinds"]]
            found += [(kind, language) for language in own or [ENGLISH]]
    return found


def group_names(entities: Iterable[str], languages: Sequence[str]) -> list[str]:
    """Return the names of all groups that are measured together."""
    return [group_name(*group) for group in planted_groups(entities, languages)]
