"""Both models: the base of the first release and the candidate, asked the same in the same way.

Forgetting adds up over nights that each train on the one before, so the base is that of the first
release. Choices are compared by the likelihood of whole answers where the engine tells it: no
wording hides what the model knows. Otherwise the model is asked to name one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.artifacts.releases import Release, ancestry, released
from tuneline.artifacts.training import MERGED
from tuneline.asking.asking import Answer, ask, ask_kept, losses
from tuneline.asking.general_questions import Question, check_answer
from tuneline.asking.models import Candidate, untuned
from tuneline.bases import base_of
from tuneline.data.rendering.renderer import RenderedExample, Renderer
from tuneline.errors import UserError
from tuneline.evidence import Measurement, measure
from tuneline.models import BaseModel, resolve
from tuneline.models.base_model import load_tokenizer
from tuneline.serving.engines.engine import ServedModel
from tuneline.statistics import RowLosses
from tuneline.step_context import StepContext

_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Origin:
    """The base of the first release, which general ability is measured against.

    Attributes:
        releases: releases since then, up to the one that the run would replace.
        whole: True if the manifests lead back to a release that none came before.
        descends: True if the run's base is that model, or the merged model of a release.
    """

    base: BaseModel
    releases: int
    whole: bool = True
    descends: bool = True

    @property
    def name(self) -> str:
        """The base, and how far back it lies, for a sentence."""
        if not self.releases:
            return f"the base {self.base.uri}"
        count = "1 release" if self.releases == 1 else f"{self.releases} releases"
        return f"the first base {self.base.uri}, {count} back,"

    def measurements(self) -> list[Measurement]:
        """State the base, its distance, and that the line of releases has only one."""
        return [
            measure("measured_against", self.base.uri, ""),
            measure("measured_against_digest", self.base.digest, "sha256"),
            measure("releases_since_that_base", self.releases, "releases"),
            measure("base_descends_from_the_first", self.descends, "flag", "==", True),
            measure("manifests_lead_to_first", self.whole, "flag", "==", True, on_breach="warn"),
        ]


def find_origin(ctx: StepContext) -> Origin:
    """Find the base of the first release of the run's model; its own while nothing is released.

    UserError if that base can't be fetched, or is another model at its address now.
    """
    own = base_of(ctx)
    latest = released(ctx.run)
    if latest is None:
        return Origin(own, 0)
    line = list(ancestry(latest))
    first = line[-1]
    whole = first.manifest.previous_version is None
    stated = first.manifest.base_model
    if stated.get("digest") == own.digest:
        return Origin(own, len(line), whole)
    base = resolve(str(stated.get("uri")), log=ctx.log)
    if base.digest != stated.get("digest"):
        raise UserError(
            f"base_regression measures against the base of the first release, {base.uri}, which "
            f"has the digest {base.digest[:12]} now and had {str(stated.get('digest'))[:12]} in "
            f"{first.uri}; put that model back there"
        )
    # The run's base may be a merged model, wherever it lies: its weights say so.
    weights = {sha256 for name, sha256 in own.files.items() if name.endswith(_WEIGHTS)}
    merged = bool(weights) and any(weights <= _merged_weights(release) for release in line)
    return Origin(base, len(line), whole, descends=merged)


def _merged_weights(release: Release) -> set[str]:
    try:
        refs = release.artifacts(MERGED.step)
    except UserError:
        return set()
    merged = (ref for ref in refs if ref.name.startswith(f"{MERGED.name}/"))
    return {ref.sha256 for ref in merged if ref.name.endswith(_WEIGHTS)}


@dataclass(frozen=True)
class AskedModel:
    """One of the two models: what it is called, its bytes, and how its prompts are rendered."""

    name: str
    model: ServedModel
    renderer: Renderer


@dataclass(frozen=True)
class Reply:
    """A model's answer to a question; of a choice, the likeliest one.

    `cut` is True where the limit of tokens ended what it wrote; None for a choice.
    """

    text: str
    right: bool
    cut: bool | None = None


class Pair:
    """Both models, asked the same questions in the same way.

    `cached` is False as soon as the base had to be asked; `chosen` counts the questions that were
    answered by likelihood.
    """

    def __init__(self, ctx: StepContext, chosen: Candidate, origin: Origin) -> None:
        """Load the tokenizers; no model is started yet."""
        self._ctx = ctx
        target = ctx.config.data.target_format
        tuned = Renderer(load_tokenizer(base_of(ctx).path), target)
        tokenizer = load_tokenizer(origin.base.path)
        # A base without a template is asked in the form that training used.
        own = "tokenizer" if isinstance(tokenizer.chat_template, str) else target
        self.base = AskedModel("base model", untuned(ctx, origin.base), Renderer(tokenizer, own))
        self.tuned = AskedModel("tuned model", chosen.model, tuned)
        self.cached, self.likelihood, self.chosen = True, True, 0

    def answer(self, questions: Sequence[Question]) -> tuple[list[Reply], list[Reply]]:
        """Return the replies of the base and of the tuned model, in order."""
        rows = [
            _rendered(side.renderer, questions) if self.likelihood else {}
            for side in (self.base, self.tuned)
        ]
        # Both models answer a question in the same way, or their answers can't be compared.
        by_likelihood = [n for n in range(len(questions)) if n in rows[0] and n in rows[1]]
        found = []
        for side, rendered in zip((self.base, self.tuned), rows, strict=True):
            chosen = self._choose(side, {n: rendered[n] for n in by_likelihood})
            if chosen is None:
                self.likelihood = False
                return self.answer(questions)
            found.append(chosen)
        self.chosen += len(by_likelihood)
        base, tuned = (
            self._replies(side, questions, chosen)
            for side, chosen in zip((self.base, self.tuned), found, strict=True)
        )
        return base, tuned

    def text_losses(self, texts: Sequence[str]) -> tuple[RowLosses, RowLosses] | None:
        """Return the losses of base and tuned model on texts; None if the engine tells none."""
        found: list[RowLosses] = []
        for side in (self.base, self.tuned):
            sequences = [list(ids) for ids in side.renderer.tokenizer(list(texts))["input_ids"]]
            scored = [[False, *[True] * (len(ids) - 1)] for ids in sequences]
            sums = self._losses(side, sequences, scored)
            if sums is None:
                return None
            # Both are counted in tokens of the base, which may have another tokenizer.
            targets = found[0].targets if found else tuple(map(sum, scored))
            found.append(RowLosses(tuple(sums), targets, (1.0,) * len(texts)))
        return found[0], found[1]

    def _choose(
        self, side: AskedModel, rows: dict[int, list[RenderedExample]]
    ) -> dict[int, int] | None:
        """Return the place of the likeliest choice of each question; None without losses."""
        answers = [answer for choices in rows.values() for answer in choices]
        if not answers:
            return {}
        masks = [answer.loss_mask or [] for answer in answers]
        losses = self._losses(side, [answer.ids for answer in answers], masks)
        if losses is None:
            return None
        rest, chosen = iter(losses), {}
        for number, choices in rows.items():
            first, *others = [next(rest) for _ in choices]
            # A tie is wrong.
            chosen[number] = 0 if first < min(others) else 1 + others.index(min(others))
        return chosen

    def _losses(
        self, side: AskedModel, sequences: list[list[int]], scored: list[list[bool]]
    ) -> list[float] | None:
        of_base = side is self.base
        found, cached = losses(self._ctx, side.model, sequences, scored, side.name, shared=of_base)
        self.cached = self.cached and (cached or not of_base)
        return found

    def _replies(
        self, side: AskedModel, questions: Sequence[Question], chosen: dict[int, int]
    ) -> list[Reply]:
        """Return the reply to each question, after asking those without a chosen answer."""
        asked = [number for number in range(len(questions)) if number not in chosen]
        texts: list[Answer] = []
        if asked:
            prompts = [[{"role": "user", "content": questions[n].listed}] for n in asked]
            limits = [questions[number].max_tokens for number in asked]
            if side is self.base:
                texts, cached = ask_kept(self._ctx, side.model, prompts, limits, side.name)
                self.cached = self.cached and cached
            else:
                texts = ask(self._ctx, side.model, prompts, limits, side.name)
        said = dict(zip(asked, texts, strict=True))
        return [
            Reply(said[number], check_answer(question, said[number]), said[number].cut)
            if number in said
            else Reply(question.choices[chosen[number]], chosen[number] == 0)
            for number, question in enumerate(questions)
        ]


def _rendered(
    renderer: Renderer, questions: Sequence[Question]
) -> dict[int, list[RenderedExample]]:
    """Render each choice of the questions, where its tokens can be told from the prompt's."""
    numbers = [number for number, question in enumerate(questions) if question.choices]
    rows = [
        [{"role": "user", "content": questions[n].prompt}, {"role": "assistant", "content": text}]
        for n in numbers
        for text in questions[n].choices
    ]
    try:
        rendered = iter(renderer.render(rows))
    except ValueError as error:
        raise UserError(
            f"the chat template can't render a general question: {error}; correct the template"
        ) from None
    found = {}
    for number in numbers:
        answers = [next(rendered) for _ in questions[number].choices]
        if all(answer.loss_mask is not None for answer in answers):
            found[number] = answers
    return found
