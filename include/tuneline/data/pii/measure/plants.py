"""Make up values of each kind of personal data, in the forms in which people give them.

Nothing here reads the detector's patterns or lists. Given names and surnames are faker's of many
countries, each as likely as the next, so that rare ones count; a part is put together from
syllables, since no list holds them all. Towns, roads and phrases are in `phrases.yaml`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module, resources
from random import Random
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
_ALNUM = string.ascii_letters + string.digits
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
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
    # Of numbers that are (nearly) a turn of their own, and that answer a question for data.
    bare: float = 0.15
    asked: float = 0.4
    # Of turns with a number that hold another one, too.
    several: float = 0.1
    # Of numbers that are given digit by digit or in words, and of which only the end is given.
    spelled: float = 0.04
    partial: float = 0.15
    # Of rows in which a number is given over successive turns, and with several user turns.
    across: float = 0.0
    multi_turn: float = 0.0
    # Of e-mail addresses that are spaced or spelled, and that lack a sign.
    garbled: float = 0.14
    broken: float = 0.06


@dataclass(frozen=True)
class Value:
    """A made-up value, and its words that identify nobody (`street`, `gmail`), casefolded."""

    # Several if it is to be split over turns.
    parts: tuple[str, ...]
    public: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        """The whole value."""
        return " ".join(self.parts)


@dataclass(frozen=True)
class Ask:
    """What a maker makes: a value in a form, in the register of a dataset, in a language."""

    draw: Random
    form: str
    register: Register
    language: str

    def pick(self, *choices: str) -> str:
        """Draw one of some texts."""
        return self.draw.choice(choices)

    def words(self, *path: str) -> Any:
        """Return an entry of the phrases: the language's own, or what is written alike in all."""
        entry = phrases().get(self.language, {})
        for name in path:
            entry = entry.get(name, {})
        if entry or self.language == ENGLISH:
            return entry
        return Ask(self.draw, self.form, self.register, ENGLISH).words(*path)


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


# Numbers

SPOKEN = "zero one two three four five six seven eight nine".split()
# Share of numbers in groups of other sizes than usual, in text without punctuation.
_ODD = 0.1


def _cut(text: str, sizes: Sequence[int]) -> list[str]:
    """Cut a text into groups of these sizes; the last one takes the rest."""
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True) if text[a:b]]


def _mistyped(draw: Random, number: str) -> str:
    """Return a number with a digit too many, too few, wrong, or with two swapped."""
    at, other = draw.randrange(1, len(number) - 1), draw.choice(string.digits)
    head, digit, tail = number[:at], number[at], number[at + 1 :]
    wrong, swapped = head + other + tail, head[:-1] + digit + head[-1] + tail
    return draw.choice([head + tail, head + other + digit + tail, wrong, wrong, swapped])


def _spelled(ask: Ask, number: str) -> str:
    """Return the characters of a number one by one, some as words."""
    if ask.draw.random() < 0.4:
        return " ".join(number)
    words = [ask.pick("zero", "oh"), *SPOKEN[1:]]
    return " ".join(words[int(char)] if char.isdigit() else char for char in number)


def _number(ask: Ask, groups: Sequence[str]) -> Value:
    """Return a number as a person gives it, with groups of the usual sizes."""
    number = "".join(groups)
    if ask.form == PARTIAL:
        return Value((ask.pick(*[number[-4:]] * 4, number[-3:], number[:4]),))
    if ask.form == OBFUSCATED:
        return Value((_spelled(ask, number),))
    if ask.form == MISTYPED:
        groups = _cut(_mistyped(ask.draw, number), [len(group) for group in groups])
    if ask.form == SPLIT:
        return Value(tuple(groups))
    if number.isdigit() and ask.draw.random() < _ODD * ask.register.unmarked:
        sign = ask.pick(" ", " ", "-", ".")
        odd = (char + (sign if ask.draw.random() < 0.4 else "") for char in "".join(groups))
        return Value(("".join(odd).rstrip(sign),))
    return Value((ask.pick("", "", "", " ", "-").join(groups),))


def _grouped(kind: str, ask: Ask) -> Value:
    return _number(ask, _made(kind, ask).text.split())


def _card(ask: Ask) -> Value:
    from stdnum import luhn

    groups = _made("CREDIT_CARD", ask).text.split()
    return _number(ask, [*groups[:-1], groups[-1] + luhn.calc_check_digit("".join(groups))])


def _iban(ask: Ask) -> Value:
    from stdnum import iban

    country, account = _made("IBAN_CODE", ask).text.split()
    number = country + iban.calc_check_digits(f"{country}00{account}") + account
    return _number(ask, _cut(number, (4,) * -(-len(number) // 4)))


# People and places, by the templates of `phrases.yaml`

# Names are of these countries, in Latin letters, and more often of those of the language.
_HOME = {"en": "en_US en_GB", "de": "de_DE de_AT", "fr": "fr_FR fr_QC", "es": "es_ES es_MX"}
_COUNTRIES = (
    "en_US en_GB en_IN en_PK en_KE en_NZ yo_NG zu_ZA id_ID de_DE fr_FR es_ES es_MX it_IT pt_BR "
    "nl_NL pl_PL sv_SE fi_FI hu_HU ro_RO tr_TR ga_IE ja_JP zh_TW en_TH"
).split()
# Shares of people with a name of the language's countries, of surnames of another country than the
# given name, of names in no list, and of names that are words as well.
_AT_HOME, _MIXED, _UNLISTED, _WORDS = 0.4, 0.15, 0.15, 0.05
_PLAIN = re.compile(r"[\w'’ -]{2,}")


@cache
def _names_of(country: str) -> tuple[list[str], list[str]]:
    """Return the given names and surnames of a country."""
    lists = vars(import_module(f"faker.providers.person.{country}").Provider)

    def plain(*keys: str) -> list[str]:
        names = next(lists[key] for key in keys if key in lists)
        return [name for name in dict.fromkeys(names) if _PLAIN.fullmatch(name)]

    given = plain("first_romanized_names", "first_names")
    return given, plain("last_romanized_names", "unisex_last_names", "last_names")


@cache
def _cities() -> list[str]:
    """Return towns of the countries that have a list of them."""
    countries = ("en_IN", "de_DE", "nl_NL", "pl_PL", "pt_PT")
    lists = (import_module(f"faker.providers.address.{c}").Provider.cities for c in countries)
    return [city for cities in lists for city in cities[:150]]


def names(ask: Ask) -> tuple[str, str]:
    """Return a given name and a surname."""
    draw = ask.draw
    home = _HOME.get(ask.language, _HOME[ENGLISH]).split()
    country = draw.choice(home if draw.random() < _AT_HOME else _COUNTRIES)
    other = draw.choice(_COUNTRIES) if draw.random() < _MIXED else country
    found = []
    for place, of in enumerate((country, other)):
        chance = draw.random()
        if chance < _UNLISTED + _WORDS:
            kind = "UNLISTED" if chance < _UNLISTED else "WORDS"
            found.append(_made(f"{('GIVEN', 'FAMILY')[place]}_{kind}", ask).text)
        else:
            found.append(draw.choice(_names_of(of)[place]))
    return found[0], found[1]


def _person(ask: Ask) -> Value:
    given, family = names(ask)
    if ask.form == PARTIAL:
        return Value((ask.pick(given, given, given, family),))
    if ask.form == SPLIT:
        return Value((given, family))
    if ask.form == MISTYPED:
        at = ask.draw.randrange(1, len(given))
        given = given[:at] + ask.pick("", given[at - 1] * 2) + given[at + 1 :]
    if ask.form == OBFUSCATED:
        spelled = ask.pick(" ", "-").join(given)
        return Value((ask.pick(spelled, f"{given} that's {spelled}"),), frozenset(["that", "s"]))
    rare = (f"{given[0]}. {family}", f"{given} {names(ask)[0]} {family}", f"{family}, {given}")
    return Value((ask.pick(*[f"{given} {family}"] * 15, *rare),))


class _Gaps(dict[str, Any]):
    """The words for the gaps of a template, each drawn when it is needed.

    A number at the end tells gaps of one list apart; a capital gives the word one.
    """

    def __init__(self, ask: Ask, **known: Any) -> None:
        super().__init__(known)
        self.ask = ask

    def __missing__(self, gap: str) -> Any:
        name, ask = gap.rstrip(string.digits), self.ask
        if name in ("Given", "Family"):
            made = names(ask)[name == "Family"]
        elif name in ("given", "family"):
            made = re.sub(r"[\W_]", "", names(ask)[name == "family"]).casefold()
        elif name in _DRAWN:
            made = _DRAWN[name](ask.draw)
        elif name == "city":
            made = ask.pick(*_cities())
        elif name in ("month", "mon"):
            month = self.ask.words("months").split()[self["m"] - 1]
            made = month if name == "month" else month[:3]
        elif name == "th":
            made = {1: "st", 2: "nd", 3: "rd"}.get(self["d"] % 20, "th")
        else:
            made = ask.pick(*ask.words(name.lower()))
            made = made[0].upper() + made[1:] if name[0].isupper() else made
        self[gap] = made
        return made


_DRAWN: dict[str, Callable[[Random], Any]] = {
    "d": lambda draw: draw.randint(1, 28),
    "m": lambda draw: draw.randint(1, 12),
    "number": lambda draw: draw.randint(1, draw.choice([180, 9999])),
    "octet": lambda draw: draw.randint(11, 223),
    "hex": lambda draw: f"{draw.randint(4096, 65535):x}",
    "age": lambda draw: draw.randint(90, 108),
}
_SIGNS = {"#": string.digits, "?": _LETTERS, "*": _ALNUM, "%": "0123456789ABCDEF"}


def _made(kind: str, ask: Ask, **known: Any) -> Value:
    """Make up a value by one of the templates of a kind, for its form if there are some.

    `#` is a digit, `?` a letter, `*` either, `%` half of a byte.
    """
    templates = ask.words("values", kind)
    template = ask.pick(*templates.get(ask.form, templates["whole"]))
    signs = re.sub("[#?*%]", lambda match: ask.draw.choice(_SIGNS[match[0]]), template)
    public = ask.words("public").get(kind, "").split()
    return Value((signs.format_map(_Gaps(ask, **known)),), frozenset(public))


def _email(ask: Ask) -> Value:
    user = _made("USER", ask).text
    host = ask.pick("provider", "provider", "host")
    site = ask.pick(*ask.words(host))
    end = "com" if host == "provider" else ask.pick(*ask.words("tld"))
    public = frozenset(["at", "dot", "underscore", "dash", *end.split("."), site + end])
    public |= {site} if host == "provider" else frozenset()
    if ask.form == SPLIT:
        return Value((user, f"@{site}.{end}"), public)
    said = user.replace(".", " dot ").replace("_", " underscore ").replace("-", " dash ")
    known = {"said": said, "spaced": " ".join(user), "dots": end.replace(".", " dot ")}
    return Value(_made("EMAIL_ADDRESS", ask, user=user, site=site, end=end, **known).parts, public)


def _address(ask: Ask) -> Value:
    """Make up a street address, alone or with unit, town, region and postal code."""
    road = _made("ROAD", ask).text
    if ask.form == MISTYPED:
        road = road.replace(" ", "", 1)
    value = _made("STREET_ADDRESS", ask, road=road)
    return Value(tuple(value.text.split(" | ")), value.public)


def _date(years: range, ask: Ask) -> Value:
    """Make up a date; its year identifies nobody."""
    year = ask.draw.choice(years)
    value = _made("DATE", ask, y=year, yy=f"{year % 100:02d}")
    return Value(tuple(value.text.split(" | ")), value.public | {str(year)})


def _pin(ask: Ask) -> Value:
    """Make up a PIN or a one-time code; people choose a year, or one digit four times."""
    code = _made("PIN", ask).text
    if ask.form == OBFUSCATED:
        halves = f"{code[: len(code) // 2]} {code[len(code) // 2 :]}"
        return Value((ask.pick(halves, "-".join(code), *[_spelled(ask, code)] * 3),))
    chosen = (str(ask.draw.randint(1935, 2019)), code[-1] * 4)
    return Value((ask.pick(*[code] * 8, *chosen),))


def _private_key(ask: Ask) -> Value:
    """Make up a private key in PEM form; its lines of base64 are what identifies."""
    kind = ask.pick("RSA ", "EC ", "OPENSSH ", "") + "PRIVATE " + "KEY"
    lines = ["".join(ask.draw.choices(_ALNUM, k=64)) for _ in range(4)]
    text = "\n".join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----"])
    return Value((text,), frozenset("begin end rsa ec openssh private key".split()))


# Kinds

# Shares of the forms before the register of the dataset is taken into account.
_USUAL = {DISCLOSED: 0.6, MISTYPED: 0.06, SPLIT: 0.02}
# A dataset in which numbers stand alone gives half of its values so.
_BARE_LEAST, _BARE_PART = 0.1, 0.5
# Share of mailboxes whose host was said before, or is the one of another ("same domain").
_MAILBOX = 0.2
_ALL = (MISTYPED, PARTIAL, OBFUSCATED, SPLIT)


@dataclass(frozen=True)
class Kind:
    """A kind of value: its maker, and its forms besides disclosed and bare."""

    make: Callable[[Ask], Value]
    forms: tuple[str, ...] = ()
    # The entity type that it is part of.
    entity: str = ""
    # True if another case makes it another value, and if it may replace a number of the dataset.
    cased: bool = False
    number: bool = False
    # Shares of forms that differ from the usual ones.
    weights: Mapping[str, float] | None = None

    def shares(self, register: Register) -> dict[str, float]:
        """Return the share of each form, given the register of a dataset."""
        wanted = {
            **_USUAL,
            BARE: _BARE_LEAST + _BARE_PART * register.bare,
            PARTIAL: register.partial,
            OBFUSCATED: register.spelled,
            SPLIT: _USUAL[SPLIT] + register.across,
            **(self.weights or {}),
        }
        if self.make is _email:
            # Spelled and broken ones as the dataset shows them, as odds against those in order.
            odd = min(register.garbled + register.broken, 0.9)
            part = (_USUAL[DISCLOSED] + wanted[BARE]) / (1 - odd)
            wanted[OBFUSCATED], wanted[MISTYPED] = part * register.garbled, part * register.broken
            wanted[PARTIAL] = _MAILBOX * register.multi_turn
        if register.multi_turn < DIALOGUE:
            wanted[SPLIT] = 0.0
        forms = (DISCLOSED, BARE, *self.forms)
        total = sum(wanted[form] for form in forms)
        return {form: wanted[form] / total for form in forms}

    def draw(self, draw: Random, register: Register, language: str) -> tuple[str, Value]:
        """Draw a form and a value, with a probability in proportion to its tokens.

        What leaks is counted in words and numbers, as on labelled text, so a value of many of them
        weighs more.
        """
        shares = self.shares(register)
        # Keys and the like are of one size.
        count = CANDIDATES if self.forms else 1
        forms = draw.choices(list(shares), weights=list(shares.values()), k=count)
        values = [self.make(Ask(draw, form, register, language)) for form in forms]
        sizes = [len(identifying(v.text, 0, len(v.text), v.public)) for v in values]
        return draw.choices(list(zip(forms, values, strict=True)), weights=sizes)[0]


KINDS: dict[str, Kind] = {
    # A first name alone is the most frequent mention of a person.
    "PERSON": Kind(_person, _ALL, weights={PARTIAL: 0.45, MISTYPED: 0.03, OBFUSCATED: 0.03}),
    "LOCATION": Kind(partial(_made, "LOCATION")),
    "EMAIL_ADDRESS": Kind(_email, _ALL),
    "PHONE_NUMBER": Kind(partial(_grouped, "PHONE_NUMBER"), _ALL, number=True),
    "CREDIT_CARD": Kind(_card, _ALL, number=True),
    "IBAN_CODE": Kind(_iban, (MISTYPED, PARTIAL, OBFUSCATED)),
    # Whoever asks for one mostly asks for its last four digits.
    "US_SSN": Kind(partial(_grouped, "US_SSN"), _ALL, number=True, weights={PARTIAL: 0.6}),
    "IP_ADDRESS": Kind(partial(_made, "IP_ADDRESS"), (PARTIAL, OBFUSCATED)),
    "MAC_ADDRESS": Kind(partial(_made, "MAC_ADDRESS"), (OBFUSCATED,)),
    "ID_NUMBER": Kind(partial(_grouped, "ID_NUMBER"), _ALL, number=True),
    "BIRTH_DATE": Kind(partial(_date, range(1935, 2010)), (PARTIAL, OBFUSCATED, SPLIT)),
    "STREET_ADDRESS": Kind(_address, _ALL, weights={PARTIAL: 0.3}),
    "URL": Kind(partial(_made, "URL"), (OBFUSCATED,)),
    "DATE": Kind(partial(_date, range(2001, 2028)), (PARTIAL, OBFUSCATED), weights={PARTIAL: 0.6}),
    "POSTAL_CODE": Kind(partial(_made, "POSTAL_CODE"), (OBFUSCATED,)),
    "AGE_OVER_89": Kind(partial(_made, "AGE_OVER_89"), (OBFUSCATED,)),
    "API_KEY": Kind(partial(_made, "API_KEY"), cased=True),
    "AWS_ACCESS_KEY": Kind(partial(_made, "AWS_ACCESS_KEY"), cased=True),
    "PASSWORD": Kind(partial(_made, "PASSWORD"), cased=True),
    "PIN": Kind(_pin, (OBFUSCATED,), entity="PASSWORD"),
    "PRIVATE_KEY": Kind(_private_key, cased=True),
}
# Kinds that need words around them, without which nobody could say what they are.
NEEDS_WORDS = frozenset({"PIN", "PASSWORD", "POSTAL_CODE", "AGE_OVER_89", "DATE", "LOCATION"})


def entity_of(kind: str) -> str:
    """Return the entity type of a kind."""
    return KINDS[kind].entity or kind


def group_name(kind: str, language: str) -> str:
    """Return the name of a group: the kind, with its language unless English."""
    return kind if language == ENGLISH else f"{kind}.{language}"


def planted_groups(entities: Iterable[str], languages: Sequence[str]) -> list[tuple[str, str]]:
    """Return the kinds of entity types, each with the languages that have words for it.

    A kind that is written alike in all languages is planted in the first one declared.
    """
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
