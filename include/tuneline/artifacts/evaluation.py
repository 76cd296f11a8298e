"""Files that the evaluation phase leaves for other steps, and what reviewers answer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneline.artifacts.artifact import Document, Lines, RunDocument

Side = Literal["base", "tuned"]
_REVIEW_SCHEMA = "tuneline/review/1"


class AnswerPair(BaseModel):
    """The answers of both models to one hold-out row.

    Attributes:
        row_id: the row.
        expected: its own answer.
        base: the answer of the base model.
        tuned: the answer of the candidate.
    """

    row_id: str
    expected: str = ""
    base: str
    tuned: str

    @property
    def differ(self) -> bool:
        """True if the two answers differ in more than the space around them."""
        return self.base.strip() != self.tuned.strip()


class ReviewPair(BaseModel):
    """One question and two answers, as reviewers see them.

    Attributes:
        pair: its number, from 1.
        prompt: the question.
        A: the answer on side A.
        B: the answer on side B.
    """

    pair: int
    prompt: str
    A: str
    B: str


class ReviewSheet(BaseModel):
    """What reviewers see.

    Attributes:
        schema_: the document's format.
        review_id: the review that pairs, key and votes belong to.
        instructions: how to choose.
        choices: what may be chosen.
        pairs: the blind pairs.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field(_REVIEW_SCHEMA, alias="schema")
    review_id: str = ""
    instructions: str
    choices: list[str] = ["A", "B", "tie"]
    pairs: list[ReviewPair]


class KeyEntry(BaseModel):
    """The models behind one pair.

    Attributes:
        pair: the pair's number.
        row_id: the hold-out row.
        A: the model whose answer is on side A.
        B: the model whose answer is on side B.
    """

    pair: int
    row_id: str
    A: Side
    B: Side


class ReviewKey(BaseModel):
    """Which model is on which side of each pair; reviewers must not see it.

    Attributes:
        schema_: the document's format.
        review_id: the review that pairs, key and votes belong to.
        pairs: one entry for each pair.
    """

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field(_REVIEW_SCHEMA, alias="schema")
    review_id: str = ""
    pairs: list[KeyEntry]


class Vote(BaseModel):
    """The choice of one reviewer on one pair.

    Attributes:
        pair: the pair's number.
        choice: `A`, `B` or `tie`.
        reviewer: who chose.
    """

    model_config = ConfigDict(frozen=True)

    pair: int
    choice: str
    reviewer: str


class ReviewVotes(BaseModel):
    """The votes of a review, in the order in which they were cast."""

    votes: list[Vote]


HOLDOUT_ANSWERS = Lines("holdout_performance", "answers.jsonl", AnswerPair)
REVIEW_PAIRS = Document("prepare_review", "pairs.json", ReviewSheet)
REVIEW_KEY = Document("prepare_review", "quarantine/review_key.json", ReviewKey)
# Written by people, not by a step: it lies in the phase's folder.
REVIEW_VOTES = RunDocument("evaluation/review_votes.json", ReviewVotes)
