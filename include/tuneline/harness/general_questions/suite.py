"""The whole suite, always the same, in an order of which each beginning is a fair sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from tuneline.harness.general_questions import generated, written
from tuneline.harness.general_questions.drafts import Draft, distinct
from tuneline.harness.general_questions.instructions import instructions
from tuneline.harness.general_questions.question import Question
from tuneline.harness.general_questions.tables import short_questions

# The suite is the same for all runs, so that answers of a base can be kept.
SEED = 2024
# Questions that templates make, beside the written ones.
GENERATED = {
    "arithmetic": 240,
    "grammar": 60,
    "reading": 210,
    "reasoning": 230,
    "formats": 220,
    "json": 50,
    "instructions": 200,
}


def load_suite() -> list[Question]:
    """Return all general questions.

    Categories follow one another in proportion to their sizes, and so do generated and likelihood
    answers within each, so that the first `n` questions are a stratified sample.
    """
    short: dict[str, list[Question]] = {}
    for question in short_questions():
        short.setdefault(question.category, []).append(question)
    drafts = dict(_drafts())
    strata: list[list[Question]] = []
    for category in sorted(drafts):
        for kind in (True, False):
            made = [
                Question(f"{category}-g{number:03d}", category, d.prompt, d.check, d.max_tokens)
                for number, d in enumerate(drafts[category], 1)
                if (d.check["kind"] == "choice") == kind
            ]
            strata.append([*(short.get(category, []) if not kind else []), *made])
    return _interleaved(strata)


def _drafts() -> Iterator[tuple[str, list[Draft]]]:
    """Yield each category with its drafts; each maker has a seed of its own."""

    def draw(name: str) -> Random:
        return Random(f"{SEED} {name}")  # noqa: S311 - questions, not secrets

    def made(name: str, maker: Callable[[Random], Iterator[Draft]]) -> list[Draft]:
        return distinct(draw(f"{name} order"), maker(draw(name)), GENERATED[name])

    problems, sums = written.word_problems(draw("word problems")), generated.arithmetic
    yield "arithmetic", [*problems, *made("arithmetic", sums)]
    yield "facts", list(written.facts(draw("facts")))
    yield "grammar", [*written.grammar(), *made("grammar", generated.agreement)]
    yield "instructions", made("instructions", instructions)
    yield "reading", [*written.reading(), *made("reading", generated.reading)]
    yield "refusal", list(written.refusal())
    yield "reasoning", [*written.common_sense(), *made("reasoning", generated.reasoning)]
    yield "formats", [*made("formats", generated.formats), *made("json", generated.json_answers)]


def _interleaved(strata: list[list[Question]]) -> list[Question]:
    """Shuffle each stratum, then merge them so that each is spread evenly over the whole."""
    placed: list[tuple[float, int, Question]] = []
    for number, stratum in enumerate(strata):
        Random(f"{SEED} order {number}").shuffle(stratum)  # noqa: S311 - an order
        for at, question in enumerate(stratum):
            placed.append(((at + 0.5) / len(stratum), number, question))
    return [question for _, _, question in sorted(placed, key=lambda p: p[:2])]
