"""The series of a gateway, of Prometheus's client library; `/metrics` lists them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

Labels: TypeAlias = tuple[tuple[str, str], ...]

_PREFIX = "tuneline_gateway"
# From the overhead of a gateway to a long answer on a CPU.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

# Each series would get another one with the time at which it was made.
disable_created_metrics()


class Metrics(Collector):
    """The series of one process; safe to use from several threads."""

    def __init__(self) -> None:
        self._gauges: dict[str, tuple[str, Callable[[], Mapping[Labels, float]]]] = {}
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{_PREFIX}_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            name = f"{_PREFIX}_{name}_seconds"
            return Histogram(name, text, labels, registry=registry, buckets=SECONDS)

        self.requests = counter(
            "requests", "Chat requests, by model asked for and HTTP status.", "model", "status"
        )
        self.request_seconds = seconds(
            "request", "Time from a request to the end of its answer.", "model", "stream"
        )
        self.refusals = counter(
            "refusals", "Requests refused by a limit of their key, by limit.", "limit"
        )
        self.attempts = counter(
            "attempts", "Attempts at upstreams, by how they ended.", "upstream", "outcome"
        )
        self.first_token_seconds = seconds(
            "time_to_first_token", "Time from asking to a stream's first token.", "upstream"
        )
        self.fallbacks = counter(
            "fallbacks", "Attempts made because an earlier one was left.", "model", "reason"
        )
        self.skipped = counter(
            "skipped", "Upstreams that a request passed over, by reason.", "upstream", "reason"
        )
        self.confidence_unknown = counter(
            "confidence_unknown", "Answers to be judged without logprobs.", "upstream"
        )
        self.tokens = counter(
            "tokens", "Tokens written to the ledger.", "upstream", "estimated", "type"
        )
        self.cost = counter("cost", "Cost written to the ledger.", "currency")
        self.budget_alarms = counter(
            "budget_alarms",
            "Keys that reached a share of a budget, by budget and per cent.",
            *("budget", "percent"),
        )
        self.budget_read_failures = counter(
            "budget_read_failures", "Readings of the ledger's sums that failed."
        )
        self.reloads = counter(
            "reloads",
            "Configuration files read while the gateway ran, by whether they were applied.",
            "outcome",
        )
        self.log_lost = counter("log_lost", "Lines of the gateway's own log that were not written.")
        logged = "production_log"
        self.logged_rows = counter(
            f"{logged}_rows", "Requests written to the spool of the production log.", "model"
        )
        self.log_skipped = counter(
            f"{logged}_skipped",
            "Requests left out of the production log, by sampling or by their key.",
            "reason",
        )
        self.log_dropped = counter(
            f"{logged}_dropped", "Requests that the production log lost, by reason.", "reason"
        )
        self.redactions = counter(
            f"{logged}_redactions", "Values removed before a request was logged, by type.", "type"
        )
        self.scrub_failures = counter(
            f"{logged}_scrub_failures", "Requests logged without text, since scrubbing failed."
        )
        self.uploaded_rows = counter(f"{logged}_uploaded_rows", "Requests uploaded to the store.")
        self.uploaded_parts = counter(f"{logged}_uploaded_parts", "Parts uploaded to the store.")
        self.upload_failures = counter(
            f"{logged}_upload_failures", "Uploads that failed and are tried again."
        )
        registry.register(self)
        # Memory, CPU time and open files of the process.
        ProcessCollector(registry=registry)

    def gauge(self, name: str, text: str, read: Callable[[], Mapping[Labels, float]]) -> None:
        """Declare a gauge, read whenever the metrics are."""
        self._gauges[f"{_PREFIX}_{name}"] = text, read

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        for name, (text, read) in self._gauges.items():
            metric = Metric(name, text, "gauge")
            for labels, value in sorted(read().items()):
                metric.add_sample(name, dict(labels), value)
            yield metric

    def text(self) -> str:
        """Return all series in the text format."""
        return self.page()[0].decode()

    def page(self, accepted: str = "") -> tuple[bytes, str]:
        """Return all series in the format that an `Accept` header asks for, and its media type."""
        write, media_type = choose_encoder(accepted)
        return write(self._registry), media_type
