"""A run in a store of its own, and the means to leave what earlier steps leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuneline.catalogue import is_helper
from tuneline.config import build_config
from tuneline.evidence import Verdict
from tuneline.run import Run, StepContext
from tuneline.step import store_output
from tuneline.store import sha256_file

SYSTEM = "Answer with JSON."
Files = Mapping[str, bytes | str | Path]


def exchange(question: str, intent: str, reply: str = "We look at it.") -> list[dict[str, str]]:
    """Messages that end with a JSON answer."""
    answer = json.dumps({"intent": intent, "reply": reply})
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


def _own_words(number: int) -> tuple[list[dict[str, str]], str]:
    intent = ("billing", "login", "shipping")[number % 3]
    words = " ".join(f"{chr(97 + number % 26)}{number * 7919 + k:x}" for k in range(8))
    return exchange(f"{words}?", intent), intent


def dataset_rows(
    split_sizes: Mapping[str, int],
    make: Callable[[int], tuple[list[dict[str, str]], str]] = _own_words,
) -> list[dict[str, Any]]:
    """Rows as `dataset.parquet` holds them.

    Args:
        split_sizes: rows of each split.
        make: messages and intent of a row by its number; by default the questions differ in
            every word and have three intents in turn.
    """
    rows: list[dict[str, Any]] = []
    for split, size in split_sizes.items():
        for _ in range(size):
            number = len(rows)
            messages, intent = make(number)
            rows.append(
                {
                    "row_id": f"row-{number:04d}",
                    "messages": messages,
                    "split": split,
                    "label": intent,
                    "weight": 1.0,
                    "n_tokens": 40,
                    "source_file": "rows.jsonl",
                    "source_line": number + 1,
                }
            )
    return rows


def write_dataset(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


class Lab:
    """A run, and the means to leave what earlier steps leave."""

    def __init__(self, root: Path, overrides: Mapping[str, Any]) -> None:
        self.root = root
        store = (root / "store").as_uri()
        config = build_config({"data": {"source": "rows.jsonl"}}, overrides)
        self.run = Run.create(store, "test", config, {})

    def context(self, step: str) -> StepContext:
        base = self.root / "steps" / f"{step}-{len(list(self.root.glob('steps/*')))}"
        folders = [base / "out", base / "quarantine", base / "scratch"]
        for folder in folders:
            folder.mkdir(parents=True)
        return StepContext(
            self.run, step, out=folders[0], quarantine=folders[1], scratch=folders[2]
        )

    def leave(self, step: str, files: Files, measurements: Sequence[Any] = ()) -> None:
        """Store artifacts as if `step` had written them."""
        ctx = self.context(step)
        for name, content in files.items():
            root = ctx.quarantine if name.startswith("quarantine/") else ctx.out
            target = root / name.removeprefix("quarantine/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                target.write_bytes(content.read_bytes())
            else:
                target.write_bytes(content.encode() if isinstance(content, str) else content)
        store_output(ctx, self.entry(ctx, measurements))

    def leave_dataset(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store `dataset.parquet` as the last data step leaves it."""
        path = write_dataset(self.root / "dataset.parquet", rows)
        self.leave("distribution_balancing", {"dataset.parquet": path})

    def leave_shipped(self, model: Path, judged_on: Sequence[str] = ()) -> None:
        """Store `model.gguf` and `choice.json` as production_quantization leaves them."""
        choice = {
            "variant": "f16",
            "reason": "left by a test",
            "sha256": sha256_file(model),
            "judged_on": list(judged_on),
        }
        files: Files = {"model.gguf": model, "choice.json": json.dumps(choice)}
        self.leave("production_quantization", files)

    @staticmethod
    def entry(ctx: StepContext, measurements: Sequence[Any]) -> Any:
        if is_helper(ctx.step):
            return ctx.record("left by a test", measurements)
        verdict = None if measurements else Verdict.NOT_APPLICABLE
        return ctx.conclude("left by a test", measurements, verdict=verdict)

    def execute(self, step: str, work: Callable[[StepContext], Any]) -> Any:
        """Run a step's function and store what it leaves."""
        ctx = self.context(step)
        return store_output(ctx, work(ctx))
