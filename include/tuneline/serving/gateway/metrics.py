"""Counters, gauges and histograms in the Prometheus text format (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import TypeAlias

Labels: TypeAlias = tuple[tuple[str, str], ...]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From the overhead of a gateway to a long answer on a CPU.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """The series of one process; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}
        self._values: dict[str, dict[Labels, float]] = {}
        self._buckets: dict[str, dict[Labels, list[int]]] = {}
        self._gauges: dict[str, Callable[[], Mapping[Labels, float]]] = {}

    def counter(self, name: str, text: str) -> None:
        """Declare a counter; it is listed from the start, even if empty."""
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

    def text(self) -> str:
        """Return all series in the text format."""
        lines: list[str] = []
        with self._lock:
            for name, (kind, text) in self._help.items():
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                if kind == "histogram":
                    for key, counts in sorted(self._buckets[name].items()):
                        lines += _histogram(name, key, counts, self._values[name][key])
                    continue
                values = self._gauges[name]() if kind == "gauge" else self._values[name]
                lines += [f"{name}{_braces(key)} {_number(v)}" for key, v in sorted(values.items())]
        return "\n".join(lines) + "\n"


def _histogram(name: str, key: Labels, counts: list[int], total: float) -> list[str]:
    lines = []
    below = 0
    for limit, count in zip((*map(_number, SECONDS), "+Inf"), counts, strict=True):
        below += count
        lines.append(f"{name}_bucket{_braces((*key, ('le', limit)))} {below}")
    return [*lines, f"{name}_sum{_braces(key)} {total!r}", f"{name}_count{_braces(key)} {below}"]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
