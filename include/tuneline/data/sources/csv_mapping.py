"""Turn the columns of a CSV file into turns by templates.

A template is text with `{column}` (the value), `{column!j}` (the value as a JSON string, quotes
included) and `{{`, `}}` for braces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tuneline.config import CsvMapping
from tuneline.errors import UserError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def columns_of(template: str, where: str) -> list[str]:
    """Return the columns that a template names.

    Raises:
        UserError: if a brace stands alone, or a name is empty.
    """
    names = []
    for piece in _PIECE.finditer(template):
        if piece[0] in ("{{", "}}"):
            continue
        name = (piece[1] or "").removesuffix("!j")
        if not name:
            raise UserError(
                f"{where}: {piece[0]!r} at character {piece.start()} names no column; "
                "write {column}, and {{ or }} for a brace"
            )
        names.append(name)
    return names


def fill(template: str, values: Mapping[str, str]) -> str:
    """Fill a template with the values of one record."""

    def put(piece: re.Match[str]) -> str:
        if piece[0] in ("{{", "}}"):
            return piece[0][0]
        name = piece[1]
        if name.endswith("!j"):
            return json.dumps(values[name.removesuffix("!j")], ensure_ascii=False)
        return values[name]

    return _PIECE.sub(put, template)


def wanted_columns(mapping: CsvMapping) -> list[str]:
    """Return the columns that a mapping names.

    Raises:
        UserError: if a template is malformed.
    """
    wanted: dict[str, None] = {}
    for field in ("system", "user", "assistant"):
        template = getattr(mapping, field)
        if template is not None:
            wanted |= dict.fromkeys(columns_of(template, f"data.csv.{field}"))
    for column in (mapping.label, mapping.conversation):
        if column is not None:
            wanted[column] = None
    return list(wanted)


def check_columns(mapping: CsvMapping, header: Sequence[str], name: str, dialect: str) -> None:
    """Check that a file has the columns that its mapping names.

    Args:
        mapping: the mapping.
        header: the file's columns.
        name: the file's name in errors.
        dialect: the delimiter and quoting with which it was read, for errors.

    Raises:
        UserError: if a column is missing; the message names each.
    """
    missing = [column for column in wanted_columns(mapping) if column not in header]
    if missing:
        raise UserError(
            f"{name} has no column {', '.join(map(repr, missing))}, which data.csv names; "
            f"its columns are {', '.join(map(repr, header))}, read with {dialect} "
            "(data.csv_delimiter, data.csv_quoting)"
        )


def apply_mapping(mapping: CsvMapping, values: Mapping[str, str]) -> dict[str, Any]:
    """Make a record in the messages form from the values of a CSV record."""
    turns = [("system", mapping.system), ("user", mapping.user), ("assistant", mapping.assistant)]
    return {
        "messages": [
            {"role": role, "content": fill(template, values)}
            for role, template in turns
            if template is not None
        ]
    }
