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
    before a token), die_after (closes after two tokens), stall_after (hangs after two tokens,
    comments go on), error_event.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
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

    async def _chat(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if self.mode == "hang":
            await _until_left(request)
            self.cut_off.set()
        refusals = {"error": 500, "busy": 429, "refuse": 401, "bad_request": 400, "too_long": 400}
        if self.mode in refusals:
            error = {"message": "top_k must be a number", "type": "invalid_request_error"}
            if self.mode == "too_long":
                error = {"message": "context is too long", "type": "exceed_context_size_error"}
            return JSONResponse({"error": error}, refusals[self.mode])
        if self.mode == "garbage":
            return Response("<html>not what you wanted</html>")
        if self.pieces is not None and body.get("stream"):
            return StreamingResponse(self.pieces(), media_type="text/event-stream")
        if self.body is not None and not body.get("stream"):
            return Response(self.body)
        words = min(self.words, body.get("max_tokens") or self.words)
        prompt = sum(len(message["content"].split()) for message in body["messages"])
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": words,
            "total_tokens": prompt + words,
            "prompt_tokens_details": {"cached_tokens": 1},
            **self.false_usage,
        }
        if body.get("stream"):
            return StreamingResponse(
                self._events(body, words, prompt, usage), media_type="text/event-stream"
            )
        await asyncio.sleep(self.answer_delay_s)
        if self.mode in ("die_before", "die_after"):
            # A declared length that is never reached: the connection breaks inside the body.
            return StreamingResponse(_broken(), headers={"content-length": "1000"})
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self._text(words)},
            "finish_reason": "stop",
        }
        if body.get("logprobs") and self.sends_logprobs:
            choice["logprobs"] = {"content": [self._logprob(i) for i in range(words)]}
        answer = {"id": "a", "object": "chat.completion", "model": self.name, "choices": [choice]}
        if self.sends_usage:
            answer["usage"] = usage
            self._count(prompt, words)
        return JSONResponse(answer)

    async def _events(
        self, body: dict, words: int, prompt: int, usage: dict
    ) -> AsyncIterator[bytes]:
        done = False
        written = 0
        try:
            yield _event(delta={"role": "assistant", "content": None})
            for i in range(words):
                if self.mode == "die_before":
                    raise RuntimeError("the engine died")
                if self.mode == "error_event":
                    yield b'data: {"error": {"message": "slot failed", "code": 500}}\n\n'
                    return
                if i == 2 and self.mode == "die_after":
                    raise RuntimeError("the engine died")
                while i == 2 and self.mode == "stall_after":
                    yield b": still here\n\n"
                    await asyncio.sleep(0.05)
                if self.token_delay_s:
                    await asyncio.sleep(self.token_delay_s)
                extra = {}
                if body.get("logprobs") and self.sends_logprobs:
                    extra = {"logprobs": {"content": [self._logprob(i)]}}
                written += 1
                yield _event(delta={"content": self._text(1, i)}, **extra)
            yield _event(delta={}, finish_reason="stop")
            if self.sends_usage and (body.get("stream_options") or {}).get("include_usage"):
                yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"
            done = True
            self._count(prompt, words)
        finally:
            if not done:
                self._count(prompt, written)
                self.cut_off.set()

    def _text(self, words: int, first: int = 0) -> str:
        if self.reply is not None:
            return self.reply if first == 0 else ""
        return "".join(f"{self.name}-{first + i} " for i in range(words))

    def _logprob(self, i: int) -> dict:
        return {"token": f"t{i}", "logprob": self.logprob, "top_logprobs": []}

    def _count(self, prompt: int, completion: int) -> None:
        self.prompt_tokens += prompt
        self.completion_tokens += completion


async def _until_left(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.02)


def _is_own(body: dict) -> bool:
    content = str(body["messages"][-1]["content"])
    return content == "ping" or content.startswith("warm")


async def _broken() -> AsyncIterator[bytes]:
    yield b'{"choices": ['
    raise RuntimeError("the engine died")


def _event(*, delta: dict, finish_reason: str | None = None, **extra: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **extra}
    return (
        b"data: "
        + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode()
        + b"\n\n"
    )
