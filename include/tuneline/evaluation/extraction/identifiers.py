"""Find the identifiers that stand in training rows, and the text that leads up to each.

Two kinds stand in a scrubbed row. Surrogates took the place of what the scrubber found; a model
that writes them out would have written out what it missed in the same place. Everything else was in
the source as it is: a long number or an e-mail address that is no surrogate is what the scrubber
left. Names that it left can't be told from other words and are not among them.

A surrogate was drawn at random for its row, so that another draw for another row is as likely where
nothing was memorised: the rank of the true one among such candidates is then uniform, whatever the
model knows of names and numbers. What the scrubber left was not drawn by anyone. Its candidates
keep the leading half of its digits, or the host of its address, and the base model shows how much
of a preference does not come from training.
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
# A character of the private use area, at which a rendered text is cut.
_CUT = "\ue5a1"


@dataclass(frozen=True)
class Identifier:
    """An identifier where a training row says it for the first time.

    Attributes:
        kind: the entity of a surrogate; `LEFT_NUMBER` or `LEFT_EMAIL` for what was left.
        surrogate: True if the scrubber wrote it.
        role: role of the turn that holds it.
        start: place of the identifier in the turn, in characters.
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

    One that the text before it already gives, as a whole or in a word, is not among them: writing
    it would be copying. A left value that many rows share is nobody's own.

    Args:
        surrogates: entity and value of the surrogates of each source row.
        allowed: texts that are no personal data (`data.pii_allow`).

    Returns:
        The identifiers, and the number of left values that many rows share.
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
    taken: list[range] = []
    # The longest first, so that a name is not found inside an e-mail address.
    for entity, value in sorted(set(surrogates), key=lambda pair: (-len(pair[1]), pair)):
        for match in re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text):
            if _free(match, taken):
                taken.append(range(*match.span()))
                if _tells_someone(value):
                    spans.append((match.start(), entity, value, True))
    for kind, pattern in _LEFT.items():
        for match in pattern.finditer(text):
            if _free(match, taken) and (kind != LEFT_NUMBER or _is_number(match[0])):
                taken.append(range(*match.span()))
                spans.append((match.start(), kind, match[0], False))
    return sorted(spans)


def _free(match: re.Match[str], taken: Sequence[range]) -> bool:
    return all(match.end() <= span.start or match.start() >= span.stop for span in taken)


def _is_number(text: str) -> bool:
    """Return True if a number is long enough to tell someone, and no date."""
    return len(bare(text)) >= LEAST_DIGITS and not _DATE.fullmatch(text)


def _tells_someone(value: str) -> bool:
    """Return False for placeholders, which are the same for everybody."""
    return not (value.startswith("[") and value.endswith("]")) and len(bare(value)) > 2


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

    Returns:
        The text; None if the chat template does not render a conversation that ends there.
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
    """Draw values at random, with repetition; the true one may be among them.

    Args:
        identifier: the identifier whose place they could take.
    """
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
    """Draw values that differ from each other and from the true one.

    Returns:
        `count` values; None if there are not so many.
    """
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
    digits = sum(character.isdigit() for character in value)
    made, seen = "", 0
    for character in value:
        if not character.isdigit():
            made += character
            continue
        seen += 1
        made += character if seen <= digits // 2 else generator.choice("0123456789")
    return made


def _generator(key: str) -> random.Random:
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return random.Random(number)  # noqa: S311 - reproducible, no secret
