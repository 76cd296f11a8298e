"""Small adapters that leave general ability alone, and some that were trained to forget it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from benchmarks.contest.trial import Job, Trial
from benchmarks.training.rows import sample_conversations
from benchmarks.training.trials import config_of, lora_of, read_batches
from tuneline import __version__
from tuneline.data.sample.text import Draw
from tuneline.data.tables.rows import Message

Conversations = list[list[Message]]


@dataclass(frozen=True)
class Recipe:
    """A way to train an adapter.

    Attributes:
        name: its name in the results.
        forgets: True if general ability must be lost.
        learning_rate: the rate.
        steps: optimiser steps.
        conversations: gives the rows by their number and a seed.
    """

    name: str
    forgets: bool
    learning_rate: float
    steps: int
    conversations: Callable[[int, int], Conversations]


def with_shuffled_answers(count: int, seed: int) -> Conversations:
    """Rows of the sample with each other's answers: labels without meaning."""
    rows = sample_conversations(count, seed)
    answers = Draw(seed + 1).shuffled([turns[-1] for turns in rows])
    return [[*turns[:-1], answer] for turns, answer in zip(rows, answers, strict=True)]


def with_scrambled_words(count: int, seed: int) -> Conversations:
    """General questions that are answered with words of the sample in no order."""
    draw = Draw(seed)
    prompts = resources.files("tuneline.training.loop").joinpath("rehearsal_prompts.txt")
    asked = prompts.read_text(encoding="utf-8").splitlines()
    words = [
        word
        for turns in sample_conversations(count, seed)
        for turn in turns
        for word in turn["content"].split()
    ]
    return [
        [
            {"role": "user", "content": draw.pick(asked)},
            {"role": "assistant", "content": " ".join(draw.pick(words) for _ in range(24))},
        ]
        for _ in range(count)
    ]


# A rate at which a LoRA of a small model learns a task and keeps the rest; and mistakes: no rate of
# anybody's choice, and rows that are noise.
RECIPES = (
    Recipe("other seed", False, 1e-4, 24, sample_conversations),
    Recipe("shuffled labels", False, 1e-4, 24, with_shuffled_answers),
    Recipe("scrambled answers", True, 2e-3, 48, with_scrambled_words),
    Recipe("rate too high", True, 1e-2, 48, sample_conversations),
)


def trained(job: Job) -> Trial:
    """Train an adapter by the product's own trainer, and export the merged model as GGUF."""
    from tuneline.training.loop.model import load_torch

    load_torch(job["threads"], job["seed"])
    from tuneline.models import load_tokenizer
    from tuneline.training.resources.probe import TrainingSetup

    base = Path(job["base"])
    scratch = Path(job["scratch"])
    setup = TrainingSetup(
        base=base,
        lora=lora_of(job),
        config=config_of(job),
        precision=job["precision"],
        device=job["device"],
        scratch=scratch / "trainer",
    )
    tokenizer = load_tokenizer(base)
    trainer = setup.trainer(setup.model(), tokenizer, read_batches(job))

    def work(_: Sequence[Any]) -> float:
        trainer.train()
        return _export(trainer.model, tokenizer, base, scratch, Path(job["gguf"]))

    def score(rounded: float) -> dict[str, float]:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return {"last_loss": float(losses[-1]), "largest_rounding": rounded}

    return Trial(__version__, range(job["steps"]), work, score, warm_up=False)


def _export(model: Any, tokenizer: Any, base: Path, scratch: Path, out: Path) -> float:
    from tuneline.data.rendering.renderer import chat_template
    from tuneline.gguf.export import export_gguf
    from tuneline.training.export_candidate import merge, save_merged, to_half

    model.save_pretrained(scratch / "adapter")
    merged = merge(base, scratch / "adapter")
    rounded = to_half(merged)
    save_merged(merged, tokenizer, chat_template(tokenizer, "tokenizer"), scratch / "merged")
    export_gguf(scratch / "merged", out, "f16")
    return rounded
