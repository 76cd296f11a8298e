"""health_checks: prove on the real server that the probes tell a working engine from a broken one.

Before the weights are loaded the probes fail; once they succeed, the weights are in memory and
a token was generated. An engine with all slots taken passes. A stopped process (SIGSTOP) fails
its liveness probe although its port still accepts connections; a killed one fails at once.
After SIGTERM running answers are finished. The gateway in front turns unready with its engine
and stays alive, since a restart of it would repair nothing. The commands that are run are those
of the Kubernetes specification left in `probes.json`.
"""

from __future__ import annotations

import math
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuneline.asking.models import ALIAS, candidate, server_of
from tuneline.config import DeploymentConfig
from tuneline.errors import TunelineError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.machine.child_environment import child_environment
from tuneline.serving.client import Messages
from tuneline.serving.engines import get_engine
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.engines.engine import ServedModel, gpu_memory_used
from tuneline.serving.engines.probe import ProbeResult
from tuneline.serving.engines.server import START_SECONDS, EngineServer
from tuneline.serving.gateway.process import GatewayProcess
from tuneline.serving.processes import DetachedProcess, free_port, wait_for
from tuneline.step_context import StepContext

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
    """Return the command of the engine's exec probe; see `engine_probes`."""
    command = ["tuneline", "probe", kind, "--engine", url, "--timeout", str(PROBE_SECONDS)]
    if adapter is not None:
        command += ["--adapter", str(adapter)]
    return command if kind == "live" else [*command, "--model", model]


def engine_probes(
    url: str, model: str, start_seconds: float, adapter: int | str | None = None
) -> dict[str, Any]:
    """Return the probes of the engine's container.

    Args:
        url: address of the engine, as seen from its container.
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


# Settings of the gateway's readiness, short so that the trial takes seconds.
GATEWAY = {
    "readiness": {
        "ping_interval_s": 0.5,
        "ping_timeout_s": 1.0,
        "stale_after_s": 2.0,
        "warmup_prompt_words": [8],
    },
    "drain": {"delay_s": 1.0},
}
WAIT_SECONDS = 60.0
# Stale after two seconds, plus a ping's timeout and interval, plus a margin for a busy machine.
GATEWAY_SECONDS = 10.0
# Tokens of an answer that is still running when a signal arrives.
LONG_ANSWER = 32
PROMPT: Messages = [{"role": "user", "content": "Count from one to thirty in words."}]


def run_probe(probe: Mapping[str, Any]) -> tuple[bool, float]:
    """Run a Kubernetes exec probe on this machine; return if it succeeded in time, and seconds."""
    program, *arguments = probe["exec"]["command"]
    # Its own environment is not on the PATH of a process that was started by its path.
    own = Path(sys.executable).with_name(program)
    command = [str(own) if own.exists() else program, *arguments]
    limit, ok = probe["timeoutSeconds"], False
    started = time.monotonic()
    with suppress(subprocess.SubprocessError):
        environment = child_environment()
        subprocess.run(command, capture_output=True, env=environment, timeout=limit, check=True)
        ok = True
    return ok, time.monotonic() - started


class ProbeTrial:
    """One engine behind one gateway, taken through start, load, faults and drain."""

    def __init__(self, model: ServedModel, deployment: DeploymentConfig, folder: Path) -> None:
        self.measurements: list[Measurement] = []
        self.model = model
        self.deployment = deployment
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = server_of(model, deployment, port=self.port)
        self.adapter = self.server.adapter
        self.probes = engine_probes(self.url, ALIAS, 0.0, self.adapter)
        self.gateway = GatewayProcess(
            folder,
            upstreams=[self.server.upstream("engine")],
            models=[{"id": "model", "chain": ["engine"]}],
            settings=GATEWAY,
        )
        self.start_seconds = 0.0
        self.weight_bytes = 0

    def expect(self, moment: str, what: str, got: bool, wanted: bool) -> None:
        """Record a yes or no that decides."""
        self.measurements.append(measure(_name(moment, what), got, "flag", "==", wanted))

    def within(self, moment: str, what: str, seconds: float, limit: float) -> None:
        """Record a duration that must stay within a limit."""
        name, took = _name(moment, what), round(seconds, 2)
        self.measurements.append(measure(name, took, "s", "<=", limit))

    def run(self) -> None:
        """Go through all moments; leave nothing running, also after an error."""
        try:
            self.start()
            with self.gateway:
                self.ready()
                self.busy()
                self.hung()
                self.killed()
                self.drain_gateway()
            self.drain_engine()
        finally:
            # It may still be stopped; a process that does not run is not.
            with suppress(TunelineError, ProcessLookupError):
                self.server.signal(signal.SIGCONT)
            self.server.kill()
            self.gateway.stop()

    def start(self) -> None:
        """Check that it is not ready while it loads, and ready with its weights in memory after."""
        began = time.monotonic()
        on_gpu = get_engine(self.model.engine).on_gpu()
        # A GPU's memory is not counted by process: its driver sees other ids than a container.
        before = gpu_memory_used() if on_gpu else 0
        self.server.launch()
        first = self._engine_ready(2.0)
        self.expect("start", "ready before it listens", first.ok, False)
        waited = wait_for(lambda: self._engine_ready(5.0).ok, START_SECONDS)
        self.start_seconds = time.monotonic() - began
        self.expect("start", "becomes ready", waited < START_SECONDS, True)
        self.weight_bytes = (
            gpu_memory_used() - before
            if on_gpu
            else DetachedProcess(self.server.pid).weight_bytes(self.model.paths, self.model.bytes)
        )

    def ready(self) -> None:
        """Check that all probes succeed, and that another model's name is refused."""
        self.expect("ready", "startup probe", run_probe(self.probes["startupProbe"])[0], True)
        self.expect("ready", "liveness probe", self._live()[0], True)
        other = self._engine_ready(5.0, "another-model")
        self.expect("ready", "accepts another model's id", other.ok, False)
        waited = wait_for(self._gateway_ready, WAIT_SECONDS)
        self.expect("ready", "gateway ready", waited < WAIT_SECONDS, True)
        self.expect("ready", "gateway live", self._gateway_live(), True)

    def busy(self) -> None:
        """Check that an engine with all slots taken passes its liveness probe."""
        slots = self.deployment.parallel
        with ThreadPoolExecutor(slots) as pool:
            running = [pool.submit(_answers_whole, self.server) for _ in range(slots)]
            self.expect("busy", "liveness probe", self._live()[0], True)
            whole = all(request.result() for request in running)
        self.expect("busy", "all answers whole", whole, True)

    def hung(self) -> None:
        """Stop the process: its port still accepts connections, but the probes must fail."""
        # A probe that overruns its time on a busy machine is ended and has failed: seen, too.
        limit = float(self.probes["livenessProbe"]["timeoutSeconds"]) + 1.0
        # Its short timeout may have run out while all slots were taken.
        wait_for(self._gateway_ready, WAIT_SECONDS)
        self.server.signal(signal.SIGSTOP)
        self.expect("hung", "port still accepts", self._accepts(), True)
        with ThreadPoolExecutor(3) as pool:
            unready = pool.submit(wait_for, lambda: not self._gateway_ready(), WAIT_SECONDS)
            live, ready = pool.map(
                run_probe, (self.probes["livenessProbe"], self.probes["readinessProbe"])
            )
        self.expect("hung", "liveness probe", live[0], False)
        self.expect("hung", "readiness probe", ready[0], False)
        self.within("hung", "seen by the liveness probe after", live[1], limit)
        self.within("hung", "gateway unready after", unready.result(), GATEWAY_SECONDS)
        self.expect("hung", "gateway live", self._gateway_live(), True)
        self.server.signal(signal.SIGCONT)
        back = wait_for(
            lambda: engine_probe.live(self.url, 5.0, self.adapter).ok and self._gateway_ready(),
            WAIT_SECONDS,
        )
        self.expect("resumed", "engine live and gateway ready", back < WAIT_SECONDS, True)

    def killed(self) -> None:
        """Kill the engine: the probes fail at once, and recover with a new process."""
        self.server.kill()
        ok, seconds = self._live()
        self.expect("killed", "liveness probe", ok, False)
        self.within("killed", "seen by the liveness probe after", seconds, 3.0)
        waited = wait_for(lambda: not self._gateway_ready(), WAIT_SECONDS)
        self.within("killed", "gateway unready after", waited, GATEWAY_SECONDS)
        self.expect("killed", "gateway live", self._gateway_live(), True)
        self.server = server_of(self.model, self.deployment, port=self.port)
        self.server.start()
        back = wait_for(self._gateway_ready, WAIT_SECONDS)
        self.expect("restarted", "gateway ready", back < WAIT_SECONDS, True)

    def drain_gateway(self) -> None:
        """Send SIGTERM to the gateway: it turns unready first and finishes running answers."""
        options: dict[str, Any] = {"max_tokens": LONG_ANSWER, "extra": {"ignore_eos": True}}
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self.gateway.ask, "model", PROMPT, **options)
            time.sleep(0.1)
            self.gateway.signal(signal.SIGTERM)
            waited = wait_for(lambda: not self._gateway_ready(), 5.0)
            self.within("drain", "gateway unready after", waited, 1.0)
            self.expect("drain", "gateway answer whole", answer.result().complete, True)

    def drain_engine(self) -> None:
        """Send SIGTERM to the engine: it finishes running answers, then it ends."""
        begun = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(_answers_whole, self.server, begun.set)
            # A busy machine takes a while until the engine has the request.
            wait_for(lambda: begun.is_set() or running.done(), WAIT_SECONDS)
            self.server.drain()
            whole = running.result()
        self.expect("drain", "engine answer whole", whole, True)
        gone = wait_for(lambda: not self._accepts(), 30.0)
        self.within("drain", "engine gone after", gone, 30.0)

    def _engine_ready(self, timeout: float, model: str = ALIAS) -> ProbeResult:
        return engine_probe.ready(self.url, timeout, model, self.adapter)

    def _live(self) -> tuple[bool, float]:
        return run_probe(self.probes["livenessProbe"])

    def _gateway_ready(self) -> bool:
        return self.gateway.probe("ready") == 200

    def _gateway_live(self) -> bool:
        return self.gateway.probe("live") == 200

    def _accepts(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=2.0):
            return True
        return False


def _name(moment: str, what: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", f"{moment}_{what}".lower())


def _answers_whole(server: EngineServer, on_begin: Callable[[], None] | None = None) -> bool:
    """Return True if the server writes a long answer to its end."""
    options: dict[str, Any] = {"max_tokens": LONG_ANSWER, "extra": {"ignore_eos": True}}
    with suppress(TunelineError), server.client(timeout=WAIT_SECONDS) as client:
        answer = client.chat(PROMPT, stream=True, on_begin=on_begin, **options)
        return answer.usage.completion_tokens == LONG_ANSWER
    return False


# Least share of the weights in memory once a token was generated; not all may be needed.
RESIDENT_SHARE = 0.9
# Address of the engine's container; both containers share the pod's network.
ENGINE_URL = "http://127.0.0.1:8081"


def run(ctx: StepContext) -> Evidence:
    """Exercise the probes and write their specification."""
    chosen = candidate(ctx)
    life = ProbeTrial(chosen.model, ctx.config.deployment, ctx.scratch / "gateway")
    life.run()
    engine = engine_probes(ENGINE_URL, ALIAS, life.start_seconds, life.adapter)
    spec = {"engine": engine, "gateway": gateway_probes()}
    ctx.write_json("probes.json", spec)
    resident = life.weight_bytes / chosen.model.bytes
    seen = life.measurements
    failed = [m.name for m in seen if m.ok is False]
    restart = restart_after(engine)
    summary = (
        f"{len(seen) - len(failed)} of {len(seen)} observations are as "
        f"expected, from start ({life.start_seconds:.1f} s) to drain; a hung engine is restarted "
        f"after {restart:.0f} s at most" + (f"; unexpected: {', '.join(failed)}" if failed else "")
    )
    return ctx.conclude(
        summary,
        [
            *seen,
            measure("weights_resident", round(resident, 3), "share", ">=", RESIDENT_SHARE),
            measure(
                "start_seconds", round(life.start_seconds, 2), "s", "<=", startup_budget(engine)
            ),
            measure("candidate_sha256", chosen.model.sha256, "sha256"),
        ],
    )
