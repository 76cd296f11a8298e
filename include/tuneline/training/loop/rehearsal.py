"""Rehearsal: the base model's own answers to general prompts, mixed into training.

A small model that is trained on one form of answer gives it to every question. A few rows with
its earlier answers to general prompts prevent that: self-synthesised rehearsal (Huang et al.,
"Mitigating Catastrophic Forgetting in Large Language Models with Self-Synthesized Rehearsal", ACL
2024). None of the prompts is among the general questions that measure forgetting.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tuneline.asking.asking import ask_kept
from tuneline.bases import base_of
from tuneline.data.rendering.renderer import Renderer
from tuneline.errors import UserError
from tuneline.serving.engines import get_engine
from tuneline.step_context import StepContext
from tuneline.store import NotThere
from tuneline.training.loop.rows import EncodedRow

PROMPTS_FILE = Path(__file__).with_name("rehearsal_prompts.txt")
# Long enough for a sentence or two, short enough to cost little.
ANSWER_TOKENS = 32

Conversation = list[dict[str, str]]


def prompts() -> list[str]:
    """Return the general prompts, in order."""
    return [line for line in PROMPTS_FILE.read_text(encoding="utf-8").splitlines() if line]


def whole_sentences(answer: str) -> str:
    """Return an answer up to its last full stop; empty if it has none.

    The answer may have been cut at its token limit, and a model that learns to end in
    mid-sentence has forgotten something too.
    """
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", answer)]
    return answer[: ends[-1]].strip() if ends else ""


def conversations(ctx: StepContext, count: int) -> list[Conversation]:
    """Return at most `count` prompts with the base model's answers.

    They are written into the run once, so that a resumed training sees the same ones.

    Raises:
        UserError: if more rows are asked for than there are prompts.
    """
    asked = prompts()
    if count > len(asked):
        raise UserError(
            f"training.rehearsal_rows: {count} rows are asked for, there are {len(asked)} prompts"
        )
    key = ctx.run.key("work", "rehearsal.json")
    try:
        found: list[Conversation] = json.loads(ctx.run.store.get_bytes(key))
    except NotThere:
        found = _ask(ctx, asked[:count])
        ctx.run.store.put_bytes(key, json.dumps(found).encode())
    return found


def _ask(ctx: StepContext, asked: list[str]) -> list[Conversation]:
    questions = [[{"role": "user", "content": prompt}] for prompt in asked]
    limits = [ANSWER_TOKENS] * len(asked)
    # Training needs no other engine in its image, whichever one ships.
    base = get_engine("llama_cpp").untuned(base_of(ctx), ctx.log)
    answers, _ = ask_kept(ctx, base, questions, limits, "rehearsal")
    pairs = zip(questions, map(whole_sentences, answers), strict=True)
    return [
        [*question, {"role": "assistant", "content": answer}]
        for question, answer in pairs
        if answer
    ]


def rehearsal_rows(ctx: StepContext, tokenizer: Any) -> list[EncodedRow]:
    """Tokenise the rehearsal rows of the run, and list them in `rehearsal.json`."""
    count = ctx.config.training.rehearsal_rows
    if not count:
        return []
    found = conversations(ctx, count)
    ctx.write_json("rehearsal.json", found)
    weight = ctx.config.training.rehearsal_weight
    rendered = Renderer(tokenizer, ctx.config.data.target_format).render(found)
    return [
        EncodedRow(
            f"rehearsal-{number:03d}", tuple(row.ids), tuple(row.loss_mask), weight, rehearsal=True
        )
        for number, row in enumerate(rendered)
        if row.loss_mask is not None and any(row.loss_mask[1:])
    ]
