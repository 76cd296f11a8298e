"""Decide by a request's own fields whether it can be a row; no text is compared here.

A request that another upstream answered stays. Dropping it would leave out the prompts that the
model fails on or is unsure of, which are the ones to learn from. Its answer is not the model's own,
so it is marked, drawn for review as a stratum of its own, and used only if a person says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from tuneline.data.conversations.turn_checks import (
    TEMPLATE_MARKERS,
    check_empty,
    check_injection,
    check_roles,
    check_unicode,
)
from tuneline.data.tables.rows import Message


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


Refusal = tuple[Reason, str | None]

# How the gateway says that a request ended. An answer whose tokens were improbable came whole.
LOW_CONFIDENCE = "low_confidence"
_ANSWERED = frozenset({"ok", LOW_CONFIDENCE})
_BROKEN = frozenset({"died_midstream", "connection_lost", "client_aborted"})
_TOOL_ROLES = frozenset({"tool", "function"})
_FINISHES = {
    "tool_calls": Reason.TOOL_USE,
    "function_call": Reason.TOOL_USE,
    "length": Reason.CUT_OFF,
    "content_filter": Reason.FILTERED,
}


def conversation(row: Mapping[str, Any]) -> list[Message]:
    """Return the turns of a logged request with its answer as the last one.

    `developer` is the newer name of the role that models are trained with as `system`.
    """
    turns = [
        {
            "role": "system" if turn["role"] == "developer" else turn["role"],
            "content": turn["content"] or "",
        }
        for turn in row["messages"]
    ]
    return [*turns, {"role": "assistant", "content": row["answer"]}]


def refusal(row: Mapping[str, Any]) -> Refusal | None:
    """Return the reason and its detail for which a logged request can't be used, None if it can."""
    return _unanswered(row) or _unfit(row) or _malformed(conversation(row))


def _unanswered(row: Mapping[str, Any]) -> Refusal | None:
    status = row["status"]
    if status in _BROKEN:
        return Reason.BROKEN_STREAM, status
    return None if status in _ANSWERED else (Reason.ERROR_STATUS, status)


def _unfit(row: Mapping[str, Any]) -> Refusal | None:
    if not _is_said(row["messages"]):
        return Reason.NO_TEXT, None
    finish = row["finish_reason"]
    if any(turn["role"] in _TOOL_ROLES for turn in row["messages"]):
        return Reason.TOOL_USE, "role"
    if finish in _FINISHES:
        return _FINISHES[finish], finish
    return None if (row["answer"] or "").strip() else (Reason.EMPTY_ANSWER, None)


def _is_said(messages: list[Message] | None) -> bool:
    return any(
        turn["role"] == "user" and (turn["content"] or "").strip() for turn in messages or []
    )


def _malformed(turns: list[Message]) -> Refusal | None:
    reason = (
        check_roles(turns)
        or check_unicode(turns)
        or check_empty(turns)
        or check_injection(turns, TEMPLATE_MARKERS)
    )
    # The text after the code quotes the turn.
    return (Reason.MALFORMED, reason.partition(":")[0]) if reason else None
