"""The text by which a row is compared: without system turn and shared text.

Where rows of different days or subjects are compared, surrogates are masked in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from os.path import commonprefix

from tuneline.data.near_duplicates.shingles import normalise
from tuneline.data.tables.rows import Row

# The common text of fewer rows may be chance; a shorter text ("I would like to") is a coincidence
# and does no harm.
MIN_ROWS, MIN_CHARS = 8, 20
SHARE = 0.8


@dataclass(frozen=True)
class Affixes:
    """The prefix and the suffix that nearly all texts share; empty if there is none."""

    prefix: str = ""
    suffix: str = ""

    def cut(self, text: str) -> tuple[int, int]:
        """Return start and end of the text's own part, of the whole text if that part is blank."""
        start = len(self.prefix) if self.prefix and text.startswith(self.prefix) else 0
        end = len(text)
        if self.suffix and text.endswith(self.suffix) and end - len(self.suffix) >= start:
            end -= len(self.suffix)
        return (start, end) if text[start:end].strip() else (0, len(text))

    def own(self, text: str) -> str:
        """Return the text's own part."""
        start, end = self.cut(text)
        return text[start:end]


def common_affixes(texts: Iterable[str]) -> Affixes:
    """Return the longest prefix and suffix that at least 80 % of the distinct texts share."""
    distinct = sorted(set(texts))
    if len(distinct) < MIN_ROWS:
        return Affixes()
    prefix = _shared_prefix(distinct)
    suffix = _shared_prefix(sorted(text[::-1] for text in distinct))[::-1]
    return Affixes(prefix, suffix)


def _shared_prefix(ordered: Sequence[str]) -> str:
    """Return the longest prefix that 80 % of sorted texts share; these texts are adjacent."""
    window = ceil(SHARE * len(ordered))
    best = ""
    for first, last in zip(ordered, ordered[window - 1 :], strict=False):
        if last.startswith(first[: len(best) + 1]):
            best = max(best, commonprefix([first, last]), key=len)  # noqa: RUF071 - no paths
    return best if len(best) >= MIN_CHARS else ""


def question(row: Row) -> str:
    """Return all turns of a row's prompt but the system turn, as they stand."""
    return "\n".join(turn["content"] for turn in row.prompt if turn["role"] != "system")


def masked_prompt(row: Row) -> Iterator[tuple[str, str]]:
    """Give the role and the masked text of each turn before the answer."""
    for number, message in enumerate(row.prompt):
        if message["role"] != "system":
            yield message["role"], masked_turn(row, number)


def masked_turn(row: Row, number: int) -> str:
    """Return the text of a turn, with a placeholder such as `[PERSON]` for each surrogate."""
    text = row.messages[number]["content"]
    for span in sorted(row.stand_ins, key=lambda span: -span.start):
        if span.turn == number:
            text = f"{text[: span.start]}[{span.entity}]{text[span.end :]}"
    return text


def similarity_texts(rows: Iterable[Row], among: Iterable[Row] | None = None) -> list[str]:
    """Return the normalised text of each row, without what rows `among` (or these) share."""
    own = list(map(_masked, rows))
    return compared_texts(own, own if among is None else list(map(_masked, among)))


def compared_texts(own: Sequence[str], among: Iterable[str]) -> list[str]:
    """Return texts without what nearly all of `among` share, normalised; none becomes empty."""
    affixes = common_affixes(among)
    return [normalise(affixes.own(text)) or normalise(text) for text in own]


def _masked(row: Row) -> str:
    """Return the turns before the answer, surrogates of personal data replaced by their type."""
    return "\n".join(text for _, text in masked_prompt(row))
