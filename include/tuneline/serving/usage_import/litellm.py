"""Rows of LiteLLM's table `LiteLLM_SpendLogs`, by file or from its database.

The columns are those of `schema.prisma` of LiteLLM's proxy. Times without a zone are UTC, as its
database has them, and `spend` is in US dollars.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from tuneline.errors import RetryableError, first_line
from tuneline.serving.gateway.ledger_database import reader, url_of
from tuneline.serving.usage_import.call import (
    FAILED,
    ImportedCall,
    RowError,
    digest,
    identity,
    model_name,
    money,
    parsed,
    plain_name,
    span,
    text_of,
    tokens,
    turns_of,
)
from tuneline.serving.usage_import.lines import Line

_HASHED_KEY = re.compile(r"[0-9a-f]{64}")
_ROWS = text('SELECT * FROM "LiteLLM_SpendLogs" ORDER BY "startTime", request_id')
_AT_ONCE = 1000


def database_rows(url: str) -> tuple[str, Iterator[Line]]:
    """Return the name of a database, without a password, and its rows.

    Raises:
        UserError: if the URL is none of PostgreSQL or SQLite.
    """
    database = url_of(url)
    name = database.render_as_string(hide_password=True)

    def rows() -> Iterator[Line]:
        engine = reader(database)
        try:
            with engine.connect().execution_options(yield_per=_AT_ONCE) as connection:
                for number, row in enumerate(connection.execute(_ROWS).mappings(), 1):
                    yield number, dict(row)
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise RetryableError(f"{name}: can't be read: {first_line(cause)}") from None
        finally:
            engine.dispose()

    return name, rows()


def call_of(row: Any) -> ImportedCall:
    """Return the call that a row states.

    Raises:
        RowError: naming the column that is wrong.
    """
    if not isinstance(row, Mapping):
        raise RowError("the row must be an object of LiteLLM's columns")
    began, ended = _time(row, "startTime"), _time(row, "endTime")
    metadata = parsed(row.get("metadata"))
    metadata = metadata if isinstance(metadata, Mapping) else {}
    model = model_name(row.get("model_group"), row.get("model"))
    status = row.get("status") or metadata.get("status")
    choice = _choice(parsed(row.get("response")))
    return ImportedCall(
        request_id=f"litellm:{identity(row.get('request_id'), 'request_id')}",
        time=began,
        key=_key(row, metadata),
        model=model,
        upstream=plain_name(row.get("custom_llm_provider"), "litellm"),
        model_served=model_name(row.get("model"), model),
        prompt_tokens=tokens(row.get("prompt_tokens"), "prompt_tokens"),
        cached_tokens=0,
        completion_tokens=tokens(row.get("completion_tokens"), "completion_tokens"),
        cost=money(row.get("spend"), "spend"),
        latency_ms=span(began, ended, "startTime, endTime"),
        ttft_ms=_ttft(row, began, ended),
        status=FAILED if status == "failure" else "ok",
        user=next((u for u in (row.get("end_user"), row.get("user")) if isinstance(u, str)), ""),
        messages=_messages(row),
        answer=text_of((choice.get("message") or {}).get("content")) if choice else None,
        finish_reason=choice.get("finish_reason") if choice else None,
    )


def _key(row: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    if alias := metadata.get("user_api_key_alias"):
        return plain_name(alias, "litellm")
    stated = row.get("api_key")
    if not isinstance(stated, str) or not stated:
        return "litellm"
    # Most are hashes already. What isn't may be a key itself, which the ledger must not hold.
    return f"litellm-{stated[:12] if _HASHED_KEY.fullmatch(stated) else digest(stated)}"


def _time(row: Mapping[str, Any], column: str) -> float:
    value = row.get(column)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    if not isinstance(value, datetime):
        raise RowError(f"{column} must be a time such as 2026-11-26T12:00:00Z")
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def _ttft(row: Mapping[str, Any], began: float, ended: float) -> float | None:
    if not row.get("completionStartTime"):
        return None
    first = _time(row, "completionStartTime")
    # Answers that were not streamed have the end there.
    return span(began, first, "startTime, completionStartTime") if first < ended else None


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """Return the prompt: older versions have it in `messages`, newer ones with the request."""
    if turns := turns_of(parsed(row.get("messages")), "content"):
        return turns
    request = parsed(row.get("proxy_server_request"))
    return turns_of(request.get("messages"), "content") if isinstance(request, Mapping) else None


def _choice(response: Any) -> Mapping[str, Any] | None:
    choices = response.get("choices") if isinstance(response, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping) or not isinstance(choice.get("message"), Mapping):
        return None
    return choice
