"""A client for OpenAI-compatible engines: one request, many at once, streams with timings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx

from tuneline.serving.client.chat_protocol import (
    ChatResult,
    EngineError,
    EngineUnavailable,
    Messages,
    StreamCollector,
    parse_answer,
    raise_for_status,
    request_body,
)

# Long enough for a full answer of a small model on a busy laptop.
DEFAULT_TIMEOUT = 300.0
_CHAT = "/v1/chat/completions"
# llama.cpp's server may close a kept connection just when the next request is written to it,
# which then fails for no reason of its own. A new one costs a fraction of a millisecond.
_KEPT_CONNECTIONS = 0


class EngineClient:
    """Talks to one engine; usable from plain and from async code, and from several threads."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str = "default",
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Make a client.

        Args:
            base_url: `http://host:port`, without `/v1`.
            model: Name sent with each request.
            api_key: Sent as a bearer token when given.
            timeout: Seconds without a byte before a request is given up.
        """
        self.base_url = base_url.rstrip("/")
        self.model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = httpx.Timeout(timeout, connect=10.0)
        self._http = httpx.Client(
            base_url=self.base_url,
            headers=self._headers,
            timeout=self._timeout,
            limits=httpx.Limits(max_keepalive_connections=_KEPT_CONNECTIONS),
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def chat(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | None = 0,
        logprobs: bool = False,
        stream: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> ChatResult:
        """Ask for one chat completion.

        Args:
            messages: `[{"role": …, "content": …}]`.
            max_tokens: Most tokens to generate.
            temperature: 0 is greedy.
            seed: Of the sampling; None leaves it to the engine.
            logprobs: Ask for the probabilities of the generated tokens.
            stream: Read the answer as it comes; needed for `ttft`.
            extra: More fields of the request, for example `{"cache_prompt": False}` or
                `{"lora": [{"id": 0, "scale": 1.0}]}` for llama.cpp.

        Raises:
            ContextOverflow: The prompt is too long.
            EngineError: The engine refused the request or answered nonsense.
            EngineUnavailable: It can't be reached, loads, or timed out.
        """
        body = request_body(
            self.model,
            messages,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            logprobs=logprobs,
            stream=stream,
            extra=extra,
        )
        started = time.perf_counter()
        with self._faults():
            if not stream:
                answer = self._http.post(_CHAT, json=body)
                raise_for_status(answer.status_code, answer.text)
                return parse_answer(answer.json(), time.perf_counter() - started)
            with self._http.stream("POST", _CHAT, json=body) as response:
                if response.status_code >= 400:
                    raise_for_status(response.status_code, response.read().decode(errors="replace"))
                collector = StreamCollector(started)
                for line in response.iter_lines():
                    collector.feed(line)
                return collector.result()

    async def achat(
        self, messages: Messages, *, http: httpx.AsyncClient | None = None, **options: Any
    ) -> ChatResult:
        """The same as `chat`, for async code.

        Args:
            messages: See `chat`.
            http: Shares connections between requests; see `async_http`.
            options: As for `chat`.
        """
        if http is None:
            async with self.async_http() as own:
                return await self.achat(messages, http=own, **options)
        body = request_body(self.model, messages, **options)
        started = time.perf_counter()
        with self._faults():
            if not body["stream"]:
                answer = await http.post(_CHAT, json=body)
                raise_for_status(answer.status_code, answer.text)
                return parse_answer(answer.json(), time.perf_counter() - started)
            async with http.stream("POST", _CHAT, json=body) as response:
                if response.status_code >= 400:
                    text = (await response.aread()).decode(errors="replace")
                    raise_for_status(response.status_code, text)
                collector = StreamCollector(started)
                async for line in response.aiter_lines():
                    collector.feed(line)
                return collector.result()

    def async_http(self, connections: int = 100) -> httpx.AsyncClient:
        """An async connection pool for `achat`, to be closed by the caller."""
        return httpx.AsyncClient(
            base_url=self.base_url,
            headers=self._headers,
            timeout=self._timeout,
            limits=httpx.Limits(
                max_connections=connections, max_keepalive_connections=_KEPT_CONNECTIONS
            ),
            trust_env=False,
        )

    def complete_batch(
        self, batch: Sequence[Messages], *, concurrency: int, **options: Any
    ) -> list[ChatResult]:
        """Answer many prompts, `concurrency` at a time; results in the order of the prompts.

        Args:
            batch: One list of messages per prompt.
            concurrency: Requests in flight at once (a closed loop).
            options: As for `chat`.

        Raises:
            TunelineError: The first request that failed; the others are cancelled.
        """
        return asyncio.run(self.acomplete_batch(batch, concurrency=concurrency, **options))

    async def acomplete_batch(
        self, batch: Sequence[Messages], *, concurrency: int, **options: Any
    ) -> list[ChatResult]:
        """The same as `complete_batch`, for async code."""
        gate = asyncio.Semaphore(concurrency)
        async with self.async_http(concurrency) as http:

            async def one(messages: Messages) -> ChatResult:
                async with gate:
                    return await self.achat(messages, http=http, **options)

            tasks = [asyncio.ensure_future(one(messages)) for messages in batch]
            try:
                return list(await asyncio.gather(*tasks))
            except BaseException:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text, by llama.cpp's own tokenizer, without a BOS.

        Args:
            text: What to tokenize.
            special: Read special tokens such as `<|im_end|>` as tokens, not as text.
        """
        body = {"content": text, "add_special": False, "parse_special": special}
        return [int(token) for token in self._json("POST", "/tokenize", body)["tokens"]]

    def models(self) -> list[str]:
        """Ids that the engine lists as served."""
        return [str(entry["id"]) for entry in self._json("GET", "/v1/models")["data"]]

    def metrics(self) -> dict[str, float]:
        """The engine's Prometheus metrics without labels, by name."""
        answer = self._request("GET", "/metrics")
        found = {}
        for line in answer.text.splitlines():
            name, _, value = line.partition(" ")
            if line and not line.startswith("#"):
                found[name] = float(value)
        return found

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        return self._request(method, path, body).json()

    def _request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        with self._faults():
            answer = self._http.request(method, path, json=body)
            raise_for_status(answer.status_code, answer.text)
            return answer

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn what a request may raise into errors of the engine."""
        try:
            yield
        except httpx.HTTPError as error:
            raise _unavailable(self.base_url, error) from error
        except ValueError as error:
            raise EngineError(f"{self.base_url} answered what is not JSON: {error}") from error


def _unavailable(base_url: str, error: httpx.HTTPError) -> EngineUnavailable:
    if isinstance(error, httpx.TimeoutException):
        return EngineUnavailable(f"{base_url} did not answer in time ({type(error).__name__})")
    return EngineUnavailable(f"{base_url} can't be reached: {error or type(error).__name__}")
