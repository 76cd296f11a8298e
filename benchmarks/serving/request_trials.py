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


def requests(job: Job) -> Trial:
    """Send the job's chat requests to its URL: one by one, over all connections, as streams.

    The processor time is that of the server and its children for the requests at once, the memory
    theirs at the end; both are missing where the job names no process.
    """
    client = _Client(job)
    watched = job.get("pid")

    def work(items: Sequence[Any]) -> dict[str, float]:
        alone, _ = client.exchange(len(items), 1)
        each = max(1, len(items) // CONNECTIONS)
        spent = _cpu_seconds(watched)
        together, seconds = client.exchange(each * CONNECTIONS, CONNECTIONS)
        spent = _cpu_seconds(watched) - spent
        scores = _percentiles(alone, "") | _percentiles(together, "_at_8")
        scores["requests_per_s"] = len(together) / seconds
        try:
            first, delays = client.streams(min(STREAMS, len(items)))
            scores |= {"ttft": median(first) * 1000, "chunk_delay": fmean(delays) * 1000}
        except RuntimeError:
            if not job.get("streams_may_fail"):
                raise
        if spent:
            scores |= {"requests_per_core_s": len(together) / spent}
            scores |= {"resident": _resident_mib(watched)}
        return scores

    items = range(max(MIN_REQUESTS, job["requests"]))
    return Trial(job["version"], items, work, lambda scores: scores)


def _percentiles(seconds: list[float], suffix: str) -> dict[str, float]:
    cuts = quantiles(seconds, n=100)
    return {f"p50{suffix}": cuts[49] * 1000, f"p99{suffix}": cuts[98] * 1000}


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
        """Read streams one after the other.

        Returns:
            The seconds of each from its request to its first chunk; of every chunk, the seconds
            from the upstream's sending to its arrival.
        """
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
