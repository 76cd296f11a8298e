"""What one configuration serves: its upstreams, chains and pings, replaced whole by a reload."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from tuneline.serving.gateway.attempt import Recorder
from tuneline.serving.gateway.chain import Chain
from tuneline.serving.gateway.config import GatewayConfig, ModelConfig
from tuneline.serving.gateway.json_form import FormJudge
from tuneline.serving.gateway.ledger import Ledger
from tuneline.serving.gateway.metrics import Metrics
from tuneline.serving.gateway.prices import Rates
from tuneline.serving.gateway.readiness import Prober
from tuneline.serving.gateway.tally import is_drawn
from tuneline.serving.gateway.upstream import Upstream
from tuneline.serving.gateway.versions import pinned_models

_LOOK_S = 0.05


class Generation:
    """The serving parts of one configuration.

    A request keeps the generation that it arrived in, so a reload changes nothing under it.

    Args:
        config: the configuration.
        ledger: the usage ledger.
        metrics: the gateway's counters.
        judge: see `Chain`.
        known: upstreams of the generation before; those whose entries are the same go on, with
            their connections and their health.

    Attributes:
        requests: requests under way that arrived in it.

    Raises:
        UserError: if a tokenizer cannot be read.
    """

    def __init__(
        self,
        config: GatewayConfig,
        ledger: Ledger,
        metrics: Metrics,
        judge: FormJudge,
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
            return Chain(model, upstreams, recorder, metrics, judge, stale_after_s=stale_s)

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

    def rates_of(self, model: str) -> Rates:
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

        A candidate that is not ready would be passed over, and its keys be answered by another
        version for a while.

        Args:
            seconds: the longest wait.

        Returns:
            What the models still lack after that time; None if nothing. A candidate that is not
            ready lacks them nothing, since the chain stands behind it.
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
