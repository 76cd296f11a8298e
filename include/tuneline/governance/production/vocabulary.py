"""The names that curated days and labels are written with."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """The reason for which a logged request is no row of the curated day."""

    # No upstream answered, or the client's request was wrong; the detail is the status.
    ERROR_STATUS = "error_status"
    # The answer stops somewhere: the upstream died, or the client left.
    BROKEN_STREAM = "broken_stream"
    # The gateway could not scrub the text and logged none, or no user turn says anything.
    NO_TEXT = "no_text"
    EMPTY_ANSWER = "empty_answer"
    # The log has no tool calls, so that a conversation with tools is incomplete.
    TOOL_USE = "tool_use"
    # The answer reached the token limit; training on it would teach to stop mid-sentence.
    CUT_OFF = "cut_off"
    # The upstream's filter replaced the answer.
    FILTERED = "filtered"
    # Roles out of order, special tokens, broken Unicode; the detail is the check that failed.
    MALFORMED = "malformed"
    # `data.pii_actions` refuses rows with this kind of personal data.
    PII_REFUSED = "pii_refused"
    # A pattern still hits after scrubbing.
    RESIDUAL_PII = "residual_pii"
    # The chat template of the base model refuses the conversation.
    TEMPLATE_REFUSED = "template_refused"
    # More tokens than `data.max_tokens`.
    TOO_LONG = "too_long"
    # The same question stays in another row of the day.
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    # The same question, or nearly, stays in a row of an earlier day.
    SEEN_BEFORE = "seen_before"


# These requests are counted in `seen` and `weight` of the row that stays.
MERGED = frozenset({Reason.DUPLICATE, Reason.NEAR_DUPLICATE})
# In place of these requests another row stays, which is named.
REPLACED = MERGED | {Reason.SEEN_BEFORE}


class Stratum(StrEnum):
    """The group of rows that a row is drawn for review from; the first that fits."""

    FALLBACK = "fallback"
    LOW_CONFIDENCE = "low_confidence"
    NOVEL = "novel"
    RANDOM = "random"


class Decision(StrEnum):
    """A person's decision on an answer."""

    ACCEPT = "accept"
    REJECT = "reject"
    CORRECT = "correct"
