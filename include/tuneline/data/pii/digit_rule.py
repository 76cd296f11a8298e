"""State the strength of the digit rule, and the numbers of a dataset that are nobody's."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tuneline.data.pii.candidates import candidates_in, key_of

# A number in this many rows, and in this share of them, belongs to nobody: a hotline, a model.
LEAST_ROWS, LEAST_SHARE = 20, 0.001
_DIGIT = re.compile(r"\d")


@dataclass(frozen=True)
class DigitRule:
    """The strength of the rule for numbers that no word explains.

    Attributes:
        least: fewest digits of a number that identifies somebody.
        business: True if numbers of orders, parcels and the like count.
        references: True if those of bookings, cases and tickets count, with at least five signs.
        frequent: numbers of the dataset that belong to nobody, from `frequent_numbers`.
    """

    least: int
    business: bool
    references: bool = True
    frequent: frozenset[str] = frozenset()


def uncounted_by(rule: DigitRule | None) -> frozenset[str]:
    """Return the topics whose numbers are the business's own under a rule."""
    if rule is None:
        return frozenset({"business", "reference"})
    return frozenset(
        name
        for name, counts in (("business", rule.business), ("reference", rule.references))
        if not counts
    )


def frequent_numbers(texts: Iterable[str]) -> frozenset[str]:
    """Return the numbers and codes that occur in too many texts to identify anybody."""
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        total += 1
        if _DIGIT.search(text):
            counts.update({key_of(c.value) for c in candidates_in(text)})
    least = max(LEAST_ROWS, LEAST_SHARE * total)
    return frozenset(number for number, count in counts.items() if count >= least)
