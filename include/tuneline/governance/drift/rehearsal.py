"""Try the detector on a dataset's own rows: what was held back must be called drift, the rest not.

Left out of the reference, so that they are as new to it as requests are: half of the validation
rows and a fifth of the training rows at random; a topic (every row of one label or a few small
ones; without labels a prompt and the nearest tenth); half of the rows of a label that rises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tuneline.governance.drift.prompts import Embedding, Prompt
from tuneline.governance.drift.prompts import Reference as Prompts
from tuneline.governance.drift.reference import Reference, texts_of
from tuneline.governance.drift.watch import DriftReport, compare

# Parts of a night that are planted, in turn until one is called.
SHARES = (0.05, 0.1, 0.2, 0.4, 0.6)
MOST_IN_A_NIGHT = 500
# Rows of the dataset that take part; enough to calibrate, few enough for seconds.
MOST_ROWS = 4000
# A topic has at least so many rows, and at most this part of all.
LEAST_OF_A_TOPIC, MOST_OF_ALL = 10, 0.4
# Labels are held back together until they have this part of the rows: a night needs some.
LEAST_OF_ALL = 0.04
HELD_BACK = 0.2


@dataclass(frozen=True)
class Attempt:
    """One night with something planted."""

    plant: str  # `topic` or `labels`
    share: float  # planted part of the night
    prompts: int
    planted: int
    report: DriftReport

    def as_dict(self) -> dict[str, Any]:
        """Return the attempt for `trial.json`; without prompts, which are in the dataset."""
        return {
            "plant": self.plant,
            "share": self.share,
            "prompts": self.prompts,
            "planted": self.planted,
            "drifted": self.report.drifted,
            "measures": [measure.as_dict() for measure in self.report.measures],
        }


@dataclass(frozen=True)
class Parts:
    """A dataset, divided for a rehearsal. Every row is in one part."""

    train: list[Prompt]
    validation: list[Prompt]
    usual: list[Prompt]
    topic: list[Prompt]  # of a topic that the reference does not have
    rising: list[Prompt]  # of a label that the reference has


def divide(prompts: Prompts, seed: int = 11) -> Parts:
    """Divide a dataset for a rehearsal."""
    rng = np.random.default_rng(seed)
    train = _shuffled(prompts["train"], rng)[:MOST_ROWS]
    validation = _shuffled(prompts["validation"], rng)
    labels = _topics([*train, *validation], rng)
    if labels:
        wanted = min(MOST_IN_A_NIGHT * SHARES[-2], LEAST_OF_ALL * len(prompts["train"]))
        topics = _enough(labels, wanted)
        topic_rows = {id(p) for p in [*train, *validation] if p.label in topics}
        rising_label = next((label for label in labels if label not in topics), None)
    else:
        topic_rows, rising_label = _nearest_tenth([*train, *validation], rng), None
    # A model that never had the topic answers with a label of another one, nobody knows which.
    topic = [replace(p, label=None) for p in [*train, *validation] if id(p) in topic_rows]
    train = [p for p in train if id(p) not in topic_rows]
    validation = [p for p in validation if id(p) not in topic_rows]
    alike = [p for p in train if p.label == rising_label] if rising_label else []
    rising = alike[: len(alike) // 2]
    train = _without(train, rising)
    held = train[: int(HELD_BACK * len(train))]
    middle = len(validation) // 2
    return Parts(
        train[len(held) :], validation[:middle], [*validation[middle:], *held], topic, rising
    )


def rehearse(parts: Parts, alarms: float, seed: int = 11) -> list[Attempt]:
    """Plant ever more until the detector calls it; the last attempt of a plant is the result."""
    rng = np.random.default_rng(seed)
    reference = Reference.fit(parts.train, parts.validation, alarms=alarms)
    attempts = []
    for plant, rows in (("topic", parts.topic), ("labels", parts.rising)):
        for share in SHARES:
            usual, planted = _night(parts.usual, rows, share, rng)
            if len(planted) < LEAST_OF_A_TOPIC // 2:
                continue
            night = _shuffled([*usual, *planted], rng)
            report = compare(reference, {"": night})
            attempts.append(Attempt(plant, share, len(night), len(planted), report))
            if report.drifted:
                break
    return attempts


def smallest_called(attempts: Sequence[Attempt], plant: str) -> float | None:
    """Return the smallest share that was called drift; 1 if none was, None if none was planted."""
    tried = [attempt for attempt in attempts if attempt.plant == plant]
    if not tried:
        return None
    return min((a.share for a in tried if a.report.drifted), default=1.0)


def _night(
    usual: list[Prompt], planted: list[Prompt], share: float, rng: np.random.Generator
) -> tuple[list[Prompt], list[Prompt]]:
    most = min(len(usual), int(MOST_IN_A_NIGHT * (1 - share)))
    wanted = round(most * share / (1 - share))
    # With too few rows to plant, the night is smaller, not the share.
    count = min(wanted, len(planted))
    most = min(most, round(count * (1 - share) / share))
    return _shuffled(usual, rng)[:most], _shuffled(planted, rng)[:count]


def _enough(labels: Mapping[str, int], wanted: float) -> set[str]:
    """Return the first labels that have the wanted number of rows together."""
    found: set[str] = set()
    for label in labels:
        if sum(labels[name] for name in found) >= wanted:
            break
        found.add(label)
    return found


def _topics(prompts: Sequence[Prompt], rng: np.random.Generator) -> dict[str, int]:
    """Return the labels that can be planted with their rows, in random order."""
    counts = Counter(p.label for p in prompts if p.label is not None)
    fit = [
        label
        for label, count in sorted(counts.items())
        if LEAST_OF_A_TOPIC <= count <= MOST_OF_ALL * len(prompts)
    ]
    return {fit[int(at)]: counts[fit[int(at)]] for at in rng.permutation(len(fit))}


def _nearest_tenth(prompts: Sequence[Prompt], rng: np.random.Generator) -> set[int]:
    texts = texts_of(prompts)
    rows = Embedding.fit(texts)(texts)
    likeness = (rows @ rows[int(rng.integers(len(texts)))].T).toarray().ravel()
    nearest = np.argsort(-likeness, kind="stable")[: max(1, len(texts) // 10)]
    return {id(prompts[int(at)]) for at in nearest}


def _without(prompts: Sequence[Prompt], removed: Sequence[Prompt]) -> list[Prompt]:
    ids = {id(prompt) for prompt in removed}
    return [prompt for prompt in prompts if id(prompt) not in ids]


def _shuffled(prompts: Sequence[Prompt], rng: np.random.Generator) -> list[Prompt]:
    return [prompts[int(at)] for at in rng.permutation(len(prompts))]
