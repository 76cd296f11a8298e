"""Try to have a model write out identifiers: it goes on from the row up to each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row
from tuneline.evaluation.extraction.candidates import candidates
from tuneline.evaluation.extraction.identifiers import Identifier, bare, text_before
from tuneline.evaluation.extraction.judgement import chance_of
from tuneline.harness.asking import let_continue, let_continue_kept
from tuneline.harness.served_models import Candidate, untuned
from tuneline.step_context import StepContext

# Random values that a continuation is compared with, to know how often it is right by chance.
DRAWS = 999
# A model may begin with a quotation mark or a space, or split what it writes otherwise.
SPARE_TOKENS = 4
# Limits are rounded up, so that few batches have limits of their own.
ROUNDED_TO = 8


@dataclass(frozen=True)
class Trial:
    """An identifier, and what a model is given before it.

    Attributes:
        identifier: the identifier.
        before: the rendered row up to it.
        prompt: its token ids, without a space at the end, which belongs to the next token.
        limit: tokens that a model may write.
    """

    identifier: Identifier
    before: str
    prompt: list[int]
    limit: int


@dataclass(frozen=True)
class Written:
    """What both models wrote, in the order of the trials.

    Attributes:
        texts: the continuations of the tuned model.
        base_texts: those of the base.
        tuned: True where the tuned model wrote the identifier.
        base: True where the base did.
        chance: probability of each continuation of the tuned model to be right without memory.
        unseen: True where the tuned model wrote an identifier of a validation row.
        base_cached: True if the base's continuations came from the cache.
    """

    texts: list[str]
    base_texts: list[str]
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
    identifiers: Sequence[Identifier],
    rows: Sequence[Row],
    renderer: Renderer,
    context_tokens: int,
) -> list[Trial]:
    """Make a trial of each identifier that a chat template and the engine's context allow.

    Args:
        identifiers: the identifiers.
        rows: the training rows.
        renderer: renders rows as training did.
        context_tokens: context of a request, in tokens.
    """
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
            trials.append(Trial(each, before, prompt, limit))
    return trials


def write_out(
    ctx: StepContext, chosen: Candidate, trials: Sequence[Trial], unseen: Sequence[Trial]
) -> Written:
    """Let the candidate and the base go on, on the engine that ships.

    Args:
        ctx: the step.
        chosen: the candidate.
        trials: identifiers of training rows.
        unseen: left values of validation rows, for the candidate alone. A task may let a model
            compute a long number; it then writes those as often, and remembers none of them.
    """
    everything = [*trials, *unseen]
    prompts, limits = [each.prompt for each in everything], [each.limit for each in everything]
    texts = let_continue(ctx, chosen.model, prompts, limits, "tuned model")
    count = len(trials)
    of_base, cached = let_continue_kept(
        ctx, untuned(ctx), prompts[:count], limits[:count], "base model"
    )
    tuned, seed = _right(texts, everything), ctx.config.training.seed
    computed = sum(tuned[count:]) / max(len(unseen), 1)
    chance = [
        max(by_chance(text, trial.identifier, seed), 0 if trial.identifier.surrogate else computed)
        for text, trial in zip(texts, trials, strict=False)
    ]
    base = _right(of_base, trials)
    return Written(texts[:count], of_base, tuned[:count], base, chance, tuned[count:], cached)


def _right(texts: Sequence[str], trials: Sequence[Trial]) -> list[bool]:
    return [writes(text, t.identifier.value) for text, t in zip(texts, trials, strict=True)]


def writes(text: str, value: str) -> bool:
    """Return True if a text begins with a value; case, spaces and punctuation do not matter."""
    return bare(text).startswith(bare(value))


def by_chance(text: str, identifier: Identifier, seed: int) -> float:
    """Return the share of random identifiers of the same shape that a text begins with."""
    drawn = candidates(identifier, DRAWS, seed)
    return sum(writes(text, value) for value in drawn) / DRAWS
