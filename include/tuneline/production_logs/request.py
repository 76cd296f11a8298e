"""A logged request: the columns of a partition, and the JSON line that it is in a spool."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from datetime import date, datetime
from typing import TypedDict


class LoggedMessage(TypedDict):
    """A turn of a prompt."""

    role: str
    content: str


class Redactions(TypedDict):
    """The number of values of a type that were removed from a request and its answer."""

    type: str
    count: int


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request and its answer, without the personal data and secrets that were found in them.

    Attributes:
        request_id: its id, unique over all gateways.
        time: arrival, UTC; the day of it is the partition.
        key: name of the API key, never the key.
        model: the model that the client asked for.
        model_version: version of the model that answered; None if the configuration states none.
        messages: the prompt; None if it could not be scrubbed.
        answer: the text of the answer, as far as it came; None if there was none, or it could
            not be scrubbed.
        latency_ms: time from the arrival to the end, attempts that were left included.
        ttft_ms: time from the arrival to the first token; None if nothing was streamed.
        confidence: mean log-probability per token, nats; None if it was not asked for.
        served_by: the upstream that answered, None if none did.
        fallback_reason: why the upstream before it was left, None for the first of the chain.
        prompt_tokens: as the upstream reported it, or counted by the gateway.
        completion_tokens: likewise.
        finish_reason: why the answer ended, as the upstream says; None if it broke off.
        status: how the request ended, an `Outcome` of the gateway.
        sample_rate: share of the requests that is logged; a row stands for its inverse.
        redactions: number of removed values by type; None if scrubbing failed.
    """

    request_id: str
    time: datetime
    key: str
    model: str
    model_version: str | None
    messages: list[LoggedMessage] | None
    answer: str | None
    latency_ms: float
    ttft_ms: float | None
    confidence: float | None
    served_by: str | None
    fallback_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    status: str
    sample_rate: float
    redactions: list[Redactions] | None

    @property
    def day(self) -> date:
        """The day of the partition that it belongs to, UTC."""
        return self.time.date()

    def line(self) -> bytes:
        """Return it as a line of JSON, with its newline."""
        values = {name: getattr(self, name) for name in COLUMNS}
        values["time"] = self.time.isoformat(timespec="milliseconds")
        return json.dumps(values, separators=(",", ":")).encode() + b"\n"


COLUMNS = tuple(field.name for field in fields(LoggedRequest))
