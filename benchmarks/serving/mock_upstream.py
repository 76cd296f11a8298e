"""An OpenAI-compatible server that answers at once, so that only a proxy before it costs time.

    python -m benchmarks.serving.mock_upstream

A stream sends its chunks at a steady pace, each with the moment at which it was sent. The server
takes a free port of the loopback interface and prints its address. It ends when its standard
input closes, that is when the process that started it ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

MODEL = "mock"
# As a fast engine streams: far enough apart that every chunk travels alone.
CHUNKS, PACE_S = 32, 0.003
ANSWER = "Your parcel is on its way and should reach you within two days."

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


_CHUNK = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
_MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
_MESSAGE = {"role": "assistant", "content": ANSWER}
_COMPLETION = json.dumps(
    {
        **_CHUNK,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": _MESSAGE, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 120, "completion_tokens": 14, "total_tokens": 134},
    }
).encode()


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer one request, as an ASGI application."""
    if scope["type"] != "http":
        return
    asked = b""
    while (message := await receive())["type"] == "http.request":
        asked += message.get("body", b"")
        if not message.get("more_body"):
            break
    chat = scope["path"] == "/v1/chat/completions"
    if chat and json.loads(asked).get("stream"):
        await _stream(send)
        return
    body = _COMPLETION if chat else _MODELS
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(CHUNKS):
        if number:
            await asyncio.sleep(PACE_S)
        await send(_event({"content": f"at {time.monotonic_ns()} ns "}))
    await send(_event({}, finish_reason="stop"))
    usage = {"prompt_tokens": 120, "completion_tokens": CHUNKS, "total_tokens": 120 + CHUNKS}
    last = b"data: " + json.dumps({**_CHUNK, "choices": [], "usage": usage}).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": last + b"data: [DONE]\n\n"})


def _event(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    body = b"data: " + json.dumps({**_CHUNK, "choices": [choice]}).encode() + b"\n\n"
    return {"type": "http.response.body", "body": body, "more_body": True}


def main() -> int:
    """Serve until standard input closes."""
    import uvicorn

    def leave_with_parent() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    # With the protocol named, asyncio turns Nagle's algorithm off; otherwise every answer of two
    # writes waits 40 ms for the client's acknowledgement.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    settings = uvicorn.Config(app, log_level="error", lifespan="off")
    threading.Thread(target=leave_with_parent, daemon=True).start()
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(settings).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
