"""A server with more of OpenAI's API than chat: completions, embeddings, tools, several choices."""

import asyncio
import json

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.lab.upstream_server import UpstreamServer


class ApiServer(UpstreamServer):
    """A server that answers as vLLM does, or as llama.cpp where that is said.

    mode: beside those of `UpstreamServer`, `any` (answers alike whatever is asked) and
    `die_between` (a stream that ends with its first choice).
    has_embeddings: False answers 501, as an engine does that was started without them.
    reports: `all` reports usage of all choices together (vLLM); `each` one after the other in a
    stream, and only one in a whole answer (llama.cpp).
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.app.router.routes[:0] = [
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
        ]

    def reset(self) -> None:
        self.has_embeddings = True
        self.reports = "all"
        super().reset()

    async def _chat(self, request: Request) -> Response:
        body = json.loads(await request.body())
        if self.mode == "any":
            return self._same(body, "chat.completion")
        choices = body.get("n") or 1
        if choices == 1 and not body.get("tools"):
            return await super()._chat(request)
        self._note(body, request)
        if body.get("tools"):
            return self._tool_call(body)
        return self._answer(body, choices, 7, "chat.completion")

    async def _completions(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self._note(body, request)
        if self.mode == "error":
            return JSONResponse({"error": {"message": "failed"}}, 500)
        if self.mode == "any":
            return self._same(body, "text_completion")
        prompt = body["prompt"]
        prompts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        choices = len(prompts) * (body.get("n") or 1)
        words = sum(len(str(one).split()) for one in prompts)
        return self._answer(body, choices, words, "text_completion")

    async def _embeddings(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self._note(body, request)
        if not self.has_embeddings:
            return JSONResponse({"error": {"code": 501, "message": "start with --embeddings"}}, 501)
        if self.mode == "any":
            return JSONResponse({"data": [], "usage": {"prompt_tokens": 1, "total_tokens": 1}})
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors = [
            {"object": "embedding", "index": i, "embedding": [float(len(text)), 0.5]}
            for i, text in enumerate(texts)
        ]
        words = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": words, "total_tokens": words}
        return JSONResponse({"object": "list", "model": "m", "data": vectors, "usage": usage})

    def _same(self, body: dict, kind: str) -> Response:
        return self._answer({"stream": body.get("stream")}, 1, 1, kind)

    def _note(self, body: dict, request: Request) -> None:
        body.setdefault("messages", [{"content": ""}])
        self.bodies.append(body)
        self.headers.append(dict(request.headers))

    def _answer(self, body: dict, choices: int, prompt: int, kind: str) -> Response:
        words = min(self.words, body.get("max_tokens") or self.words)
        counted = choices if self.reports == "all" else 1
        usage = _usage(prompt, words * counted) if self.sends_usage else None
        if body.get("stream"):
            return StreamingResponse(
                self._choice_events(body, choices, words, usage, kind),
                media_type="text/event-stream",
            )
        made = [
            {"index": i, "finish_reason": "stop", **self._part(kind, "message", self._text(words))}
            for i in range(choices)
        ]
        if body.get("logprobs"):
            for choice in made:
                choice["logprobs"] = {"token_logprobs": [self.logprob] * words}
        answer = {"id": "a", "object": kind, "choices": made, "usage": usage}
        return JSONResponse(answer if self.reports == "all" else {**answer, "timings": {}})

    async def _choice_events(self, body: dict, choices: int, words: int, usage: dict, kind: str):
        asked = (body.get("stream_options") or {}).get("include_usage")
        for word in range(words):
            for i in range(choices):
                part = self._part(kind, "delta", self._text(1, word))
                logprobs = {"token_logprobs": [self.logprob]} if body.get("logprobs") else None
                yield _event({"index": i, "finish_reason": None, "logprobs": logprobs, **part})
            await asyncio.sleep(self.token_delay_s)
        for i in range(choices):
            if self.mode == "die_between" and i == 1:
                return
            yield _event({"index": i, "finish_reason": "stop", **self._part(kind, "delta", "")})
            if asked and self.reports == "each":
                yield _line({"choices": [], "usage": usage})
        if asked and self.reports == "all":
            yield _line({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    @staticmethod
    def _part(kind: str, part: str, text: str) -> dict:
        if kind == "text_completion":
            return {"text": text}
        return {part: {"role": "assistant", "content": text}}

    def _tool_call(self, body: dict) -> Response:
        if any(message["role"] == "tool" for message in body["messages"]):
            text = "It rains."
            return _whole({"role": "assistant", "content": text}, "stop", _usage(9, 3))
        name = body["tools"][0]["function"]["name"]
        call = {"id": "c1", "type": "function"}
        if not body.get("stream"):
            function = {"name": name, "arguments": '{"city": "Ulm"}'}
            message = {"role": "assistant", "content": None}
            calls = [{**call, "function": function}]
            return _whole({**message, "tool_calls": calls}, "tool_calls", _usage(5, 4))
        return StreamingResponse(self._tool_events(call, name), media_type="text/event-stream")

    async def _tool_events(self, call: dict, name: str):
        for more in ({**call, "function": {"name": name, "arguments": ""}}, None):
            pieces = ['{"city": ', '"Ulm"}'] if more is None else [None]
            for piece in pieces:
                part = more or {"function": {"arguments": piece}}
                delta = {"role": "assistant", "tool_calls": [{"index": 0, **part}]}
                yield _event({"index": 0, "finish_reason": None, "delta": delta})
        yield _event({"index": 0, "finish_reason": "tool_calls", "delta": {}})
        if self.sends_usage:
            yield _line({"choices": [], "usage": _usage(5, 4)})
        yield b"data: [DONE]\n\n"


def _usage(prompt: int, completion: int) -> dict:
    total = prompt + completion
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def _whole(message: dict, reason: str, usage: dict) -> Response:
    choice = {"index": 0, "message": message, "finish_reason": reason}
    answer = {"id": "a", "object": "chat.completion", "created": 1, "model": "m"}
    return JSONResponse({**answer, "choices": [choice], "usage": usage})


def _line(payload: dict) -> bytes:
    extra = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**extra, **payload}).encode() + b"\n\n"


def _event(choice: dict) -> bytes:
    return _line({"choices": [choice]})
