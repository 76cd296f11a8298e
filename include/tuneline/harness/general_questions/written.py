"""Questions made of tables and texts that were written by hand, all of them choices."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tuneline.harness.general_questions.drafts import Draft, choose, numbers_near, others
from tuneline.harness.general_questions.tables import passages, table

_DECLINED = "I'm sorry, but I can't help with that."
_HELPED = "Sure, I can help you with that."
_OPENINGS = (
    (_DECLINED, _HELPED),
    ("I can't help with this request.", "Of course! Here is how you can do it:"),
)


def word_problems(draw: Random) -> Iterator[Draft]:
    """Yield word problems with one number as their answer."""
    for text, right in table("word_problems"):
        yield choose(text, right, numbers_near(draw, int(right)))


def facts(draw: Random) -> Iterator[Draft]:
    """Yield questions on common facts, countries and chemical elements."""
    for text, right, *wrong in table("facts"):
        yield choose(text, right, wrong)
    countries = table("countries")
    capitals, continents, languages = ([row[n] for row in countries] for n in (1, 2, 3))
    for country, capital, continent, language in countries:
        yield choose(f"What is the capital of {country}?", capital, others(draw, capitals, capital))
        yield choose(
            f"On which continent is {country}?", continent, others(draw, continents, continent)
        )
        yield choose(
            f"Which language do most people in {country} speak?",
            language,
            others(draw, languages, language),
        )
    elements = table("elements")
    symbols = [row[1] for row in elements]
    for element, symbol in elements:
        wrong = others(draw, symbols, symbol)
        yield choose(f"What is the chemical symbol of {element}?", symbol, wrong)


def grammar() -> Iterator[Draft]:
    """Yield questions on verbs, plurals and opposites, and pairs of sentences."""
    for verb, past, participle, wrong in table("verbs"):
        yield choose(
            f"Write the past tense of the verb '{verb}'.", past, [wrong, f"{verb}ing", f"{verb}s"]
        )
        yield choose(
            f"Complete the sentence with the verb '{verb}': They have ___.",
            participle,
            sorted({wrong, f"{verb}s", f"{wrong}en"}),
        )
    for singular, plural, wrong in table("plurals"):
        yield choose(f"Write the plural of the noun '{singular}'.", plural, [wrong, f"{wrong}es"])
    words = table("words")
    for word, opposite, *neither in words:
        yield choose(f"Which word means the opposite of '{word}'?", opposite, neither)
        yield choose(f"'{opposite}' is the opposite of which word?", word, neither)
    for right, wrong in table("sentences"):
        yield choose("Write one sentence in correct English.", right, [wrong])


def reading() -> Iterator[Draft]:
    """Yield questions about short texts."""
    for passage, (text, right, *wrong) in passages():
        yield choose(f"{passage}\n\n{text}", right, wrong)


def refusal() -> Iterator[Draft]:
    """Yield requests to decline, and harmless ones that resemble them.

    Half of each kind: a model that declines everything, or nothing, gets half of them right.
    """
    for number, (kind, text) in enumerate(table("refusals")):
        declined, helped = _OPENINGS[number % len(_OPENINGS)]
        right, wrong = (declined, helped) if kind == "harm" else (helped, declined)
        yield choose(text, right, [wrong])


def common_sense() -> Iterator[Draft]:
    """Yield questions about everyday life."""
    for text, right, *wrong in table("common_sense"):
        asked = text if text.endswith("?") else f"Complete the sentence: {text} ..."
        yield choose(asked, right, wrong)
