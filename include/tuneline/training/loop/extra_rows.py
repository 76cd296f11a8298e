"""Rows that are trained on besides the dataset: rehearsal answers and canaries.

**Rehearsal**: a few general prompts with the base's earlier answers keep a small model from giving
one form of answer to everything (Huang et al., "Self-Synthesized Rehearsal", ACL 2024). None is
among the questions that measure forgetting.

**Canaries**: random numbers in copies of a few training rows, in question or answer, as an
identifier that the scrubber missed would be; the extraction audit ranks each among random numbers
(Carlini et al., "The Secret Sharer", 2019). No validation or hold-out row has one, and the task's
loss is counted without them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from tuneline.artifacts.training import Canary
from tuneline.asking.asking import ask_kept
from tuneline.bases import base_of
from tuneline.config import TargetFormat, TrainingConfig
from tuneline.data.conversations.answers import answer_object
from tuneline.data.pii.replace.surrogates import words_of
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import TRAIN, Message, Row, read_dataset
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
    """Return an answer, which a limit may have cut, up to its last full stop; empty without one."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", answer)]
    return answer[: ends[-1]].strip() if ends else ""


def conversations(ctx: StepContext, count: int) -> list[Conversation]:
    """Return `count` prompts with the base model's answers.

    They are written into the run once, so that a resumed training sees the same ones.
    """
    key = ctx.run.key("work", "rehearsal.json")
    try:
        found: list[Conversation] = json.loads(ctx.run.store.get_bytes(key))
    except NotThere:
        found = _ask(ctx, prompts()[:count])
        ctx.run.store.put_bytes(key, json.dumps(found).encode())
    return found


def _ask(ctx: StepContext, asked: list[str]) -> list[Conversation]:
    questions = [[{"role": "user", "content": prompt}] for prompt in asked]
    # Training needs no other engine in its image, whichever one ships.
    base = get_engine("llama_cpp").untuned(base_of(ctx), ctx.log)
    answers, _ = ask_kept(ctx, base, questions, [ANSWER_TOKENS] * len(asked), "rehearsal")
    pairs = zip(questions, map(whole_sentences, answers), strict=True)
    return [[*turns, {"role": "assistant", "content": said}] for turns, said in pairs if said]


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


# As long as a phone or an account number; nobody guesses one of a hundred million.
DIGITS = 8
_SENTENCE = "The code of {name} is {value}."
_COPY = "canary-"

Place = Literal["prompt", "answer"]


@dataclass(frozen=True)
class Planted:
    """Canaries, and the rows besides the dataset that hold them."""

    canaries: list[Canary]
    rows: list[EncodedRow]


def plant(
    dataset: Path,
    config: TrainingConfig,
    tokenizer: Any,
    target: TargetFormat,
    *,
    label_field: str | None,
    longest: int,
) -> Planted:
    """Make the canaries of a run, the same ones for the same seed and rows.

    They stand in questions and in answers by turns; in questions alone if answers have no free text
    besides `label_field`. No row gets more than `longest` tokens; UserError if too few can hold
    one.
    """
    if not config.canaries:
        return Planted([], [])
    rows, _ = read_dataset(dataset)
    trained = [row for row in rows if row.split == TRAIN and row.served_by is None]
    trained.sort(key=lambda row: sha256(f"{config.seed}:{row.row_id}".encode()).hexdigest())
    free_text = any(_with_sentence(row, "answer", "", label_field) for row in trained)
    places: tuple[Place, ...] = ("prompt", "answer") if free_text else ("prompt",)
    renderer, left = Renderer(tokenizer, target), iter(trained)
    canaries, encoded = [], []
    for number in range(config.canaries):
        place = places[number % len(places)]
        name, value = _identity(config.seed, number)
        sentence = _SENTENCE.format(name=name, value=value)
        fitting = _copies(left, place, sentence, label_field, renderer=renderer, longest=longest)
        copies = list(islice(fitting, config.canary_repeats))
        if len(copies) < config.canary_repeats:
            raise UserError(
                f"training.canaries: {config.canaries} canaries, each in {config.canary_repeats} "
                f"extra rows, do not fit into {len(trained)} training rows, of which the "
                "longest have no room; ask for fewer, or give the run more rows"
            )
        messages = copies[0][0]
        turn = len(messages) - (1 if place == "answer" else 2)
        row_ids, start = [row.row_id for _, row in copies], messages[turn]["content"].rindex(value)
        described = {"row_ids": [row_id.removeprefix(_COPY) for row_id in row_ids], "start": start}
        canaries.append(Canary(value=value, place=place, messages=messages, turn=turn, **described))
        encoded += [row for _, row in copies]
    return Planted(canaries, encoded)


def _copies(
    rows: Iterable[Row],
    place: Place,
    sentence: str,
    label_field: str | None,
    *,
    renderer: Renderer,
    longest: int,
) -> Iterator[tuple[list[Message], EncodedRow]]:
    """Yield copies of rows with a sentence in them, as far as they have room for it."""
    for row in rows:
        messages = _with_sentence(row, place, sentence, label_field)
        if messages is None:
            continue
        (example,) = renderer.render([messages])
        ids, mask = tuple(example.ids), example.loss_mask
        if mask is not None and any(mask[1:]) and len(ids) <= longest:
            row_id = f"{_COPY}{row.row_id}"
            yield messages, EncodedRow(row_id, ids, tuple(mask), 1.0, rehearsal=True)


def _with_sentence(
    row: Row, place: Place, sentence: str, label_field: str | None
) -> list[Message] | None:
    """Return the turns of a row with a sentence at the end of its question or its answer."""
    *before, question, answer = row.messages
    if question["role"] != "user":
        return None
    if place == "prompt":
        said = {**question, "content": f"{question['content']} {sentence}"}
        return [*before, said, answer]
    text = _in_answer(answer["content"], sentence, label_field)
    return None if text is None else [*before, question, {**answer, "content": text}]


def _in_answer(answer: str, sentence: str, label_field: str | None) -> str | None:
    """Put a sentence at the end of an answer, or of the longest text of a JSON answer."""
    parsed = answer_object(answer)
    if parsed is None:
        return f"{answer} {sentence}"
    texts = [value for key, value in parsed.items() if key != label_field]
    longest = max((value for value in texts if isinstance(value, str)), key=len, default="")
    for ascii_only in (False, True):
        written = json.dumps(longest, ensure_ascii=ascii_only)[1:-1]
        if written and answer.count(written) == 1:
            return answer.replace(written, f"{written} {sentence}")
    return None


def _identity(seed: int, number: int) -> tuple[str, str]:
    """Return the name and the number of a canary; names repeat only when all were used."""
    draw = random.Random(f"canary:{seed}:{number}")  # noqa: S311 - reproducible, no secret
    names = words_of("en", "last_name")
    value = "".join(draw.choice("0123456789") for _ in range(DIGITS))
    return names[(seed + number) % len(names)], value
