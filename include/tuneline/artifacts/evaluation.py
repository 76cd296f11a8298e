"""Files that the evaluation phase leaves for other steps, and what reviewers answer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneline.artifacts.artifact import Artifact, Document, Lines, RunDocument

Side = Literal["base", "tuned"]
_REVIEW_SCHEMA = "tuneline/review/1"


class AnswerPair(BaseModel):
    """The answers of both models to one hold-out row, and the one that is expected."""

    row_id: str
    expected: str = ""
    base: str
    tuned: str

    @property
    def differ(self) -> bool:
        """True if the two answers differ in more than the space around them."""
        return self.base.strip() != self.tuned.strip()


class ReviewPair(BaseModel):
    """One question and two answers, as reviewers see them; numbered from 1."""

    pair: int
    prompt: str
    A: str
    B: str


class ReviewSheet(BaseModel):
    """The document that reviewers see; its `review_id` is also in the key."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field(_REVIEW_SCHEMA, alias="schema")
    review_id: str = ""
    instructions: str
    choices: list[str] = ["A", "B", "tie"]
    pairs: list[ReviewPair]


class KeyEntry(BaseModel):
    """The models on the two sides of one pair, and its hold-out row."""

    pair: int
    row_id: str
    A: Side
    B: Side


class ReviewKey(BaseModel):
    """The models behind all pairs; reviewers must not see it."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field(_REVIEW_SCHEMA, alias="schema")
    review_id: str = ""
    pairs: list[KeyEntry]


class Vote(BaseModel):
    """The choice of one reviewer on one pair: `A`, `B` or `tie`."""

    model_config = ConfigDict(frozen=True)

    pair: int
    choice: str
    reviewer: str


class ReviewVotes(BaseModel):
    """The votes of a review, in the order in which they were cast."""

    votes: list[Vote]


HOLDOUT_ANSWERS = Lines("holdout_performance", "answers.jsonl", AnswerPair)
# The same rows with prompts and scores, for whoever computes the evidence's numbers again.
HOLDOUT_SCORES = Artifact("holdout_performance", "answers.parquet")
REVIEW_PAIRS = Document("prepare_review", "pairs.json", ReviewSheet)
REVIEW_KEY = Document("prepare_review", "quarantine/review_key.json", ReviewKey)
# Written by people, not by a step: it lies in the phase's folder.
REVIEW_VOTES = RunDocument("evaluation/review_votes.json", ReviewVotes)
