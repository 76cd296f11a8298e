"""Let models go on from a training row: what they have by heart; rank a value among others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from tuneline.artifacts.training import Canary
from tuneline.asking.asking import continue_tokens
from tuneline.asking.models import Candidate, scoring_threads, untuned
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row
from tuneline.evaluation.extraction.identifiers import (
    Identifier,
    bare,
    candidates,
    distinct_candidates,
    random_numbers,
    text_before,
)
from tuneline.step_context import StepContext

# Random values that a continuation is compared with, to know how often it is right by chance.
DRAWS = 999
# A model may begin with a quotation mark or a space, or split what it writes otherwise.
SPARE_TOKENS = 4
# Limits are rounded up, so that few batches have limits of their own.
ROUNDED_TO = 8


def chance_of(hits: int, probabilities: Sequence[float]) -> float:
    """Return the probability of at least so many hits, each with its own probability."""
    import numpy as np

    counts = np.ones(1)
    for p in probabilities:
        counts = np.append(counts, 0.0) * (1 - p) + np.append(0.0, counts) * p
    return float(min(1.0, counts[hits:].sum()))


def rank(losses: Sequence[float]) -> int:
    """Return the rank of the first value by its likelihood; 1 is the likeliest, a tie the last."""
    return 1 + sum(other <= losses[0] for other in losses[1:])


def exposure(rank_of_value: int, values: int) -> float:
    """Return the exposure in bits: log2 of the number of values minus log2 of the rank.

    Source: Carlini et al., "The Secret Sharer", USENIX Security 2019, definition 5.
    """
    return math.log2(values) - math.log2(rank_of_value)


@dataclass(frozen=True)
class Attempt:
    """An identifier, and what a model is given before it.

    `before` is the rendered row up to it; `prompt` its token ids, without a space at the end, which
    belongs to the next token; `limit` the tokens that a model may write.
    """

    identifier: Identifier
    before: str
    prompt: list[int]
    limit: int


@dataclass(frozen=True)
class Continuations:
    """What both models wrote, in the order of the trials.

    Attributes:
        texts: the continuations of the tuned model.
        tuned: True where the tuned model wrote the identifier; `base` where the base did.
        chance: probability of each continuation of the tuned model to be right without memory.
        unseen: True where the tuned model wrote an identifier of a validation row.
    """

    texts: Sequence[str]
    base_texts: Sequence[str]
    tuned: list[bool]
    base: list[bool]
    chance: list[float]
    unseen: list[bool]
    base_cached: bool

    @property
    def learned(self) -> list[bool]:
        """True where the tuned model wrote the identifier and the base did not."""
        return [own and not of_base for own, of_base in zip(self.tuned, self.base, strict=True)]

    @property
    def p_value(self) -> float:
        """The probability of as many by chance; every identifier counts as one of its draws."""
        return chance_of(
            sum(self.learned), [(DRAWS * each + 1) / (DRAWS + 1) for each in self.chance]
        )


def make_trials(
    identifiers: Sequence[Identifier], rows: Sequence[Row], renderer: Renderer, context_tokens: int
) -> list[Attempt]:
    """Make a trial of each identifier that a chat template and the context (tokens) allow."""
    by_id = {row.row_id: row for row in rows}
    found = [
        (each, text_before(renderer, by_id[each.row_id].messages, each.turn, each.start))
        for each in identifiers
    ]
    opened = [(each, before) for each, before in found if before]
    prompts = renderer.encode(before.rstrip(" ") for _, before in opened)
    lengths = renderer.count(each.value for each, _ in opened)
    trials = []
    for (each, before), prompt, length in zip(opened, prompts, lengths, strict=True):
        limit = -(-(length + SPARE_TOKENS) // ROUNDED_TO) * ROUNDED_TO
        if prompt and len(prompt) + limit <= context_tokens:
            trials.append(Attempt(each, before, prompt, limit))
    return trials


def write_out(
    ctx: StepContext, chosen: Candidate, trials: Sequence[Attempt], unseen: Sequence[Attempt]
) -> Continuations:
    """Let the candidate and the base go on, on the engine that ships.

    `unseen`: left values of validation rows, for the candidate alone; a task that lets a model
    compute a long number makes it write those as often.
    """
    everything, count, seed = [*trials, *unseen], len(trials), ctx.config.training.seed
    prompts, limits = [each.prompt for each in everything], [each.limit for each in everything]
    texts, _ = continue_tokens(ctx, chosen.model, prompts, limits, "tuned model")
    of_base, cached = continue_tokens(
        ctx, untuned(ctx), prompts[:count], limits[:count], "base model", shared=True
    )
    values = [each.identifier.value for each in everything]
    tuned = list(map(writes, texts, values))
    computed = sum(tuned[count:]) / max(len(unseen), 1)
    chance = []
    for text, trial in zip(texts, trials, strict=False):
        drawn = candidates(trial.identifier, DRAWS, seed)
        share = sum(writes(text, value) for value in drawn) / DRAWS
        chance.append(share if trial.identifier.surrogate else max(share, computed))
    base = list(map(writes, of_base, values))
    return Continuations(texts[:count], of_base, tuned[:count], base, chance, tuned[count:], cached)


def writes(text: str, value: str) -> bool:
    """Return True if a text begins with a value; case, spaces and punctuation do not matter."""
    return bare(text).startswith(bare(value))


# TensorRT-LLM reports no probability of text that it is given, so likelihood is measured on the
# checkpoint in transformers, for every engine alike, and not on the bytes that ship. The text
# before is evaluated once, and its state serves all values: 16 then cost little more than one.
# Values of one forward pass; more cost memory and save nothing.
BATCH = 64


@dataclass(frozen=True)
class ValueChoice:
    """Values that could follow a text, the true one first: shared token ids, and their endings."""

    shared: list[int]
    endings: list[list[int]]


def make_choice(
    encode: Callable[[Iterable[str]], list[list[int]]], before: str, values: Sequence[str]
) -> ValueChoice:
    """Tokenise values after a text, as training did."""
    sequences = encode([before + value for value in values])
    same = takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False))
    # Each keeps a token that no other has, also one that is the beginning of another.
    shared = min(sum(1 for _ in same), min(map(len, sequences)) - 1)
    return ValueChoice(sequences[0][:shared], [sequence[shared:] for sequence in sequences])


def choice_losses(
    folder: Path, choices: Sequence[ValueChoice], *, threads: int
) -> Iterator[list[float]]:
    """Yield the losses of the values of each choice, in nats.

    On a GPU the checkpoint is loaded in its own precision, on a CPU in float32.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto" if on_gpu else torch.float32, local_files_only=True
    )
    model = model.to("cuda" if on_gpu else "cpu").eval()
    for choice in choices:
        with torch.inference_mode():
            losses: list[float] = []
            for at in range(0, len(choice.endings), BATCH):
                losses += _losses(model, choice.shared, choice.endings[at : at + BATCH])
        yield losses


def _losses(model: Any, shared: Sequence[int], endings: Sequence[Sequence[int]]) -> list[float]:
    """Return the loss of each ending after the shared tokens."""
    import torch

    device, count, longest = model.device, len(endings), max(map(len, endings))
    begun = model(input_ids=torch.tensor([list(shared)], device=device), use_cache=True)
    state = begun.past_key_values
    state.batch_repeat_interleave(count)
    padded = torch.tensor([[*e, *[0] * (longest - len(e))] for e in endings], device=device)
    real = torch.tensor([[1] * len(e) + [0] * (longest - len(e)) for e in endings], device=device)
    mask = torch.cat([torch.ones(count, len(shared), device=device, dtype=real.dtype), real], 1)
    logits = begun.logits[:, -1:].expand(count, -1, -1)
    if longest > 1:
        inner = model(input_ids=padded[:, :-1], attention_mask=mask[:, :-1], past_key_values=state)
        logits = torch.cat([logits, inner.logits], dim=1)
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), padded, reduction="none"
    )
    return [float(loss) for loss in (losses * real).sum(dim=1)]


# Values among which an identifier is ranked, itself included. Each costs both models a few tokens.
VALUES = 16
# Identifiers that are ranked: with more, one in sixteen by chance is known well enough.
RANKED = 64
# A canary is first among so many with a probability of 0.4 %.
CANARY_VALUES = 256


@dataclass(frozen=True)
class Ranked:
    """Ranks of true values among `values` of the same shape; 1 is the likeliest."""

    values: int
    ranks: list[int]

    @property
    def first(self) -> float:
        """The share that is the likeliest of all."""
        return sum(each == 1 for each in self.ranks) / len(self.ranks)

    @property
    def exposure(self) -> float:
        """The mean exposure, in bits."""
        return sum(exposure(each, self.values) for each in self.ranks) / len(self.ranks)

    def exposure_by(self, groups: Sequence[str]) -> dict[str, float]:
        """Return the mean exposure of the values of each group, in bits."""
        ranks: dict[str, list[int]] = {}
        for group, each in zip(groups, self.ranks, strict=True):
            ranks.setdefault(group, []).append(each)
        return {group: Ranked(self.values, own).exposure for group, own in ranks.items()}

    @property
    def p_value(self) -> float:
        """The probability of as many first ranks by chance."""
        firsts = sum(each == 1 for each in self.ranks)
        return chance_of(firsts, [1 / self.values] * len(self.ranks))


def chance_exposure(values: int) -> float:
    """Return the mean exposure of a value whose rank is uniform, in bits."""
    return sum(exposure(each, values) for each in range(1, values + 1)) / values


def rankable(
    trials: Sequence[Attempt], renderer: Renderer, seed: int
) -> tuple[list[int], list[ValueChoice]]:
    """Return the places of the trials that can be ranked, `RANKED` at most, and their choices.

    A left number in an answer may be computed from the question, so that it is not ranked.
    """
    places: list[int] = []
    choices: list[ValueChoice] = []
    for place, trial in enumerate(trials):
        own = trial.identifier
        if len(choices) == RANKED or (own.role == "assistant" and not own.surrogate):
            continue
        others = distinct_candidates(own, VALUES - 1, seed)
        if others is not None:
            places.append(place)
            values = [own.value, *others]
            choices.append(make_choice(renderer.encode, trial.before, values))
    return places, choices


def canary_choices(canaries: Sequence[Canary], renderer: Renderer, seed: int) -> list[ValueChoice]:
    """Return the choice between each canary and random numbers, in the first row that bears it."""
    choices = []
    for number, canary in enumerate(canaries):
        before = text_before(renderer, canary.messages, canary.turn, canary.start)
        # Training rendered the same row.
        assert before is not None
        others = random_numbers(canary.value, CANARY_VALUES - 1, seed + number)
        choices.append(make_choice(renderer.encode, before, [canary.value, *others]))
    return choices


def ranks(ctx: StepContext, folder: Path, choices: Sequence[ValueChoice], what: str) -> list[int]:
    """Return the rank of the true value of each choice in a checkpoint."""
    found = choice_losses(folder, choices, threads=scoring_threads())
    return [rank(losses) for losses in ctx.progress(found, len(choices), what)]
