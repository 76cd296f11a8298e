"""Counters, gauges and histograms, stated by Prometheus's client library.

The values are kept here and handed to the library when they are read: its own counters have to
know their labels beforehand and take half as long again for each step.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels: TypeAlias = tuple[tuple[str, str], ...]
# From the overhead of a gateway to a long answer on a CPU.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_LIMITS = (*map(floatToGoString, SECONDS), "+Inf")


class Metrics(Collector):
    """The series of one process; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}
        self._values: dict[str, dict[Labels, float]] = {}
        self._buckets: dict[str, dict[Labels, list[int]]] = {}
        self._gauges: dict[str, Callable[[], Mapping[Labels, float]]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        # Memory, CPU time and open files of the process.
        ProcessCollector(registry=self._registry)

    def counter(self, name: str, text: str) -> None:
        """Declare a counter, whose name ends in `_total`; it is listed from the start."""
        self._help[name] = ("counter", text)
        self._values[name] = {}

    def histogram(self, name: str, text: str) -> None:
        """Declare a histogram over seconds."""
        self._help[name] = ("histogram", text)
        self._values[name] = {}
        self._buckets[name] = {}

    def gauge(self, name: str, text: str, read: Callable[[], Mapping[Labels, float]]) -> None:
        """Declare a gauge, read whenever the metrics are."""
        self._help[name] = ("gauge", text)
        self._gauges[name] = read

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            series = self._values[name]
            series[key] = series.get(key, 0.0) + amount

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add a duration to a histogram."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            sums = self._values[name]
            sums[key] = sums.get(key, 0.0) + seconds
            counts = self._buckets[name].setdefault(key, [0] * (len(SECONDS) + 1))
            counts[bisect_left(SECONDS, seconds)] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield all series as the client library's types."""
        for name, (kind, text) in self._help.items():
            if kind == "gauge":
                values = dict(self._gauges[name]())
            else:
                with self._lock:
                    values = dict(self._values[name])
                    buckets = {k: list(v) for k, v in self._buckets.get(name, {}).items()}
            # The library puts the ending of a counter's name back where a format wants it.
            metric = Metric(name.removesuffix("_total"), text, kind)
            for key, value in sorted(values.items()):
                if kind == "histogram":
                    _add_histogram(metric, dict(key), buckets[key], value)
                else:
                    metric.add_sample(name, dict(key), value)
            yield metric

    def text(self) -> str:
        """Return all series in the text format."""
        return self.page()[0].decode()

    def page(self, accepted: str = "") -> tuple[bytes, str]:
        """Return all series in the format that an `Accept` header asks for, and its media type."""
        write, media_type = choose_encoder(accepted)
        return write(self._registry), media_type


def _add_histogram(metric: Metric, labels: dict[str, str], counts: list[int], total: float) -> None:
    for limit, below in zip(_LIMITS, accumulate(counts), strict=True):
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": limit}, below)
    metric.add_sample(f"{metric.name}_count", labels, sum(counts))
    metric.add_sample(f"{metric.name}_sum", labels, total)
