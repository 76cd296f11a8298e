"""The client of the gateway benchmark: requests one after the other, then several at once.

It uses Python's own HTTP client on connections that stay open, the cheapest one available: the
cost of the client is the same in every figure.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

from benchmarks.contest.trial import Job, Trial

CONNECTIONS = 8
MIN_REQUESTS = 2


@dataclass(frozen=True)
class Load:
    """The time that requests took.

    Attributes:
        latencies: time of each request sent one after the other, in seconds.
        concurrent: number of requests sent several at once.
        concurrent_seconds: time of all of those, in seconds.
    """

    latencies: list[float]
    concurrent: int
    concurrent_seconds: float


def requests(job: Job) -> Trial:
    """Send the job's chat requests to its URL, first one by one, then over all connections."""
    address = urlsplit(job["url"])
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {job['key']}"}
    question = {"role": "user", "content": job["text"]}
    body = json.dumps({"model": job["model_id"], "messages": [question], "max_tokens": 64})

    def connect() -> http.client.HTTPConnection:
        assert address.hostname
        return http.client.HTTPConnection(address.hostname, address.port, timeout=60)

    def ask(connection: http.client.HTTPConnection) -> None:
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"answered {answer.status}: {content[:200]!r}")

    def several(count: int) -> None:
        connection = connect()
        for _ in range(count):
            ask(connection)
        connection.close()

    def work(items: Sequence[Any]) -> Load:
        connection = connect()
        latencies = []
        for _ in items:
            started = time.perf_counter()
            ask(connection)
            latencies.append(time.perf_counter() - started)
        connection.close()
        each = max(1, len(items) // CONNECTIONS)
        started = time.perf_counter()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(several, [each] * CONNECTIONS))
        return Load(latencies, each * CONNECTIONS, time.perf_counter() - started)

    def score(load: Load) -> dict[str, float]:
        cuts = quantiles(load.latencies, n=100)
        return {
            "p50": cuts[49] * 1000,
            "p99": cuts[98] * 1000,
            "requests_per_s": load.concurrent / load.concurrent_seconds,
        }

    return Trial(job["version"], range(max(MIN_REQUESTS, job["requests"])), work, score)
