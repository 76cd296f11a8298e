"""The training prompts, as a log shows them and calibrated once, to compare production with.

A log has `[ENTITY]` where the training data have a surrogate, so each would be new to the other.
In a baseline the surrogates that pii_scrubbing wrote are placeholders, and what the log's scrubber
finds in the rest; in a curated day those of the gateway, and what its curation replaced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from tuneline.artifacts.artifact import Artifact, fault
from tuneline.data.pii.replace.scrubber import make_placeholder_scrubber
from tuneline.errors import UserError
from tuneline.governance.drift.bets import Floats, Tail, calibrate
from tuneline.governance.drift.prompts import MOST_CHARS, Embedding, Prompt, strangeness
from tuneline.governance.drift.prompts import Reference as Prompts

# Shares of the false alarms of a year. New topics are what a fine-tune meets most often; the rates
# of the answers are counts, which need little evidence.
SHARES = {
    "novelty_share": 0.3,
    "mmd2": 0.2,
    "length_psi": 0.1,
    "label_mix": 0.1,
    "low_confidence_rate": 0.1,
    "fallback_rate": 0.1,
    "rejection_rates": 0.1,
}
# The part of a signal's share that pays for bounds of the reference which may be too low.
CALIBRATION = 0.1
DEFAULT_ALARMS = 0.05
DEFAULT_MIN_CONFIDENCE = -1.5
# Training prompts are drawn up to this number of characters. Beyond, a night takes too long and
# the nearest ten hardly come closer.
MOST_TRAINING_CHARS = 2_000_000
# Training prompts whose distance to the others calibrates novelty.
MOST_CALIBRATED = 6000
# A tail of the length may gain this share of all prompts: another mix of the same questions does
# as much, and the mix has signals of its own.
LENGTH_TOLERANCE = 0.03
SEED = 7


class Baseline(BaseModel, populate_by_name=True):
    """`baseline.json`: prompts of the training data by split, with placeholders."""

    schema_: Literal["tuneline/drift-baseline/2"] = Field(
        "tuneline/drift-baseline/2", alias="schema"
    )
    languages: list[str]  # in which personal data was looked for
    pii_model: bool  # by the usual model too, not by patterns alone
    prompts: dict[str, list[Prompt]] = {}

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """Read a baseline; UserError if the file is none."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise UserError(
                f"{path.name} is not a baseline that requests can be compared with "
                f"({fault(error)}); run drift_detection again"
            ) from None

    def of(self, prompts: Prompts) -> Baseline:
        """Return a baseline of as many prompts as a watch reads, in their order."""
        drawn = {
            split: sorted(_draw(rows), key=lambda p: p.line) for split, rows in prompts.items()
        }
        logged = {split: self.as_logged(rows) for split, rows in drawn.items()}
        return self.model_copy(update={"prompts": logged})

    def as_logged(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Return prompts with placeholders for what the log's scrubber finds in them."""
        scrub = make_placeholder_scrubber(self.languages, model=self.pii_model)
        turns = scrub([[{"role": "user", "content": prompt.text or ""}] for prompt in prompts])
        pairs = zip(prompts, turns, strict=True)
        return [
            replace(prompt, text=prompt.text and turn["content"]) for prompt, ([turn], _) in pairs
        ]


BASELINE = Artifact("drift_detection", "baseline.json")


@dataclass(frozen=True)
class Night:
    """The requests of one day, embedded once."""

    day: str
    prompts: Sequence[Prompt]
    with_text: Sequence[Prompt]  # those whose text is known
    matrix: Any  # a row of unit length for each of `with_text`
    distances: Floats  # of each of `with_text` to its nearest training prompts


@dataclass(frozen=True)
class Reference:
    """Training prompts and what follows from them."""

    alarms: float  # probability of a false alarm in a year of nights, over all signals
    embedding: Embedding
    train: Any  # embedded training prompts, at random
    validation: Any
    novelty: Tail  # tail of the distance to the nearest training prompts
    long: Tail  # tail of the number of characters
    short: Tail
    lengths: Floats
    labels: Mapping[str, int]
    min_confidence: float = DEFAULT_MIN_CONFIDENCE  # an answer below is unsure

    @classmethod
    def fit(
        cls,
        train: Sequence[Prompt],
        validation: Sequence[Prompt] = (),
        *,
        alarms: float = DEFAULT_ALARMS,
        min_confidence: float = DEFAULT_MIN_CONFIDENCE,
    ) -> Reference:
        """Calibrate a reference.

        `validation` are prompts of the same source that were not trained on; they show how far the
        split moves prompts from their neighbours.
        """
        taken = _draw(train)
        texts = texts_of(taken)
        embedding = Embedding.fit(texts)
        rows, checked = embedding(texts), embedding(texts_of(validation))
        # The order is random: the first rows are a sample.
        own = np.arange(min(len(taken), MOST_CALIBRATED))
        lengths, checked_lengths = lengths_of(taken), lengths_of(validation)

        def length(sign: int) -> Tail:
            scores, of_checked = sign * lengths, sign * checked_lengths
            return calibrate(
                scores, of_checked, calibration_error(alarms, "length_psi") / 2, LENGTH_TOLERANCE
            )

        return cls(
            alarms,
            embedding,
            rows,
            checked,
            calibrate(
                strangeness(rows[own], rows, own),
                strangeness(checked, rows),
                calibration_error(alarms, "novelty_share"),
            ),
            length(1),
            length(-1),
            lengths,
            dict(Counter(p.label for p in [*train, *validation] if p.label is not None)),
            min_confidence,
        )

    def limit(self, name: str) -> float:
        """Return the limit of a signal's p-value."""
        return self.alarms * SHARES[name] * (1 - CALIBRATION)

    def night(self, day: str, prompts: Sequence[Prompt]) -> Night:
        """Return the requests of a day, ready to be looked at."""
        with_text = [prompt for prompt in prompts if prompt.text is not None]
        matrix = self.embedding(texts_of(with_text))
        return Night(day, prompts, with_text, matrix, strangeness(matrix, self.train))


def calibration_error(alarms: float, name: str) -> float:
    """Return the probability that a signal's bounds may be too low."""
    return alarms * SHARES[name] * CALIBRATION


def texts_of(prompts: Sequence[Prompt]) -> list[str]:
    """Return the texts of prompts, an empty one where there is none."""
    return [prompt.text or "" for prompt in prompts]


def lengths_of(prompts: Sequence[Prompt]) -> Floats:
    """Return the numbers of characters of prompts."""
    return np.array([len(text) for text in texts_of(prompts)], dtype=float)


def _draw(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return prompts in random order, up to a number of characters."""
    rng = np.random.default_rng(SEED)
    order = [prompts[int(at)] for at in rng.permutation(len(prompts))]
    ends = np.cumsum(np.minimum(lengths_of(order), MOST_CHARS))
    return order[: max(1, int(np.searchsorted(ends, MOST_TRAINING_CHARS, side="right")))]
