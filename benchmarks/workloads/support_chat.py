"""Conversations for a workload: clean rows of the sample, or their sentences combined at random.

Unlike in the sample, combined rows may be alike: they are only counted.
"""

from __future__ import annotations

import json
import random
import re
import string
from functools import cache
from pathlib import Path

from benchmarks.contest.contest import SEED, Options
from benchmarks.workloads.input_rows import read_conversations
from tuneline.data.sample import SUPPORT
from tuneline.data.tables.rows import Message

# Every planted fault of SUPPORT with its line.
PLANTED = Path(__file__).with_name("planted.json")
# Sentences of a message and of an answer; with the system prompt about 160 tokens a row.
MOST_SENTENCES = 8
_ORDER = re.compile(r"\b[A-Za-z]-\d{5}\b")


@cache
def clean_rows() -> list[list[Message]]:
    """Return the rows of the sample in which no fault is planted."""
    planted = {fault["line"] for fault in json.loads(PLANTED.read_bytes())["planted"]}
    lines = enumerate(SUPPORT.read_bytes().splitlines(), start=1)
    return [json.loads(line)["messages"] for number, line in lines if number not in planted]


@cache
def _sentences() -> tuple[list[str], list[str]]:
    """Return the sentences of the customers, and the answers to them."""
    asked = [part for row in clean_rows() for part in re.split(r"(?<=[.?!]) ", row[1]["content"])]
    replies = [json.loads(row[2]["content"])["reply"] for row in clean_rows()]
    return list(dict.fromkeys(asked)), list(dict.fromkeys(replies))


def sentence(rng: random.Random, *, answer: bool = False) -> str:
    """Return a sentence of a customer, or an answer; it names nobody, its order is a new one."""
    order = f"{rng.choice(string.ascii_uppercase)}-{rng.randrange(10_000, 100_000)}"
    return _ORDER.sub(order, rng.choice(_sentences()[answer]))


def make_conversations(rows: int, seed: int = SEED) -> list[list[Message]]:
    """Make rows of a system prompt, a message of some sentences and an answer."""
    rng = random.Random(seed)  # noqa: S311 - a workload, no secret
    system = clean_rows()[0][0]["content"]

    def text(*, answer: bool) -> str:
        count = rng.randint(1, MOST_SENTENCES)
        return " ".join(sentence(rng, answer=answer) for _ in range(count))

    return [
        [
            {"role": "system", "content": system},
            {"role": "user", "content": text(answer=False)},
            {"role": "assistant", "content": text(answer=True)},
        ]
        for _ in range(rows)
    ]


def conversations(options: Options, rows: int) -> list[list[Message]]:
    """Return the conversations of `--input`, or made ones: `--rows`, or `rows` by default."""
    if options.input:
        return read_conversations(options.input, options.rows)
    return make_conversations(options.rows or rows)
