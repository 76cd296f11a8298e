"""Draw pairs for a review: balanced over label, length of the question and disagreement.

A row is drawn next if the values that it has in the three are the rarest among those drawn so far
(the minimisation of Pocock and Simon, 1975, in place of a cell for each combination: ten pairs
can't fill the 60 cells of ten labels). So the win rate speaks of all kinds of rows alike, and
not of the most frequent one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from tuneline.data.tables.rows import Row
from tuneline.harness.rows import asked

# Two answers that share fewer of their words are far apart.
_NEAR = 0.5
_LENGTHS = ("short", "middling", "long")


@dataclass(frozen=True)
class Stratum:
    """The kind of a pair: label of its row, length of its question, distance of its answers."""

    label: str
    length: str
    distance: str

    def __str__(self) -> str:
        return f"{self.label}, {self.length} question, answers {self.distance}"


def strata(rows: Sequence[Row], answers: Mapping[str, tuple[str, str]]) -> dict[str, Stratum]:
    """Return the stratum of each row, by row id.

    Args:
        rows: the rows.
        answers: the two answers to each, by row id.
    """
    lengths = sorted(len(asked(row)) for row in rows)
    edges = [lengths[len(lengths) * part // 3] for part in (1, 2)] if lengths else []
    return {
        row.row_id: Stratum(
            row.label or "no label",
            _LENGTHS[sum(len(asked(row)) >= edge for edge in edges)],
            "near" if similarity(*answers[row.row_id]) >= _NEAR else "far apart",
        )
        for row in rows
    }


def similarity(first: str, second: str) -> float:
    """Return the share of the words of both texts that stand in both, 1.0 for two empty ones."""
    a, b = set(first.casefold().split()), set(second.casefold().split())
    return len(a & b) / len(a | b) if a | b else 1.0


def balanced(rows: Sequence[Row], kinds: Mapping[str, Stratum], count: int, seed: int) -> list[Row]:
    """Draw rows so that labels, lengths and distances are nearly even.

    Each row drawn is the one whose label, length and distance were drawn least often so far.

    Ties are broken by a hash of the seed and the row's id, so that added rows disturb the draw
    little.

    Args:
        rows: the rows.
        kinds: the stratum of each, by row id.
        count: rows to draw; all if there are fewer.
        seed: the seed.
    """
    waiting = sorted(rows, key=lambda row: sha256(f"{seed}:{row.row_id}".encode()).hexdigest())
    drawn: list[Row] = []
    seen: Counter[tuple[str, str]] = Counter()

    def marks(row: Row) -> list[tuple[str, str]]:
        return list(vars(kinds[row.row_id]).items())

    while waiting and len(drawn) < count:
        # `min` keeps the first of equals, and so the order of the hash.
        chosen = min(waiting, key=lambda row: sum(seen[mark] for mark in marks(row)))
        waiting.remove(chosen)
        drawn.append(chosen)
        seen.update(marks(chosen))
    return drawn
