"""cost_tracking: the ledger that bills API keys counts what clients and engine counted.

Real requests go through the gateway to the shipped bytes, then traffic that goes wrong: streams,
clients that leave, fallbacks, a gateway that is killed and started again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import cycle

from tuneline.asking.models import ALIAS, candidate, server_of
from tuneline.asking.rows import trial_prompts
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.governance.gateway.billing import (
    KEY,
    MAX_TOKENS,
    Tokens,
    Traffic,
    models,
    unseen_tokens,
    upstreams,
)
from tuneline.serving.client import Messages
from tuneline.serving.engines.engine import ServedModel
from tuneline.serving.following.release import THROUGHPUT
from tuneline.serving.gateway.ledger.reports import (
    KeyUsage,
    UpstreamTotals,
    totals_by_upstream,
    usage_by_key,
)
from tuneline.serving.gateway.process import GatewayProcess
from tuneline.step_context import StepContext

# Two keys with different numbers of requests: sums swapped between keys show.
REQUESTS = {"team-a": 3, "team-b": 5}
MODEL_ID = ALIAS


@dataclass(frozen=True)
class Trial:
    """The requests as clients, ledger and engine counted them."""

    reported: Mapping[str, Tokens]  # that the clients received, by key
    by_key: Sequence[KeyUsage]  # the ledger's rows per key
    totals: UpstreamTotals  # of the upstream in the ledger, the gateway's own pings included
    engine: Tokens
    wrong: Sequence[Measurement] = ()  # what was measured on traffic that goes wrong

    @property
    def requests(self) -> int:
        """Requests in the ledger."""
        return sum(row.requests for row in self.by_key)

    @property
    def cost(self) -> float:
        """Cost of all requests, in the ledger's currency."""
        return sum(row.cost for row in self.by_key)


def reconcile(trial: Trial) -> list[Measurement]:
    """Compare the ledger with the clients and with the engine."""
    booked = {row.key: Tokens(row.prompt_tokens, row.completion_tokens) for row in trial.by_key}
    reported, totals, engine = trial.reported, trial.totals, trial.engine
    differing = [key for key in {*reported, *booked} if reported.get(key) != booked.get(key)]
    completion_off = totals.completion_tokens - engine.completion
    prompt_off = totals.prompt_tokens - totals.cached_tokens - engine.prompt
    return [
        measure("requests", trial.requests, "requests", "==", sum(REQUESTS.values())),
        measure("keys_that_differ_from_clients", len(differing), "keys", "==", 0),
        measure("completion_tokens_off_engine", completion_off, "tokens", "==", 0),
        measure("prompt_tokens_off_engine", prompt_off, "tokens", "==", 0),
        measure("estimated_attempts", totals.estimated_attempts, "attempts", "==", 0),
    ]


def send_requests(gateway: GatewayProcess, prompts: Sequence[Messages]) -> dict[str, Tokens]:
    """Send each key's requests; return the usage that its answers reported."""
    queue = iter(prompts)
    reported = {}
    for key, count in REQUESTS.items():
        answers = [
            gateway.ask(MODEL_ID, next(queue), max_tokens=MAX_TOKENS, key=key) for _ in range(count)
        ]
        usages = [answer.body.get("usage", {}) for answer in answers]
        reported[key] = Tokens(
            sum(int(usage.get("prompt_tokens", 0)) for usage in usages),
            sum(int(usage.get("completion_tokens", 0)) for usage in usages),
        )
    return reported


def try_ledger(ctx: StepContext, model: ServedModel, throughput: float) -> Trial:
    """Serve the shipped bytes behind a gateway and send requests under every key."""
    config = ctx.config
    calm = sum(REQUESTS.values())
    prompts = trial_prompts(ctx, 2 * calm)
    unseen = unseen_tokens(throughput)
    with server_of(model, config.deployment) as server:
        # The server's own readiness check has generated a token already.
        before = server.counters()
        price = {
            "hourly_cost": config.governance.machine_cost_per_hour,
            "completion_tokens_per_second": throughput or 1.0,
        }
        with GatewayProcess(
            ctx.scratch / "gateway",
            upstreams=upstreams(server, price),
            models=models(),
            keys=(*REQUESTS, KEY),
            settings={"currency": config.governance.currency},
        ) as gateway:
            reported = send_requests(gateway, prompts)
            after, until = server.counters(), datetime.now(UTC)
            ctx.log("calm requests are answered; now traffic that goes wrong")
            context = config.deployment.context_tokens
            wrong = Traffic(gateway, server, cycle(prompts), unseen, context).run()
    engine = Tokens(
        after.prompt_tokens - before.prompt_tokens,
        after.completion_tokens - before.completion_tokens,
    )
    by_key = usage_by_key(gateway.ledger, until=until)
    # Of the upstream of calm requests; zeros for an empty ledger.
    nothing = UpstreamTotals("primary", MODEL_ID, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, "")
    totals = next(iter(totals_by_upstream(gateway.ledger, until=until)), nothing)
    return Trial(reported, by_key, totals, engine, wrong)


def run(ctx: StepContext) -> Evidence:
    """Send requests under two keys, reconcile the ledger, and price the requests."""
    latency = {m.name: m.value for m in ctx.entry("latency_benchmark").measurements}
    throughput = float(latency[THROUGHPUT] or 0.0)
    model = candidate(ctx).model
    trial = try_ledger(ctx, model, throughput)
    ctx.write_json(
        "usage.json",
        {"by_key": [asdict(row) for row in trial.by_key], "upstream": asdict(trial.totals)},
    )
    checks = [*reconcile(trial), *trial.wrong]
    broken = [check.name for check in checks if not check.ok]
    finding = (
        f"the ledger does not add up ({', '.join(broken)})"
        if broken
        else "every token of requests that ended is counted the same by ledger, clients and engine"
    )
    unbooked = sum(int(m.value or 0) for m in checks if m.name.endswith("_tokens_not_booked"))
    wrong = (
        f"of streams, fallbacks and requests that were cut off, {unbooked} generated tokens were "
        "not reported to any client"
    )
    currency = ctx.config.governance.currency
    hourly = ctx.config.governance.machine_cost_per_hour
    per_1k = 1000 * hourly / 3600 / throughput if throughput else None
    per_request = trial.cost / max(trial.requests, 1)
    return ctx.conclude(
        f"{trial.requests} requests of {len(trial.by_key)} keys: {finding}; "
        f"{wrong}; {per_request:.3g} {currency} a request, "
        + (f"{per_1k:.3g} {currency} per 1,000 tokens" if per_1k else "no throughput to price by"),
        [
            *checks,
            measure("throughput", throughput, "tokens/s", ">", 0),
            measure("cost_per_1000_tokens", per_1k, currency),
            measure("cost_per_request", per_request, currency),
            *(measure(f"cost_of_{row.key}", row.cost, currency) for row in trial.by_key),
            measure("candidate_sha256", model.sha256, "sha256"),
        ],
    )
