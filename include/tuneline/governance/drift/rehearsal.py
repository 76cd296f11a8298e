"""Try the detector on a dataset's own rows: which share of a night it sees in 90 % of nights.

Left out of the reference, so that they are as new to it as requests are: half of the validation
rows and a fifth of the training rows at random; a topic (every row of one label or a few small
ones; without labels a prompt and the nearest tenth); half of the rows of a label that rises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from tuneline.governance.drift.bets import Counts, Wealth
from tuneline.governance.drift.prompts import Embedding, Prompt
from tuneline.governance.drift.prompts import Reference as Prompts
from tuneline.governance.drift.reference import Night, Reference, texts_of
from tuneline.governance.drift.signals import Look
from tuneline.governance.drift.watch import look

# Parts of a night that are planted, in turn until one is always called.
SHARES = (0.05, 0.1, 0.2, 0.4, 0.6)
# Nights for each share. If all are called, 90 % are with 95 % confidence: 0.9 ** 29 < 0.05.
NIGHTS = 29
MOST_IN_A_NIGHT = 500
# Rows of the dataset that take part; enough to calibrate, few enough for seconds.
MOST_ROWS = 4000
# A topic has at least so many rows, and at most this part of all.
LEAST_OF_A_TOPIC, MOST_OF_ALL = 10, 0.4
# Labels are held back together until they have this part of the rows: a night needs some.
LEAST_OF_ALL = 0.04
HELD_BACK = 0.2
SEED = 11


def drawn(rng: np.random.Generator, pool: Night, count: int) -> tuple[Night, Counts]:
    """Return a pool of prompts with the places of some, none twice."""
    return pool, rng.choice(len(pool.prompts), count, replace=False)


def night_looks(
    reference: Reference, parts: Sequence[tuple[Night, Counts]]
) -> Iterator[tuple[str, Look]]:
    """Look at one night that is drawn from several pools."""
    from scipy import sparse

    prompts = [pool.prompts[int(at)] for pool, places in parts for at in places]
    matrix = sparse.vstack([pool.matrix[places] for pool, places in parts], format="csr")
    distances = np.concatenate([pool.distances[places] for pool, places in parts])
    # The two halves that the MMD makes must be alike.
    order = np.random.default_rng(len(prompts)).permutation(len(prompts))
    prompts = [prompts[int(at)] for at in order]
    return look(reference, Night("", prompts, prompts, matrix[order], distances[order]), {})


def is_called(reference: Reference, looks: Iterable[tuple[str, Look]]) -> bool:
    """Return True if the first night of a watch is called drift, by the first signal that does."""
    for name, found in looks:
        wealth = Wealth()
        wealth.bet(found.log_e, found.tally, found.test, "")
        if wealth.p_value < reference.limit(name):
            return True
    return False


@dataclass(frozen=True)
class Trial:
    """Nights with the same share of something planted."""

    plant: str  # `nothing`, `foreign`, `topic` or `labels`
    share: float  # planted part of a night
    prompts: int  # of a night
    planted: int  # of them
    called: int  # nights; with something planted, up to the first that is not called

    @property
    def shown(self) -> bool:
        """True if the share is seen in at least 90 % of nights."""
        return self.called == NIGHTS


@dataclass(frozen=True)
class Parts:
    """A dataset, divided for a rehearsal. Every row is in one part."""

    train: list[Prompt]
    validation: list[Prompt]
    usual: list[Prompt]
    topic: list[Prompt]  # of a topic that the reference does not have
    rising: list[Prompt]  # of a label that the reference has


def divide(prompts: Prompts) -> Parts:
    """Divide a dataset for a rehearsal."""
    rng = np.random.default_rng(SEED)
    train = _shuffled(prompts["train"], rng)[:MOST_ROWS]
    validation = _shuffled(prompts["validation"], rng)
    rows = [*train, *validation]
    labels = _topics(rows, rng)
    if labels:
        wanted = min(MOST_IN_A_NIGHT * SHARES[-2], LEAST_OF_ALL * len(prompts["train"]))
        before = [0, *accumulate(labels.values())]
        topics = {label for label, count in zip(labels, before, strict=False) if count < wanted}
        topic_rows = [p for p in rows if p.label in topics]
        rising_label = next((label for label in labels if label not in topics), None)
    else:
        topic_rows, rising_label = _nearest_tenth(rows, rng), None
    # A model that never had the topic answers with a label of another one, nobody knows which.
    topic = [replace(p, label=None) for p in topic_rows]
    train, validation = _without(train, topic_rows), _without(validation, topic_rows)
    # Half of them in either split, so that both have the label equally often.
    rising = [
        prompt
        for split in (train, validation)
        for prompt in [p for p in split if p.label == rising_label and rising_label][::2]
    ]
    train, validation = _without(train, rising), _without(validation, rising)
    held = train[: int(HELD_BACK * len(train))]
    middle = len(validation) // 2
    return Parts(
        train[len(held) :], validation[:middle], [*validation[middle:], *held], topic, rising
    )


def rehearse(parts: Parts, foreign: Sequence[Prompt], alarms: float) -> Iterator[Trial]:
    """Plant ever more until it is always called; the last trial of a plant is the result."""
    rng = np.random.default_rng(SEED)
    reference = Reference.fit(parts.train, parts.validation, alarms=alarms)
    usual = reference.night("", parts.usual)
    plants = {"nothing": parts.usual, "foreign": foreign, "topic": parts.topic}
    for plant, rows in {**plants, "labels": parts.rising}.items():
        planted = reference.night("", rows)
        shares = (0.0,) if plant == "nothing" else SHARES if rows else ()
        for share in shares:
            # A night has half of the usual prompts at most, so that nights differ.
            half = len(usual.prompts) / 2 / (1 - share)
            size = int(min(MOST_IN_A_NIGHT, half, len(rows) / share if share else half))
            count = round(size * share)
            if 0 < share < SHARES[-1] and count < LEAST_OF_A_TOPIC // 2:
                continue
            called = 0
            for night in range(NIGHTS):
                pools = drawn(rng, usual, size - count), drawn(rng, planted, count)
                called += is_called(reference, night_looks(reference, pools))
                if share and called <= night:
                    break
            yield Trial(plant, share, size, count, called)
            if called == NIGHTS:
                break


def _topics(prompts: Sequence[Prompt], rng: np.random.Generator) -> dict[str, int]:
    """Return the labels that can be planted with their rows, in random order."""
    counts = Counter(p.label for p in prompts if p.label is not None)
    fit = [
        label
        for label, count in sorted(counts.items())
        if LEAST_OF_A_TOPIC <= count <= MOST_OF_ALL * len(prompts)
    ]
    return {fit[int(at)]: counts[fit[int(at)]] for at in rng.permutation(len(fit))}


def _nearest_tenth(prompts: Sequence[Prompt], rng: np.random.Generator) -> list[Prompt]:
    texts = texts_of(prompts)
    rows = Embedding.fit(texts)(texts)
    likeness = (rows @ rows[int(rng.integers(len(texts)))].T).toarray().ravel()
    nearest = np.argsort(-likeness, kind="stable")[: max(1, len(texts) // 10)]
    return [prompts[int(at)] for at in sorted(nearest)]


def _without(prompts: Sequence[Prompt], removed: Sequence[Prompt]) -> list[Prompt]:
    ids = {id(prompt) for prompt in removed}
    return [prompt for prompt in prompts if id(prompt) not in ids]


def _shuffled(prompts: Sequence[Prompt], rng: np.random.Generator) -> list[Prompt]:
    return [prompts[int(at)] for at in rng.permutation(len(prompts))]
