"""cold_start: prove that readiness follows the warm-up, so that no user pays for a start.

On fresh processes the first request is timed twice: against a server that has just loaded its
weights, and against one that the gateway warmed up first. Readiness must come after the warm-up:
while the gateway is not ready the engine has not finished its warm-up prompts, and once it is
ready the engine's own counters show that they were read.

The last warm-up prompt begins with the system turn that most rows begin with, as a release states
it to the gateway that serves it. So the engine's prefix cache holds that turn before a user asks,
and the first request costs what later ones do.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from tuneline.artifacts.deployment import WARM_UP, WarmUp
from tuneline.asking.load import Timing, drive
from tuneline.asking.models import candidate, server_of
from tuneline.asking.rows import dataset_rows, validation_rows
from tuneline.config import DeploymentConfig
from tuneline.data.tables.rows import Row
from tuneline.errors import RetryableError
from tuneline.evidence import Evidence, Measurement, measure
from tuneline.serving.client import EngineClient, Messages
from tuneline.serving.engines import probe as engine_probe
from tuneline.serving.engines.engine import ServedModel
from tuneline.serving.engines.server import START_SECONDS, EngineServer
from tuneline.serving.gateway.process import GatewayProcess
from tuneline.serving.processes import free_port, wait_for
from tuneline.step_context import StepContext

# Fresh processes of each kind; the median counts, since the machine may be busy during one.
STARTS = 3
MAX_TOKENS = 8
WARMUP_WORDS = (8, 64)
# Requests after the first one of a warmed server, which it is compared with.
LATER = 8


@dataclass(frozen=True)
class Start:
    """A fresh process whose first request comes as soon as it listens; times in seconds."""

    load_seconds: float
    first_ttft: float
    later_ttft: float
    failed: int


@dataclass(frozen=True)
class WarmStart:
    """A fresh process behind a gateway that warms it up; times in seconds.

    Attributes:
        seen_unready: whether the gateway was not ready before the process started.
        warm_when_ready: whether the engine had read the warm-up prompts once it was ready.
        later_ttft: median TTFT of the requests after the first one.
    """

    seen_unready: bool
    warm_when_ready: bool
    ready_seconds: float
    first_ttft: float
    later_ttft: float
    failed: int


def forget(paths: Iterable[Path]) -> None:
    """Drop files from the page cache, so that the next load reads the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class Starter:
    """Starts fresh servers of one model; each start begins with another prompt.

    The warm-up carries the system turn, if there is one.
    """

    model: ServedModel
    deployment: DeploymentConfig
    prompts: Sequence[Messages]
    folder: Path
    system: str | None = None

    def cold(self, number: int) -> Start:
        """Start a server and send its first request, prompt `number`, as soon as it listens."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        server = server_of(self.model, self.deployment, port=port)
        self._launch(server)
        try:
            loaded = _await(server, lambda: engine_probe.listens(url, 2.0), server.last_words)
            with server.client() as client:
                first, later = self._ask(client, number), self._ask(client, number + 1)
        finally:
            server.stop()
        return Start(loaded, first.ttft, later.ttft, failed=2 - first.ok - later.ok)

    def warmed(self, number: int) -> WarmStart:
        """Start a server behind a gateway; send prompt `number` and others once it is ready."""
        server = server_of(self.model, self.deployment, port=free_port())
        gateway = self._gateway(server, number)

        def is_ready() -> bool:
            return gateway.get("/v1/health/ready").status_code == 200

        def why_not() -> str:
            return str(gateway.get("/v1/health/ready").json()["message"])

        # The gateway runs first, so that readiness is watched from before the load.
        with gateway:
            seen_unready = not is_ready()
            self._launch(server)
            try:
                waited = _await(server, is_ready, why_not)
                read = server.counters().prompt_tokens
                with server.client() as client:
                    first, *later = (self._ask(client, number + i) for i in range(1 + LATER))
            finally:
                server.stop()
        # A word of the warm-up is at least one token.
        warm = read >= sum(WARMUP_WORDS)
        failed = sum(not timing.ok for timing in (first, *later))
        after = median(timing.ttft for timing in later)
        return WarmStart(seen_unready, warm, waited, first.ttft, after, failed)

    def _gateway(self, server: EngineServer, number: int) -> GatewayProcess:
        readiness = {
            "ping_interval_s": 0.2,
            "ping_timeout_s": 10.0,
            "warmup_prompt_words": list(WARMUP_WORDS),
        }
        upstream = server.upstream("engine") | {"warmup_system": self.system}
        return GatewayProcess(
            self.folder / f"gateway-{number}",
            upstreams=[upstream],
            models=[{"id": "model", "chain": ["engine"]}],
            settings={"readiness": readiness},
        )

    def _launch(self, server: EngineServer) -> None:
        forget(self.model.paths)
        server.launch()

    def _ask(self, client: EngineClient, number: int) -> Timing:
        prompt = self.prompts[number % len(self.prompts)]
        timings, _ = drive(client, [prompt], 1, MAX_TOKENS)
        return timings[0]


def _await(server: EngineServer, ready: Callable[[], bool], why_not: Callable[[], str]) -> float:
    """Wait for a starting server; return the seconds that it took."""
    waited = wait_for(lambda: server.ended() is not None or ready(), START_SECONDS)
    end = server.ended()
    if end is not None:
        raise RetryableError(f"the engine {end}")
    if waited > START_SECONDS:
        raise RetryableError(f"no ready server within {START_SECONDS:.0f} s: {why_not()}")
    return waited


def judge(cold: Sequence[Start], warm: Sequence[WarmStart], max_ttft: float) -> list[Measurement]:
    """Judge that readiness follows the warm-up and that the first request is quick enough."""
    early = sum(not (start.seen_unready and start.warm_when_ready) for start in warm)
    failed = sum(start.failed for start in cold) + sum(start.failed for start in warm)
    first = median(start.first_ttft for start in warm)
    later = median(start.later_ttft for start in warm)
    cold_first = median(start.first_ttft for start in cold)
    return [
        measure("ready_before_warm_up", early, "starts", "<=", 0),
        measure("failed_requests", failed, "requests", "<=", 0),
        measure("warmed_first_ttft", round(first, 4), "s", "<=", max_ttft),
        measure("cold_first_ttft", round(cold_first, 4), "s"),
        measure("later_ttft", round(later, 4), "s"),
        measure("load_seconds", round(median(s.load_seconds for s in cold), 3), "s"),
        measure("ready_seconds", round(median(s.ready_seconds for s in warm), 3), "s"),
    ]


def shared_system(rows: Sequence[Row]) -> WarmUp:
    """Return the system turn that most of the rows begin with."""
    turns = Counter(
        row.prompt[0]["content"] for row in rows if row.prompt and row.prompt[0]["role"] == "system"
    )
    system, count = turns.most_common(1)[0] if turns else (None, 0)
    share = count / len(rows) if rows else 0.0
    return WarmUp(system=system if share > 0.5 else None, share=round(share, 4), rows=len(rows))


def run(ctx: StepContext) -> Evidence:
    """Start fresh servers, cold and warmed, and time their first requests."""
    chosen = candidate(ctx)
    warm_up = shared_system(dataset_rows(ctx))
    WARM_UP.write(ctx, warm_up)
    starter = Starter(
        chosen.model,
        ctx.config.deployment,
        prompts=[row.prompt for row in validation_rows(ctx, LATER + STARTS)],
        folder=ctx.scratch,
        # As it is served: where adapters share an engine, no prompt is kept.
        system=warm_up.system if chosen.model.adapter is None else None,
    )
    cold, warm = [], []
    # In turns, so that load on the machine affects both kinds.
    for number in range(STARTS):
        cold.append(starter.cold(number))
        warm.append(starter.warmed(number))
    measurements = judge(cold, warm, ctx.config.evaluation.max_ttft_seconds)
    document = {"cold": [asdict(s) for s in cold], "warmed": [asdict(s) for s in warm]}
    ctx.write_json("starts.json", document)
    found = {m.name: m.value for m in measurements}
    return ctx.conclude(
        f"first request after {found['cold_first_ttft']} s cold, {found['warmed_first_ttft']} s "
        f"warmed, a later one after {found['later_ttft']} s (medians of {STARTS} fresh processes "
        f"each); ready after {found['ready_seconds']} s, never before the warm-up"
        if found["ready_before_warm_up"] == 0
        else f"{found['ready_before_warm_up']} of {STARTS} starts were ready before their warm-up",
        [*measurements, measure("candidate_sha256", chosen.model.sha256, "sha256")],
    )
