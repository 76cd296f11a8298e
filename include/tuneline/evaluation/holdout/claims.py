"""Claims that the hold-out must show: an estimate above a limit by the lower end of its interval.

An interval decides in one of three ways. Its lower end is above the limit: the claim is shown.
The estimate itself is not above the limit: the claim fails, and more rows are not expected to
show it. Otherwise the hold-out is too small for the question: the claim is inconclusive, and the
number of rows that would show it is stated (at a power of 80 %, if the models go on to differ as
they did).
"""

from __future__ import annotations

from dataclasses import dataclass

from tuneline.evidence import Breach, Measurement, Rule, measure
from tuneline.harness.intervals import Interval
from tuneline.harness.judged import rows_needed, smallest_shown


@dataclass(frozen=True)
class Claim:
    """A claim about the candidate.

    Attributes:
        name: name of the estimate in the evidence.
        about: what is claimed, for a sentence: "better than the base".
        estimate: the estimate with its interval.
        rows: number of rows that it was measured on.
        limit: the limit.
        rule: `>` or `>=`.
    """

    name: str
    about: str
    estimate: Interval
    rows: int
    limit: float
    rule: Rule = ">"

    @property
    def shown(self) -> bool:
        """True if the interval lies above the limit."""
        lower = round(self.estimate.lower, 4)
        return lower >= self.limit if self.rule == ">=" else lower > self.limit

    @property
    def rows_needed(self) -> int | None:
        """Rows that would show an undecided claim; None if it is shown, or fails."""
        if self.shown:
            return None
        return rows_needed(self.estimate, self.rows, self.limit)

    @property
    def breach(self) -> Breach:
        """The verdict if the claim is not shown."""
        return "inconclusive" if self.rows_needed is not None else "fail"

    def measurements(self, breach: Breach | None = None) -> list[Measurement]:
        """State the estimate and its interval, whose lower end decides.

        Args:
            breach: the verdict if the claim is not shown; None decides by the estimate.
        """
        found = self.estimate
        stated = [
            measure(self.name, round(found.value, 4), "share", noise=round(found.error, 4)),
            measure(
                f"{self.name}_lower",
                round(found.lower, 4),
                "share",
                self.rule,
                self.limit,
                on_breach=breach or self.breach,
            ),
            measure(f"{self.name}_upper", round(found.upper, 4), "share"),
        ]
        if self.rows_needed is not None:
            stated.append(measure(f"rows_needed_for_{self.name}", self.rows_needed, "rows"))
        return stated


def size_measurements(claims: list[Claim], gain: Claim) -> list[Measurement]:
    """Say what the hold-out can show, and how many more rows the undecided claims need.

    Args:
        claims: the claims that decide.
        gain: the one over the base as it is asked.
    """
    seen = smallest_shown(gain.estimate, gain.limit)
    stated = [measure("smallest_gain_shown_at_80_percent", round(seen, 4), "share")]
    more = more_rows(claims)
    if more is not None:
        stated.append(measure("more_rows_needed", more, "rows"))
    return stated


def more_rows(claims: list[Claim]) -> int | None:
    """Return how many more rows the undecided claims need; None if all are decided."""
    missing = [c.rows_needed - c.rows for c in claims if c.rows_needed is not None]
    return max(missing, default=None)


def undecided_sentence(claims: list[Claim]) -> str:
    """Return a part of a sentence that names the claims which need more rows; empty if none do."""
    open_claims = [claim.about for claim in claims if claim.rows_needed is not None]
    if not open_claims:
        return ""
    return (
        f"; these rows do not show that it is {' and '.join(open_claims)}: "
        f"about {more_rows(claims)} more rows are needed to show it with a probability of 80 %"
    )
