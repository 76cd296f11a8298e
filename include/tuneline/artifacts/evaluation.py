"""Files that the evaluation phase leaves for other steps, and what reviewers answer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tuneline.artifacts.artifact import Artifact, Document, Lines, RunDocument

Side = Literal["base", "tuned", "released"]
_REVIEW_SCHEMA = "tuneline/review/1"
BOTH_BAD = "both bad"
# The choices on a pair, as votes state them.
CHOICES = ("A", "B", "tie", BOTH_BAD)


class AnswerPair(BaseModel):
    """The answers of both models to one hold-out row, and the one that is expected."""

    row_id: str
    expected: str = ""
    base: str
    tuned: str


class ReleasedAnswer(BaseModel):
    """The answer of the released model to one hold-out row, and the one that is expected."""

    row_id: str
    expected: str = ""
    released: str


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
    choices: list[str] = list(CHOICES)
    pairs: list[ReviewPair]


class KeyEntry(BaseModel):
    """The models on the two sides of one pair, its hold-out row and the label of that row."""

    pair: int
    row_id: str
    A: Side
    B: Side
    stratum: str = ""

    @property
    def other(self) -> Side:
        """The model that the tuned one is compared with."""
        return self.B if self.A == "tuned" else self.A


class ReviewKey(BaseModel):
    """The models behind all pairs; reviewers must not see it."""

    model_config = ConfigDict(populate_by_name=True)

    schema_: str = Field(_REVIEW_SCHEMA, alias="schema")
    review_id: str = ""
    pairs: list[KeyEntry]


class Mark(BaseModel):
    """A choice on one pair, one of `CHOICES`, and what the reviewer says of it."""

    model_config = ConfigDict(frozen=True)

    pair: int
    choice: str
    comment: str = ""


# Argilla and endpoints of judges are read only: earlier versions took votes from them.
Source = Literal["airflow", "terminal", "csv", "argilla", "endpoint"]


class Ballot(BaseModel):
    """The votes that one reviewer cast at once in one review."""

    review_id: str
    reviewer: str  # the user that Airflow or the machine knows, or that a file states
    source: Source
    at: str
    marks: list[Mark]
    comment: str = ""
    judge: bool = False  # a model voted, which earlier versions allowed; it does not count
    imported_by: str | None = None  # who read the file in; None for votes that were cast directly


class Vote(BaseModel):
    """The choice of one reviewer on one pair."""

    model_config = ConfigDict(frozen=True)

    pair: int
    choice: str
    reviewer: str
    source: Source = "airflow"
    at: str = ""
    comment: str = ""


class ReviewVotes(BaseModel):
    """The votes of a review that count, one for each pair and reviewer."""

    review_id: str
    votes: list[Vote]
    comments: dict[str, list[str]] = {}


class ModelAnswers(BaseModel):
    """The answers of one model: row id, text, and True if the limit of tokens cut it.

    `asked` is a hash of all that decides them.
    """

    asked: str
    rows: list[tuple[str, str, bool]]


class HoldoutPart(BaseModel):
    """The answers of one pod to its part of the hold-out, by the name of the model.

    `of`: URI of the run, SHA-256 of the hold-out, number of the shard, and how many there are.
    """

    of: tuple[str, str, int, int]
    answers: dict[str, ModelAnswers]
    seconds: float


# The task whose pods answer the hold-out, where `evaluation.shards` asks for several.
ANSWER_HOLDOUT = "answer_holdout"


def holdout_part(shard: int) -> RunDocument[HoldoutPart]:
    """Return the document that one of several pods leaves for holdout_performance."""
    return RunDocument(f"work/holdout/part-{shard}.json", HoldoutPart)


HOLDOUT_ANSWERS = Lines("holdout_performance", "answers.jsonl", AnswerPair)
# The same rows with prompts and scores, for whoever computes the evidence's numbers again.
HOLDOUT_SCORES = Artifact("holdout_performance", "answers.parquet")
# Left where a release could be compared.
RELEASED_ANSWERS = Lines("holdout_performance", "released_answers.jsonl", ReleasedAnswer)
REVIEW_PAIRS = Document("prepare_review", "pairs.json", ReviewSheet)
REVIEW_KEY = Document("prepare_review", "quarantine/review_key.json", ReviewKey)
# The votes that counted, as the item leaves them.
COUNTED_VOTES = Document("human_review", "votes.json", ReviewVotes)
