"""Make up people, and what is derived from their names: e-mail addresses and web addresses."""

from __future__ import annotations

from random import Random

from tuneline.data.pii.canaries.canary import MISTYPED, OBFUSCATED, PARTIAL, SPLIT, Value
from tuneline.data.pii.canaries.lists import digits, lists, words
from tuneline.data.pii.canaries.register import Register

# Shares of people whose surname is of another culture than their given name, of names in no list,
# and of names that are words as well.
_MIXED, _UNLISTED, _WORDS = 0.15, 0.2, 0.06


def _invented(draw: Random, end: str) -> str:
    middle = draw.choice(words("syllables", "middle")) if draw.random() < 0.5 else ""
    return draw.choice(words("syllables", "first")) + middle + draw.choice(words("syllables", end))


def names(draw: Random) -> tuple[str, str]:
    """Return a given name and a surname."""
    cultures = tuple(lists("names")["people"])
    culture = draw.choice(cultures)
    other = draw.choice(cultures) if draw.random() < _MIXED else culture
    given, family = (
        draw.choice(words("people", *path)) for path in ((culture, "given"), (other, "family"))
    )
    if draw.random() < _UNLISTED:
        given = _invented(draw, "given_end")
    if draw.random() < _UNLISTED:
        family = _invented(draw, "family_end")
    if draw.random() < _WORDS:
        given = draw.choice(words("people_as_words", "given"))
    if draw.random() < _WORDS:
        family = draw.choice(words("people_as_words", "family"))
    return given, family


def _mistyped(draw: Random, word: str) -> str:
    at = draw.randrange(1, max(2, len(word) - 1))
    return draw.choice([word[:at] + word[at + 1 :], word[:at] + word[at - 1] + word[at:]])


def person(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up a person's name."""
    given, family = names(draw)
    if form == PARTIAL:
        return Value((draw.choice([given, given, given, family]),))
    if form == SPLIT:
        return Value((given, family))
    if form == MISTYPED:
        given = _mistyped(draw, given)
    if form == OBFUSCATED:
        spelled = draw.choice([" ", "-"]).join(given)
        return Value((draw.choice([spelled, f"{given} that's {spelled}"]),), frozenset(["that"]))
    shape = draw.random()
    if shape < 0.1:
        return Value((f"{given[0]}. {family}",))
    if shape < 0.2:
        return Value((f"{given} {names(draw)[0]} {family}",))
    return Value((f"{family}, {given}" if shape < 0.25 else f"{given} {family}",))


def _user(draw: Random) -> str:
    given, family = (name.casefold().replace("'", "") for name in names(draw))
    number = draw.choice(["", "", digits(draw, draw.choice([1, 2, 4]))])
    word = draw.choice(words("words"))
    joined = draw.choice(["", ".", "_", "-"])
    return draw.choice(
        [
            f"{given}{joined}{family}{number}",
            f"{given}{joined}{family}{number}",
            f"{given[0]}{family}{number}",
            f"{given}{digits(draw, 3)}",
            f"{word}{joined}{given}{number}",
        ]
    )


def email(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up an e-mail address."""
    user = _user(draw)
    provider = draw.choice(words("domains", "providers"))
    own = f"{draw.choice(words('domains', 'hosts'))}.{draw.choice(words('domains', 'ends'))}"
    domain = draw.choice([provider, provider, own])
    host, _, end = domain.partition(".")
    public = frozenset(
        ["at", "dot", "underscore", "dash", *end.split(".")]
        + ([host] if domain == provider else [])
    )
    if form == PARTIAL:
        return Value((user,), public)
    if form == SPLIT:
        return Value((user, f"@{domain}"), public)
    if form == MISTYPED:
        slips = [f"{user} {domain}", f"{user}@{host}{end}", f"{user}@{host} {end}"]
        return Value((draw.choice(slips),), public | {host + end})
    if form == OBFUSCATED:
        spoken = end.replace(".", " dot ")
        said = user.replace(".", " dot ").replace("_", " underscore ").replace("-", " dash ")
        shapes = (
            f"{said} at {host} dot {spoken}",
            f"{user} at {domain}",
            f"{user} @ {host} . {end}",
            f"{user}(at){host}(dot){end}",
            f"{user} [at] {host} [dot] {end}",
            f"{user}[at]{host}.{end}",
            f"{said} at {host}" if domain == provider else f"{said} at {host} dot {spoken}",
            f"{' '.join(user)} at {host} dot {spoken}",
            f"{said} at {draw.choice(words('streets', 'first')).lower()} {host} dot {spoken}",
        )
        return Value((draw.choice(shapes),), public)
    return Value((f"{user}@{domain}",), public)


def url(draw: Random, form: str, register: Register, language: str) -> Value:
    """Make up a web address that names a person."""
    given, family = (name.casefold().replace("'", "") for name in names(draw))
    host = f"{draw.choice(words('domains', 'hosts'))}.{draw.choice(['com', 'org', 'net', 'io'])}"
    page = draw.choice([f"{given}{family}", f"{given}-{digits(draw, 2)}", f"u/{family}"])
    public = frozenset("http https www com org net io u dot slash".split())
    if form == OBFUSCATED:
        spaced = f"www . {family} . org"
        return Value((draw.choice([spaced, f"{host.replace('.', ' dot ')} slash {page}"]),), public)
    if draw.random() < 0.25:
        return Value(
            (draw.choice([host, f"{given}{family}.{draw.choice(['com', 'net'])}"]),), public
        )
    scheme = draw.choice(["https://", "http://", "https://www.", "www.", ""])
    return Value((f"{scheme}{host}/{page}",), public)
