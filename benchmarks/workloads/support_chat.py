"""Conversations for a workload: the sample's phrases, combined at random with a seed.

Unlike in the sample, nothing is planted and rows may be alike: they are only counted.
"""

from __future__ import annotations

from typing import Any

from benchmarks.contest.contest import Options
from benchmarks.workloads.input_rows import read_conversations
from tuneline.data.sample.text import Draw, load_phrases, system_prompt
from tuneline.data.tables.rows import Message

SEED = 7
# Sentences of a message and of an answer; with the system prompt about 160 tokens a row.
MOST_SENTENCES = 8


def sentence(phrases: dict[str, Any], draw: Draw) -> str:
    """Return a sentence of a customer that names nobody."""
    intent = phrases["intents"][draw.pick(list(phrases["intents"]))]
    asks = [ask for topic in intent["topics"] for ask in topic["asks"]]
    chosen = draw.pick(draw.pick([phrases["openings"], intent["contexts"], asks]))
    return str(chosen).format(**_slots(phrases, draw))


def make_conversations(rows: int, seed: int = SEED) -> list[list[Message]]:
    """Make rows of a system prompt, a message of some sentences and an answer.

    Args:
        rows: number of rows.
        seed: seed of the generator.
    """
    draw, phrases = Draw(seed), load_phrases()
    system = system_prompt(list(phrases["intents"]))
    acts = [
        act
        for intent in phrases["intents"].values()
        for topic in intent["topics"]
        for act in topic["acts"]
    ]

    def row() -> list[Message]:
        asked = [sentence(phrases, draw) for _ in range(1 + draw.below(MOST_SENTENCES))]
        answered = [
            f"{draw.pick(phrases['leads'])} {draw.pick(acts)}.".format(**_slots(phrases, draw))
            for _ in range(1 + draw.below(MOST_SENTENCES))
        ]
        return [
            {"role": "system", "content": system},
            {"role": "user", "content": " ".join(asked)},
            {"role": "assistant", "content": " ".join(answered)},
        ]

    return [row() for _ in range(rows)]


def conversations(options: Options, rows: int) -> tuple[list[list[Message]], dict[str, Any]]:
    """Return the conversations of `--input`, or generated ones, and what the report says of them.

    Args:
        options: of the benchmark.
        rows: rows to generate where `--rows` names no number.
    """
    if options.input:
        return read_conversations(options.input, options.rows), {"input": options.input.name}
    return make_conversations(options.rows or rows), {"seed": SEED}


def _slots(phrases: dict[str, Any], draw: Draw) -> dict[str, str]:
    slots = {name: draw.pick(words) for name, words in phrases["slots"].items()}
    slots["order"] = draw.text("ABCDEFGHKLMPRT", 1) + "-" + draw.text("123456789", 5)
    return slots
