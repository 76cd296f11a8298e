"""A run in its own store, what earlier steps would have left there, and what a step measured."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuneline.artifacts.artifact import Artifact
from tuneline.artifacts.data import DATASET, DATASET_VERSION
from tuneline.catalogue import DATA_ORDER, get_step, is_helper
from tuneline.config import build_config
from tuneline.data.tables.rows import HOLDOUT, Row, read_dataset, write_rows
from tuneline.evidence import Verdict, measure
from tuneline.governance.drift.prompts import read_reference
from tuneline.governance.drift.reference import Baseline
from tuneline.run import Run
from tuneline.step import store_output
from tuneline.step_context import StepContext
from tuneline.store import sha256_file

SYSTEM = "Answer with JSON."
# The laptop's preset is looser than the policy of production in these.
IN_PRODUCTION = {
    "profile": "production",
    "data": {"pii_leak_breach": "fail", "undeclared_language_breach": "fail"},
    "evaluation": {
        "min_metric": 0.5,
        "against_released": {"margin": 0.02, "text_margin": 0.05},
        "load": {"users": 60},
        "max_regression": 0.03,
        "max_perplexity_ratio": 1.5,
        "regression_to_see": 0.05,
        "regression_texts": 32,
    },
}
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


def baseline(dataset: Path) -> str:
    """The baseline of a dataset, in which patterns alone look for personal data."""
    found = Baseline(languages=["en"], pii_model=False).of(read_reference(dataset))
    return found.model_dump_json(by_alias=True)


def change_meta(lab: Lab, **values: Any) -> None:
    """Change what a run says of itself, such as who started it."""
    lab.run.meta.update(values)
    lab.run.store.put_bytes(lab.run.key("run.json"), json.dumps(lab.run.meta).encode())


class Lab:
    """A run whose earlier steps are stood in for by the files that a test leaves."""

    def __init__(
        self,
        root: Path,
        overrides: Mapping[str, Any],
        run_id: str = "test",
        *,
        store: str | None = None,
    ) -> None:
        self.root = root
        named = {"source": "rows.jsonl", "label_field": "intent"}
        config = build_config({"data": named}, overrides)
        self.run = Run.create(store or (root / "store").as_uri(), run_id, config, {})

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
        entry = self.entry(ctx, measurements)
        store_output(ctx, entry)
        if step in DATA_ORDER:
            broken = [m.model_dump(mode="json") for m in measurements if m.ok is False]
            gate = json.dumps(
                {"verdict": entry.verdict, "summary": "left by a test", "broken": broken}
            )
            self.run.store.put_bytes(self.run.step_key(step, "gate.json"), gate.encode())

    def leave_dataset(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store `dataset.parquet` as the last data step leaves it."""
        path = write_dataset(self.root / "dataset.parquet", rows)
        self.leave("distribution_balancing", {"dataset.parquet": path})
        # As the final audit describes it: answers get 48 tokens.
        written = {"target": "tokenizer", "template_sha256": "", "base_model": "", "limit": 2048}
        written |= {"base_digest": "", "tokens_max": 40, "answer_tokens_max": 32}
        document = {"name": "test", "version": "", "rows": len(rows), "splits": {}}
        described = json.dumps({**document, "format": written})
        self.leave(DATASET_VERSION.step, {DATASET_VERSION.name: described})

    def held_out(self) -> list[Row]:
        """The hold-out rows of the dataset, read past the ledger."""
        rows, _ = read_dataset(self.artifact(DATASET.step, DATASET.name), holdout=True)
        return [row for row in rows if row.split == HOLDOUT]

    def leave_scrubbed(self, rows: Sequence[Row] = ()) -> None:
        """Store the rows with their surrogates, and a verdict, as pii_scrubbing leaves them."""
        path = self.root / "scrubbed.parquet"
        write_rows(path, rows)
        holds = measure("limit_holds", True, "flag", "==", True)
        self.leave("pii_scrubbing", {"rows.parquet": path}, [holds])

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

    def execute(self, step: str, work: Callable[[StepContext], Any] | None = None) -> Any:
        """Run a step and store what it leaves.

        Args:
            step: the item or helper step.
            work: its function; by default the one that the catalogue names.

        Returns:
            The stored evidence or record.
        """
        ctx = self.context(step)
        run = work or importlib.import_module(get_step(step).module).run
        return store_output(ctx, run(ctx))

    def artifact(self, step: str, name: str) -> Path:
        """A stored file of a step; `quarantine/…` for raw text."""
        return self.root / "store" / Artifact(step, name).key(self.run)

    def document(self, step: str, name: str) -> Any:
        """The content of a stored JSON file."""
        return json.loads(self.artifact(step, name).read_text())

    def lines(self, step: str, name: str) -> list[Any]:
        """The entries of a stored JSON-lines file."""
        return [json.loads(line) for line in self.artifact(step, name).read_bytes().splitlines()]


def values(entry: Any) -> dict[str, Any]:
    """What an evidence or a record measured: value by name."""
    return {m.name: m.value for m in entry.measurements}


def value(entry: Any, name: str) -> Any:
    """The value of one measurement of an evidence or a record."""
    return values(entry)[name]


def broken(entry: Any) -> set[str]:
    """Names of the measurements that break their rule, of an entry or in a list."""
    return {m.name for m in getattr(entry, "measurements", entry) if m.ok is False}
