"""Find the parts of a dataset's turns that many rows share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from tuneline.data.near_duplicates.boilerplate import Affixes, common_affixes
from tuneline.data.tables.rows import Message

# A system prompt of at least this many rows belongs to the dataset, not to a person.
SHARED_ROWS = 20


@dataclass(frozen=True)
class Shared:
    """The parts that many rows share, which belong to none of them.

    Attributes:
        systems: system prompts of many rows.
        affixes: what nearly all user turns begin and end with.
    """

    systems: frozenset[str] = frozenset()
    affixes: Affixes = field(default_factory=Affixes)


def shared_parts(batch: Iterable[Sequence[Message]]) -> Shared:
    """Return the system prompts that many rows have, and what nearly all user turns share."""
    systems: Counter[str] = Counter()
    users: set[str] = set()
    for message in chain.from_iterable(batch):
        if message["role"] == "system":
            systems[message["content"]] += 1
        elif message["role"] == "user":
            users.add(message["content"])
    many = frozenset(text for text, count in systems.items() if count >= SHARED_ROWS)
    return Shared(many, common_affixes(users))
