"""Rows of a file, in any format that the pipeline reads or as plain texts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneline.data.conversations.formats import Malformed, form_of, to_messages
from tuneline.data.sources.records import check_file, read_records
from tuneline.data.tables.rows import Message
from tuneline.errors import UserError

# Fields that hold the text of a row that is not a conversation.
TEXT_FIELDS = ("text", "full_text", "prompt", "question", "instruction", "content")


def read_values(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the readable records of a file (JSONL, CSV, Parquet or a JSON list).

    Raises:
        UserError: if the file can't be read, or has none of these forms.
    """
    if path.suffix.lower() == ".json" and path.is_file():
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}); one object a line is .jsonl") from None
        if not isinstance(values, list):
            raise UserError(f"{path} is not a list of rows; give a JSON list or .jsonl")
    else:
        check_file(path, str(path))
        values = (record.value for record in read_records(path, str(path)))
    yield from (value for value in values if isinstance(value, dict))


def conversation(value: dict[str, Any]) -> list[Message] | None:
    """Return the turns of a record, None if it is not a conversation."""
    form = form_of(value)
    try:
        return None if form is None else to_messages(value, form)
    except Malformed:
        return None


def text_of(value: dict[str, Any]) -> str | None:
    """Return the prompt of a record: the user's turns of a conversation, or its text field."""
    messages = conversation(value)
    if messages is not None:
        return "\n".join(m["content"] for m in messages if m["role"] == "user") or None
    fields = (value.get(name) for name in TEXT_FIELDS)
    return next((field for field in fields if isinstance(field, str) and field.strip()), None)


def read_texts(path: Path, most: int | None) -> list[str]:
    """Return the texts of a file; with none it is refused."""
    found = list(itertools.islice(filter(None, map(text_of, read_values(path))), most))
    if not found:
        raise UserError(
            f"{path} holds no text to work on; rows need messages or one of the fields "
            f"{', '.join(TEXT_FIELDS)}"
        )
    return found


def read_conversations(path: Path, most: int | None) -> list[list[Message]]:
    """Return the conversations of a file that end with an answer; with none it is refused."""
    turns = filter(None, map(conversation, read_values(path)))
    answered = (messages for messages in turns if messages[-1]["role"] == "assistant")
    found = list(itertools.islice(answered, most))
    if not found:
        raise UserError(
            f"{path} holds no conversation with an answer; rows need messages, conversations, "
            "instruction and output, or prompt and completion"
        )
    return found
