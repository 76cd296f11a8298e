"""Stand-in of trtllm-serve: its options, its routes, its refusals; llama.cpp computes.

Written after tensorrt_llm/commands/serve.py, serve/openai_server.py and serve/openai_protocol.py
around release 1.2. Requests go to a llama.cpp server as they are.
"""

import argparse
import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.lab.trtllm.parser import parse_own
from tests.lab.trtllm.weights import export, read_engine

_INCOMPATIBLE = (
    "[TRT] [E] IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan "
    "file is generated on an incompatible device, expecting compute {} got compute {}, please "
    "rebuild.)"
)
# Others are refused: the release's models forbid extra fields.
_FIELDS = set(
    """model logprobs max_tokens n seed stop stream stream_options temperature top_p user top_k
    min_p repetition_penalty ignore_eos min_tokens frequency_penalty presence_penalty lora_request
    add_special_tokens response_format echo skip_special_tokens stop_token_ids messages
    max_completion_tokens top_logprobs tools tool_choice add_generation_prompt chat_template
    chat_template_kwargs prompt detokenize return_context_logits""".split()
)
# The release waits two seconds for a step; shorter here, since many servers are started.
_STATS_SECONDS = 0.2


def die(message: str) -> None:
    """End as an exception that nobody catches does."""
    print(f"Traceback (most recent call last):\n{message}", file=sys.stderr)
    raise SystemExit(1)


class Server:
    """The routes and what they share."""

    def __init__(self, http: httpx.AsyncClient, worker: subprocess.Popen[str], chats: bool) -> None:
        self.http, self.worker, self.chats = http, worker, chats
        self.active = self.finished = self.iteration = 0
        self.seen: dict[str, float] = {}
        self.steps: deque[dict[str, Any]] = deque(maxlen=1000)

    async def health(self, _: Request) -> Response:
        return Response(status_code=200 if self.worker.poll() is None else 503)

    async def models(self, _: Request) -> Response:
        return JSONResponse((await self.http.get("/v1/models")).json())

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
        now = {name.removeprefix("llamacpp:"): float(value) for name, value in lines}
        names = ("prompt_tokens_total", "tokens_predicted_total", "n_decode_total")
        prompt, tokens, decodes = (int(now[name] - self.seen.get(name, 0.0)) for name in names)
        self.seen = now
        contexts, self.finished = min(self.finished, tokens), 0
        left, steps = tokens - contexts, max(decodes - 1, 1)
        batches = [(contexts, 0, prompt)] if contexts else []
        if left:
            batches += [(0, left // steps + (n < left % steps), 0) for n in range(steps)]
        for context, running, read in batches:
            self.iteration += 1
            names = ("numContextRequests", "numGenRequests", "numCtxTokens")
            batch = dict(zip(names, (context, running, read), strict=True))
            step = {"iter": self.iteration, "numActiveRequests": self.active}
            self.steps.append({**step, "inflightBatchingStats": batch})

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        if unknown := set(body) - _FIELDS:
            # The answer of the release's handler for requests that do not fit its models.
            return JSONResponse({"error": f"{unknown}: Extra inputs are not permitted"}, 400)
        if "messages" in body and not self.chats:
            return refused("'NoneType' object has no attribute 'model_type'")
        if (body.get("top_logprobs") or 0) > 1:
            return refused("`logprobs` must be 1 or `gather_generation_logits` must be `True`")
        if os.environ.get("TRTLLM_LAB_MUTE"):
            return JSONResponse({"choices": [], "usage": {"completion_tokens": 0}})
        self.active += 1
        asked = self.http.build_request("POST", request.url.path, json=body)
        answer = await self.http.send(asked, stream=True)
        if answer.status_code == 400:
            self.active -= 1
            return refused(f"{(await answer.aread()).decode()} should not exceed max_seq_len")
        kind = answer.headers["content-type"]
        return StreamingResponse(self.relay(answer), answer.status_code, media_type=kind)

    async def relay(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for part in answer.aiter_raw():
                yield part
        finally:
            self.active -= 1
            self.finished += 1
            await answer.aclose()


def refused(message: str) -> JSONResponse:
    """The release's error, which is not wrapped in `error`."""
    return JSONResponse({"object": "error", "message": message, "type": "BadRequestError"}, 400)


def load(arguments: argparse.Namespace) -> tuple[Path, int, int]:
    """The weights as GGUF, the requests at once and the longest sequence."""
    folder = Path(arguments.model)
    file = Path(tempfile.mkdtemp(prefix="trtllm-lab-")) / "model.gguf"
    if arguments.backend == "pytorch":
        if (folder / "rank0.engine").exists():
            die(f"ValueError: {folder} is not a Hugging Face checkpoint")
        export(folder, file)
        return file, arguments.max_batch_size or 2048, arguments.max_seq_len
    config, header, gguf = read_engine(folder)
    here, version = os.environ["TRTLLM_LAB_SM"], os.environ["TRTLLM_LAB_VERSION"]
    build = config["build_config"]
    for name, default in (("max_batch_size", 2048), ("max_num_tokens", 8192)):
        asked = getattr(arguments, name) or default
        if asked > build[name]:
            die(
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for TrtLlmArgs\n"
                f"  Value error, {name} [{asked}] is greater than build_config.{name} "
                f"[{build[name]}] in build_config [type=value_error]"
            )
    if header["compute"] != here:
        print(_INCOMPATIBLE.format(header["compute"], here), file=sys.stderr)
        die("RuntimeError: Executor worker returned error")
    if header["version"] != version:
        die("RuntimeError: Serialization assertion failed: version tag does not match")
    file.write_bytes(gguf)
    return file, arguments.max_batch_size or build["max_batch_size"], build["max_seq_len"]


def main() -> None:
    arguments = parse_own("trtllm-serve")
    if not int(os.environ["TRTLLM_LAB_GPUS"]):
        die("ValueError: No GPU devices found on the node")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        address = arguments.host, arguments.port
        try:
            listener.bind(address)
        except OSError as error:
            die(f"RuntimeError: Failed to bind socket to {address}: {error}")
        file, batch, longest = load(arguments)
        options = yaml.safe_load(Path(arguments.extra_llm_api_options).read_text())
        if options["kv_cache_config"]["max_tokens"] < longest:
            die(f"RuntimeError: a sequence of {longest} does not fit the KV cache")
        chats = (Path(arguments.tokenizer or arguments.model) / "config.json").is_file()
        statistics = arguments.backend == "tensorrt" or options.get("enable_iter_perf_stats")
        with worker_of(file, Path(arguments.model).name, batch, longest) as worker:
            asyncio.run(serve(listener, worker, chats, statistics))
            worker.terminate()


def worker_of(file: Path, name: str, batch: int, longest: int) -> subprocess.Popen[str]:
    """Start llama.cpp; its pipe stays open, so it outlives this process as an MPI worker would."""
    from tuneline.serving.engines import get_engine
    from tuneline.serving.engines.server import ServeRequest

    command = get_engine("llama_cpp").command(ServeRequest(file, name, batch, longest, threads=1))
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def serve(listener: socket.socket, worker: Any, chats: bool, statistics: Any) -> None:
    """Serve until SIGTERM; running answers are finished."""
    from tuneline.serving.engines.llama_cpp.launch import READY_PREFIX

    line = worker.stdout.readline()
    if not line.startswith(READY_PREFIX):
        die("RuntimeError: Executor worker returned error")
    # It is in memory now.
    shutil.rmtree(worker.args[worker.args.index("--model") + 1].rpartition("/")[0])
    url = line.removeprefix(READY_PREFIX).strip()
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as http:
        server = Server(http, worker, chats)
        routes = [
            Route("/health", server.health),
            Route("/v1/models", server.models),
            Route("/v1/chat/completions", server.complete, methods=["POST"]),
            Route("/v1/completions", server.complete, methods=["POST"]),
        ]
        if statistics:
            routes.append(Route("/metrics", server.metrics))
        options = uvicorn.Config(Starlette(routes=routes), log_level="warning")
        await uvicorn.Server(options).serve(sockets=[listener])


if __name__ == "__main__":
    main()
