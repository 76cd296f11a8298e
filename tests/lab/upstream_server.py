"""A small OpenAI-compatible server on a real port, with the faults that real engines show."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

REFUSALS = {"error": 500, "busy": 429, "refuse": 401, "bad_request": 400, "too_long": 400}


class ServerThread:
    """A uvicorn server in a thread, on a free port."""

    def __init__(self, app: Starlette, port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True
        )
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the server did not start"
            time.sleep(0.005)

    def stop(self) -> None:
        self.server.should_exit = True
        self.server.force_exit = False
        self.thread.join(10)


class UpstreamServer:
    """A server that answers "word-0 word-1 …"; its attributes set its behaviour.

    mode: ok, hang (no answer), error (500), busy (429), refuse (401), bad_request (400),
    too_long (400, the prompt does not fit), garbage (200 without JSON), die_before (closes
    before a token), die_after (closes after two tokens), die_between (ends a stream with its first
    choice), stall_after (hangs after two tokens, comments go on), error_event, any (answers alike
    whatever is asked).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/lora-adapters", self._adapters),
            ]
        )
        self._thread: ServerThread | None = None
        self.port = 0
        self.reset()

    def reset(self) -> None:
        """Return to a healthy server without earlier requests."""
        self.mode = "ok"
        self.models = [f"{self.name}-model"]
        self.adapters = 2
        self.words = 5
        # The whole answer, instead of words.
        self.reply: str | None = None
        # The whole body of an answer, and the bytes of a stream, instead of anything sensible.
        self.body: bytes | None = None
        self.pieces: Callable[[], AsyncIterator[bytes]] | None = None
        self.logprob = -0.1
        self.sends_logprobs = True
        self.sends_usage = True
        # Fields of the usage that it reports instead of the true ones.
        self.false_usage: dict[str, object] = {}
        # Usage of all choices together (vLLM), or of `each`: one after the other in a stream, and
        # only one in a whole answer (llama.cpp).
        self.reports = "all"
        self.token_delay_s = 0.0
        self.answer_delay_s = 0.0
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cut_off = threading.Event()
        self.start()

    def start(self) -> None:
        if self._thread is None:
            self._thread = ServerThread(self.app, self.port)
            self.port = self._thread.port

    def stop(self) -> None:
        if self._thread:
            self._thread.stop()
            self._thread = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def requests(self) -> list[dict]:
        """Bodies of clients' requests, without the gateway's pings and warm-up."""
        return [body for body in self.bodies if not _is_own(body)]

    def pings(self) -> list[dict]:
        return [body for body in self.bodies if _is_own(body)]

    async def _models(self, request: Request) -> Response:
        if self.mode == "hang":
            await _until_left(request)
        return JSONResponse({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _adapters(self, _: Request) -> Response:
        return JSONResponse([{"id": place, "scale": 0.0} for place in range(self.adapters)])

    async def _noted(self, request: Request) -> dict:
        body = json.loads(await request.body())
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        return {"stream": body.get("stream")} if self.mode == "any" else body

    async def _chat(self, request: Request) -> Response:
        body = await self._noted(request)
        words = sum(len(str(m["content"]).split()) for m in body.get("messages", []))
        return await self._answer(request, body, 1, words, "chat.completion")

    async def _completions(self, request: Request) -> Response:
        body = await self._noted(request)
        prompt = body.get("prompt", "")
        prompts = prompt if isinstance(prompt, list) and isinstance(prompt[0], str) else [prompt]
        words = sum(len(str(one).split()) for one in prompts)
        return await self._answer(request, body, len(prompts), words, "text_completion")

    async def _answer(
        self, request: Request, body: dict, prompts: int, prompt: int, kind: str
    ) -> Response:
        if self.mode == "hang":
            await _until_left(request)
            self.cut_off.set()
        if self.mode in REFUSALS:
            error = {"message": "top_k must be a number", "type": "invalid_request_error"}
            if self.mode == "too_long":
                error = {"message": "context is too long", "type": "exceed_context_size_error"}
            return JSONResponse({"error": error}, REFUSALS[self.mode])
        if self.mode == "garbage":
            return Response("<html>not what you wanted</html>")
        streams = body.get("stream")
        if self.pieces is not None and streams:
            return StreamingResponse(self.pieces(), media_type="text/event-stream")
        if self.body is not None and not streams:
            return Response(self.body)
        if body.get("tools"):
            return self._tool_call(body)
        choices = prompts * (body.get("n") or 1)
        words = min(self.words, body.get("max_tokens") or self.words)
        counted = words * (choices if self.reports == "all" else 1)
        usage = {
            **_usage(prompt, counted),
            "prompt_tokens_details": {"cached_tokens": 1},
            **self.false_usage,
        }
        if streams:
            events = self._events(body, choices, (prompt, words), usage, kind)
            return StreamingResponse(events, media_type="text/event-stream")
        await asyncio.sleep(self.answer_delay_s)
        if self.mode in ("die_before", "die_after"):
            # A declared length that is never reached: the connection breaks inside the body.
            return StreamingResponse(_broken(), headers={"content-length": "1000"})
        made = [
            {
                "index": i,
                "finish_reason": "stop",
                **_part(kind, "message", self._text(words)),
                **self._logprobs(body, kind, range(words)),
            }
            for i in range(choices)
        ]
        answer = {"id": "a", "object": kind, "created": 1, "model": self.name, "choices": made}
        if self.sends_usage:
            answer["usage"] = usage
            self._count(prompt, counted)
        return JSONResponse(answer if self.reports == "all" else {**answer, "timings": {}})

    async def _events(
        self, body: dict, choices: int, sizes: tuple[int, int], usage: dict, kind: str
    ) -> AsyncIterator[bytes]:
        counts = self.sends_usage and (body.get("stream_options") or {}).get("include_usage")
        done, written, (prompt, words) = False, 0, sizes
        try:
            if kind == "chat.completion":
                yield _event({"index": 0, "delta": {"role": "assistant", "content": None}})
            for i in range(words):
                self._die_at(i)
                if self.mode == "error_event":
                    yield b'data: {"error": {"message": "slot failed", "code": 500}}\n\n'
                    return
                while i == 2 and self.mode == "stall_after":
                    yield b": still here\n\n"
                    await asyncio.sleep(0.05)
                if self.token_delay_s:
                    await asyncio.sleep(self.token_delay_s)
                for choice in range(choices):
                    written += 1
                    part = _part(kind, "delta", self._text(1, i))
                    yield _event({"index": choice, **part, **self._logprobs(body, kind, [i])})
            for choice in range(choices):
                if self.mode == "die_between" and choice == 1:
                    return
                end = {**_part(kind, "delta", ""), "finish_reason": "stop"}
                yield _event({"index": choice, **end})
                if counts and self.reports == "each":
                    yield _line({"choices": [], "usage": usage})
            if counts and self.reports == "all":
                yield _line({"choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"
            done = True
        finally:
            self._count(prompt, written)
            if not done:
                self.cut_off.set()

    def _die_at(self, word: int) -> None:
        if self.mode == "die_before" or (word == 2 and self.mode == "die_after"):
            raise RuntimeError("the engine died")

    def _tool_call(self, body: dict) -> Response:
        if any(message["role"] == "tool" for message in body["messages"]):
            return _whole({"role": "assistant", "content": "It rains."}, "stop", _usage(9, 3))
        name = body["tools"][0]["function"]["name"]
        call = {"id": "c1", "type": "function"}
        if body.get("stream"):
            return StreamingResponse(self._tool_events(call, name), media_type="text/event-stream")
        calls = [{**call, "function": {"name": name, "arguments": '{"city": "Ulm"}'}}]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        return _whole(message, "tool_calls", _usage(5, 4))

    async def _tool_events(self, call: dict, name: str) -> AsyncIterator[bytes]:
        first = {**call, "function": {"name": name, "arguments": ""}}
        for part in (first, *({"function": {"arguments": t}} for t in ('{"city": ', '"Ulm"}'))):
            delta = {"role": "assistant", "tool_calls": [{"index": 0, **part}]}
            yield _event({"index": 0, "delta": delta})
        yield _event({"index": 0, "finish_reason": "tool_calls", "delta": {}})
        if self.sends_usage:
            yield _line({"choices": [], "usage": _usage(5, 4)})
        yield b"data: [DONE]\n\n"

    def _text(self, words: int, first: int = 0) -> str:
        if self.reply is not None:
            return self.reply if first == 0 else ""
        return "".join(f"{self.name}-{first + i} " for i in range(words))

    def _logprobs(self, body: dict, kind: str, places) -> dict:
        if not body.get("logprobs") or not self.sends_logprobs:
            return {}
        if kind == "text_completion":
            return {"logprobs": {"token_logprobs": [self.logprob for _ in places]}}
        tokens = [{"token": f"t{i}", "logprob": self.logprob, "top_logprobs": []} for i in places]
        return {"logprobs": {"content": tokens}}

    def _count(self, prompt: int, completion: int) -> None:
        self.prompt_tokens += prompt
        self.completion_tokens += completion


async def _until_left(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.02)


def _is_own(body: dict) -> bool:
    content = str((body.get("messages") or [{}])[-1].get("content"))
    return content == "ping" or content.startswith("warm")


def _part(kind: str, part: str, text: str) -> dict:
    return (
        {"text": text}
        if kind == "text_completion"
        else {part: {"role": "assistant", "content": text}}
    )


def _usage(prompt: int, completion: int) -> dict:
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def _whole(message: dict, reason: str, usage: dict) -> Response:
    choice = {"index": 0, "message": message, "finish_reason": reason}
    answer = {"id": "a", "object": "chat.completion", "created": 1, "model": "m"}
    return JSONResponse({**answer, "choices": [choice], "usage": usage})


async def _broken() -> AsyncIterator[bytes]:
    yield b'{"choices": ['
    raise RuntimeError("the engine died")


def _line(payload: dict) -> bytes:
    extra = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**extra, **payload}).encode() + b"\n\n"


def _event(choice: dict) -> bytes:
    return _line({"choices": [{"finish_reason": None, **choice}]})
