"""Find the identifiers that stand in training rows, and the text that leads up to each.

Surrogates took the place of what the scrubber found; a long number or an e-mail address that is
none is what it left. (Names that it left can't be told from other words.) A surrogate was drawn at
random for its row: where nothing was memorised, the rank of the true one among other draws is
uniform. What was left was not drawn: its candidates keep the leading half of its digits, or the
host of its address, and the base shows how much preference does not come from training.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tuneline.data.pii.replace.surrogates import Surrogates
from tuneline.data.rendering.renderer import Renderer, TemplateRefused
from tuneline.data.tables.rows import Message, Row, base_id
from tuneline.machine.linear_pattern import WORD, LinearPattern

# A value in more rows than this, and in a larger share of them, is nobody's: a hotline, a form.
SHARED_ROWS, SHARED_SHARE = 4, 0.02
# Shorter ones (a house number, a code of four digits) are guessed too often.
LEAST_DIGITS = 6
LEFT_NUMBER, LEFT_EMAIL = "LEFT_NUMBER", "LEFT_EMAIL"
_LEFT: dict[str, LinearPattern | re.Pattern[str]] = {
    LEFT_EMAIL: LinearPattern(rf"[{WORD}.+-]+@[{WORD}-]+(?:\.[{WORD}-]+)+"),
    LEFT_NUMBER: re.compile(r"(?<![\w.,])\+?\d(?:[ -]?\d)+(?![\w]|[.,]\d)"),
}
_DATE = re.compile(r"(?:\d{4}[ -]\d{1,2}[ -]\d{1,2}|\d{1,2}[ -]\d{1,2}[ -]\d{4})")
# What is the same for everybody: a placeholder, or too short to tell someone.
_PLACEHOLDER = re.compile(r"\[.*\]|[\W_]*(?:[^\W_][\W_]*){0,2}", re.DOTALL)
# A character of the private use area, at which a rendered text is cut.
_CUT = "\ue5a1"


@dataclass(frozen=True)
class Identifier:
    """An identifier where a training row says it first, `start` characters into a turn.

    `kind` is the entity of a surrogate; `LEFT_NUMBER` or `LEFT_EMAIL` for what the scrubber left.
    """

    row_id: str
    kind: str
    value: str
    surrogate: bool
    role: str
    turn: int
    start: int


def bare(text: str) -> str:
    """Return a text in lower case, without spaces and punctuation."""
    return re.sub(r"[\W_]+", "", text.casefold())


def find_identifiers(
    rows: Sequence[Row],
    surrogates: Mapping[str, Sequence[tuple[str, str]]],
    allowed: Sequence[str] = (),
) -> tuple[list[Identifier], int]:
    """Find the identifiers of training rows, each distinct one once in a row.

    One that the text before it already gives, whole or in a word, is not among them: writing it
    would be copying. A left value that many rows share is nobody's own; their number is the second
    value. `allowed` are texts that are no personal data (`data.pii_allow`).
    """
    found: list[Identifier] = []
    for row in rows:
        found += _of_row(row, surrogates.get(base_id(row.row_id), ()))
    counts = Counter(bare(each.value) for each in found if not each.surrogate)
    limit = max(SHARED_ROWS, SHARED_SHARE * len(rows))
    shared = {value for value, count in counts.items() if count > limit}
    skipped = shared | {bare(text) for text in allowed}
    kept = [each for each in found if each.surrogate or bare(each.value) not in skipped]
    return kept, len(shared)


def _of_row(row: Row, surrogates: Sequence[tuple[str, str]]) -> Iterator[Identifier]:
    """Yield the identifiers of a row in the order of the text."""
    before = ""
    for turn, message in enumerate(row.messages):
        text = message["content"]
        for start, kind, value, surrogate in _spans(text, surrogates):
            known = before + " " + text[:start]
            if not _given(value, kind, known):
                yield Identifier(row.row_id, kind, value, surrogate, message["role"], turn, start)
        before += " " + text


def _spans(text: str, surrogates: Sequence[tuple[str, str]]) -> list[tuple[int, str, str, bool]]:
    """Return start, kind, value and whether it is a surrogate of each identifier in a turn."""
    spans: list[tuple[int, str, str, bool]] = []
    taken: list[re.Match[str]] = []

    def take(match: re.Match[str], kind: str, *, surrogate: bool) -> None:
        if all(match.end() <= other.start() or match.start() >= other.end() for other in taken):
            taken.append(match)
            if not surrogate or not _PLACEHOLDER.fullmatch(match[0]):
                spans.append((match.start(), kind, match[0], surrogate))

    # The longest first, so that a name is not found inside an e-mail address.
    for entity, value in sorted(set(surrogates), key=lambda pair: (-len(pair[1]), pair)):
        for match in re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text):
            take(match, entity, surrogate=True)
    for kind, pattern in _LEFT.items():
        for match in pattern.finditer(text):
            # A number that tells someone is long, and no date.
            short = len(bare(match[0])) < LEAST_DIGITS or _DATE.fullmatch(match[0])
            if kind != LEFT_NUMBER or not short:
                take(match, kind, surrogate=False)
    return sorted(spans)


def _given(value: str, kind: str, known: str) -> bool:
    """Return True if the text before an identifier gives it, or a word of a name."""
    if kind in ("PERSON", "LOCATION"):
        words = set(re.findall(r"[^\W\d_]+", known.casefold()))
        return any(word in words for word in re.findall(r"[^\W\d_]+", value.casefold()))
    return bare(value) in bare(known)


def draw(identifiers: Sequence[Identifier], count: int, seed: int) -> list[Identifier]:
    """Draw identifiers at random, the same ones for the same seed; all if there are no more."""

    def order(each: Identifier) -> str:
        key = f"{seed}:{each.row_id}:{each.turn}:{each.start}"
        return hashlib.sha256(key.encode()).hexdigest()

    return sorted(identifiers, key=order)[:count]


def text_before(
    renderer: Renderer, messages: Sequence[Message], turn: int, start: int
) -> str | None:
    """Render a row up to a place in one of its turns, as training rendered it.

    None if the chat template does not render a conversation that ends there.
    """
    opened = {**messages[turn], "content": messages[turn]["content"][:start] + _CUT}
    try:
        text = renderer.text([*messages[:turn], opened])
    except TemplateRefused:
        return None
    before, cut, _ = text.partition(_CUT)
    return before if cut else None


# Draws for each distinct candidate that is asked for, before a kind counts as too small.
_TRIES = 8


def candidates(identifier: Identifier, count: int, seed: int) -> list[str]:
    """Draw values that could take the place of an identifier; the true one may be among them."""
    place = f"{seed}:{identifier.row_id}:{identifier.turn}:{identifier.start}"
    if identifier.kind == LEFT_NUMBER:
        generator = _generator(place)
        return [_other_number(identifier.value, generator) for _ in range(count)]
    entity = "EMAIL_ADDRESS" if identifier.kind == LEFT_EMAIL else identifier.kind
    drawn = [
        Surrogates(f"candidate:{place}:{number}", seed).of(entity, identifier.value)
        for number in range(count)
    ]
    if identifier.kind == LEFT_EMAIL:
        host = identifier.value.rpartition("@")[2]
        drawn = [f"{value.partition('@')[0]}@{host}" for value in drawn]
    return drawn


def distinct_candidates(identifier: Identifier, count: int, seed: int) -> list[str] | None:
    """Draw values that differ from each other and from the true one; None if there are too few."""
    # Another seed than that of chance, so that the two tests do not share their draws.
    drawn = candidates(identifier, count * _TRIES, seed + 1)
    by_form = {bare(value): value for value in drawn}
    by_form.pop(bare(identifier.value), None)
    found = list(by_form.values())[:count]
    return found if len(found) == count else None


def random_numbers(value: str, count: int, seed: int) -> list[str]:
    """Draw numbers of as many digits as `value`, distinct and other than it."""
    generator = _generator(f"{seed}:{value}")
    found: dict[str, None] = {}
    while len(found) < count:
        made = "".join(generator.choice("0123456789") for _ in value)
        if made != value:
            found[made] = None
    return list(found)


def _other_number(value: str, generator: random.Random) -> str:
    """Return a number with the same leading half of the digits, and the same separators."""
    places = [at for at, character in enumerate(value) if character.isdigit()]
    made = list(value)
    for at in places[len(places) // 2 :]:
        made[at] = generator.choice("0123456789")
    return "".join(made)


def _generator(key: str) -> random.Random:
    """Return the random numbers of a key."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return random.Random(number)  # noqa: S311 - reproducible, no secret
