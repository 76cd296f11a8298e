"""The gateway as a child process, for steps that try it over a real socket."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tuneline.errors import RetryableError
from tuneline.serving.client import Messages
from tuneline.serving.gateway.accounts.keys import add_key
from tuneline.serving.processes import ServerProcess
from tuneline.serving.protocol import DONE, SseParser

START_SECONDS = 60.0
_CONNECT_WITHIN = 5.0
_LISTENING = "gateway on http://"


@dataclass(frozen=True)
class GatewayAnswer:
    """What a client saw of a chat completion.

    Attributes:
        status: HTTP status; 0 if the connection broke.
        body: the JSON body, or the last event of a stream; {} if there was none.
        fallback_reason: why an earlier upstream was left, None if none was.
        complete: whether the whole answer came.
        attempts: attempts at upstreams that the response names.
    """

    status: int
    body: Mapping[str, Any]
    complete: bool = False
    served_by: str | None = None
    fallback_reason: str | None = None
    request_id: str | None = None
    attempts: int = 1

    @property
    def ok(self) -> bool:
        """True if an answer came."""
        return self.status == 200

    @property
    def ended(self) -> bool:
        """True if the client knows how its request ended."""
        return self.complete or self.clean_error

    @property
    def clean_error(self) -> bool:
        """True if it ended in an error of OpenAI's form, with a code."""
        return not self.complete and bool((self.body.get("error") or {}).get("code"))


class GatewayProcess(ServerProcess):
    """`tuneline gateway` on a free port; live when the `with` block begins."""

    stop_seconds = 40.0

    def __init__(
        self,
        folder: Path,
        *,
        upstreams: Sequence[Mapping[str, Any]],
        models: Sequence[Mapping[str, Any]],
        keys: Sequence[str] = ("trial",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.ledger = folder / "usage.sqlite"
        self.base_url = ""
        config = folder / "gateway.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        keys_file = folder / "keys.json"
        self.keys = {name: add_key(keys_file, name) for name in keys}
        document = {
            "port": 0,
            "keys_file": str(keys_file),
            "ledger": {"path": str(self.ledger), "flush_interval_s": 0.05},
            "upstreams": [dict(upstream) for upstream in upstreams],
            "models": [dict(model) for model in models],
            # Pings would count as usage beside the requests of a trial.
            "readiness": {"ping_interval_s": 3600.0, "warmup_prompt_words": []},
            **(settings or {}),
        }
        # JSON is YAML without quoting rules.
        config.write_text(json.dumps(document, indent=1))
        super().__init__(
            [sys.executable, "-m", "tuneline.cli", "gateway", "--config", str(config)],
            start_seconds=START_SECONDS,
            log_file=folder / "gateway.log",
        )

    def waiting_for(self) -> str | None:
        """Return what it lacks: it has to state where it listens, and to be live there."""
        found = [line for line in self.read_log().splitlines() if _LISTENING in line]
        return None if found and self._listens(found[0]) else "it did not listen"

    def start_error(self, code: int | None, lacking: str) -> RetryableError:
        """Return a retryable error: another start may find the machine in a better state."""
        return RetryableError(f"the gateway did not start: {self.last_words()}")

    def _listens(self, line: str) -> bool:
        address = line.split(_LISTENING, 1)[1].split("/v1", 1)[0]
        self.base_url = f"http://{address}"
        return self.probe("live") == 200

    def probe(self, kind: str) -> int:
        """Return the status of a probe, `live` or `ready`; 0 if nothing answers."""
        try:
            return self.get(f"/v1/health/{kind}", 5.0).status_code
        except httpx.TransportError:
            return 0

    def get(self, path: str, timeout: float = 10.0) -> httpx.Response:
        """GET a path without a key, which probes and metrics do not need."""
        return httpx.get(self.base_url + path, timeout=timeout, trust_env=False)

    def restart(self) -> None:
        """Kill it with SIGKILL, as a crash would, and start it again on the same ledger."""
        self.kill()
        self.start()

    @contextmanager
    def stream(
        self, model: str, messages: Messages, **options: Any
    ) -> Iterator[tuple[str | None, Iterator[dict[str, Any]]]]:
        """Open a stream of one chat completion; leaving the block closes the connection.

        Yields:
            The request's id in the ledger, and the chunks as they come; a broken connection raises
            `httpx.TransportError`.
        """
        request = self._request(model, messages, stream=True, **options)
        with httpx.stream("POST", **request) as response:
            parser = SseParser()
            events = (data for piece in response.iter_bytes() for data in parser.feed(piece))
            chunks = (json.loads(data) for data in events if data != DONE)
            yield response.headers.get("x-request-id"), chunks

    def ask(self, model: str, messages: Messages, **options: Any) -> GatewayAnswer:
        """Ask for one chat completion, decoded greedily, and read it to its end.

        Args:
            options: `max_tokens`, and if need be `key` (its name), `stream`, `timeout` (the longest
                wait for a byte) and `extra` (more fields of the request).
        """
        try:
            response = httpx.post(**self._request(model, messages, **options))
        except httpx.TransportError:
            return GatewayAnswer(0, {})
        streamed = response.headers.get("content-type", "").startswith("text/event-stream")
        events = SseParser().feed(response.content) if streamed else []
        done = events[-1:] == [DONE]
        body = _document(((events[:-1] if done else events) or [response.content])[-1])
        return GatewayAnswer(
            response.status_code,
            body,
            response.is_success and (done if events else "choices" in body),
            response.headers.get("x-tuneline-served-by"),
            response.headers.get("x-tuneline-fallback-reason"),
            response.headers.get("x-request-id"),
            1 + response.headers.get("x-tuneline-attempts", "").count(","),
        )

    def _request(
        self,
        model: str,
        messages: Messages,
        *,
        max_tokens: int,
        key: str = "trial",
        stream: bool = False,
        timeout: float = 60.0,
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        usage = {"stream_options": {"include_usage": True}} if stream else {}
        body = {"model": model, "messages": list(messages), "max_tokens": max_tokens}
        return {
            "url": f"{self.base_url}/v1/chat/completions",
            "json": {**body, "temperature": 0, "stream": stream, **usage, **(extra or {})},
            "headers": {"Authorization": f"Bearer {self.keys[key]}"},
            # Who has no patience has sent the request nevertheless.
            "timeout": httpx.Timeout(timeout, connect=_CONNECT_WITHIN, write=_CONNECT_WITHIN),
            "trust_env": False,
        }


def _document(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
