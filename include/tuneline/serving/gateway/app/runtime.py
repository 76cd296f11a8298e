"""The parts of a running gateway: keys, ledger, upstreams, probes and counters."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tuneline.errors import UserError
from tuneline.serving.gateway.accounts.admission import Admission
from tuneline.serving.gateway.accounts.keys import KeyRing
from tuneline.serving.gateway.accounts.spending import SpendingReader
from tuneline.serving.gateway.attempt_status import AttemptStatus
from tuneline.serving.gateway.chain.attempt import Attempt, Call, Recorder
from tuneline.serving.gateway.chain.canary import CanaryCounts, is_drawn
from tuneline.serving.gateway.chain.chain import Chain
from tuneline.serving.gateway.chain.readiness import Prober
from tuneline.serving.gateway.chain.upstream import Circuit, Upstream
from tuneline.serving.gateway.config import GatewayConfig, ModelConfig
from tuneline.serving.gateway.ledger.database import UsageRow
from tuneline.serving.gateway.ledger.writer import Ledger
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.gateway.request import Api
from tuneline.serving.gateway.upstream_config import TokenRates

if TYPE_CHECKING:
    from tuneline.serving.gateway.config import ProductionLogConfig
    from tuneline.serving.gateway.logs.production_log import ProductionLog
    from tuneline.serving.gateway.logs.scrubbing import Scrub
    from tuneline.serving.gateway.logs.tracing import RequestTrace, Tracing

_LOOK_S = 0.05
# Makes the scrubber of the production log from its section. It comes from the data phase, which is
# on this floor and therefore not imported here.
ScrubberFor: TypeAlias = "Callable[[ProductionLogConfig], Scrub]"


def pinned_models(config: GatewayConfig) -> dict[str, ModelConfig]:
    """Return what answers to each versioned id: the upstreams of a chain that are of its primary's.

    Who pins a version wants no other one. An id that the configuration itself uses is left to it.
    """
    upstreams = {upstream.name: upstream for upstream in config.upstreams}
    taken = {model.id for model in config.models}
    found = {}
    for model in config.models:
        version = upstreams[model.chain[0]].version
        pinned = f"{model.id}@{version}"
        if version is None or pinned in taken:
            continue
        chain = tuple(name for name in model.chain if upstreams[name].version == version)
        limits = model.low_confidence if len(chain) > 1 else None
        found[pinned] = model.model_copy(update={"chain": chain, "low_confidence": limits})
    return found


class Routing:
    """The serving parts of one configuration; a request keeps those that it arrived in.

    Upstreams of the routing before whose entries are the same go on, with connections and health.

    Raises:
        UserError: if a tokenizer cannot be read.
    """

    def __init__(
        self,
        config: GatewayConfig,
        ledger: Ledger,
        metrics: Metrics,
        known: Mapping[str, Upstream] | None = None,
    ) -> None:
        self.config = config
        self.requests = 0
        known = known or {}
        self.upstreams = {
            entry.name: known[entry.name]
            if entry.name in known and known[entry.name].config == entry
            else Upstream(entry)
            for entry in config.upstreams
        }
        recorder = Recorder(ledger, metrics, config.currency)

        def chain(model: ModelConfig) -> Chain:
            upstreams = [self.upstreams[name] for name in model.chain]
            stale_s = config.readiness.stale_s
            return Chain(model, upstreams, recorder, metrics, stale_after_s=stale_s)

        # By the id that a client asks for. A versioned id without a ready upstream does not make
        # the gateway unready: the model itself may still be answered by a fallback.
        plain = {model.id: chain(model) for model in config.models}
        self._canaries = {
            model.id: (
                model.canary,
                chain(model.model_copy(update={"chain": (model.canary.upstream, *model.chain)})),
            )
            for model in config.models
            if model.canary
        }
        self.chains = plain | {id_: chain(m) for id_, m in pinned_models(config).items()}
        self.prober = Prober(
            config.readiness, list(self.upstreams.values()), list(plain.values()), recorder
        )

    @property
    def canaries(self) -> list[tuple[str, str]]:
        """The models that have a canary, each with the candidate's upstream."""
        return [(model, canary.upstream) for model, (canary, _) in self._canaries.items()]

    def rates_of(self, model: str) -> TokenRates:
        """Return the price of a model's primary upstream."""
        return self.upstreams[self.chains[model].config.chain[0]].rates

    def share_of(self, model: str) -> float:
        """Return the share of the keys that go to a model's candidate; 0 without a canary."""
        return self._canaries[model][0].share if model in self._canaries else 0.0

    def chain_of(self, asked: str, key: str) -> Chain | None:
        """Return the chain that answers a key's requests for a model; None if there is none."""
        canary, chain = self._canaries.get(asked, (None, None))
        if canary is not None and is_drawn(canary.upstream, canary.share, key):
            return chain
        return self.chains.get(asked)

    def start(self) -> None:
        """Start the pings."""
        self.prober.start()

    async def stop(self) -> None:
        """Stop the pings and close all connections."""
        await self.prober.stop()
        await self.close_upstreams(self.upstreams.values())

    async def close_upstreams(self, upstreams: Collection[Upstream]) -> None:
        """Close the connections of some upstreams."""
        for upstream in upstreams:
            await upstream.aclose()

    async def await_ready(self, seconds: float) -> str | None:
        """Wait until every model has a ready upstream, and every candidate is ready.

        A candidate that is not ready would be passed over for a while. It keeps no model from being
        ready, since the chain stands behind it.

        Returns:
            What the models still lack after that time; None if nothing.
        """
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            lacking, states = self.prober.why_not_ready(), self.prober.states()
            if lacking is None and all(states[name] == "ready" for _, name in self.canaries):
                return None
            if asyncio.get_running_loop().time() > deadline:
                return lacking
            await asyncio.sleep(_LOOK_S)

    async def await_idle(self) -> None:
        """Wait until its last request has ended."""
        while self.requests:
            await asyncio.sleep(_LOOK_S)


@dataclass
class ReloadState:
    """What became of the configuration file.

    Attributes:
        refused: fingerprint of a later file that was refused, None if none was.
        retiring: routings whose requests still run although a newer one has taken over.
    """

    taken: str = ""
    refused: str | None = None
    retiring: int = 0


class Runtime:
    """The parts of a gateway, started and stopped with the application.

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
        self._book = SpendingReader(
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
        self._current = Routing(config, self.ledger, self.metrics)
        self.tally = CanaryCounts()
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
    def request(self) -> Iterator[Routing]:
        """Count a request as under way, and give it what it is served by from first to last."""
        routing = self._current
        self.in_flight += 1
        routing.requests += 1
        try:
            yield routing
        finally:
            self.in_flight -= 1
            routing.requests -= 1

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

        Raises:
            UserError: if a file that it names can't be used, or the gateway is ready and would not
                be any more; then everything stays as it was.
        """
        old = self._current
        new = Routing(config, self.ledger, self.metrics, old.upstreams)
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

    async def _retire(self, old: Routing, new: Routing) -> None:
        """Close what only the old routing used, once nobody uses it any more."""
        before = [task for task in self._retiring if task is not asyncio.current_task()]
        self.reload.retiring += 1
        try:
            await old.prober.stop()
            # A request of an even older routing may use the same upstreams.
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
        await asyncio.to_thread(self._book.close)
        await asyncio.to_thread(self.ledger.close)
        if self.tracing:
            await asyncio.to_thread(self.tracing.close)

    def log_request(self, call: Call, attempt: Attempt | None, status: AttemptStatus) -> None:
        """Count a request that has ended, and hand it to the log unless its key is not logged."""
        self.tally.note(call, attempt, status, self._current.share_of(call.model))
        if self.production_log:
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
        from tuneline.serving.gateway.logs.production_log import ProductionLog

        return ProductionLog(config, self._scrubber_for(config), self.metrics)

    def _rates_of(self, model: str) -> TokenRates:
        return self._current.rates_of(model)

    def _count_written(self, rows: list[UsageRow]) -> None:
        tokens: Counter[tuple[str, bool, str]] = Counter()
        costs: defaultdict[str, float] = defaultdict(float)
        for row in rows:
            tokens[row.upstream, row.estimated, "prompt"] += row.prompt_tokens
            tokens[row.upstream, row.estimated, "completion"] += row.completion_tokens
            costs[row.currency] += row.cost
        for (upstream, estimated, kind), count in tokens.items():
            self.metrics.tokens.labels(upstream, str(estimated).lower(), kind).inc(count)
        for currency, cost in costs.items():
            self.metrics.cost.labels(currency).inc(cost)

    def _declare_metrics(self) -> None:
        def gauge(name: str, text: str, read: Callable[[], float]) -> None:
            self.metrics.gauge(name, text, lambda: {(): float(read())})

        def gauges(name: str, text: str, of: str, read: Callable[[], Mapping[str, float]]) -> None:
            self.metrics.gauge(
                name, text, lambda: {((of, key),): float(value) for key, value in read().items()}
            )

        gauge("in_flight", "Requests under way.", lambda: self.in_flight)
        gauge("ledger_pending", "Ledger rows not yet written.", lambda: self.ledger.pending)
        ready = "1 while /v1/health/ready answers 200."
        gauge("ready", ready, lambda: self.why_not_ready() is None)
        shares = {Circuit.OPEN: 1.0, Circuit.HALF_OPEN: 0.5, Circuit.CLOSED: 0.0}
        gauges(
            "circuit_open",
            "1 while nothing is sent to the upstream, 0.5 while single requests try it.",
            "upstream",
            lambda: {name: shares[state] for name, state in self.prober.circuits().items()},
        )
        gauges(
            "release_behind",
            "1 while a released version of the model is not served yet.",
            "model",
            lambda: {model.id: model.id in self.behind() for model in self.config.models},
        )
        gauges(
            "upstream_ready",
            "1 while the upstream is ready.",
            "upstream",
            lambda: {name: state == "ready" for name, state in self.prober.states().items()},
        )


def _make_tracing(config: GatewayConfig) -> Tracing | None:
    if config.tracing is None:
        return None
    from tuneline.serving.gateway.logs.tracing import Tracing

    return Tracing(config.tracing)


def _without(routing: Routing, other: Routing) -> list[Upstream]:
    """Return the upstreams of a routing that another one does not use."""
    kept = set(other.upstreams.values())
    return [upstream for upstream in routing.upstreams.values() if upstream not in kept]
