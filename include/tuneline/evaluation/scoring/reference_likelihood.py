"""How likely both models hold the expected answers of a free-text hold-out.

chrF and ROUGE-L compare the one answer that a model wrote with the one that was expected; a good
answer in other words scores low. The log-probability of the expected answer, token by token, is
asked of the engine that ships and depends on no wording that was drawn. It informs and does not
decide: a model may hold an answer likely and still write another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.asking.asking import losses
from tuneline.asking.models import Candidate, untuned
from tuneline.asking.tasks import Task
from tuneline.bases import base_of
from tuneline.data.rendering.renderer import Renderer
from tuneline.data.tables.rows import Row
from tuneline.errors import UserError
from tuneline.evaluation.scoring.answer_tables import stated
from tuneline.evidence import Measurement, measure
from tuneline.failures import one_line
from tuneline.models.base_model import load_tokenizer
from tuneline.statistics import Z95, Interval, RowLosses
from tuneline.step_context import StepContext


@dataclass(frozen=True)
class Likelihoods:
    """The likelihood of expected answers under both models, row by row.

    Attributes:
        base: log-probability of each row's answer by the base, in nats; None where unknown.
        tokens: tokens of each answer, its end-of-turn token included; None where unknown.
        unknown: why nothing is known; empty if something is.
    """

    base: tuple[float | None, ...]
    tuned: tuple[float | None, ...]
    tokens: tuple[int | None, ...]
    unknown: str = ""

    @property
    def columns(self) -> dict[str, Sequence[float | int | None]]:
        """The columns of `answers.parquet`."""
        return {
            "expected_tokens": self.tokens,
            "base_expected_logprob": self.base,
            "tuned_expected_logprob": self.tuned,
        }

    def measurements(self) -> list[Measurement]:
        """State the mean log-probability of a token under both models, and the paired gain."""
        if self.unknown:
            return [measure("expected_answer_logprob", f"not measured: {self.unknown}", "")]
        base, tuned = self._losses(self.base), self._losses(self.tuned)
        gain = logprob_gain(base, tuned)
        return [
            measure("expected_answer_rows", len(base.sums), "rows"),
            measure("expected_answer_tokens", sum(base.targets), "tokens"),
            *_stated("base_expected_answer_logprob", Interval(-base.mean, *_around(base))),
            *_stated("tuned_expected_answer_logprob", Interval(-tuned.mean, *_around(tuned))),
            *_stated("expected_answer_logprob_gain", gain),
        ]

    def sentence(self) -> str:
        """Return a part of a sentence for the summary."""
        if self.unknown:
            return f"the likelihood of the expected answers is not measured: {self.unknown}"
        base, tuned = self._losses(self.base), self._losses(self.tuned)
        gain = logprob_gain(base, tuned)
        return (
            f"a token of the expected answers has a mean log-probability of {-tuned.mean:.3f} "
            f"(base {-base.mean:.3f}, gain {gain.value:+.3f} [{gain.lower:+.3f}, "
            f"{gain.upper:+.3f}] nats)"
        )

    def _losses(self, logprobs: Sequence[float | None]) -> RowLosses:
        known = [
            (-found, count)
            for found, count in zip(logprobs, self.tokens, strict=True)
            if found is not None and count is not None
        ]
        sums, targets = zip(*known, strict=True)
        return RowLosses(sums, targets, (1.0,) * len(known))


def logprob_gain(base: RowLosses, tuned: RowLosses) -> Interval:
    """Return how much likelier the candidate holds a token, in nats, paired by row.

    The 95 % interval is normal, of a ratio estimator over the draw of rows.
    """
    gain, error = base.mean - tuned.mean, tuned.log_ratio_error(base)
    return Interval(gain, gain - Z95 * error, gain + Z95 * error, error)


def _around(losses: RowLosses) -> tuple[float, float, float]:
    error = losses.standard_error
    return -losses.mean - Z95 * error, -losses.mean + Z95 * error, error


def _stated(name: str, found: Interval) -> list[Measurement]:
    # A model that holds an answer impossible has numbers that JSON does not know.
    if not all(map(math.isfinite, (found.value, found.error))):
        return [measure(name, "an expected answer is impossible for a model", "")]
    return stated(name, found, "nats per token")


def expected_likelihoods(
    ctx: StepContext, task: Task, chosen: Candidate, rows: Sequence[Row]
) -> Likelihoods | None:
    """Ask the engine how likely both models hold the expected answers.

    Both read the rows in the format of training. A row counts where the tokens of its answer can
    be told from those of its prompt, and it fits the context that is served.

    Args:
        task: the rule by which answers are scored.

    Returns:
        The likelihoods; None if the task is not free text.
    """
    if not task.graded:
        return None
    renderer = Renderer(load_tokenizer(base_of(ctx).path), ctx.config.data.target_format)
    rendered = renderer.render([row.messages for row in rows])
    longest = ctx.config.deployment.context_tokens
    masks = {
        number: one.last_answer()
        for number, one in enumerate(rendered)
        if one.loss_mask is not None and len(one.ids) <= longest
    }
    if not masks:
        return _unknown(len(rows), "no row's answer could be scored within its context")
    sequences, scored = [rendered[number].ids for number in masks], list(masks.values())
    try:
        tuned, _ = losses(ctx, chosen.model, sequences, scored, "tuned model")
        base, _ = losses(ctx, untuned(ctx), sequences, scored, "base model", shared=True)
    except UserError as error:
        # It decides nothing, so the item is judged without it.
        return _unknown(len(rows), one_line(str(error)))
    if not tuned or not base:
        name = ctx.config.deployment.engine
        return _unknown(len(rows), f"{name} does not tell the probabilities of given tokens")
    places = {number: place for place, number in enumerate(masks)}
    at = [places.get(number) for number in range(len(rows))]
    return Likelihoods(
        tuple(None if place is None else -base[place] for place in at),
        tuple(None if place is None else -tuned[place] for place in at),
        tuple(None if place is None else sum(scored[place]) for place in at),
    )


def _unknown(rows: int, why: str) -> Likelihoods:
    return Likelihoods((None,) * rows, (None,) * rows, (None,) * rows, why)
