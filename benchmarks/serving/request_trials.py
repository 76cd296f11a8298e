"""The client of the gateway benchmark: requests in turn, several at once, and streams.

It speaks HTTP over bare sockets in one thread, which is the cheapest client that there is: its cost
is the same in every figure, and no lock of its own delays an answer.
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.contest.trial import Job, Trial

CONNECTIONS = 8
STREAMS = 20
MIN_REQUESTS = 2
_PATIENCE_S = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
# The mock upstream writes into each chunk when it sent it, on the clock that all processes share.
_SENT = re.compile(rb"at (\d+) ns")


@dataclass(frozen=True)
class Load:
    """What a run saw; times are in seconds.

    Attributes:
        latencies: time of each request sent one after the other; `concurrent` several at once.
        server_seconds: CPU time of the server and its children for the concurrent ones.
        first_chunks: time of each stream from its request to its first chunk.
        chunk_delays: of every chunk, the time from the upstream's sending to its arrival.
        resident: memory of the server at the end, in MiB; 0 if it is not watched.
    """

    latencies: list[float]
    concurrent: list[float]
    concurrent_seconds: float
    server_seconds: float
    first_chunks: list[float]
    chunk_delays: list[float]
    resident: float


def requests(job: Job) -> Trial:
    """Send the job's chat requests to its URL: one by one, over all connections, as streams."""
    client = _Client(job)
    watched = job.get("pid")

    def work(items: Sequence[Any]) -> Load:
        latencies, _ = client.exchange(len(items), 1)
        each = max(1, len(items) // CONNECTIONS)
        spent = _cpu_seconds(watched)
        concurrent, seconds = client.exchange(each * CONNECTIONS, CONNECTIONS)
        spent = _cpu_seconds(watched) - spent
        try:
            first, delays = client.streams(min(STREAMS, len(items)))
        except RuntimeError:
            if not job["streams_may_fail"]:
                raise
            first, delays = [], []
        resident = _resident_mib(watched)
        return Load(latencies, concurrent, seconds, spent, first, delays, resident)

    return Trial(job["version"], range(max(MIN_REQUESTS, job["requests"])), work, _score)


def _cpu_seconds(pid: int | None) -> float:
    return sum(times.user + times.system for times in (p.cpu_times() for p in _family(pid)))


def _resident_mib(pid: int | None) -> float:
    return sum(process.memory_info().rss for process in _family(pid)) / (1 << 20)


def _family(pid: int | None) -> list[psutil.Process]:
    """Return a server that is watched, and its children."""
    process = psutil.Process(pid) if pid else None
    return [process, *process.children(recursive=True)] if process else []


def memory_growth(job: Job, count: int) -> float:
    """Return what a server's memory grows by over a number of requests, in MiB.

    A twentieth of as many goes before, so that what it allocates once is not counted.
    """
    client = _Client(job)
    client.exchange(max(CONNECTIONS, count // 20), CONNECTIONS)
    before = _resident_mib(job["pid"])
    client.exchange(count, CONNECTIONS)
    return _resident_mib(job["pid"]) - before


def _score(load: Load) -> dict[str, float]:
    alone, together = quantiles(load.latencies, n=100), quantiles(load.concurrent, n=100)
    scores = {
        "p50": alone[49] * 1000,
        "p99": alone[98] * 1000,
        "p50_at_8": together[49] * 1000,
        "p99_at_8": together[98] * 1000,
        "requests_per_s": len(load.concurrent) / load.concurrent_seconds,
    }
    if load.first_chunks:
        scores["ttft"] = median(load.first_chunks) * 1000
        scores["chunk_delay"] = fmean(load.chunk_delays) * 1000
    if load.server_seconds:
        scores["requests_per_core_s"] = len(load.concurrent) / load.server_seconds
        scores["resident"] = load.resident
    return scores


class _Client:
    def __init__(self, job: Job) -> None:
        address = urlsplit(job["url"])
        assert address.hostname
        assert address.port
        self._address = (address.hostname, address.port)
        question = {"role": "user", "content": job["text"]}
        asked = {"model": job["model_id"], "messages": [question], "max_tokens": 64}
        headers = {
            "Host": address.netloc,
            "Content-Type": "application/json",
            "Authorization": f"Bearer {job['key']}",
            **job.get("headers", {}),
        }
        self._request = _written(headers, asked)
        self._stream_request = _written(headers, {**asked, "stream": True})

    def exchange(self, count: int, connections: int) -> tuple[list[float], float]:
        """Send requests, each connection its next one as soon as its answer is there."""
        latencies: list[float] = []
        left = count
        with selectors.DefaultSelector() as selector:
            began = time.perf_counter()
            for _ in range(connections):
                connection = _Connection(self._address)
                selector.register(connection.socket, selectors.EVENT_READ, connection)
                connection.send(self._request)
                left -= 1
            while len(latencies) < count:
                ready = selector.select(_PATIENCE_S)
                if not ready:
                    raise RuntimeError(f"no answer within {_PATIENCE_S:g} s")
                for key, _ in ready:
                    connection = key.data
                    if not connection.take():
                        continue
                    latencies.append(time.perf_counter() - connection.sent)
                    if left:
                        connection.send(self._request)
                        left -= 1
            seconds = time.perf_counter() - began
            for key in list(selector.get_map().values()):
                key.data.socket.close()
        return latencies, seconds

    def streams(self, count: int) -> tuple[list[float], list[float]]:
        """Read streams one after the other."""
        first: list[float] = []
        delays: list[float] = []
        connection = _Connection(self._address)
        for _ in range(count):
            connection.send(self._stream_request)
            seen = 0
            for part in connection.parts():
                now = time.monotonic_ns()
                for sent in _SENT.findall(part):
                    if not seen:
                        first.append(time.perf_counter() - connection.sent)
                    seen += 1
                    delays.append((now - int(sent)) / 1e9)
            if not seen:
                raise RuntimeError("a stream held no chunk of the upstream")
        connection.socket.close()
        return first, delays


class _Connection:
    """A connection that stays open; it knows whole answers by their length or last chunk."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=_PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0.0
        self._read = b""

    def send(self, request: bytes) -> None:
        self._read = b""
        self.sent = time.perf_counter()
        self.socket.sendall(request)

    def take(self) -> bool:
        """Read what is there; return True if the answer is complete."""
        part = self.socket.recv(1 << 16)
        if not part:
            raise RuntimeError(f"the connection was closed after {self._read[:200]!r}")
        self._read += part
        head, end, body = self._read.partition(b"\r\n\r\n")
        if not end:
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"answered {self._read[:300]!r}")
        length = _LENGTH.search(head)
        return len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n")

    def parts(self) -> Iterator[bytes]:
        """Yield the parts of an answer as they arrive."""
        known, complete = 0, False
        while not complete:
            complete = self.take()
            # A mark that two packets share is found with the second.
            whole = self._read.rfind(b"\n") + 1
            yield self._read[known:whole]
            known = max(known, whole)


def _written(headers: dict[str, str], body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    lines = [f"{name}: {text}" for name, text in headers.items()]
    head = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", *lines])
    return f"{head}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
