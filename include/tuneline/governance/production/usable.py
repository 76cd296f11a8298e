"""Decide by a request's own fields whether it can be a row; no text is compared here.

A request that another upstream answered stays. Dropping it would leave out the prompts that the
model fails on or is unsure of, which are the ones to learn from. Its answer is not the model's own,
so it is marked, drawn for review as a stratum of its own, and used only if a person says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneline.data.conversations.turn_checks import (
    TEMPLATE_MARKERS,
    check_empty,
    check_injection,
    check_roles,
    check_unicode,
)
from tuneline.data.tables.rows import Message
from tuneline.governance.production.vocabulary import Reason
from tuneline.serving.gateway.attempt_status import AttemptStatus

Refusal = tuple[Reason, str | None]

# An answer whose tokens were improbable has come whole.
_ANSWERED = frozenset({AttemptStatus.OK, AttemptStatus.LOW_CONFIDENCE})
_BROKEN = frozenset(
    {AttemptStatus.DIED_MIDSTREAM, AttemptStatus.CONNECTION_LOST, AttemptStatus.CLIENT_ABORTED}
)
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
    """Return the reason and its detail for which a logged request can't be used, None if it can.

    Args:
        row: its columns, see `LoggedRequest`.
    """
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
