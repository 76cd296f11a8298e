"""The shapes: a guest of each, by seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.faults.guests import conversations, copies, exact, labels
from benchmarks.faults.guests.guest import (
    GOOD,
    PASS_OR_WARN,
    SPARE,
    Guest,
    MakeRecord,
    Record,
    draw,
    plant,
)

# Cohere 2 begins each row with a preamble of some 800 tokens.
_LIMIT = {"max_tokens": 1024}
_FREE = {"label_field": None}
# Near rows with another answer or system turn stay, in groups; from 2 % of them the item warns.
_GROUPS = {"deduplication": PASS_OR_WARN}
# Sampling a class down by the stated rule is what `distribution_balancing` warns of.
_SAMPLED = {"distribution_balancing": PASS_OR_WARN}
# With few rows a measurement may have an interval that decides nothing; it has to say so.
_FEW_ROWS = frozenset({"pass", "warn", "inconclusive"})


@dataclass(frozen=True)
class Shape:
    """A kind of dataset.

    Attributes:
        rows: yields clean records without end.
        count: how many of them a guest has.
        settings: of the `data` section; `max_tokens` is 1024 unless it is named.
        verdicts: where they differ from those of any good dataset.
        needs: what the model's template has to support.
    """

    rows: Callable[[random.Random], Iterator[Record]]
    count: int = 200
    settings: dict[str, Any] = field(default_factory=dict)
    verdicts: dict[str, frozenset[str]] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()

    def guest(
        self, name: str, seed: int = 1, count: int | None = None, marker: str = "<|im_start|>"
    ) -> Guest:
        """Draw a guest.

        Args:
            name: the guest's name.
            seed: other seeds give other rows.
            count: clean rows; the shape's own number without one.
            marker: a special token of the model, for the planted injection.
        """
        choose, count = random.Random(f"{name} {seed}"), count or self.count  # noqa: S311
        records = draw(self.rows(choose), count + SPARE)
        settings, verdicts = {**_LIMIT, **self.settings}, {**GOOD, **self.verdicts}
        guest = Guest(name, records[:count], [], settings, verdicts, self.needs)
        limit = settings["max_tokens"]
        return plant(guest, records[count:], choose, marker=marker, tokens=limit)


def _each(make: MakeRecord) -> Callable[[random.Random], Iterator[Record]]:
    def rows(choose: random.Random) -> Iterator[Record]:
        while True:
            yield make(choose)

    return rows


def _few(choose: random.Random) -> Record:
    return labels.intent(choose, ("late_parcel", "invoice_copy", "login_problem"))


def _one_class(choose: random.Random) -> Record:
    rare = ("refund_status", "warranty", "damaged_item", "change_address")
    return labels.intent(choose, ("late_parcel",) * 16 + rare)


_SYSTEM, _TOOLS = frozenset({"system"}), frozenset({"tools"})
SHAPES: dict[str, Shape] = {
    "intent": Shape(_each(labels.intent), settings={"label_field": "intent"}, needs=_SYSTEM),
    "extraction": Shape(_each(copies.extraction), settings=_FREE, needs=_SYSTEM),
    "text_and_label": Shape(
        _each(labels.text_and_label), settings={"label_field": "category"}, needs=_SYSTEM
    ),
    "several_turns": Shape(_each(conversations.several_turns), settings=_FREE),
    "tools": Shape(
        _each(conversations.tools), settings={**_FREE, "max_tokens": 2048}, needs=_TOOLS
    ),
    "documents": Shape(
        copies.documents, 450, {**_FREE, "max_tokens": 2048}, _GROUPS, needs=_SYSTEM
    ),
    "translation": Shape(
        conversations.translation, 240, {**_FREE, "languages": ["en", "de", "fr"]}, _GROUPS,
        needs=_SYSTEM,
    ),
    "personas": Shape(conversations.personas, 300, _FREE, _GROUPS, needs=_SYSTEM),
    "arithmetic": Shape(_each(exact.arithmetic), 400, _FREE, _GROUPS),
    "code": Shape(_each(exact.code), 300, _FREE, _GROUPS, needs=_SYSTEM),
    "sentiment": Shape(
        _each(labels.sentiment), settings={"label_field": "sentiment"}, needs=_SYSTEM,
        verdicts=_GROUPS,
    ),
    # No pattern and no model covers Japanese: the item has to say so, and the rest judges as usual.
    "japanese": Shape(
        _each(labels.japanese),
        settings={"label_field": "intent", "languages": ["ja"]},
        verdicts={"pii_scrubbing": frozenset({"warn"}), **_GROUPS},
        needs=_SYSTEM,
    ),
    "sixty_rows": Shape(
        _each(_few), 60, {"label_field": "intent"}, needs=_SYSTEM,
        verdicts={"loss_monitoring": _FEW_ROWS, "checkpointing": _FEW_ROWS},
    ),
    "one_class": Shape(
        _each(_one_class), 300, {"label_field": "intent"}, _SAMPLED, needs=_SYSTEM
    ),
    "long_prompts": Shape(
        _each(copies.long_prompt), 120, {**_FREE, "max_tokens": 8192}, needs=_SYSTEM
    ),
}  # fmt: skip


def guest(
    name: str, seed: int = 1, count: int | None = None, marker: str = "<|im_start|>"
) -> Guest:
    """Draw the guest of a shape; the arguments are those of `Shape.guest`."""
    return SHAPES[name].guest(name, seed, count, marker)
