"""Estimate the personal data that scrubbing leaves behind, from canaries in the dataset's rows.

Each canary has one probe, so that leaks are binomial and their interval exact. With the values that
were found in the rows their odds give how many were missed, which decides the verdict.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from math import isfinite
from typing import TYPE_CHECKING, Any

from tuneline.config import DataConfig
from tuneline.data.pii.find.entities import demanded, scrubbed_entities
from tuneline.data.pii.measure.planting import Canary, make_canaries
from tuneline.data.pii.measure.plants import KINDS, entity_of, group_entity, phrases, tokens_of
from tuneline.data.tables.rows import Message, Row, chosen_of
from tuneline.evidence import Breach, Measurement, Rule, measure
from tuneline.machine.workers import worker_count
from tuneline.statistics import Bounds, count_times_odds, share_of

if TYPE_CHECKING:
    # The review is shown in Airflow, whose environment has no detector.
    from tuneline.data.pii.replace.scrubber import Scrubbed, Scrubber

# A form or kind of which more than this leaks is one that the configuration does not find.
WEAK = 0.25
PER_ROWS = 1000
# A detector that may miss half of an entity can't tell that the rows hold none of it.
BLIND = 0.5
# Canaries for each that may leak, so that a third of the share that may is shown to be less.
PER_ALLOWED, MOST_CANARIES = 20, 2_000
# The register and the carriers are of as many rows at the most; more show no other way of writing.
MEASURED_ROWS = 3_000
# Types whose estimate was held against labelled text of other people, in English, and lay within a
# factor of two of what leaked there (docs/personal-data.md has the numbers).
COMPARED = frozenset(
    "PERSON LOCATION EMAIL_ADDRESS PHONE_NUMBER CREDIT_CARD IBAN_CODE US_SSN IP_ADDRESS ID_NUMBER "
    "STREET_ADDRESS URL POSTAL_CODE".split()
)
# A surrogate may hold one of these few by chance.
_FEW = frozenset(
    word[:size].casefold()
    for words in phrases().values()
    for word in [*words.get("digit", ()), *words["month"]]
    for size in (3, 20)
)


def readable(canary: Canary, scrubbed: Scrubbed) -> bool:
    """Return True if the probe of a canary still stands in the scrubbed row, or in a surrogate.

    The turns before and after are aligned word by word, so that no equal word elsewhere counts.
    """
    # Unlike the standard library's, its time hardly grows where a word repeats.
    from rapidfuzz.distance import LCSseq

    turn, number = canary.probe.turn, canary.probe.number
    before, text = canary.messages[turn]["content"], scrubbed.messages[turn]["content"]
    if before == text:
        return True
    tokens, after, at = tokens_of(before), [], 0
    for entry in sorted((s for s in scrubbed.surrogates if s.turn == turn), key=lambda s: s.start):
        made = tokens_of(text[entry.start : entry.end])
        if _returned(tokens, number, made):
            return True
        # Nothing in a surrogate is aligned.
        after += [*tokens_of(text[at : entry.start]), ""]
        at = entry.end
    blocks = LCSseq.opcodes(tokens, [*after, *tokens_of(text[at:])])
    return any(b.tag == "equal" and b.src_start <= number < b.src_end for b in blocks)


def _returned(tokens: Sequence[str], number: int, made: Sequence[str]) -> bool:
    """Return True if a surrogate holds a token, or is what stood around it."""
    word = tokens[number]
    if word in made and len(word) > 2 and word not in _FEW:
        return True
    starts = range(max(0, number - len(made) + 1), number + 1)
    return any(list(tokens[start : start + len(made)]) == list(made) for start in starts)


@dataclass(frozen=True)
class Trial:
    """The canaries and, for each, whether it leaked and the row that scrubbing made of it."""

    canaries: Sequence[Canary]
    leaked: Sequence[bool]
    scrubbed: Sequence[Sequence[Message]]

    def outcomes(self, key: Callable[[Canary], str]) -> dict[str, tuple[int, int]]:
        """Return how many leaked, of how many, among the canaries with the same key."""
        flags: dict[str, list[bool]] = defaultdict(list)
        for canary, leak in zip(self.canaries, self.leaked, strict=True):
            flags[key(canary)].append(leak)
        return {name: (sum(leaks), len(leaks)) for name, leaks in flags.items()}

    def shares(self, key: Callable[[Canary], str]) -> dict[str, Bounds]:
        """Return the share of leaks among the canaries with the same key."""
        return {name: share_of(*outcome) for name, outcome in self.outcomes(key).items()}

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns of the table of canaries, which holds no text."""
        return {
            "entity": [canary.group for canary in self.canaries],
            "form": [canary.form for canary in self.canaries],
            "place": [canary.place for canary in self.canaries],
            "leaked": [int(leak) for leak in self.leaked],
        }

    def examples(self) -> dict[str, list[Any]]:
        """Return the columns of a table of the canaries that leaked, with the planted turn."""
        pairs = list(zip(self.canaries, self.scrubbed, strict=True))
        table = {
            **self.columns(),
            "before": [c.messages[c.probe.turn]["content"] for c, _ in pairs],
            "after": [messages[c.probe.turn]["content"] for c, messages in pairs],
        }
        del table["leaked"]
        return {name: list(compress(column, self.leaked)) for name, column in table.items()}


def seed_of(run_id: str, row_ids: Iterable[str]) -> str:
    """Return the seed of a run's canaries: the same for the same run and rows, and no other."""
    return hashlib.sha256("".join([run_id, *row_ids]).encode()).hexdigest()[:12]


def draw_carriers(rows: Sequence[Row], seed: str) -> list[Sequence[Message]]:
    """Return the turns of rows that canaries are planted in: all, or a random part of many."""
    flags = [number < MEASURED_ROWS for number in range(len(rows))]
    random.Random(f"{seed}:carriers").shuffle(flags)  # noqa: S311 - reproducible, no secret
    return [row.messages for row in chosen_of(rows, flags)]


def canaries_of(found: float, config: DataConfig) -> int:
    """Return the canaries of each kind of an entity, of which `found` values are in 1,000 rows.

    The more there are, the smaller is the share that may leak, and the more show that it is so.
    """
    needed = 0 if not config.pii_max_left else found / config.pii_max_left * PER_ALLOWED
    return max(config.pii_canaries, min(round(needed), MOST_CANARIES))


def run_trial(
    scrubber: Scrubber,
    rows: Sequence[Sequence[Message]],
    config: DataConfig,
    seed: str,
    found: Mapping[str, float],
) -> Trial:
    """Plant canaries in rows, at least one, and scrub them as rows; `found` is by entity."""

    def number(entity: str) -> int:
        return canaries_of(found.get(entity, 0), config)

    entities = scrubbed_entities(config.pii_profile)
    canaries = make_canaries(rows, entities, config.languages, number, seed)
    # Neighbours share turns then, which the scrubber looks at once.
    canaries.sort(key=lambda canary: [turn["content"] for turn in canary.messages[::-1]])
    planted = ((None, canary.messages) for canary in canaries)
    results = list(scrubber.each(planted, worker_count(len(canaries))))
    # Rows that are refused, or in which something is left, do not go into the dataset.
    leaked = [
        not (result.refused or result.residual or result.left) and readable(canary, result)
        for canary, result in zip(canaries, results, strict=True)
    ]
    return Trial(canaries, leaked, [result.messages for result in results])


def decides(group: str, profiles: Iterable[str]) -> bool:
    """Return True if a profile demands the entity; a leak of another one only warns."""
    kind = group.partition(".")[0]
    return not {kind, entity_of(kind)}.isdisjoint(demanded(profiles))


def leak_measurements(config: DataConfig, trial: Trial, hits: Counter[str]) -> list[Measurement]:
    """Return the share of leaks of each group; a high one of an entity without `hits` warns.

    What the rows hold is judged by what is left of it.
    """
    found = []
    for group, share in trial.shares(lambda canary: canary.group).items():
        free = hits[group_entity(group)] or config.pii_max_left is None
        rule: Rule | None = None if free else "<="
        limit = rule and WEAK
        found += [
            measure(f"leak_{group}", share.value, "share"),
            measure(f"leak_{group}_at_most", share.upper, "share", rule, limit, on_breach="warn"),
        ]
    return found


def form_measurements(trial: Trial) -> list[Measurement]:
    """Return the share of leaks of each form, over all kinds."""
    return [
        measure(f"leak_in_form_{form}{name}", value, "share")
        for form, share in sorted(trial.shares(lambda canary: canary.form).items())
        for name, value in (("", share.value), ("_at_most", share.upper))
    ]


def left_breach(entity: str, found: int, leaked: int, planted: int, config: DataConfig) -> Breach:
    """Return what it does if too much may be left of an entity of which `found` values were found.

    Nothing found says that nothing is there, unless most of it would have been missed.
    """
    unseen = not found and share_of(leaked, planted).upper < BLIND
    return "warn" if unseen or not decides(entity, config.pii_profile) else config.pii_leak_breach


def left_measurements(
    config: DataConfig, trial: Trial, hits: Counter[str], rows: int
) -> list[Measurement]:
    """Return how many values of each entity are left per 1,000 rows; `hits` were found in them."""
    measured = []
    for entity, outcome in trial.outcomes(lambda canary: entity_of(canary.kind)).items():
        name, unit = f"left_per_1000_rows_{entity}", "values per 1000 rows"
        left = count_times_odds(hits[entity], *outcome)
        breach = left_breach(entity, hits[entity], *outcome, config)
        # Where every canary leaks, what was found says nothing about what was not.
        value, most = (
            round(end * PER_ROWS / rows, 4) if isfinite(end) else None
            for end in (left.value, left.upper)
        )
        measured.append(measure(name, value, unit))
        limit = config.pii_max_left
        rule: Rule | None = None if limit is None else "<="
        measured.append(measure(f"{name}_at_most", most, unit, rule, limit, on_breach=breach))
    return measured


def blind_spots(config: DataConfig, trial: Trial, custom: Sequence[str]) -> dict[str, list[str]]:
    """Return what the configuration, with custom entities, could not have found or measured."""
    scrubbed = scrubbed_entities(config.pii_profile)
    entities = {entity_of(kind) for kind in KINDS}
    forms = trial.shares(lambda canary: canary.form)
    return {
        "types_not_looked_for": sorted(entities - set(scrubbed)),
        "types_not_compared_with_labels": sorted({*scrubbed} & entities - COMPARED),
        "languages_without_canaries": sorted(set(config.languages) - phrases().keys()),
        "forms_that_leak": [form for form, share in forms.items() if share.value > WEAK],
        "entities_without_canaries": sorted({*custom, *scrubbed} - entities - KINDS.keys()),
    }
