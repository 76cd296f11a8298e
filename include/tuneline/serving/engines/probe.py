"""Probe an engine's pod: does it generate tokens?

    tuneline probe live --engine http://127.0.0.1:8081 --timeout 5

A health route alone proves little: vLLM's has answered 200 after a GPU fault
(vllm-project/vllm#36960). Both probes therefore require tokens. A busy engine must be neither
killed nor taken out of service, so its counters are read first: if requests are running, they
must move. An idle engine is asked for one token. `ready` also requires the expected model to be
listed, and an adapter to answer if one is named. Only the standard library is imported, since a
probe runs every few seconds. Reading TensorRT-LLM's counters takes them away from others who read.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneline.serving.protocol import adapter_fields, read_metrics

# What reading the answers of anything but a healthy engine may raise.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, http.client.HTTPException)
# Pause between two readings of a busy engine's counters.
LOOK_SECONDS = 0.25
# Counters that move while an engine works, and gauges of the requests that it has accepted. An
# engine has those of its own name.
_PROGRESS = (
    "llamacpp:n_decode_total",
    "llamacpp:prompt_tokens_total",
    "vllm:iteration_tokens_total_count",
    "vllm:generation_tokens_total",
    "trtllm:step",
)
_BUSY = (
    "llamacpp:requests_processing",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "trtllm:requests_active",
)


@dataclass(frozen=True)
class ProbeResult:
    """The answer of a probe, its reason and its duration in seconds."""

    ok: bool
    reason: str
    seconds: float


def probe(
    kind: str, url: str, timeout: float, model: str | None = None, adapter: int | str | None = None
) -> ProbeResult:
    """Ask the question of one of a pod's probes; `startup` asks what `ready` asks.

    Args:
        kind: `live`, `ready` or `startup`.
        url: address of the engine, without `/v1`.
        timeout: time for the whole probe, in seconds.
        model: model id that must be listed; None accepts any.
        adapter: the adapter that an idle engine's token must come from (see `adapter_fields`).
    """
    if kind == "live":
        return live(url, timeout, adapter)
    return ready(url, timeout, model, adapter)


def ready(
    url: str, timeout: float, model: str | None = None, adapter: int | str | None = None
) -> ProbeResult:
    """Test that the engine lists the model and works; see `probe`."""
    start = time.monotonic()
    try:
        listed = [entry["id"] for entry in _json(url, "/v1/models", timeout)["data"]]
    except _UNREADABLE as error:
        return _result(start, False, _reason(error))
    if model is not None and model not in listed:
        return _result(start, False, f"it serves {', '.join(listed) or 'nothing'}, not {model}")
    working = live(url, timeout - (time.monotonic() - start), adapter)
    return _result(start, working.ok, working.reason)


def live(url: str, timeout: float, adapter: int | str | None = None) -> ProbeResult:
    """Test that the engine works: its running requests move, or it generates a token."""
    start = time.monotonic()

    def left() -> float:
        return timeout - (time.monotonic() - start)

    try:
        before = now = _counters(url, left())
        # A long prompt is one step of the engine, so it gets the whole timeout.
        while any(now.get(name, 0.0) > 0 for name in _BUSY):
            if left() <= LOOK_SECONDS:
                return _result(start, False, "requests are under way and nothing moves")
            time.sleep(LOOK_SECONDS)
            now = _counters(url, left())
            if any(now.get(name, 0.0) > before.get(name, 0.0) for name in _PROGRESS):
                return _result(start, True, "its running requests move")
        _one_token(url, left(), adapter)
    except _UNREADABLE as error:
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


def _one_token(url: str, timeout: float, adapter: int | str | None) -> None:
    if isinstance(adapter, int):
        # llama.cpp answers with the base alone where it has no adapter of that place.
        loaded = [entry["id"] for entry in _json(url, "/lora-adapters", timeout)]
        if adapter not in loaded:
            raise ValueError(f"it has no adapter {adapter}, only {len(loaded)} of them")
    ping = [{"role": "user", "content": "ping"}]
    body = {"messages": ping, "max_tokens": 1, "temperature": 0, **adapter_fields(adapter)}
    answer = _json(url, "/v1/chat/completions", timeout, body)
    if not answer["usage"]["completion_tokens"]:
        raise ValueError("it answered without a token")


def _counters(url: str, timeout: float) -> dict[str, float]:
    text = _get(url, "/metrics", timeout).decode()
    if not text.startswith("["):
        return read_metrics(text)
    # trtllm-serve lists the steps since the last reading.
    steps = json.loads(text)
    if not steps:
        return {}
    last = steps[-1]
    return {
        "trtllm:step": float(last["iter"]),
        "trtllm:requests_active": float(last.get("numActiveRequests", 0)),
    }


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
