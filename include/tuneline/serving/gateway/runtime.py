"""The parts of a running gateway: keys, ledger, upstreams, probes and counters."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from tuneline.errors import UserError
from tuneline.serving.gateway.api import EMBEDDINGS, Api
from tuneline.serving.gateway.attempt import Attempt, Call, Recorder
from tuneline.serving.gateway.chain import Chain
from tuneline.serving.gateway.config import GatewayConfig, ModelConfig
from tuneline.serving.gateway.keys import KeyRing
from tuneline.serving.gateway.ledger import Ledger, UsageRow
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.gateway.outcome import Outcome
from tuneline.serving.gateway.readiness import Prober
from tuneline.serving.gateway.request_log import DROPPED, RequestLog
from tuneline.serving.gateway.upstream import Upstream
from tuneline.serving.gateway.versions import pinned_models

if TYPE_CHECKING:
    from tuneline.serving.gateway.production_log import ProductionLog, Scrub
    from tuneline.serving.gateway.tracing import RequestTrace, Tracing

# Makes the scrubber of the production log for some languages. It comes from the data phase, which
# is on this floor and therefore not imported here.
ScrubberFor: TypeAlias = "Callable[[Sequence[str]], Scrub]"

_COUNTERS = {
    "tuneline_gateway_requests_total": "Chat requests, by model asked for and HTTP status.",
    "tuneline_gateway_attempts_total": "Attempts at upstreams, by how they ended.",
    "tuneline_gateway_fallbacks_total": "Attempts made because an earlier one was left.",
    "tuneline_gateway_tokens_total": "Tokens written to the ledger.",
    "tuneline_gateway_cost_total": "Cost written to the ledger.",
    "tuneline_gateway_confidence_unknown_total": "Answers to be judged without logprobs.",
    DROPPED: "Lines of the request log that were dropped.",
}
_HISTOGRAMS = {
    "tuneline_gateway_request_seconds": "Time from a request to the end of its answer.",
    "tuneline_gateway_time_to_first_token_seconds": "Time from asking to a stream's first token.",
}


class Runtime:
    """The parts of a gateway, started and stopped with the application.

    Args:
        config: the configuration.
        scrubber_for: function that makes the scrubber of the production log.

    Raises:
        UserError: if the keys file, the ledger, a tokenizer, the redaction function, the spool
            or the store's address cannot be used.
    """

    def __init__(self, config: GatewayConfig, scrubber_for: ScrubberFor | None = None) -> None:
        self.config = config
        # Draining: the readiness probe fails. Closed: new requests are refused as well.
        self.draining = False
        self.closed = False
        self.in_flight = 0
        self.keys = KeyRing(config.keys_file)
        self.metrics = Metrics()
        self._declare_metrics()
        self.request_log = (
            RequestLog(config.request_log, self.metrics) if config.request_log else None
        )
        self.production_log = self._make_production_log(scrubber_for)
        self.tracing = _make_tracing(config)
        self._upstreams = {entry.name: Upstream(entry) for entry in config.upstreams}
        self.ledger = Ledger(
            config.ledger.path,
            queue_limit=config.ledger.queue_limit,
            flush_interval_s=config.ledger.flush_interval_s,
            on_written=self._count_written,
        )
        recorder = Recorder(self.ledger, self.metrics, config.currency)

        def chain(model: ModelConfig) -> Chain:
            upstreams = [self._upstreams[name] for name in model.chain]
            return Chain(model, upstreams, recorder, self.metrics)

        # By the id that a client asks for. A versioned id without a ready upstream does not make
        # the gateway unready: the model itself may still be answered by a fallback.
        plain = {model.id: chain(model) for model in config.models}
        self.chains = plain | {id_: chain(m) for id_, m in pinned_models(config).items()}
        self.prober = Prober(
            config.readiness, list(self._upstreams.values()), list(plain.values()), recorder
        )

    def trace(self, headers: Mapping[str, str], api: Api) -> RequestTrace | None:
        """Begin to trace a request, if requests are traced."""
        return None if self.tracing is None else self.tracing.begin(headers, api)

    async def start(self) -> None:
        """Start the writers and the pings."""
        self.ledger.start()
        if self.request_log:
            self.request_log.start()
        if self.production_log:
            self.production_log.start()
        self.prober.start()

    async def stop(self) -> None:
        """Stop the pings, close the connections, write what waits to be written."""
        await self.prober.stop()
        for upstream in self._upstreams.values():
            await upstream.aclose()
        if self.request_log:
            await asyncio.to_thread(self.request_log.close)
        if self.production_log:
            await asyncio.to_thread(self.production_log.close)
        await asyncio.to_thread(self.ledger.close)
        if self.tracing:
            await asyncio.to_thread(self.tracing.close)

    def log_request(self, call: Call, attempt: Attempt | None, status: Outcome) -> None:
        """Hand a request that has ended to the logs, unless its key is not logged.

        Args:
            call: the request.
            attempt: the attempt that served it, None if none did.
            status: how it ended.
        """
        logged = self.keys.is_logged(call.key)
        if self.request_log and logged:
            self.request_log.note(call, attempt)
        # Vectors are no text that could be learned from.
        if self.production_log and call.request.api is not EMBEDDINGS:
            if logged:
                self.production_log.note(call, attempt, status)
            else:
                self.production_log.note_unlogged()

    def why_not_ready(self) -> str | None:
        """Return why the gateway should get no traffic, None if it is ready."""
        if self.draining:
            return "the gateway is shutting down"
        if self.ledger.error is not None:
            return "the usage ledger cannot be written"
        return self.prober.why_not_ready()

    def _make_production_log(self, scrubber_for: ScrubberFor | None) -> ProductionLog | None:
        config = self.config.production_log
        if config is None:
            return None
        if scrubber_for is None:
            raise UserError(
                "`production_log`: there is no scrubber, and nothing is logged without one; "
                "start the gateway with `tuneline gateway`"
            )
        from tuneline.serving.gateway.production_log import ProductionLog

        return ProductionLog(config, scrubber_for(config.languages), self.metrics)

    def _count_written(self, rows: list[UsageRow]) -> None:
        tokens: Counter[tuple[str, bool, str]] = Counter()
        costs: defaultdict[str, float] = defaultdict(float)
        for row in rows:
            tokens[row.upstream, row.estimated, "prompt"] += row.prompt_tokens
            tokens[row.upstream, row.estimated, "completion"] += row.completion_tokens
            costs[row.currency] += row.cost
        for (upstream, estimated, kind), count in tokens.items():
            labels = {"upstream": upstream, "estimated": str(estimated).lower(), "type": kind}
            self.metrics.add("tuneline_gateway_tokens_total", count, **labels)
        for currency, cost in costs.items():
            self.metrics.add("tuneline_gateway_cost_total", cost, currency=currency)

    def _declare_metrics(self) -> None:
        for name, text in _COUNTERS.items():
            self.metrics.counter(name, text)
        for name, text in _HISTOGRAMS.items():
            self.metrics.histogram(name, text)

        def gauge(name: str, text: str, read: Callable[[], float]) -> None:
            self.metrics.gauge(f"tuneline_gateway_{name}", text, lambda: {(): float(read())})

        gauge("in_flight", "Requests under way.", lambda: self.in_flight)
        gauge("ledger_pending", "Ledger rows not yet written.", lambda: self.ledger.pending)
        ready = "1 while /v1/health/ready answers 200."
        gauge("ready", ready, lambda: self.why_not_ready() is None)
        self.metrics.gauge(
            "tuneline_gateway_upstream_ready",
            "1 while the upstream is ready.",
            lambda: {
                (("upstream", name),): float(state == "ready")
                for name, state in self.prober.states().items()
            },
        )


def _make_tracing(config: GatewayConfig) -> Tracing | None:
    if config.tracing is None:
        return None
    from tuneline.serving.gateway.tracing import Tracing

    return Tracing(config.tracing)
