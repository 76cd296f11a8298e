"""Probes, exercised against the real server: start, ready, busy, hung, killed, drain.

Proves that the probes a cluster would run tell the truth about this model:
before the weights are loaded they say no; when they say yes the weights are in
memory and a token was made; a full engine is not taken for a dead one; an
engine that is stopped in its tracks (SIGSTOP) fails its liveness probe though
its port still takes connections; a killed one is seen at once; SIGTERM lets
running answers finish. The gateway in front turns unready with its engine and
stays alive, since restarting it would mend nothing. The probe commands that
are run are those of the Kubernetes specification that is left as an artifact.
"""

from __future__ import annotations

import json

from tuneline.deployment.probes.trial import ALIAS, ProbeTrial
from tuneline.evidence import Evidence, measure
from tuneline.harness.served_models import candidate
from tuneline.run import StepContext
from tuneline.serving.probes.kubernetes_probes import (
    engine_probes,
    gateway_probes,
    restart_after,
    startup_budget,
)

# Weights that are not in memory once a token has been made are not all needed.
RESIDENT_SHARE = 0.9
# Where the engine's container listens; both containers share the pod's network.
ENGINE_URL = "http://127.0.0.1:8081"


def run(ctx: StepContext) -> Evidence:
    """Exercise the probes and leave their specification."""
    deployment = ctx.config.deployment
    chosen = candidate(ctx)
    model = chosen.file.path
    life = ProbeTrial(
        model,
        parallel=deployment.parallel,
        ctx=deployment.context_tokens,
        folder=ctx.scratch / "gateway",
    )
    trial = life.run()
    engine = engine_probes(ENGINE_URL, ALIAS, life.start_seconds)
    spec = {"engine": engine, "gateway": gateway_probes()}
    (ctx.out / "probes.json").write_text(json.dumps(spec, indent=1))
    (ctx.out / "observations.json").write_text(json.dumps(trial.observations, indent=1))
    resident = life.resident_bytes / model.stat().st_size
    failed = [m.name for m in trial.measurements if m.ok is False]
    restart = restart_after(engine)
    summary = (
        f"{len(trial.measurements) - len(failed)} of {len(trial.measurements)} observations as "
        f"they should be, from start ({life.start_seconds:.1f} s) to drain; a hung engine is "
        f"restarted after {restart:.0f} s at most"
        + (f"; not: {', '.join(failed)}" if failed else "")
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
            measure("candidate_sha256", chosen.file.sha256, "sha256"),
        ],
    )
