"""Put together the loose ways in which people give a value in chat.

A lead, a noun, a link, the value and what follows are drawn apart, so there are thousands of ways,
and most are none for which a pattern was written. Each is possible and few are likely: what the
scrubber misses in chat is missed in such turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tuneline.data.pii.canaries.lists import lists
from tuneline.data.pii.canaries.register import Register

# Share of values given so in a dataset of nothing but dialogues without capitals and punctuation.
_LOOSE = 0.6
# Share of answers of which some turns pass before they come.
_LATE = 0.2
# Share of phrases that name the kind of their value.
_NAMED = 0.8


@dataclass(frozen=True)
class Loose:
    """The loose ways to give a value of a kind.

    Args:
        kind: the kind.
        language: language of the words; only those of `loose.yaml` have any.
        share: share of the values that are given so.
    """

    kind: str
    language: str
    share: float

    def drawn(self, draw: Random) -> bool:
        """Draw whether a value is given so."""
        return draw.random() < self.share

    def phrase(self, draw: Random) -> str:
        """Return words with a gap for a value."""
        words = lists("loose")[self.language]
        lead, link, tail = (draw.choice(words[part]) for part in ("leads", "links", "tails"))
        noun = draw.choice(words["nouns"][self.kind])
        return f"{lead}{noun}{link}{{}}{tail}" if draw.random() < _NAMED else f"{lead}{{}}{tail}"

    def answer(self, draw: Random) -> str:
        """Return the words of an answer with a gap for a value."""
        return str(draw.choice(lists("loose")[self.language]["answers"]))

    def questions(self) -> Sequence[str]:
        """Return questions of the assistant for a value."""
        return tuple(lists("loose")[self.language]["questions"][self.kind])

    def wait(self, draw: Random) -> Sequence[str]:
        """Return the turns between a question and its answer, of both sides; mostly none."""
        if draw.random() > _LATE:
            return ()
        return tuple(draw.choice(lists("loose")[self.language]["waits"]))


def loose_ways(kind: str, language: str, register: Register) -> Loose:
    """Return the loose ways of a kind, with their share in a dataset of this register."""
    known = lists("loose").get(language, {}).get("nouns", {})
    share = _LOOSE * register.unmarked * register.multi_turn if kind in known else 0.0
    return Loose(kind, language, share)
