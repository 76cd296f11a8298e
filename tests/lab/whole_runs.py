"""Whole runs in a real stack, as small as every item allows."""

import json
import os
import shutil
import time
from pathlib import Path

import yaml
from tests.lab.ml_environment import ml

from tuneline.stack.runs import DagRun

# As little work as every item bears, with the limits as shipped but for one.
TINY = {
    # The hold-out shrinks with the training rows; with 32 rows its interval is narrow enough.
    # What leaks is judged in the tests of the item.
    "data": {
        "max_train_rows": 160,
        "license": "Apache-2.0",
        "pii_canaries": 20,
        "pii_max_left": None,
    },
    # Without rehearsal, twenty steps of one-word answers cost general ability.
    "training": {
        "r": 8,
        "alpha": 16,
        "max_steps": 20,
        "effective_batch": 4,
        "evaluations": 1,
        "rehearsal_rows": 16,
    },
    "evaluation": {
        "regression_questions": 20,
        "max_new_tokens": 16,
        "determinism_prompts": 2,
        "determinism_repeats": 2,
        # After so few steps a prompt may stand between two classes; the arithmetic of a batch
        # then decides between them.
        "min_identical_share": 0.0,
        # They also teach little more than the form and one class.
        "min_gain_over_trivial": -1.0,
        "slices": {"worse_by": 1.0},
        # Two prompts show no more.
        "identical_share_to_show": 0.01,
        "latency_requests": 8,
    },
    "deployment": {"quality_rows": 6, "max_metric_drop": 0.4, "parallel": 2},
}
# The same for a tiny base (`tests.lab.tiny_task`), which knows another team's names of three
# intents, learns ours in seconds, and knows nothing else.
TINY_BASE = {
    # A profile that leaves names, since the model takes some of the made-up words for names.
    "data": {**TINY["data"], "max_train_rows": 400, "pii_profile": ["pci"]},
    "training": {
        **TINY["training"],
        "epochs": 10,
        "max_steps": 90,
        "effective_batch": 16,
        "learning_rate": 5e-3,
    },
    "evaluation": {
        "regression_questions": 20,
        "max_regression": 0.9,
        "max_category_regression": 1.0,
        "regression_to_see": 1.0,
        "max_perplexity_ratio": 100_000,
        "max_new_tokens": 24,
        "determinism_prompts": 2,
        "determinism_repeats": 2,
        "identical_share_to_show": 0.01,
        "latency_requests": 8,
    },
    "deployment": {"quality_rows": 6, "parallel": 2},
}
# A task that so few steps teach: three classes, and an answer that is the class alone.
INTENTS = ("track", "refund", "cancel")


def short_rows(lines):
    """Rows of a few classes, with the class as their whole answer, and all malformed rows."""
    for line in lines:
        try:
            row = json.loads(line)
            answer = row["messages"][-1]
            intent = json.loads(answer["content"])["intent"]
        except (ValueError, LookupError, TypeError):
            yield line
            continue
        if intent in INTENTS:
            answer["content"] = json.dumps({"intent": intent})
            yield json.dumps(row).encode() + b"\n"


def tiny_task(folder):
    """Make a tiny base and rows of its task in the ML environment; settings and dataset."""
    shared = os.environ.get("SHARED_TEST_MODELS")
    models = Path(shared) if shared else folder / "models"
    ml(
        "-c",
        "import pathlib, sys; from tests.lab.tiny_task import TinyModels, raw_rows; "
        "models, rows = map(pathlib.Path, sys.argv[1:]); TinyModels(models); raw_rows(500, rows)",
        str(models),
        str(folder / "rows.jsonl"),
    )
    base = shutil.copytree(models / "merged", folder / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return {**TINY_BASE, "base_model": str(base)}, folder / "rows.jsonl"


def finish(run, seconds):
    """Wait for a run to end; states of its tasks by name."""
    deadline = time.monotonic() + seconds
    while (state := run.state()) not in ("success", "failed"):
        assert time.monotonic() < deadline, {t["task_id"]: t["state"] for t in run.tasks()}
        time.sleep(1)
    tasks = {task["task_id"]: task for task in run.tasks()}
    failures = {n: run.failure(t) for n, t in tasks.items() if t["state"] == "failed"}
    return state, tasks, failures


def trigger(client, run_id, sample, settings, **fields):
    run = DagRun(client, run_id)
    run.trigger({"data": str(sample), "overrides": yaml.safe_dump(settings), **fields})
    return run
