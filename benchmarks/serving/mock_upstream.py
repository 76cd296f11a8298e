"""An OpenAI-compatible server that answers at once, so that only a proxy before it costs time.

    python -m benchmarks.serving.mock_upstream

It takes a free port of the loopback interface and prints its address. It ends when its standard
input closes, that is when the process that started it ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

MODEL = "mock"
ANSWER = "Your parcel is on its way and should reach you within two days."

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


def completion() -> dict[str, Any]:
    """Return its only answer."""
    return {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ANSWER},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 120, "completion_tokens": 14, "total_tokens": 134},
    }


_MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
_COMPLETION = json.dumps(completion()).encode()


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answer one request, as an ASGI application."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    chat = scope["path"] == "/v1/chat/completions"
    body = _COMPLETION if chat else _MODELS
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


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
