"""The probes of the engine's and the gateway's containers, as Kubernetes reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# The engine's probe makes a token, or looks twice at its counters; its interpreter starts too.
PROBE_SECONDS = 5
# Kubernetes ends the exec itself a little later than the probe gives up.
EXEC_SECONDS = PROBE_SECONDS + 2
PERIOD_SECONDS = 10
FAILURES = 3
STARTUP_PERIOD = 5
# A GPU node may pull weights from a cold disk; nothing is gained by killing it early.
MIN_STARTUP_SECONDS = 600
# How much longer than measured a start may take before it is called failed.
STARTUP_FACTOR = 10
GATEWAY_PORT = 8000


def engine_probe_command(kind: str, url: str, model: str) -> list[str]:
    """The command of the engine's exec probe.

    Args:
        kind: `live` or `ready`.
        url: of the engine, as seen from its own container.
        model: id that it must list.
    """
    command = ["python", "-m", "tuneline.serving.probes.engine_probe", kind, "--url", url]
    command += ["--timeout", str(PROBE_SECONDS)]
    return [*command, "--model", model] if kind == "ready" else command


def engine_probes(url: str, model: str, start_seconds: float) -> dict[str, Any]:
    """Probes of the engine's container.

    Args:
        url: of the engine, as seen from its own container.
        model: id that it must list.
        start_seconds: measured time from process start to the first token.
    """
    budget = max(MIN_STARTUP_SECONDS, STARTUP_FACTOR * start_seconds)

    def probe(kind: str) -> dict[str, Any]:
        return {"exec": {"command": engine_probe_command(kind, url, model)}}

    return {
        "startupProbe": {
            **probe("ready"),
            "periodSeconds": STARTUP_PERIOD,
            "timeoutSeconds": EXEC_SECONDS,
            "failureThreshold": math.ceil(budget / STARTUP_PERIOD),
        },
        "readinessProbe": {
            **probe("ready"),
            "periodSeconds": PERIOD_SECONDS,
            "timeoutSeconds": EXEC_SECONDS,
            "failureThreshold": FAILURES,
        },
        "livenessProbe": {
            **probe("live"),
            "periodSeconds": PERIOD_SECONDS,
            "timeoutSeconds": EXEC_SECONDS,
            "failureThreshold": FAILURES,
        },
    }


def gateway_probes() -> dict[str, Any]:
    """Probes of the gateway's container.

    Its liveness says only that the gateway lives: restarting it would not mend an
    engine, and would cut off the fallback that still answers.
    """

    def probe(path: str, failures: int) -> dict[str, Any]:
        return {
            "httpGet": {"path": path, "port": GATEWAY_PORT},
            "periodSeconds": STARTUP_PERIOD,
            "timeoutSeconds": 3,
            "failureThreshold": failures,
        }

    return {
        "livenessProbe": probe("/v1/health/live", FAILURES),
        "readinessProbe": probe("/v1/health/ready", 1),
    }


def startup_budget(probes: Mapping[str, Any]) -> float:
    """Seconds that the startup probe waits before the container is restarted."""
    startup = probes["startupProbe"]
    return float(startup["periodSeconds"] * startup["failureThreshold"])


def restart_after(probes: Mapping[str, Any]) -> float:
    """Seconds at most from a hang to the restart that the liveness probe asks for."""
    liveness = probes["livenessProbe"]
    return float(
        liveness["failureThreshold"] * (liveness["periodSeconds"] + liveness["timeoutSeconds"])
    )
