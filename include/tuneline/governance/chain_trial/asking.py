"""Ask a gateway under trial, and note what its client sees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx

from tuneline.serving.client import Messages
from tuneline.serving.gateway.process import GatewayProcess


@dataclass(frozen=True)
class Seen:
    """What a client saw of one request.

    Attributes:
        status: HTTP status; 0 if the connection broke.
        served_by: the upstream that answered; None if none did.
        reason: why an earlier upstream was left or passed over; None if none was.
        complete: whether the whole answer came.
        clean_error: whether it ended in an error of OpenAI's form, with a code.
    """

    status: int
    served_by: str | None
    reason: str | None
    complete: bool
    clean_error: bool

    @property
    def ended(self) -> bool:
        """Whether the client knows how its request ended."""
        return self.complete or self.clean_error


@dataclass(frozen=True)
class Client:
    """A client of the gateway.

    Attributes:
        gateway: the gateway.
        model: the model id.
        max_tokens: limit of an answer's length.
        patience: longest wait for a byte, in seconds.
    """

    gateway: GatewayProcess
    model: str
    max_tokens: int
    patience: float

    def ask(self, messages: Messages, *, stream: bool = False) -> Seen:
        """Send a request, decoded greedily, and read its answer to the end."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": stream,
        }
        headers = {"Authorization": f"Bearer {next(iter(self.gateway.keys.values()))}"}
        url = self.gateway.base_url + "/v1/chat/completions"
        try:
            response = httpx.post(
                url, json=body, headers=headers, timeout=self.patience, trust_env=False
            )
        except httpx.TransportError:
            return Seen(0, None, None, complete=False, clean_error=False)
        events = _events(response.text) if stream and response.is_success else []
        whole = _document(response.text) if not events else events[-1]
        complete = response.is_success and (
            response.text.rstrip().endswith("data: [DONE]") if stream else "choices" in whole
        )
        return Seen(
            response.status_code,
            response.headers.get("x-tuneline-served-by"),
            response.headers.get("x-tuneline-fallback-reason"),
            complete=complete,
            clean_error=not complete and bool((whole.get("error") or {}).get("code")),
        )


def _events(text: str) -> list[dict[str, Any]]:
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    return [_document(line) for line in lines]


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
