"""Probe an engine's pod: does it generate tokens?

    python -m tuneline.serving.probes.engine_probe live --url http://127.0.0.1:8081 --timeout 5

A health route alone proves little: vLLM's has answered 200 after a GPU fault
(vllm-project/vllm#36960). Both probes therefore require tokens. A busy engine must be neither
killed nor taken out of service, so its counters are read first: if requests are running, they
must move. An idle engine is asked for one token. `ready` also requires the expected model to be
listed. The exit code is 0 for yes and 1 for no. Only the standard library is imported, since a
probe runs every few seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Pause between two readings of a busy engine's counters.
LOOK_SECONDS = 0.25
_PROGRESS = ("llamacpp:n_decode_total", "llamacpp:prompt_tokens_total")
_BUSY = "llamacpp:requests_processing"


@dataclass(frozen=True)
class ProbeResult:
    """The answer of a probe, its reason and its duration in seconds."""

    ok: bool
    reason: str
    seconds: float


def ready(url: str, timeout: float, model: str | None = None) -> ProbeResult:
    """Test that the engine lists the model and works; see `live`.

    Args:
        url: address of the engine, without `/v1`.
        timeout: time for the whole probe, in seconds.
        model: model id that must be listed; None accepts any.
    """
    start = time.monotonic()
    try:
        listed = [entry["id"] for entry in _json(url, "/v1/models", timeout)["data"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _result(start, False, _reason(error))
    if model is not None and model not in listed:
        return _result(start, False, f"it serves {', '.join(listed) or 'nothing'}, not {model}")
    working = live(url, timeout - (time.monotonic() - start))
    return _result(start, working.ok, working.reason)


def live(url: str, timeout: float) -> ProbeResult:
    """Test that the engine works: its running requests move, or it generates a token.

    Args:
        url: address of the engine, without `/v1`.
        timeout: time for the whole probe, in seconds.
    """
    start = time.monotonic()

    def left() -> float:
        return timeout - (time.monotonic() - start)

    try:
        before = now = _counters(url, left())
        # A long prompt is one step of the engine, so it gets the whole timeout.
        while now.get(_BUSY, 0.0) > 0:
            if left() <= LOOK_SECONDS:
                return _result(start, False, "requests are under way and nothing moves")
            time.sleep(LOOK_SECONDS)
            now = _counters(url, left())
            if any(now.get(name, 0.0) > before.get(name, 0.0) for name in _PROGRESS):
                return _result(start, True, "its running requests move")
        _one_token(url, left())
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _result(start, False, _reason(error))
    return _result(start, True, "it generated a token")


def listens(url: str, timeout: float) -> bool:
    """Return True if the health route reports loaded weights; no token is generated."""
    try:
        _get(url, "/health", timeout)
    except OSError:
        return False
    return True


def _result(start: float, ok: bool, reason: str) -> ProbeResult:
    return ProbeResult(ok, reason, time.monotonic() - start)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code}"
    if isinstance(error, TimeoutError) or "timed out" in str(error):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError) or "refused" in str(error):
        return "nothing listens"
    return f"{type(error).__name__}: {error}"


def _one_token(url: str, timeout: float) -> None:
    body = {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1, "temperature": 0}
    answer = _json(url, "/v1/chat/completions", timeout, body)
    if not answer["usage"]["completion_tokens"]:
        raise ValueError("it answered without a token")


def _counters(url: str, timeout: float) -> dict[str, float]:
    found = {}
    for line in _get(url, "/metrics", timeout).decode().splitlines():
        name, _, value = line.partition(" ")
        if name in (*_PROGRESS, _BUSY):
            found[name] = float(value)
    return found


def _json(url: str, path: str, timeout: float, body: Mapping[str, Any] | None = None) -> Any:
    return json.loads(_get(url, path, timeout, body))


def _get(url: str, path: str, timeout: float, body: Mapping[str, Any] | None = None) -> bytes:
    if timeout <= 0:
        raise TimeoutError
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310 - the URL is the pod's own
        url.rstrip("/") + path, data=data, headers={"Content-Type": "application/json"}
    )
    # A pod must not reach itself through a proxy from the environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout) as answer:
        return bytes(answer.read())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe command."""
    parser = argparse.ArgumentParser(prog="python -m tuneline.serving.probes.engine_probe")
    parser.add_argument("kind", choices=["live", "ready"])
    parser.add_argument("--url", required=True, help="address of the engine, without /v1")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds for the whole probe")
    parser.add_argument("--model", help="model id that must be listed (ready only)")
    arguments = parser.parse_args(argv)
    if arguments.kind == "live":
        result = live(arguments.url, arguments.timeout)
    else:
        result = ready(arguments.url, arguments.timeout, arguments.model)
    print(f"{arguments.kind}: {'yes' if result.ok else 'no'}, {result.reason}")
    return 0 if result.ok else 1


if __name__ == "__main__":
    sys.exit(main())
