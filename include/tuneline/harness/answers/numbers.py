"""Find the number that an answer ends in, and compare it within a tolerance."""

from __future__ import annotations

import math
import re

# GSM8K and the datasets made after it write the result behind this mark.
_MARK = "####"
_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")
_ALONE = re.compile(rf"\W{{0,3}}{_NUMBER.pattern}\W{{0,3}}")


def final_number(text: str) -> float | None:
    """Return the number behind the last `####`, else the last number of a text, or None.

    Commas between groups of three digits are read as separators; currency and percent signs are
    ignored.
    """
    _, mark, behind = text.rpartition(_MARK)
    found = _NUMBER.findall(behind) if mark else []
    found = found[:1] or _NUMBER.findall(text)[-1:]
    if not found:
        return None
    value = float(found[0].replace(",", "").replace("\u2212", "-"))
    return value if math.isfinite(value) else None


def states_number(text: str) -> bool:
    """Return True if an answer is a number alone, or names its result behind `####`."""
    _, mark, behind = text.rpartition(_MARK)
    return bool(_ALONE.fullmatch((behind if mark else text).strip()))


def same_number(answer: str, expected: str, tolerance: float) -> bool:
    """Return True if two answers end in the same number.

    Args:
        answer: the answer.
        expected: the expected answer.
        tolerance: the largest difference, relative to the expected number.
    """
    got, want = final_number(answer), final_number(expected)
    if got is None or want is None:
        return False
    return math.isclose(got, want, rel_tol=0.0, abs_tol=tolerance * abs(want))
