"""`cost_tracking`: usage per API key, reconciled with the engine, and what it costs.

Proves that the ledger that bills is right: real requests under two keys go through the
gateway to the shipped bytes, then the ledger's sums must equal what the clients were told
and what the engine itself counted. The price follows from the machine's hour and the
throughput that the latency benchmark measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from tuneline.evidence import Evidence, Measurement, measure
from tuneline.harness.rows import trial_prompts
from tuneline.run import StepContext
from tuneline.serving.engines.llama_cpp.engine import LlamaServer
from tuneline.serving.gateway.usage import KeyUsage, UpstreamTotals
from tuneline.serving.release.released import THROUGHPUT

# Two keys with unlike use: sums that were swapped between keys would show.
REQUESTS = {"team-a": 3, "team-b": 5}
MODEL = "candidate"


def reconcile(
    told: Mapping[str, tuple[int, int]],
    by_key: Sequence[KeyUsage],
    totals: UpstreamTotals,
    engine_prompt: float,
    engine_completion: float,
) -> list[Measurement]:
    """Hold the ledger against its two witnesses.

    Args:
        told: prompt and completion tokens that clients were told, by key.
        by_key: the ledger's rows per key.
        totals: the ledger's totals of the upstream, own pings included.
        engine_prompt: prompt tokens that the engine computed (cached ones left out).
        engine_completion: completion tokens that the engine counted.
    """
    booked = {row.key: (row.prompt_tokens, row.completion_tokens) for row in by_key}
    differing = [key for key in {*told, *booked} if told.get(key) != booked.get(key)]
    computed = totals.prompt_tokens - totals.cached_tokens
    return [
        measure("keys_that_differ_from_clients", len(differing), "keys", "==", 0),
        measure(
            "completion_tokens_off_engine",
            totals.completion_tokens - int(engine_completion),
            "tokens",
            "==",
            0,
        ),
        measure("prompt_tokens_off_engine", computed - int(engine_prompt), "tokens", "==", 0),
        measure("estimated_attempts", totals.estimated_attempts, "attempts", "==", 0),
    ]


def run(ctx: StepContext) -> Evidence:
    """Send requests under two keys, reconcile, and price them."""
    from tuneline.serving.gateway.process import GatewayProcess
    from tuneline.serving.gateway.usage import totals_by_upstream, usage_by_key

    config = ctx.config
    model = ctx.input("production_quantization", "model.gguf")
    latency = {m.name: m.value for m in ctx.entry("latency_benchmark").measurements}
    throughput = float(latency[THROUGHPUT] or 0.0)
    hourly = config.governance.machine_cost_per_hour
    prompts = trial_prompts(ctx, sum(REQUESTS.values()))
    told: dict[str, tuple[int, int]] = {}
    with LlamaServer(
        model,
        parallel=config.deployment.parallel,
        ctx=config.deployment.context_tokens,
        alias=MODEL,
    ) as server:
        # The server's own readiness check made a token already.
        before = server.client().metrics()
        upstream = {
            "name": "primary",
            "base_url": f"{server.base_url}/v1",
            "model": MODEL,
            "price": {"hourly_cost": hourly, "completion_tokens_per_second": throughput or 1.0},
        }
        with GatewayProcess(
            ctx.scratch / "gateway",
            upstreams=[upstream],
            models=[{"id": MODEL, "chain": ["primary"]}],
            keys=tuple(REQUESTS),
            settings={"currency": config.governance.currency},
        ) as gateway:
            queue = iter(prompts)
            for key, count in REQUESTS.items():
                usages = []
                for _ in range(count):
                    answer = gateway.chat(MODEL, next(queue), max_tokens=24, key=key)
                    usages.append(answer.body.get("usage", {}))
                told[key] = (
                    sum(int(u.get("prompt_tokens", 0)) for u in usages),
                    sum(int(u.get("completion_tokens", 0)) for u in usages),
                )
        after = server.client().metrics()
        ledger = gateway.ledger
    by_key, totals = usage_by_key(ledger), totals_by_upstream(ledger)[0]
    checks = reconcile(
        told,
        by_key,
        totals,
        after["llamacpp:prompt_tokens_total"] - before["llamacpp:prompt_tokens_total"],
        after["llamacpp:tokens_predicted_total"] - before["llamacpp:tokens_predicted_total"],
    )
    (ctx.out / "usage.json").write_text(
        json.dumps(
            {"by_key": [asdict(row) for row in by_key], "upstream": asdict(totals)}, indent=1
        )
    )
    requests = sum(row.requests for row in by_key)
    cost = sum(row.cost for row in by_key)
    per_1k = 1000 * hourly / 3600 / throughput if throughput else None
    currency = config.governance.currency
    return ctx.conclude(
        f"{requests} requests of {len(by_key)} keys, every token reconciled with the engine"
        f"{'' if all(m.ok for m in checks) else ' (IT DOES NOT)'}; "
        f"{cost / max(requests, 1):.3g} {currency} a request, "
        + (f"{per_1k:.3g} {currency} per 1,000 tokens" if per_1k else "no throughput to price by"),
        [
            measure("requests", requests, "requests", "==", sum(REQUESTS.values())),
            *checks,
            measure("throughput", throughput, "tokens/s", ">", 0),
            measure("cost_per_1000_tokens", per_1k, currency),
            measure("cost_per_request", cost / max(requests, 1), currency),
            *(measure(f"cost_of_{row.key}", row.cost, currency) for row in by_key),
        ],
    )
