"""The curation of production logs: what counts as seen before, and what people review."""

from __future__ import annotations

from pydantic import Field

from tuneline.config.section import Section


class CurationConfig(Section):
    """The curation of a day of production logs."""

    lookback_days: int = Field(
        7, ge=0, description="Earlier curated days in which a question counts as seen before."
    )
    review_low_confidence: int = Field(50, ge=0, description="Doubtful answers for review a day.")
    review_fallback: int = Field(50, ge=0, description="Fallback answers for review a day.")
    review_novel: int = Field(50, ge=0, description="Novel prompts for review a day.")
    review_random: int = Field(50, ge=0, description="Other rows for review a day.")
    novel_share: float = Field(
        # Of held-out sample prompts none reaches it (100; greatest 0.35), of general questions 155
        # of 164.
        0.4,
        gt=0,
        le=1,
        description="Share of unknown 5-grams from which a prompt is novel.",
    )

    def quota(self, stratum: str) -> int:
        """Return the number of rows of a stratum that a day offers for review."""
        return int(getattr(self, f"review_{stratum}"))
