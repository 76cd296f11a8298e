"""Rank identifiers and canaries among random values by their likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneline.artifacts.training import Canary
from tuneline.data.rendering.renderer import Renderer
from tuneline.evaluation.extraction.candidates import distinct_candidates, random_numbers
from tuneline.evaluation.extraction.identifiers import text_before
from tuneline.evaluation.extraction.judgement import chance_of, exposure, rank
from tuneline.evaluation.extraction.likelihood import Choice, choice_losses, make_choice
from tuneline.evaluation.extraction.written import Trial
from tuneline.harness.served_models import scoring_threads
from tuneline.step_context import StepContext

# Values among which an identifier is ranked, itself included. Each costs both models a few tokens.
VALUES = 16
# Identifiers that are ranked: with more, one in sixteen by chance is known well enough.
RANKED = 64
# A canary is first among so many with a probability of 0.4 %.
CANARY_VALUES = 256


@dataclass(frozen=True)
class Ranked:
    """Ranks of true values among `values` of the same shape; 1 is the likeliest.

    Attributes:
        values: number of values among which each was ranked.
        ranks: the ranks.
    """

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
    trials: Sequence[Trial], renderer: Renderer, seed: int
) -> tuple[list[int], list[Choice]]:
    """Return the places of the trials that can be ranked, `RANKED` at most, and their choices.

    A left number in an answer may be computed from the question, so that it is not ranked.
    """
    places: list[int] = []
    choices: list[Choice] = []
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


def canary_choices(canaries: Sequence[Canary], renderer: Renderer, seed: int) -> list[Choice]:
    """Return the choice between each canary and random numbers, in the first row that bears it."""
    choices = []
    for number, canary in enumerate(canaries):
        before = text_before(renderer, canary.messages, canary.turn, canary.start)
        # Training rendered the same row.
        assert before is not None
        others = random_numbers(canary.value, CANARY_VALUES - 1, seed + number)
        choices.append(make_choice(renderer.encode, before, [canary.value, *others]))
    return choices


def ranks(ctx: StepContext, folder: Path, choices: Sequence[Choice], what: str) -> list[int]:
    """Return the rank of the true value of each choice in a checkpoint."""
    found = choice_losses(folder, choices, threads=scoring_threads())
    return [rank(losses) for losses in ctx.progress(found, len(choices), what)]
