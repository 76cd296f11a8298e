"""Draw other values that could stand in an identifier's place.

A surrogate was drawn at random for its row, so that another draw for another row is as likely where
nothing was memorised: the rank of the true one among such candidates is then uniform, whatever the
model knows of names and numbers. What the scrubber left was not drawn by anyone. Its candidates
keep the leading half of its digits, or the host of its address, and the base model shows how much
of a preference does not come from training.
"""

from __future__ import annotations

import hashlib
import random

from tuneline.data.pii.replace.surrogates import Surrogates
from tuneline.evaluation.extraction.identifiers import (
    LEFT_EMAIL,
    LEFT_NUMBER,
    Identifier,
    bare,
)

# Draws for each distinct candidate that is asked for, before a kind counts as too small.
_TRIES = 8


def candidates(identifier: Identifier, count: int, seed: int) -> list[str]:
    """Draw values at random, with repetition; the true one may be among them.

    Args:
        identifier: the identifier whose place they could take.
        count: number of draws.
        seed: seed of the draws.
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
