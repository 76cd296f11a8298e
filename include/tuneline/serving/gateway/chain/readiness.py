"""Readiness: a model that writes tokens is ready; an open port proves nothing.

Each upstream must list the expected model id, go through a warm-up after it started, and have
written a token recently. Pings of one token give that proof where no traffic does; they run in
the background, so a probe is answered at once from the last known state. vLLM's `/health` has
answered 200 on a dead GPU (vllm-project/vllm#36960), so nothing here trusts a health route.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress

from tuneline.serving.gateway.attempt_status import AttemptStatus, ClientFault, UpstreamFault
from tuneline.serving.gateway.chain.attempt import Call, Recorder
from tuneline.serving.gateway.chain.chain import Chain
from tuneline.serving.gateway.chain.upstream import Circuit, Upstream
from tuneline.serving.gateway.config import ReadinessConfig
from tuneline.serving.gateway.ledger.writer import OWN_KEY
from tuneline.serving.gateway.request import ApiRequest, upstream_body

log = logging.getLogger("tuneline.gateway")

_WARMUP_TOKENS = 4


class Prober:
    """Keeps the health of all upstreams up to date and judges the gateway's readiness."""

    def __init__(
        self,
        config: ReadinessConfig,
        upstreams: list[Upstream],
        chains: list[Chain],
        recorder: Recorder,
    ) -> None:
        self._config = config
        self._upstreams = upstreams
        self._chains = chains
        self._recorder = recorder
        self._stale_s = config.stale_s
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start to watch each upstream."""
        self._tasks = [asyncio.create_task(self._watch(upstream)) for upstream in self._upstreams]

    async def stop(self) -> None:
        """Stop watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def states(self) -> dict[str, str]:
        """Return `ready`, or why it is not, of each upstream."""
        return {
            upstream.name: upstream.health.why_not_ready(self._stale_s) or "ready"
            for upstream in self._upstreams
        }

    def circuits(self) -> dict[str, Circuit]:
        """Return the state of each upstream's circuit."""
        return {upstream.name: upstream.breaker.state for upstream in self._upstreams}

    def why_not_ready(self) -> str | None:
        """Return why the gateway should get no traffic, None if it is ready."""
        states = self.states()
        for chain in self._chains:
            names = chain.config.chain
            if self._config.require == "primary":
                names = names[:1]
            if all(states[name] != "ready" for name in names):
                reasons = "; ".join(f"{name}: {states[name]}" for name in names)
                return f"model {chain.config.id} has no ready upstream ({reasons})"
        return None

    async def _watch(self, upstream: Upstream) -> None:
        interval = self._config.ping_interval_s
        health = upstream.health
        while True:
            before = health.why_not_ready(self._stale_s)
            asked = health.suspect.is_set()
            health.suspect.clear()
            if asked or before is not None or health.proof_age() >= interval:
                try:
                    await self._check(upstream)
                except Exception as error:  # one odd answer must not end the watch
                    log.exception("upstream %s cannot be checked", upstream.name)
                    health.failed(f"it cannot be checked ({type(error).__name__})")
            after = health.why_not_ready(self._stale_s)
            if after != before:
                log.info("upstream %s: %s", upstream.name, after or "ready")
            # A fault in the traffic ends the wait, but at most once a second: otherwise a dead
            # engine under load would be asked on every request.
            at_least = min(1.0, interval)
            await asyncio.sleep(at_least)
            # An engine that is not ready may be at any moment, once its weights are loaded.
            if after is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(interval - at_least):
                        await health.suspect.wait()

    async def _check(self, upstream: Upstream) -> None:
        """Read the list of models, warm up if it is due, and ping."""
        health = upstream.health
        expected = upstream.config.asked_model
        try:
            listed = await upstream.listed_models(self._config.ping_timeout_s)
            health.listed = expected in listed
            if not health.listed:
                # Names of other models stay in the log: the probe is open to anyone.
                log.warning("upstream %s lists %s, not %s", upstream.name, listed, expected)
                health.failed(f"the model {expected} is not listed")
                return
            adapter = upstream.config.adapter
            # llama.cpp answers with the base alone where it has no adapter of that place.
            if isinstance(adapter, int) and adapter not in await upstream.loaded_adapters(
                self._config.ping_timeout_s
            ):
                health.listed = False
                health.failed(f"adapter {adapter} is not loaded")
                return
            if not upstream.config.ping:
                health.warm = True
                health.note_token()
                return
            if not health.warm:
                await self._warm_up(upstream)
                health.warm = True
            system = upstream.config.warmup_system if health.keeps_prefix else None
            await self._ask(upstream, "ping", "ping", 1, self._config.ping_timeout_s, system=system)
        except UpstreamFault as fault:
            if fault.outcome is AttemptStatus.CONNECT_ERROR:
                health.restarted()
            # Too slow may only mean busy: then the age of the last token decides.
            if fault.outcome is not AttemptStatus.TIMEOUT or health.last_proof is None:
                health.failed(fault.detail)
        except ClientFault as fault:
            health.failed(f"it refused a ping ({fault})")

    async def _warm_up(self, upstream: Upstream) -> None:
        """Ask prompts of several lengths, then one that begins as the users' prompts do."""
        limit = self._config.warmup_timeout_s
        lengths = self._config.warmup_prompt_words
        for words in lengths:
            await self._ask(upstream, "warmup", " ".join(["warm"] * words), _WARMUP_TOKENS, limit)
        system = upstream.config.warmup_system
        upstream.health.keeps_prefix = False
        if system is None or not lengths:
            return
        began = time.monotonic()
        try:
            await self._ask(upstream, "warmup", "warm", 1, limit, system=system)
        except ClientFault as fault:
            # Too long for its context, for instance; it serves what it can without.
            log.warning(
                "upstream %s refuses the warm-up with a system turn: %s", upstream.name, fault
            )
            return
        # A ping pays for the whole turn when other prompts have taken its place in the cache.
        took = time.monotonic() - began
        upstream.health.keeps_prefix = took <= self._config.ping_timeout_s / 2

    async def _ask(
        self,
        upstream: Upstream,
        kind: str,
        prompt: str,
        tokens: int,
        timeout_s: float,
        *,
        system: str | None = None,
    ) -> None:
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        body = {"messages": messages, "max_tokens": tokens, "temperature": 0}
        model = upstream.config.model
        request = ApiRequest(model, body, stream=False, wants_usage=False, wants_logprobs=False)
        call = Call(f"{kind}-{secrets.token_hex(12)}", kind, OWN_KEY, model, request)
        attempt = self._recorder.begin(call, 1, upstream)
        try:
            wire = upstream_body(request, upstream.config, judged=False)
            payload, _ = await upstream.complete(wire, timeout_s)
            attempt.add_payload(payload, "message")
            attempt.end(AttemptStatus.OK)
            # An answer may be empty when the model's first token ends it; it is an answer.
            upstream.health.note_token()
        except UpstreamFault as fault:
            attempt.end(fault.outcome)
            raise
        except ClientFault:
            attempt.end(AttemptStatus.CLIENT_ERROR)
            raise
        finally:
            self._recorder.record(attempt, served=False)
