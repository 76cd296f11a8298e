"""What the evaluation phase leaves."""

from __future__ import annotations

from tuneline.artifacts.artifact import Artifact

HOLDOUT_ANSWERS = Artifact("holdout_performance", "answers.jsonl")
REVIEW_PAIRS = Artifact("prepare_review", "pairs.json")
# Which side is which: nobody who votes may see it.
REVIEW_KEY = Artifact("prepare_review", "quarantine/review_key.json")
