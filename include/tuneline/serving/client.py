"""A client for OpenAI-compatible engines: single requests, batches and streams."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Self, TypeVar

import httpx

from tuneline.errors import RetryableError, TunelineError
from tuneline.models.tool_turns import plain_answer, request_fields
from tuneline.serving.protocol import (
    DONE,
    SseParser,
    Usage,
    is_overflow,
    read_metrics,
    reported_usage,
)

Messages = Sequence[Mapping[str, str]]

# Long enough for a full answer of a small model on a busy laptop.
DEFAULT_TIMEOUT = 300.0
# Models are measured greedily, and released to be asked so.
TEMPERATURE = 0.0
CHAT_PATH, _CONTINUE = "/v1/chat/completions", "/v1/completions"
# llama.cpp's server may close a kept connection while the next request is written to it, which
# then fails. A new connection costs a fraction of a millisecond.
_KEPT_CONNECTIONS = 0
Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class EngineError(TunelineError):
    """The engine refused a request or broke its protocol."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ContextOverflow(EngineError):
    """The prompt is longer than the engine's context."""


class EngineUnavailable(RetryableError):
    """The engine can't be reached, is still loading, or timed out."""


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token: its text and its natural-log probability."""

    token: str
    logprob: float


@dataclass(frozen=True)
class ChatResult:
    """One answer; times in seconds from sending.

    Attributes:
        ttft: time to the first content; None without streaming.
        chunk_times: time of each content chunk; empty without streaming.
    """

    text: str
    finish_reason: str
    usage: Usage
    ttft: float | None
    total: float
    chunk_times: tuple[float, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def cut(self) -> bool:
        """True if the limit of tokens ended the answer."""
        return self.finish_reason == "length"


def parse_answer(document: Mapping[str, Any], total: float) -> ChatResult:
    """Read a chat completion that was not streamed.

    Raises:
        EngineError: if the document is not a chat completion.
    """
    try:
        choice = document["choices"][0]
        message = choice["message"]
        thought = message.get("reasoning_content") or message.get("reasoning")
        calls = message.get("tool_calls") or ()
        # Of a thought that took all tokens, no other answer is left.
        content = message["content"] or (f"<think>{thought}" if thought and not calls else "")
        text = plain_answer(content, calls)
    except (KeyError, IndexError, TypeError):
        raise EngineError(f"the engine's answer is not a chat completion: {document}") from None
    return ChatResult(
        text=text,
        finish_reason=str(choice.get("finish_reason")),
        ttft=None,
        total=total,
        logprobs=tuple(_logprobs(choice)),
        usage=reported_usage(document) or Usage(),
    )


def _continuation(document: Mapping[str, Any]) -> str:
    try:
        return str(document["choices"][0]["text"])
    except (KeyError, IndexError, TypeError):
        raise EngineError(f"the engine's answer is not a text completion: {document}") from None


class StreamCollector:
    """Collects a stream of chat chunks (server-sent events) with the time of each."""

    def __init__(self, started: float) -> None:
        """Start collecting; `started` is the `time.perf_counter()` of the request."""
        self._started = started
        self._parts: list[str] = []
        self._calls: defaultdict[int, defaultdict[str, str]] = defaultdict(lambda: defaultdict(str))
        self._times: list[float] = []
        self._logprobs: list[TokenLogprob] = []
        self._usage = Usage()
        self._parser = SseParser()
        self._finish = ""
        self._complete = False

    def feed(self, data: bytes, at: float | None = None) -> None:
        """Take bytes of the stream, which came at a `time.perf_counter()`; None for now.

        Raises:
            EngineError: if the engine reported an error in the stream.
            ValueError: if an event is not JSON.
        """
        for event in self._parser.feed(data):
            if event == DONE:
                self._complete = True
            else:
                self._take(json.loads(event), time.perf_counter() if at is None else at)

    def _take(self, document: Mapping[str, Any], at: float) -> None:
        if "error" in document:
            raise EngineError(f"the engine broke off: {document['error']}")
        self._usage = reported_usage(document) or self._usage
        for choice in document.get("choices", []):
            delta = choice.get("delta", {})
            calls = delta.get("tool_calls") or []
            for call in calls:
                for name, text in (call.get("function") or {}).items():
                    self._calls[call.get("index", 0)][name] += text or ""
            if (content := delta.get("content") or "") or calls:
                self._parts.append(content)
                self._times.append(at - self._started)
            self._logprobs.extend(_logprobs(choice))
            self._finish = choice.get("finish_reason") or self._finish

    @property
    def begun(self) -> bool:
        """Whether a part of the answer is there."""
        return bool(self._times)

    def result(self, ended: float | None = None) -> ChatResult:
        """Return the whole answer.

        Raises:
            EngineError: if the stream ended before its end mark.
        """
        if not self._complete:
            raise EngineError("the engine's stream ended before its end mark")
        return ChatResult(
            text=plain_answer(
                "".join(self._parts), [{"function": c} for c in self._calls.values()]
            ),
            finish_reason=self._finish,
            ttft=self._times[0] if self._times else None,
            total=(time.perf_counter() if ended is None else ended) - self._started,
            chunk_times=tuple(self._times),
            logprobs=tuple(self._logprobs),
            usage=self._usage,
        )


def _logprobs(choice: Mapping[str, Any]) -> Iterator[TokenLogprob]:
    for entry in (choice.get("logprobs") or {}).get("content") or []:
        yield TokenLogprob(str(entry["token"]), float(entry["logprob"]))


def _error(text: str) -> dict[str, Any]:
    """Return the error in an answer; trtllm-serve does not wrap it in `error`."""
    try:
        document = json.loads(text)
        error = document.get("error", document)
    except (ValueError, AttributeError):
        return {}
    return error if isinstance(error, dict) else {"message": str(error)}


def raise_for_status(status: int, text: str) -> None:
    """Raise the exception for an engine's error answer: too long, busy or loading, or any other."""
    if status < 400:
        return
    error = _error(text)
    message = str(error.get("message") or text[:200] or f"status {status}")
    if is_overflow({**error, "message": message}):
        raise ContextOverflow(f"the prompt does not fit the engine's context: {message}", status)
    if status in (429, 502, 503, 504):
        raise EngineUnavailable(f"the engine answered {status}: {message}")
    raise EngineError(f"the engine answered {status}: {message}", status)


class EngineClient:
    """A client of one engine, for several threads."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str = "default",
        timeout: float = DEFAULT_TIMEOUT,
        fields: Mapping[str, Any] | None = None,
        chat_fields: Mapping[str, Any] | None = None,
        tool_fields: Mapping[str, Any] | None = None,
        api_key: str | None = None,
    ) -> None:
        """Create a client.

        Args:
            base_url: `http://host:port`, without `/v1`.
            timeout: time without a byte after which a request fails, in seconds.
            fields: more fields of every request; the request's own take precedence. They choose an
                adapter.
            chat_fields: more fields of every chat: its template's switches.
            tool_fields: more fields of those that declare tools.
        """
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.fields = dict(fields or {})
        self.chat_fields, self.tool_fields = dict(chat_fields or {}), dict(tool_fields or {})
        self.timeout = timeout
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(
            base_url=self.base_url,
            headers=self.headers,
            timeout=httpx.Timeout(timeout, connect=10.0),
            limits=httpx.Limits(max_keepalive_connections=_KEPT_CONNECTIONS),
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def chat(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        stream: bool = False,
        on_begin: Callable[[], None] | None = None,
        **options: Any,
    ) -> ChatResult:
        """Ask for one chat completion; `options` are the other fields of `chat_body`.

        Args:
            stream: whether to stream the answer; needed for `ttft`.
            on_begin: called once when the first part of a streamed answer is there.

        Raises:
            ContextOverflow: if the prompt is too long.
            EngineError: if the engine refused the request or broke the protocol.
            EngineUnavailable: if it can't be reached, is loading, or timed out.
        """
        body = self.chat_body(messages, max_tokens=max_tokens, stream=stream, **options)
        started = time.perf_counter()
        with self._faults():
            if not stream:
                answer = self._http.post(CHAT_PATH, json=body)
                raise_for_status(answer.status_code, answer.text)
                return parse_answer(answer.json(), time.perf_counter() - started)
            with self._http.stream("POST", CHAT_PATH, json=body) as response:
                if response.status_code >= 400:
                    raise_for_status(response.status_code, response.read().decode(errors="replace"))
                collector = StreamCollector(started)
                for data in response.iter_bytes():
                    collector.feed(data)
                    if on_begin is not None and collector.begun:
                        on_begin()
                        on_begin = None
                return collector.result()

    def chat_body(
        self,
        messages: Messages,
        *,
        max_tokens: int,
        temperature: float = TEMPERATURE,
        seed: int | None = 0,
        logprobs: bool = False,
        stream: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the JSON body of a request, greedy and with a fixed seed by default."""
        body: dict[str, Any] = {
            "model": self.model,
            **request_fields(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": stream,
            **self.chat_fields,
        }
        if "tools" in body:
            body |= self.tool_fields
        if seed is not None:
            body["seed"] = seed
        if logprobs:
            body["logprobs"] = True
        if stream:
            body["stream_options"] = {"include_usage": True}
        return {**body, **self.fields, **(extra or {})}

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
            on_answer: called with the number of a prompt and its result, as soon as it is there.

        Raises:
            TunelineError: if a request failed; those that wait are cancelled.
        """

        def one(messages: Messages) -> ChatResult:
            return self.chat(messages, **options)

        return _batch(one, batch, concurrency, on_answer)

    def continue_batch(
        self, batch: Sequence[Sequence[int]], *, concurrency: int, max_tokens: int
    ) -> list[str]:
        """Go on from many sequences of token ids, greedily; texts in the order of the sequences.

        The engine adds nothing to the ids, neither a chat template nor a first token.

        Args:
            batch: token ids of each sequence.
            concurrency: number of requests in flight (a closed loop).
            max_tokens: length limit of a continuation, in tokens.

        Raises:
            TunelineError: if a request failed; those that wait are cancelled.
        """

        def one(ids: Sequence[int]) -> str:
            body = {"model": self.model, "prompt": list(ids), "max_tokens": max_tokens}
            body |= {"temperature": TEMPERATURE, "seed": 0, **self.fields}
            with self._faults():
                answer = self._http.post(_CONTINUE, json=body)
                raise_for_status(answer.status_code, answer.text)
                return _continuation(answer.json())

        return _batch(one, batch, concurrency)

    def metrics(self) -> dict[str, float]:
        """Return the engine's Prometheus metrics by name; see `read_metrics`."""
        with self._faults():
            answer = self._http.get("/metrics")
            raise_for_status(answer.status_code, answer.text)
            return read_metrics(answer.text)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            why = f"{self.base_url} did not answer in time ({type(error).__name__})"
            raise EngineUnavailable(why) from error
        except httpx.HTTPError as error:
            why = f"{self.base_url} can't be reached: {error or type(error).__name__}"
            raise EngineUnavailable(why) from error
        except ValueError as error:
            raise EngineError(f"{self.base_url} did not answer with JSON: {error}") from error


def _batch(
    one: Callable[[Asked], Answered],
    batch: Sequence[Asked],
    concurrency: int,
    on_answer: Callable[[int, Answered], None] | None = None,
) -> list[Answered]:
    """Ask for each of a batch in threads; `on_answer` is called in this one.

    The threads are daemons: after a failure no process waits for the requests under way.
    """
    waiting = deque(enumerate(batch))
    done: SimpleQueue[tuple[int, Answered | None, Exception | None]] = SimpleQueue()

    def ask() -> None:
        with suppress(IndexError):
            while True:
                number, asked = waiting.popleft()
                try:
                    done.put((number, one(asked), None))
                except Exception as error:
                    done.put((number, None, error))

    for _ in range(min(concurrency, len(batch))):
        threading.Thread(target=ask, daemon=True).start()
    answers: dict[int, Any] = {}
    try:
        while len(answers) < len(batch):
            number, answered, error = done.get()
            if error is not None:
                raise error
            answers[number] = answered
            if on_answer is not None:
                on_answer(number, answers[number])
    finally:
        waiting.clear()
    return [answers[number] for number in range(len(batch))]
