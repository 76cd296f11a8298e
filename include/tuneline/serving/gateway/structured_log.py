"""The gateway's log as JSON lines, for collectors that read fields and not sentences.

A line holds ids, names, counts and times; never a key, a prompt or an answer.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from tuneline.config.section import Section


class LogConfig(Section):
    """The gateway's own log, on stderr."""

    format: Literal["text", "json"] = Field(
        "text", description="`json` writes a JSON object a line, with the facts as fields."
    )


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON; `fields` of the record become fields of the line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
