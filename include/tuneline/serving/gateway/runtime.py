"""The parts of a running gateway: keys, ledger, upstreams, probes and counters."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from tuneline.errors import UserError
from tuneline.serving.gateway.admission import Admission
from tuneline.serving.gateway.api import EMBEDDINGS, Api
from tuneline.serving.gateway.attempt import Attempt, Call
from tuneline.serving.gateway.breaker import Circuit
from tuneline.serving.gateway.config import GatewayConfig
from tuneline.serving.gateway.generation import Generation
from tuneline.serving.gateway.json_form import FormJudge
from tuneline.serving.gateway.keys import KeyRing
from tuneline.serving.gateway.ledger import Ledger
from tuneline.serving.gateway.ledger_database import UsageRow
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.gateway.outcome import Outcome
from tuneline.serving.gateway.prices import Rates
from tuneline.serving.gateway.spending import SpendingBook
from tuneline.serving.gateway.tally import Tally

if TYPE_CHECKING:
    from tuneline.serving.gateway.chain import Chain
    from tuneline.serving.gateway.production_log import ProductionLog
    from tuneline.serving.gateway.readiness import Prober
    from tuneline.serving.gateway.record_config import ProductionLogConfig
    from tuneline.serving.gateway.scrubbing import Scrub
    from tuneline.serving.gateway.tracing import RequestTrace, Tracing
    from tuneline.serving.gateway.upstream import Upstream

# Makes the scrubber of the production log from its section. It comes from the data phase, which is
# on this floor and therefore not imported here.
ScrubberFor: TypeAlias = "Callable[[ProductionLogConfig], Scrub]"

_UNJUDGED = "tuneline_gateway_json_unjudged_total"
RELOADS = "tuneline_gateway_reloads_total"
_COUNTERS = {
    "tuneline_gateway_requests_total": "Chat requests, by model asked for and HTTP status.",
    "tuneline_gateway_attempts_total": "Attempts at upstreams, by how they ended.",
    "tuneline_gateway_fallbacks_total": "Attempts made because an earlier one was left.",
    "tuneline_gateway_skipped_total": "Upstreams that a request passed over, by reason.",
    "tuneline_gateway_tokens_total": "Tokens written to the ledger.",
    "tuneline_gateway_cost_total": "Cost written to the ledger.",
    "tuneline_gateway_confidence_unknown_total": "Answers to be judged without logprobs.",
    _UNJUDGED: "Answers that nobody could hold against the JSON Schema of their request.",
    RELOADS: "Configuration files read while the gateway ran, by whether they were taken over.",
}
_HISTOGRAMS = {
    "tuneline_gateway_request_seconds": "Time from a request to the end of its answer.",
    "tuneline_gateway_time_to_first_token_seconds": "Time from asking to a stream's first token.",
}


@dataclass
class ReloadState:
    """What became of the configuration file.

    Attributes:
        taken: fingerprint of the file that is in service; "" if there was no file.
        refused: fingerprint of a later file that was refused, None if none was.
        retiring: generations whose requests still run although a newer one has taken over.
    """

    taken: str = ""
    refused: str | None = None
    retiring: int = 0


class Runtime:
    """The parts of a gateway, started and stopped with the application.

    Args:
        config: the configuration.
        scrubber_for: function that makes the scrubber of the production log.

    Raises:
        UserError: if the keys file, the ledger, a tokenizer, the spool or the store's
            address cannot be used.
    """

    def __init__(self, config: GatewayConfig, scrubber_for: ScrubberFor | None = None) -> None:
        self._scrubber_for = scrubber_for
        self.reload = ReloadState()
        # Draining: the readiness probe fails. Closed: new requests are refused as well.
        self.draining = False
        self.closed = False
        self.in_flight = 0
        self.keys = KeyRing(config.keys_file)
        self.metrics = Metrics()
        self.production_log = self._make_production_log(config)
        self.tracing = _make_tracing(config)
        self.ledger = Ledger(
            config.ledger.place,
            queue_limit=config.ledger.queue_limit,
            flush_interval_s=config.ledger.flush_interval_s,
            on_written=self._count_written,
        )
        self._book = SpendingBook(
            config.ledger.place,
            currency=config.currency,
            grants=self.keys.grants,
            progress=lambda: (self.ledger.begun, self.ledger.written),
            metrics=self.metrics,
        )
        self.admission = Admission(
            self.keys,
            self.ledger,
            self._book,
            rates_of=self._rates_of,
            users=config.ledger.users,
            metrics=self.metrics,
        )
        self._judge = FormJudge(partial(self.metrics.add, _UNJUDGED))
        self._current = Generation(config, self.ledger, self.metrics, self._judge)
        self.tally = Tally()
        self.tally.keep(self._current.canaries)
        self._retiring: set[asyncio.Task[None]] = set()
        self._declare_metrics()

    @property
    def config(self) -> GatewayConfig:
        """The configuration in service."""
        return self._current.config

    @property
    def prober(self) -> Prober:
        """The pings of the configuration in service."""
        return self._current.prober

    @property
    def chains(self) -> dict[str, Chain]:
        """The chains in service, by the id that a client asks for."""
        return self._current.chains

    @contextmanager
    def request(self) -> Iterator[Generation]:
        """Count a request as under way, and give it what it is served by from first to last."""
        generation = self._current
        self.in_flight += 1
        generation.requests += 1
        try:
            yield generation
        finally:
            self.in_flight -= 1
            generation.requests -= 1

    def trace(self, headers: Mapping[str, str], api: Api) -> RequestTrace | None:
        """Begin to trace a request, if requests are traced."""
        return None if self.tracing is None else self.tracing.begin(headers, api)

    async def start(self) -> None:
        """Start the writers and the pings."""
        self.ledger.start()
        self._book.start()
        if self.production_log:
            self.production_log.start()
        self._current.start()

    async def change(self, config: GatewayConfig) -> None:
        """Take over another configuration; requests under way finish on the old one.

        The new upstreams are warmed up first. Its fixed keys are those of the old one.

        Raises:
            UserError: if a file that it names can't be used, or the gateway is ready and would
                not be any more; then everything stays as it was.
        """
        old = self._current
        new = Generation(config, self.ledger, self.metrics, self._judge, old.upstreams)
        was_ready = old.prober.why_not_ready() is None
        new.start()
        lacking = await new.await_ready(config.readiness.warmup_timeout_s if was_ready else 0.0)
        if was_ready and lacking is not None:
            await new.prober.stop()
            await new.close_upstreams(_without(new, old))
            raise UserError(f"{lacking}, while the gateway is ready as it is")
        if self.production_log and self._scrubber_for and config.production_log:
            self.production_log.scrub_with(self._scrubber_for(config.production_log))
        self._current = new
        self._book.currency = config.currency
        self.tally.keep(new.canaries)
        task = asyncio.create_task(self._retire(old, new))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, old: Generation, new: Generation) -> None:
        """Close what only the old generation used, once nobody uses it any more."""
        before = [task for task in self._retiring if task is not asyncio.current_task()]
        self.reload.retiring += 1
        try:
            await old.prober.stop()
            # A request of an even older generation may use the same upstreams.
            await asyncio.gather(*before, return_exceptions=True)
            await old.await_idle()
        finally:
            self.reload.retiring -= 1
        await old.close_upstreams(_without(old, new))

    async def stop(self) -> None:
        """Stop the pings, close the connections, write what waits to be written."""
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        await self._current.stop()
        if self.production_log:
            await asyncio.to_thread(self.production_log.close)
        await asyncio.to_thread(self._judge.close)
        await asyncio.to_thread(self._book.close)
        await asyncio.to_thread(self.ledger.close)
        if self.tracing:
            await asyncio.to_thread(self.tracing.close)

    def log_request(self, call: Call, attempt: Attempt | None, status: Outcome) -> None:
        """Count a request that has ended, and hand it to the log unless its key is not logged.

        Args:
            call: the request.
            attempt: the attempt that served it, None if none did.
            status: how it ended.
        """
        self.tally.note(call, attempt, status, self._current.share_of(call.model))
        # Vectors are no text that could be learned from.
        if self.production_log and call.request.api is not EMBEDDINGS:
            if self.keys.is_logged(call.key):
                self.production_log.note(call, attempt, status)
            else:
                self.production_log.note_unlogged()

    def why_not_ready(self) -> str | None:
        """Return why the gateway should get no traffic, None if it is ready."""
        if self.draining:
            return "the gateway is shutting down"
        if self.ledger.error is not None:
            return "the usage ledger cannot be written"
        if not self.config.models:
            return "no model is served yet"
        return self.prober.why_not_ready()

    def behind(self) -> dict[str, str]:
        """Return the version of each model that is released but not served, by the model's id."""
        versions = {entry.name: entry.version for entry in self.config.upstreams}
        return {
            model.id: model.released
            for model in self.config.models
            if model.released is not None and versions[model.chain[0]] != model.released
        }

    def _make_production_log(self, whole: GatewayConfig) -> ProductionLog | None:
        config = whole.production_log
        if config is None:
            return None
        if self._scrubber_for is None:
            raise UserError(
                "`production_log`: there is no scrubber, and nothing is logged without one; "
                "start the gateway with `tuneline gateway`"
            )
        from tuneline.serving.gateway.production_log import ProductionLog

        return ProductionLog(config, self._scrubber_for(config), self.metrics)

    def _rates_of(self, model: str) -> Rates:
        """Return the price of a model's primary upstream."""
        return self._current.rates_of(model)

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
            "tuneline_gateway_circuit_open",
            "1 while nothing is sent to the upstream, 0.5 while single requests try it.",
            lambda: {
                (("upstream", name),): {Circuit.OPEN: 1.0, Circuit.HALF_OPEN: 0.5}.get(state, 0.0)
                for name, state in self.prober.circuits().items()
            },
        )
        self.metrics.gauge(
            "tuneline_gateway_release_behind",
            "1 while a released version of the model is not served yet.",
            lambda: {
                (("model", model.id),): float(model.id in self.behind())
                for model in self.config.models
            },
        )
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


def _without(generation: Generation, other: Generation) -> list[Upstream]:
    """Return the upstreams of a generation that another one does not use."""
    kept = set(other.upstreams.values())
    return [upstream for upstream in generation.upstreams.values() if upstream not in kept]
