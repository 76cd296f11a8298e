"""The opt-in request log that drift detection reads: JSONL, one file a day.

Without `log_prompts` a line holds counts and times only. With it, the texts pass through the
redaction function first; if that fails, the line states so and holds no text.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneline.errors import UserError
from tuneline.serving.gateway.attempt import Attempt, Call
from tuneline.serving.gateway.batch import BatchWriter
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.gateway.record_config import RequestLogConfig
from tuneline.serving.gateway.tokens import message_texts

log = logging.getLogger("tuneline.gateway")

Redact = Callable[[str], str]

_FLUSH_INTERVAL_S = 1.0
_CLOSE_TIMEOUT_S = 10.0
DROPPED = "tuneline_gateway_request_log_dropped_total"


@dataclass(frozen=True)
class _Entry:
    call: Call
    attempt: Attempt | None
    time: datetime


class RequestLog(BatchWriter[_Entry]):
    """A log of one line per request that reached a model's chain, written in the background.

    A log must not stop the service: lines that find the queue full are dropped and counted.

    Args:
        config: its section of the configuration.
        metrics: counters of dropped lines.

    Raises:
        UserError: if the folder cannot be made, or the redaction function not be loaded.
    """

    def __init__(self, config: RequestLogConfig, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._redact = load_redaction(config.redact) if config.log_prompts else None
        try:
            config.dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(
                f"{config.dir}: the request log's folder cannot be made: {error.strerror}"
            ) from None
        super().__init__(
            "request log", self._append, limit=config.queue_limit, interval_s=_FLUSH_INTERVAL_S
        )

    def note(self, call: Call, attempt: Attempt | None) -> None:
        """Take a request and the attempt that served it, None if none did."""
        if self.full:
            self._metrics.add(DROPPED)
        else:
            self.put(_Entry(call, attempt, datetime.now(UTC)))

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> list[_Entry]:
        """Write the waiting lines and stop."""
        if left := super().close(timeout_s):
            self._metrics.add(DROPPED, len(left))
            log.error("request log: %d lines could not be written", len(left))
        return left

    def _append(self, entries: list[_Entry]) -> None:
        days: defaultdict[Path, list[str]] = defaultdict(list)
        for entry in entries:
            path = self._config.dir / f"requests-{entry.time:%Y-%m-%d}.jsonl"
            days[path].append(json.dumps(_line(entry, self._redact)) + "\n")
        for path, lines in days.items():
            # Readable by the gateway's own user only: even redacted text is a customer's.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
                handle.write("".join(lines))


def load_redaction(name: str | None) -> Redact:
    """Load the function that `redact` names: `module:function`, or `none` for the identity.

    Raises:
        UserError: if there is no such function.
    """
    if name in (None, "none"):
        return str
    module, _, function = str(name).partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not callable(found):
        raise UserError(
            f"`request_log.redact`: {name} cannot be loaded; write `module:function` of a function "
            "from text to text, or `none`"
        )
    return found


def _line(entry: _Entry, redact: Redact | None) -> dict[str, Any]:
    call, attempt = entry.call, entry.attempt
    messages = call.request.messages
    line: dict[str, Any] = {
        "timestamp": entry.time.isoformat(timespec="milliseconds"),
        "request_id": call.request_id,
        "key": call.key,
        "model": call.model,
        "stream": call.request.stream,
        "turns": len(messages),
        "prompt_chars": sum(len(text) for message in messages for text in message_texts(message)),
        "served_by": None,
    }
    if attempt is not None:
        row = attempt.row
        line |= {
            "served_by": row.upstream,
            "model_served": row.model_served,
            "status": row.status,
            "fallback_reason": row.fallback_reason,
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "estimated": row.estimated,
            "completion_chars": sum(map(len, attempt.texts)),
            "mean_logprob": row.mean_logprob,
            "latency_ms": row.latency_ms,
            "ttft_ms": row.ttft_ms,
        }
    if redact is not None:
        line |= _texts(entry, redact)
    return line


def _texts(entry: _Entry, redact: Redact) -> dict[str, Any]:
    """Return the redacted conversation, without images and tool arguments."""
    try:
        messages = [
            {"role": message["role"], "content": redact("\n".join(message_texts(message)))}
            for message in entry.call.request.messages
        ]
        completion = redact("".join(entry.attempt.texts)) if entry.attempt else None
    except Exception as error:  # whatever the function raises, the text must not be written
        log.error("redaction of %s failed: %s", entry.call.request_id, type(error).__name__)
        return {"redaction_failed": True}
    return {"messages": messages, "completion": completion}
