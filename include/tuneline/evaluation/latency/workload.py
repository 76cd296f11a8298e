"""The requests of the benchmark: prompts and lengths of answers as the data has them.

Prompts are validation rows, so the system turn that they share comes from the prefix cache, as in
production. The answer to each has as many tokens as the row's own answer, so that lengths follow
the data together with their prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuneline.data.tables.rows import Row
from tuneline.harness.quantiles import percentile
from tuneline.serving.client import Messages

# The token that ends an answer is generated too. It also makes every answer two tokens long, which
# a time per output token needs.
_END = 1
# Its multiples, taken modulo 1, fill the unit interval evenly wherever a sequence of them begins
# and ends (Kronecker's sequence of the golden ratio).
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Request:
    """One request: its messages and the tokens of its answer."""

    messages: Messages
    tokens: int


@dataclass(frozen=True)
class Lengths:
    """The distribution of lengths, in tokens."""

    count: int
    mean: float
    p50: float
    p95: float
    longest: int


def lengths_of(values: Sequence[int]) -> Lengths:
    """Summarise lengths; at least one is needed."""
    mean = round(sum(values) / len(values), 2)
    return Lengths(len(values), mean, percentile(values, 50), percentile(values, 95), max(values))


@dataclass(frozen=True)
class Workload:
    """Requests in the order in which they are sent, over and over.

    Attributes:
        requests: the requests.
        expected: lengths of the rows' answers, before the cap.
        capped: answers that the cap shortens.
    """

    requests: tuple[Request, ...]
    expected: Lengths
    capped: int

    def take(self, start: int, count: int) -> list[Request]:
        """Return requests from a place on; after the last one comes the first again."""
        return [self.requests[(start + n) % len(self.requests)] for n in range(count)]

    def last(self, count: int) -> list[Request]:
        """Return requests from the end, which `take` comes to last."""
        return self.take(-count, count)


def workload_of(rows: Sequence[Row], tokens: Sequence[int], cap: int) -> Workload:
    """Make a workload of rows, whose every stretch has about the same lengths as the whole.

    Args:
        rows: the rows, at least one.
        tokens: number of tokens of each row's answer.
        cap: longest answer, in tokens.
    """
    full = [count + _END for count in tokens]
    by_length = sorted(range(len(rows)), key=lambda number: full[number])
    places = sorted(range(len(rows)), key=lambda place: place * _GOLDEN % 1.0)
    # `places[k]` is the moment of the k-th shortest answer.
    moments = dict(zip(places, by_length, strict=True))
    order = [moments[place] for place in range(len(rows))]
    return Workload(
        tuple(Request(rows[number].prompt, min(full[number], max(2, cap))) for number in order),
        lengths_of(full),
        sum(count > cap for count in full),
    )
