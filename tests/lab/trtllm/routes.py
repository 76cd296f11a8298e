"""The routes of trtllm-serve, in front of a llama.cpp server that computes."""

import asyncio
import json
import os
import socket
import subprocess
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from jinja2 import Environment
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer

# Others are refused: the release's models forbid extra fields.
_BOTH = """model logprobs max_tokens n seed stop stream stream_options temperature top_p user top_k
min_p repetition_penalty ignore_eos min_tokens frequency_penalty presence_penalty lora_request
add_special_tokens response_format echo skip_special_tokens stop_token_ids"""
_CHAT = {*_BOTH.split(), "messages", "max_completion_tokens", "top_logprobs", "tools"}
_CHAT |= {"tool_choice", "add_generation_prompt", "chat_template", "chat_template_kwargs"}
_COMPLETION = {*_BOTH.split(), "prompt", "detokenize", "return_context_logits"}
# The release waits two seconds for a step; shorter here, since many servers are started.
_STATS_SECONDS = 0.2
_KEPT_STEPS = 1000


class Refusal(Exception):
    """A request that is answered with 400."""


class Server:
    """The routes and what they share."""

    def __init__(
        self, worker: subprocess.Popen[str], name: str, limits: Mapping[str, Any], folder: Path
    ) -> None:
        self.worker, self.name, self.limits = worker, name, limits
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        # Without the model's config.json the release answers no chat.
        self.chats = (folder / "config.json").is_file()
        template = folder / "chat_template.jinja"
        source = (
            template.read_text()
            if template.exists()
            else json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
        )
        self.template = Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
        self.http: httpx.AsyncClient
        self.active, self.finished, self.iteration = 0, 0, 0
        self.seen: dict[str, float] = {}
        self.steps: deque[dict[str, Any]] = deque(maxlen=_KEPT_STEPS)

    async def health(self, _: Request) -> Response:
        if self.worker.poll() is None:
            return Response(status_code=200)
        return Response("LLM is unavailable. Please check the server logs.", status_code=503)

    async def health_generate(self, _: Request) -> Response:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "temperature": 0}
        try:
            await self.generate(self.rendered(body), body)
        except (Refusal, httpx.HTTPError) as error:
            return Response(f"Generation health check failed: {error}", status_code=500)
        return Response("Generation health check OK")

    async def version(self, _: Request) -> Response:
        return JSONResponse({"version": os.environ["TRTLLM_LAB_VERSION"]})

    async def models(self, _: Request) -> Response:
        card = {"id": self.name, "object": "model", "created": 0, "owned_by": "tensorrt_llm"}
        return JSONResponse({"object": "list", "data": [card]})

    async def metrics(self, _: Request) -> Response:
        await self.collect()
        if not self.steps:
            await asyncio.sleep(_STATS_SECONDS)
            await self.collect()
        found = list(self.steps)
        self.steps.clear()
        return JSONResponse(found)

    async def collect(self) -> None:
        """Turn the worker's counters since the last look into the release's steps."""
        text = (await self.http.get("/metrics")).text
        lines = (line.split(" ") for line in text.splitlines() if not line.startswith("#"))
        now = {name: float(value) for name, value in lines}
        names = ("prompt_tokens_total", "tokens_predicted_total", "n_decode_total")
        prompt, tokens, decodes = (
            int(now[f"llamacpp:{name}"] - self.seen.get(f"llamacpp:{name}", 0.0)) for name in names
        )
        self.seen = now
        contexts, self.finished = min(self.finished, tokens), 0
        if not prompt + tokens:
            return
        left, steps = tokens - contexts, max(decodes - 1, 1)
        batches = [(contexts, 0)] if contexts else []
        batches += [(0, left // steps + (n < left % steps)) for n in range(steps)] if left else []
        for number, (context, running) in enumerate(batches):
            self.iteration += 1
            self.steps.append(self.step(context, running, prompt if number == 0 else 0))

    def step(self, contexts: int, running: int, prompt: int) -> dict[str, Any]:
        return {
            "iter": self.iteration,
            "iterLatencyMS": 1.0,
            "gpuMemUsage": 10**9,
            "numActiveRequests": self.active,
            "numQueuedRequests": 0,
            "maxNumActiveRequests": self.limits["max_batch_size"],
            "kvCacheStats": {"usedNumBlocks": 1, "freeNumBlocks": 9, "reusedBlocks": 0},
            "inflightBatchingStats": {
                "numContextRequests": contexts,
                "numGenRequests": running,
                "numScheduledRequests": contexts + running,
                "numPausedRequests": 0,
                "numCtxTokens": prompt,
                "microBatchId": 0,
            },
        }

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        if unknown := set(body) - _CHAT:
            # The answer of the release's handler for requests that do not fit its models.
            return JSONResponse({"error": f"{unknown}: Extra inputs are not permitted"}, 400)
        if body.get("stream_options") and not body.get("stream"):
            return JSONResponse({"error": "Stream options need stream"}, 400)
        try:
            if (body.get("top_logprobs") or 0) > 1:
                raise Refusal("`logprobs` must be 1 or `gather_generation_logits` must be `True`")
            ids = self.rendered(body)
            if body.get("stream"):
                stream = self.stream(ids, body)
                return StreamingResponse(stream, media_type="text/event-stream")
            answer = await self.generate(ids, body)
        except Refusal as error:
            return refused(str(error))
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": answer["text"], "tool_calls": []},
            "logprobs": {"content": answer["logprobs"]} if body.get("logprobs") else None,
            "finish_reason": answer["finish"],
            "stop_reason": None,
        }
        return JSONResponse(
            {**self.head("chat.completion"), "choices": [choice], "usage": answer["usage"]}
        )

    async def completion(self, request: Request) -> Response:
        body = await request.json()
        if unknown := set(body) - _COMPLETION:
            return JSONResponse({"error": f"{unknown}: Extra inputs are not permitted"}, 400)
        try:
            if (body.get("logprobs") or 0) > 1:
                raise Refusal("`logprobs` must be 1 or `gather_generation_logits` must be `True`")
            prompt = body["prompt"]
            ids = prompt if isinstance(prompt, list) else self.encode(prompt)
            answer = await self.generate(ids, body)
        except Refusal as error:
            return refused(str(error))
        choice = {"index": 0, "text": answer["text"], "finish_reason": answer["finish"]}
        return JSONResponse(
            {**self.head("text_completion"), "choices": [choice], "usage": answer["usage"]}
        )

    def rendered(self, body: Mapping[str, Any]) -> list[int]:
        if not self.chats:
            raise Refusal("'NoneType' object has no attribute 'model_type'")
        text = self.template.render(messages=body["messages"], add_generation_prompt=True)
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def asked(self, ids: list[int], body: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
        """The worker's request; refused if it does not fit the engine."""
        longest = self.limits["max_seq_len"]
        asked = body.get("max_tokens") or body.get("max_completion_tokens") or longest - len(ids)
        if len(ids) + asked > longest:
            raise Refusal(
                f"The sum of prompt length ({len(ids)}) and query length (0) max_tokens ({asked}) "
                f"should not exceed max_seq_len ({longest})"
            )
        temperature = body.get("temperature")
        return {
            "prompt": ids,
            "n_predict": asked,
            "temperature": 1.0 if temperature is None else temperature,
            "seed": -1 if body.get("seed") is None else body["seed"],
            "ignore_eos": bool(body.get("ignore_eos")),
            "n_probs": 1 if body.get("logprobs") else 0,
            "stream": stream,
        }

    async def generate(self, ids: list[int], body: Mapping[str, Any]) -> dict[str, Any]:
        asked = self.asked(ids, body, stream=False)
        if os.environ.get("TRTLLM_LAB_MUTE"):
            return self.answer(ids, {"timings": {"prompt_n": len(ids)}, "tokens_predicted": 0})
        self.active += 1
        try:
            found = (await self.http.post("/completion", json=asked)).json()
        finally:
            self.active -= 1
            self.finished += 1
        return self.answer(ids, found)

    def answer(self, ids: list[int], found: Mapping[str, Any]) -> dict[str, Any]:
        tokens = found["tokens_predicted"]
        cached = len(ids) - found["timings"]["prompt_n"]
        return {
            "text": found.get("content", ""),
            "finish": "length" if found.get("stop_type") == "limit" else "stop",
            "logprobs": logprobs(found),
            "usage": {
                "prompt_tokens": len(ids),
                "completion_tokens": tokens,
                "total_tokens": len(ids) + tokens,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
        }

    async def stream(self, ids: list[int], body: Mapping[str, Any]) -> AsyncIterator[str]:
        head = self.head("chat.completion.chunk")

        def chunk(**fields: Any) -> str:
            return f"data: {json.dumps({**head, 'usage': None, **fields})}\n\n"

        asked = self.asked(ids, body, stream=True)
        first = {"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}
        yield chunk(choices=[first])
        self.active += 1
        try:
            async with self.http.stream("POST", "/completion", json=asked) as answer:
                async for line in answer.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    found = json.loads(line.removeprefix("data:"))
                    choice = {"index": 0, "delta": {"content": found["content"]}}
                    choice["finish_reason"] = None
                    if found["stop"]:
                        whole = self.answer(ids, found)
                        choice["finish_reason"] = whole["finish"]
                    yield chunk(choices=[choice])
        finally:
            self.active -= 1
            self.finished += 1
        if (body.get("stream_options") or {}).get("include_usage", True):
            yield chunk(choices=[], usage=whole["usage"])
        yield "data: [DONE]\n\n"

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.name,
        }


def logprobs(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The probabilities of the generated tokens."""
    return [
        {"token": entry["token"], "logprob": entry["logprob"], "bytes": None, "top_logprobs": []}
        for entry in found.get("completion_probabilities") or []
    ]


def refused(message: str) -> JSONResponse:
    """The release's error, which is not wrapped in `error`."""
    body = {"object": "error", "message": message, "type": "BadRequestError", "param": None}
    return JSONResponse({**body, "code": 400}, 400)


def run(
    listener: socket.socket,
    url: str,
    worker: subprocess.Popen[str],
    name: str,
    limits: Mapping[str, Any],
    tokenizer: Path,
    statistics: bool,
) -> None:
    """Serve until SIGTERM; running answers are finished."""
    server = Server(worker, name, limits, tokenizer)
    routes = [
        Route("/health", server.health),
        Route("/health_generate", server.health_generate),
        Route("/version", server.version),
        Route("/v1/models", server.models),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.completion, methods=["POST"]),
    ]
    if statistics:
        routes.append(Route("/metrics", server.metrics))

    async def serve() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as http:
            server.http = http
            options = uvicorn.Config(Starlette(routes=routes), log_level="warning")
            await uvicorn.Server(options).serve(sockets=[listener])

    asyncio.run(serve())
