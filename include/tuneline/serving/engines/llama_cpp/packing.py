"""Plan batches of sequences of which some tokens are scored.

Whole answers to one question share its prompt, which is evaluated once; several questions share a
batch, since a batch of a few tokens takes nearly as long as one of many. It is what llama.cpp's
`llama-perplexity --multiple-choice` does (tools/perplexity). A sequence that shares nothing is
evaluated alone: in company it would be rounded otherwise, which a comparison with another engine
would see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from tuneline.serving.engines.llama_cpp.lib import Token

# llama.cpp computes at most 512 tokens at once; more sequences than this make the mask costly.
BATCH_TOKENS, BATCH_SEQUENCES = 512, 32


@dataclass
class Batch:
    """Tokens to evaluate, and what is read from the logits.

    Attributes:
        tokens: the tokens.
        targets: for each sequence, by its number, the row of logits and the token id that
            is looked up in it.
    """

    tokens: list[Token] = field(default_factory=list)
    targets: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Scored:
    number: int
    ids: list[int]
    places: list[int]

    @property
    def prefix(self) -> list[int]:
        """The tokens before the first one that counts."""
        return self.ids[: self.places[0]]

    @property
    def rest(self) -> list[int]:
        """The other tokens that something is predicted from."""
        return self.ids[self.places[0] : self.places[-1]]


# Neighbours with the same prefix.
_Group = list[_Scored]


def plan_batches(
    sequences: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]]
) -> list[Batch]:
    """Return batches that give the logits before each scored token.

    A batch is larger than `BATCH_TOKENS` only where it holds one sequence.

    Args:
        sequences: token ids.
        scored: for each token of each sequence, whether it counts; a first one never does.
    """
    alone: list[list[_Group]] = []
    shared: list[list[_Group]] = [[]]
    for group in _groups(sequences, scored):
        if len(group) == 1:
            alone.append([group])
        elif _fits([*shared[-1], group]):
            shared[-1].append(group)
        else:
            shared.append([group])
    return [_batch(groups) for groups in (*alone, *shared) if groups]


def _fits(groups: Sequence[_Group]) -> bool:
    """Return True if groups fit one batch, what all their prompts begin with counted once."""
    common = _common(groups)
    tokens = common + sum(
        len(group[0].prefix) - common + sum(len(one.rest) for one in group) for group in groups
    )
    return tokens <= BATCH_TOKENS and sum(map(len, groups)) <= BATCH_SEQUENCES


def _common(groups: Sequence[_Group]) -> int:
    """Return the number of tokens that all prompts begin with, such as a system turn.

    The last token of a prompt is never among them, so that each has logits of its own.
    """
    first, *others = (group[0].prefix for group in groups)
    count = len(first) - 1
    for prefix in others:
        count = min(count, len(prefix) - 1)
        count = next((at for at in range(count) if prefix[at] != first[at]), count)
    return count


def _groups(
    sequences: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]]
) -> Iterator[_Group]:
    """Yield neighbours with the same prefix, as many as fit a batch."""
    known = (
        _Scored(number, list(ids), [at for at, flag in enumerate(flags) if flag and at > 0])
        for number, (ids, flags) in enumerate(zip(sequences, scored, strict=True))
    )
    counted = (one for one in known if one.places)
    for _, neighbours in groupby(counted, key=lambda one: one.prefix):
        group: _Group = []
        for one in neighbours:
            if group and not _fits([[*group, one]]):
                yield group
                group = []
            group.append(one)
        yield group


def _batch(groups: Sequence[_Group]) -> Batch:
    """Lay out what all prompts begin with, then each prompt and what follows it."""
    batch, common = Batch(), _common(groups)
    everything = tuple(range(sum(map(len, groups))))
    start = groups[0][0].prefix[:common]
    batch.tokens += [Token(token, at, everything, wanted=False) for at, token in enumerate(start)]
    for group in groups:
        _add(batch, group, common)
    return batch


def _add(batch: Batch, group: _Group, common: int) -> None:
    """Add the own part of a prompt, and what follows it in each sequence of a group."""
    rows = sum(token.wanted for token in batch.tokens)
    places = tuple(range(len(batch.targets), len(batch.targets) + len(group)))
    prefix = group[0].prefix
    batch.tokens += [
        Token(prefix[at], at, places, wanted=at == len(prefix) - 1)
        for at in range(common, len(prefix))
    ]
    after_prompt, rows = rows, rows + 1
    for place, one in zip(places, group, strict=True):
        first, *others = one.places
        targets = [(after_prompt, one.ids[first])]
        wanted = {at - 1 for at in others}
        for at, token in enumerate(one.rest, first):
            batch.tokens.append(Token(token, at, (place,), wanted=at in wanted))
            if at in wanted:
                targets.append((rows, one.ids[at + 1]))
                rows += 1
        batch.targets[one.number] = targets
