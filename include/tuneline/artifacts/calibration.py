"""The confidence threshold of a release: how it was found, and what it catches."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from tuneline.artifacts.artifact import Document, Lines, RunDocument


class _Stated(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Share(_Stated):
    """A share with its 95 % interval."""

    value: float
    lower: float
    upper: float


class Threshold(_Stated):
    """A limit of the mean log-probability per token, in nats.

    Attributes:
        tokens: the first tokens that the mean is taken over; None for the whole answer.
        value: answers below it are not trusted; None if none is set.
        caught: share of the wrong answers below it; None if nothing could be measured.
        false_alarms: share of the right answers below it, expected of the next ones.
        reason: one sentence.
    """

    tokens: int | None = None
    value: float | None = None
    caught: Share | None = None
    false_alarms: Share | None = None
    reason: str


class Calibration(_Stated):
    """`calibration.json`: the thresholds of a model on its engine.

    Attributes:
        candidate_sha256: hash of the bytes that answered.
        engine: the engine and its version.
        rows: validation rows that were asked.
        wrong: how many were answered wrongly.
        max_tokens: limit of an answer's length.
        caught_share: the share of wrong answers that was to be caught.
        false_alarm_share: the share of right answers that might be sent on.
        whole: the threshold of whole answers.
        stream: the threshold of the beginning of a stream.
    """

    schema_: str = Field("tuneline/calibration/1", alias="schema")
    candidate_sha256: str
    engine: str
    rows: int
    wrong: int
    max_tokens: int
    caught_share: float
    false_alarm_share: float
    whole: Threshold
    stream: Threshold


class Confidence(_Stated):
    """The confidence of one answer.

    Attributes:
        row_id: the row.
        right: whether the answer is right.
        tokens: number of its tokens.
        whole: mean log-probability of its tokens, in nats; None if the engine stated none.
        beginning: that of the tokens that a stream is judged by.
    """

    row_id: str
    right: bool
    tokens: int
    whole: float | None
    beginning: float | None


CALIBRATION_FILE = "calibration.json"
CALIBRATION = Document("fallback", CALIBRATION_FILE, Calibration)
CONFIDENCES = Lines("fallback", "confidences.jsonl", Confidence)
# By `tuneline calibrate`; the item takes it over if it is of the same bytes and target.
BY_HAND = RunDocument(CALIBRATION_FILE, Calibration)
