"""health_checks: prove on the real server that the probes tell a working engine from a broken one.

Before the weights are loaded the probes fail; once they succeed, the weights are in memory and
a token was generated. An engine with all slots taken passes. A stopped process (SIGSTOP) fails
its liveness probe although its port still accepts connections; a killed one fails at once.
After SIGTERM running answers are finished. The gateway in front turns unready with its engine
and stays alive, since a restart of it would repair nothing. The commands that are run are those
of the Kubernetes specification left in `probes.json`.
"""

from __future__ import annotations

from tuneline.deployment.probes.kubernetes import (
    engine_probes,
    gateway_probes,
    restart_after,
    startup_budget,
)
from tuneline.deployment.probes.trial import ProbeTrial
from tuneline.evidence import Evidence, measure
from tuneline.harness.served_models import ALIAS, candidate
from tuneline.step_context import StepContext

# Least share of the weights in memory once a token was generated; not all may be needed.
RESIDENT_SHARE = 0.9
# Address of the engine's container; both containers share the pod's network.
ENGINE_URL = "http://127.0.0.1:8081"


def run(ctx: StepContext) -> Evidence:
    """Exercise the probes and write their specification."""
    chosen = candidate(ctx)
    life = ProbeTrial(chosen.model, ctx.config.deployment, ctx.scratch / "gateway")
    trial = life.run()
    engine = engine_probes(ENGINE_URL, ALIAS, life.start_seconds, life.adapter)
    spec = {"engine": engine, "gateway": gateway_probes()}
    ctx.write_json("probes.json", spec)
    ctx.write_json("observations.json", trial.observations)
    resident = life.resident_bytes / chosen.model.bytes
    failed = [m.name for m in trial.measurements if m.ok is False]
    restart = restart_after(engine)
    summary = (
        f"{len(trial.measurements) - len(failed)} of {len(trial.measurements)} observations are as "
        f"expected, from start ({life.start_seconds:.1f} s) to drain; a hung engine is restarted "
        f"after {restart:.0f} s at most" + (f"; unexpected: {', '.join(failed)}" if failed else "")
    )
    return ctx.conclude(
        summary,
        [
            *trial.measurements,
            measure("weights_resident", round(resident, 3), "share", ">=", RESIDENT_SHARE),
            measure(
                "start_seconds", round(life.start_seconds, 2), "s", "<=", startup_budget(engine)
            ),
            measure("restart_of_a_hung_engine_after", restart, "s"),
            measure("candidate_sha256", chosen.model.sha256, "sha256"),
        ],
    )
