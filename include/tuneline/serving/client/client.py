"""A client for OpenAI-compatible engines: single requests, batches and timed streams."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from tuneline.serving.client.chat_protocol import (
    ChatResult,
    EngineError,
    EngineUnavailable,
    Messages,
    StreamCollector,
    continuation_body,
    parse_answer,
    parse_continuation,
    raise_for_status,
    request_body,
)
from tuneline.serving.client.timed_stream import post
from tuneline.serving.metrics_text import read_metrics

# Long enough for a full answer of a small model on a busy laptop.
DEFAULT_TIMEOUT = 300.0
_CHAT, _CONTINUE = "/v1/chat/completions", "/v1/completions"
# llama.cpp's server may close a kept connection while the next request is written to it, which
# then fails. A new connection costs a fraction of a millisecond.
_KEPT_CONNECTIONS = 0

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class EngineClient:
    """A client of one engine, for plain and async code and for several threads."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str = "default",
        timeout: float = DEFAULT_TIMEOUT,
        fields: Mapping[str, Any] | None = None,
        api_key: str | None = None,
    ) -> None:
        """Create a client.

        Args:
            base_url: `http://host:port`, without `/v1`.
            model: model name that is sent with each request.
            timeout: time without a byte after which a request fails, in seconds.
            fields: more fields of every request, which the request's own take precedence over;
                they choose an adapter.
            api_key: key that is sent as a bearer token; None for an engine that asks for none.
        """
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.fields = dict(fields or {})
        self.timeout = timeout
        self._timeout = httpx.Timeout(timeout, connect=10.0)
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
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
        on_begin: Callable[[], None] | None = None,
    ) -> ChatResult:
        """Ask for one chat completion.

        Args:
            messages: `[{"role": …, "content": …}]`.
            max_tokens: length limit of the answer, in tokens.
            temperature: temperature of the sampling; 0 is greedy.
            seed: seed of the sampling; None leaves it to the engine.
            logprobs: whether to request the probabilities of the generated tokens.
            stream: whether to stream the answer; needed for `ttft`.
            extra: more fields of the request, for example `{"cache_prompt": False}` or
                `{"lora": [{"id": 0, "scale": 1.0}]}` for llama.cpp.
            on_begin: called once when the first part of a streamed answer is there.

        Raises:
            ContextOverflow: if the prompt is too long.
            EngineError: if the engine refused the request or broke the protocol.
            EngineUnavailable: if it can't be reached, is loading, or timed out.
        """
        body = request_body(
            self.model,
            messages,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            logprobs=logprobs,
            stream=stream,
            extra={**self.fields, **(extra or {})},
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
                    if on_begin is not None and collector.begun:
                        on_begin()
                        on_begin = None
                return collector.result()

    async def achat(
        self, messages: Messages, *, http: httpx.AsyncClient, **options: Any
    ) -> ChatResult:
        """Do the same as `chat`, for async code.

        Args:
            messages: see `chat`.
            http: the connection pool; see `async_http`.
            options: see `chat`.
        """
        extra = {**self.fields, **(options.pop("extra", None) or {})}
        body = request_body(self.model, messages, extra=extra, **options)
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

    def streamed_request(
        self, messages: Messages, *, max_tokens: int, extra: Mapping[str, Any] | None = None
    ) -> bytes:
        """Return the bytes of a request for a streamed answer, for `timed_stream.Link`.

        Args:
            messages: see `chat`.
            max_tokens: see `chat`.
            extra: see `chat`.
        """
        fields = {**self.fields, **(extra or {})}
        body = request_body(self.model, messages, max_tokens=max_tokens, stream=True, extra=fields)
        return post(self.base_url, _CHAT, self._headers, json.dumps(body).encode())

    def async_http(self, connections: int) -> httpx.AsyncClient:
        """Return a connection pool for `achat`; the caller closes it."""
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
        self,
        batch: Sequence[Messages],
        *,
        concurrency: int,
        on_answer: Callable[[int, ChatResult], None] | None = None,
        **options: Any,
    ) -> list[ChatResult]:
        """Answer many prompts, `concurrency` at a time; results in the order of the prompts.

        Args:
            batch: messages of each prompt.
            concurrency: number of requests in flight (a closed loop).
            on_answer: called with the number of a prompt and its result, as soon as it is there.
            options: see `chat`.

        Raises:
            TunelineError: if a request failed; the others are cancelled.
        """

        async def one(messages: Messages, http: httpx.AsyncClient) -> ChatResult:
            return await self.achat(messages, http=http, **options)

        return asyncio.run(self._batch(batch, concurrency, one, on_answer))

    def continue_batch(
        self,
        batch: Sequence[Sequence[int]],
        *,
        concurrency: int,
        max_tokens: int,
    ) -> list[str]:
        """Go on from many sequences of token ids, greedily; texts in the order of the sequences.

        The engine adds nothing to the ids, neither a chat template nor a first token.

        Args:
            batch: token ids of each sequence.
            concurrency: number of requests in flight (a closed loop).
            max_tokens: length limit of a continuation, in tokens.

        Raises:
            TunelineError: if a request failed; the others are cancelled.
        """

        async def one(ids: Sequence[int], http: httpx.AsyncClient) -> str:
            body = continuation_body(self.model, ids, max_tokens=max_tokens, extra=self.fields)
            with self._faults():
                answer = await http.post(_CONTINUE, json=body)
                raise_for_status(answer.status_code, answer.text)
                return parse_continuation(answer.json())

        return asyncio.run(self._batch(batch, concurrency, one))

    async def _batch(
        self,
        batch: Sequence[Asked],
        concurrency: int,
        one: Callable[[Asked, httpx.AsyncClient], Awaitable[Answered]],
        on_answer: Callable[[int, Answered], None] | None = None,
    ) -> list[Answered]:
        gate = asyncio.Semaphore(concurrency)
        async with self.async_http(concurrency) as http:

            async def gated(number: int, asked: Asked) -> Answered:
                async with gate:
                    answered = await one(asked, http)
                if on_answer is not None:
                    on_answer(number, answered)
                return answered

            tasks = [asyncio.ensure_future(gated(n, asked)) for n, asked in enumerate(batch)]
            try:
                return list(await asyncio.gather(*tasks))
            except BaseException:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise

    def metrics(self) -> dict[str, float]:
        """Return the engine's Prometheus metrics by name; see `read_metrics`."""
        with self._faults():
            answer = self._http.get("/metrics")
            raise_for_status(answer.status_code, answer.text)
            return read_metrics(answer.text)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Translate the errors of a request into errors of the engine."""
        try:
            yield
        except httpx.HTTPError as error:
            raise _unavailable(self.base_url, error) from error
        except ValueError as error:
            raise EngineError(f"{self.base_url} did not answer with JSON: {error}") from error


def _unavailable(base_url: str, error: httpx.HTTPError) -> EngineUnavailable:
    if isinstance(error, httpx.TimeoutException):
        return EngineUnavailable(f"{base_url} did not answer in time ({type(error).__name__})")
    return EngineUnavailable(f"{base_url} can't be reached: {error or type(error).__name__}")
