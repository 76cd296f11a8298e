"""Runs that train a tiny model in seconds."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.lab.runs import Lab
from tests.lab.tiny_models import make_model

from tuneline.artifacts.training import ADAPTER_WEIGHTS, PLAN, HistoryEntry, Plan, read_history
from tuneline.config import merge
from tuneline.data.tables.rows import Row, write_dataset
from tuneline.evidence import measure

MAX_TOKENS = 192
# As the plan holds it; a step that is not timed knows no better.
ESTIMATE = {
    "work": {"steps": 9, "tokens": 4000, "validation_tokens": 2000},
    "seconds": 10.0,
    "uncertainty": 0.2,
    "devices": 1,
    "price": 0.1,
    "currency": "USD",
}
SYSTEM = "Answer with JSON."
INTENTS = {
    "billing": ("the invoice is wrong", "I was charged twice", "where is my refund"),
    "login": ("I can not sign in", "my password is lost", "the code never arrives"),
    "shipping": ("the parcel is late", "the box came broken", "where is my order"),
}


def make_rows(train: int = 36, validation: int = 12) -> tuple[list[Row], list[float]]:
    """Rows of three intents; the answers differ in length, every fifth row weighs double."""
    rng = random.Random(5)
    rows, weights = [], []
    for number in range(train + validation):
        intent = list(INTENTS)[number % 3]
        said = f"{rng.choice(INTENTS[intent])} {rng.choice(['please', 'today', 'again'])} {number}"
        reply = " ".join(["We look at it."] * (1 + number % 4))
        rows.append(
            Row(
                row_id=f"row-{number:03d}",
                messages=[
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": said},
                    {
                        "role": "assistant",
                        "content": json.dumps({"intent": intent, "reply": reply}),
                    },
                ],
                source_file="rows.jsonl",
                source_line=number + 1,
                label=intent,
                split="train" if number < train else "validation",
                n_tokens=40,
            )
        )
        weights.append(2.0 if number % 5 == 0 else 1.0)
    return rows, weights


def make_base(folder: Path) -> Path:
    """A random Llama of two layers with a tokenizer of its own."""
    # 4-bit layers on a CPU need sides that are multiples of 64.
    make_model(folder, tie_word_embeddings=True, intermediate_size=128)
    return folder


def make_learned_base(folder: Path) -> Path:
    """The tiny model trained whole until it knows the answers: a base that can be broken."""
    teach(make_model(folder, tie_word_embeddings=True, intermediate_size=128), folder)
    return folder


def teach(model: Any, folder: Path, steps: int = 60) -> None:
    """Train a saved model whole on the first rows, and save it again."""
    import torch

    from tuneline.models import load_tokenizer

    model.train()
    tokenizer = load_tokenizer(folder)
    rows, _ = make_rows(train=24, validation=0)
    texts = [tokenizer.apply_chat_template(row.messages, tokenize=False) for row in rows]
    batch = tokenizer(
        texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
    )
    padding = batch["attention_mask"] == 0
    labels = batch["input_ids"].masked_fill(padding, -100)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        model(**batch, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)


class TrainingLab(Lab):
    """A run on the tiny model whose data phase is done."""

    def __init__(
        self, root: Path, base: Path | str, overrides: Mapping[str, Any], run_id: str = "test"
    ) -> None:
        settings: dict[str, Any] = {
            "base_model": str(base),
            "data": {"max_tokens": MAX_TOKENS},
            "training": {
                "r": 4,
                "dropout": 0.0,
                "epochs": 2,
                "learning_rate": 0.01,
                "evaluations": 3,
                "threads": 1,
                "precision": "fp32",
                "tracking": [],
            },
        }
        super().__init__(root, merge(settings, overrides), run_id)
        self.base = base
        self.leave_rows(*make_rows())

    def leave_rows(self, rows: list[Row], weights: list[float]) -> None:
        """Leave a dataset as the data phase does."""
        path = self.root / "rows.parquet"
        write_dataset(path, rows, weights)
        passed = [measure("rows", len(rows), "rows", ">", 0)]
        self.leave("distribution_balancing", {"dataset.parquet": path}, passed)

    def leave_lora(self) -> None:
        """Run lora_selection."""
        from tuneline.training import lora_selection

        self.execute("lora_selection", lora_selection.run)

    def leave_plan(self, micro_batch: int = 4, **changes: Any) -> None:
        """Leave a plan without the probe's process."""
        config, world = self.run.config.training, self.run.config.world_size
        plan = Plan(
            **{
                "micro_batch": micro_batch,
                "accumulation": config.effective_batch // (micro_batch * world),
                "world_size": world,
                "effective_batch": config.effective_batch,
                "max_length": MAX_TOKENS,
                "threads": 1,
                "device": "cpu",
                "precision": "bf16" if config.qlora else "fp32",
                "estimate": ESTIMATE,
                **changes,
            }
        )
        passed = [measure("effective_batch", 8, "rows", "==", 8)]
        self.leave(PLAN.step, {PLAN.name: plan.model_dump_json()}, passed)

    def prepare(self, micro_batch: int = 4, **changes: Any) -> None:
        """Choose the adapter and plan."""
        self.leave_lora()
        self.leave_plan(micro_batch, **changes)

    def train(self, micro_batch: int = 4, **changes: Any) -> Any:
        """Choose the adapter, plan and train."""
        self.prepare(micro_batch, **changes)
        return self.resume()

    def resume(self) -> Any:
        """Run the step train."""
        from tuneline.training import train

        return self.execute("train", train.run)

    @property
    def trained(self) -> dict[str, Any]:
        """Content of `run.json` of training."""
        found: dict[str, Any] = self.document("train", "run.json")
        return found

    def killed_at_checkpoint(self, step: int = 0) -> None:
        """Run the step train, which is killed after the first checkpoint from a step on."""
        from tuneline.training.loop.callbacks import LiveCheckpoints

        save = LiveCheckpoints.save

        def killed(live: LiveCheckpoints, at: int, folders: Mapping[str, Path]) -> None:
            save(live, at, folders)
            if at >= step:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LiveCheckpoints, "save", killed)
            with pytest.raises(KeyboardInterrupt):
                self.resume()

    @property
    def checkpoint(self) -> int:
        """Step of the newest checkpoint of a training that runs; 0 before the first."""
        key = self.run.key("work", "train", "latest.json")
        if not self.run.store.exists(key):
            return 0
        return int(json.loads(self.run.store.get_bytes(key))["step"])

    def assert_trained_like(
        self, other: TrainingLab, names: Sequence[str] = (), tolerance: float = 1e-4
    ) -> None:
        """Losses by name (nats) and weights are those of another run, up to the order of sums."""
        for name in names:
            ours, theirs = ([e[name] for e in r.history if name in e] for r in (self, other))
            assert len(ours) > 2
            assert ours == pytest.approx(theirs, abs=tolerance), name
        weights, expected = self.adapter, other.adapter
        assert weights.keys() == expected.keys()
        for name, weight in expected.items():
            assert weight.allclose(weights[name], atol=tolerance), name

    @property
    def validation_losses(self) -> list[float]:
        """Validation losses of training, in order."""
        evaluations = self.document("train", "checkpoints.json")["evaluations"]
        return [float(entry["eval_loss"]) for entry in evaluations]

    @property
    def history(self) -> list[HistoryEntry]:
        """Losses of training, step by step."""
        return read_history(self.artifact("train", "history.jsonl"))

    @property
    def adapter(self) -> dict[str, Any]:
        """Weights of the adapter that training kept, by name."""
        from safetensors.torch import load_file

        weights: dict[str, Any] = load_file(self.artifact("train", f"adapter/{ADAPTER_WEIGHTS}"))
        return weights
