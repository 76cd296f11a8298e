"""Measure how far reviewers agree, beyond chance: Krippendorff's alpha for nominal values.

Source: K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011). It takes any number of
reviewers and any that did not vote on a pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Return alpha: 1 if all agree, 0 if they agree as often as by chance, below if less often.

    Args:
        units: for each unit (pair) the values that reviewers gave it. Units with fewer than two
            have nothing to compare and are left out.

    Returns:
        None if no unit has two values, or all values are the same: nothing could have differed.
    """
    paired = [Counter(unit) for unit in units if len(unit) > 1]
    totals = sum(paired, Counter[Hashable]())
    n = totals.total()
    # Pairs of values within units that differ, each weighted by the unit's size.
    observed = sum(
        sum(times * (unit.total() - times) for times in unit.values()) / (unit.total() - 1)
        for unit in paired
    )
    expected = sum(times * (n - times) for times in totals.values())
    return None if expected == 0 else 1 - (n - 1) * observed / expected
