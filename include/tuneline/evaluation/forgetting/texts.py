"""Compare the perplexity of both models on general texts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuneline.evidence import Measurement, measure
from tuneline.harness.row_losses import RowLosses

# Training on one task makes prose of other kinds a little less likely; answers get worse only
# with more than that.
DEFAULT_LIMIT = 1.5


@dataclass(frozen=True)
class TextFindings:
    """The measurements on general texts, and what they say in a part of a sentence."""

    measurements: list[Measurement]
    sentence: str

    @property
    def failed(self) -> bool:
        """True if the texts alone decide that the model fails."""
        return any(measured.ok is False for measured in self.measurements)


def compare_texts(losses: tuple[RowLosses, RowLosses] | None, limit: float | None) -> TextFindings:
    """Compare the perplexity of the tuned model with that of the base, paired by text.

    The lower end of the 95 % interval of their ratio decides: only more than the limit beyond
    chance fails.

    Args:
        losses: losses of base and tuned model; None if the engine does not tell them.
        limit: allowed ratio; None takes `DEFAULT_LIMIT`.
    """
    if losses is None:
        why = "not measured: the engine does not tell the probabilities of given tokens"
        return TextFindings(
            [measure("perplexity_ratio", why, "")], f"perplexity on general texts {why}"
        )
    base, tuned = losses
    ratio = tuned.ratio_to(base)
    allowed = limit or DEFAULT_LIMIT
    # A model that holds texts impossible has an error that JSON has no number for.
    noise = round(ratio.error, 4) if math.isfinite(ratio.error) else None
    return TextFindings(
        [
            measure("texts", len(base.sums), "texts"),
            measure("base_perplexity", round(base.perplexity, 4), "perplexity"),
            measure("tuned_perplexity", round(tuned.perplexity, 4), "perplexity"),
            measure("perplexity_ratio", round(ratio.value, 4), "ratio", noise=noise),
            measure("perplexity_ratio_lower", round(ratio.lower, 4), "ratio", "<=", allowed),
            measure("perplexity_ratio_upper", round(ratio.upper, 4), "ratio"),
        ],
        f"the perplexity on {len(base.sums)} general texts is {ratio.value:.3f} times that of the "
        f"base [{ratio.lower:.3f}, {ratio.upper:.3f}] (limit {allowed:g})",
    )
