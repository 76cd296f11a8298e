"""Probes of the engine's and the gateway's containers, in the form of a Kubernetes pod."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# The probe starts an interpreter, then generates a token or reads the engine's counters twice.
PROBE_SECONDS = 5
# Kubernetes ends the command a little later than the probe itself gives up.
EXEC_SECONDS = PROBE_SECONDS + 2
PERIOD_SECONDS = 10
FAILURES = 3
STARTUP_PERIOD = 5
# A GPU node may read weights from a cold disk; killing it early gains nothing.
MIN_STARTUP_SECONDS = 600
# A start may take this many times the measured one before it counts as failed.
STARTUP_FACTOR = 10
GATEWAY_PORT = 8000


def engine_probe_command(
    kind: str, url: str, model: str, adapter: int | str | None = None
) -> list[str]:
    """Return the command of the engine's exec probe.

    Args:
        kind: `live`, `ready` or `startup`.
        url: address of the engine, as seen from its own container.
        model: model id that it must list.
        adapter: the adapter that must answer (see `adapter_fields`); None asks the model alone.
    """
    command = ["tuneline", "probe", kind, "--engine", url, "--timeout", str(PROBE_SECONDS)]
    if adapter is not None:
        command += ["--adapter", str(adapter)]
    return command if kind == "live" else [*command, "--model", model]


def engine_probes(
    url: str, model: str, start_seconds: float, adapter: int | str | None = None
) -> dict[str, Any]:
    """Return the probes of the engine's container.

    Args:
        url: address of the engine, as seen from its own container.
        model: model id that it must list.
        start_seconds: measured time from process start to the first token, in seconds.
        adapter: the adapter that must answer (see `adapter_fields`); None asks the model alone.
    """
    budget = max(MIN_STARTUP_SECONDS, STARTUP_FACTOR * start_seconds)

    def probe(kind: str, period: int, failures: int) -> dict[str, Any]:
        return {
            "exec": {"command": engine_probe_command(kind, url, model, adapter)},
            "periodSeconds": period,
            "timeoutSeconds": EXEC_SECONDS,
            "failureThreshold": failures,
        }

    return {
        "startupProbe": probe("startup", STARTUP_PERIOD, math.ceil(budget / STARTUP_PERIOD)),
        "readinessProbe": probe("ready", PERIOD_SECONDS, FAILURES),
        "livenessProbe": probe("live", PERIOD_SECONDS, FAILURES),
    }


def gateway_probes() -> dict[str, Any]:
    """Return the probes of the gateway's container.

    Its liveness depends on the gateway alone: a restart would not repair an engine, and would
    interrupt the fallback that still answers.
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
    """Return the time that the startup probe allows before a restart, in seconds."""
    startup = probes["startupProbe"]
    return float(startup["periodSeconds"] * startup["failureThreshold"])


def restart_after(probes: Mapping[str, Any]) -> float:
    """Return the longest time from a hang to the restart by the liveness probe, in seconds."""
    liveness = probes["livenessProbe"]
    return float(
        liveness["failureThreshold"] * (liveness["periodSeconds"] + liveness["timeoutSeconds"])
    )
