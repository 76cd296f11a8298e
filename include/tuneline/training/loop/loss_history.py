"""The losses of a training, step by step, and the file that keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def history_of(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The trainer's log, losses only: one entry per logged step or evaluation."""
    names = (
        "step loss task_loss eval_loss eval_loss_error eval_seconds learning_rate grad_norm tokens "
        "tokens_per_second seconds"
    ).split()
    return [
        plain({name: entry[name] for name in names if name in entry})
        for entry in entries
        if "loss" in entry or "eval_loss" in entry
    ]


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write `history.jsonl`."""
    path.write_text("".join(json.dumps(entry, allow_nan=False) + "\n" for entry in history))


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read `history.jsonl`; `float("nan")` and its like stand there as text."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def plain(entry: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they become text that `float` reads."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }
