"""Make customer messages with labelled personal data, and score a detector on them.

Values and their sentences are those of `pii_sentences`; the sentences around them are from the
sample, with order numbers and amounts. Half of the messages hold no personal data.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.workloads.input_rows import read_values, text_of
from tuneline.errors import UserError

SEED = 7
# Types that both this project and Presidio find by their shape, and by a recogniser.
SHAPED = (
    "EMAIL_ADDRESS",
    "PHONE_NUMBER",
    "CREDIT_CARD",
    "IBAN_CODE",
    "US_SSN",
    "IP_ADDRESS",
    "MAC_ADDRESS",
)
NAMED = ("PERSON", "LOCATION")
FORMS = 4
MOST_SENTENCES = 4
# A value counts as found if this share of its characters is found.
COVERED = 0.8
# A hit is right if at least this share of its characters is personal data.
RIGHT = 0.5
# Names of entities in other sets of labelled texts.
ALIASES = {"GPE": "LOCATION", "LOC": "LOCATION", "CITY": "LOCATION"}


class Span(NamedTuple):
    """A span of a text, characters start to end, with a value of an entity type."""

    start: int
    end: int
    entity: str


Labelled = dict[str, Any]


def make_labelled(rows: int, seed: int = SEED) -> list[Labelled]:
    """Make messages with spans: `{"text": …, "spans": [[start, end, entity], …]}`.

    Args:
        rows: number of messages, half of them with one value each, in equal parts of each type
            and of the forms plain, lower case, capitals, and with spacing tricks.
    """
    from benchmarks.workloads.pii_sentences import make_sentences
    from benchmarks.workloads.support_chat import sentence

    rng = random.Random(seed)  # noqa: S311 - a workload, no secret
    entities = (*SHAPED, *NAMED)
    per_form = -(-rows // (2 * len(entities) * FORMS))
    valued = list(make_sentences(entities, seed, per_form))
    rng.shuffle(valued)

    def fillers() -> list[str]:
        return [sentence(rng) for _ in range(rng.randint(0, MOST_SENTENCES))]

    found: list[Labelled] = []
    for given in valued[: rows // 2]:
        before, after = " ".join(fillers()), " ".join(fillers())
        if given.form in ("lower", "upper"):
            before, after = (getattr(part, given.form)() for part in (before, after))
        start = len(before) + bool(before) + given.text.index(given.value)
        text = " ".join(filter(None, (before, given.text, after)))
        found.append({"text": text, "spans": [[start, start + len(given.value), given.entity]]})
    while len(found) < rows:
        text = " ".join([sentence(rng), *fillers()])
        found.append({"text": text, "spans": []})
    rng.shuffle(found)
    return found


def read_labelled(path: Path, most: int | None) -> tuple[list[Labelled], bool]:
    """Read the texts of a file, with their spans if it has any.

    Spans are `[{"start"|"start_position": …, "end"|"end_position": …, "entity"|"entity_type"|
    "label": …}]`, as presidio-research writes them.

    Returns:
        The texts, and True if the file has spans.

    Raises:
        UserError: if the file can't be read, holds no text, or has a malformed span.
    """
    found: list[Labelled] = []
    labelled = False
    for number, value in enumerate(read_values(path), 1):
        if len(found) == most:
            break
        text = text_of(value)
        if text is None:
            continue
        labelled = labelled or "spans" in value
        spans = [_span(span, f"{path} row {number}") for span in value.get("spans") or []]
        found.append({"text": text, "spans": spans})
    if not found:
        raise UserError(f"{path} holds no text to work on; rows need `text` or messages")
    return found, labelled


def _span(span: Any, where: str) -> list[Any]:
    try:
        start = int(span["start"] if "start" in span else span["start_position"])
        end = int(span["end"] if "end" in span else span["end_position"])
        names = ("entity", "entity_type", "label")
        entity = str(next(span[name] for name in names if name in span))
    except (KeyError, TypeError, ValueError, StopIteration):
        raise UserError(
            f"{where}: a span needs start, end and entity, this one is {str(span)[:80]}"
        ) from None
    return [start, end, ALIASES.get(entity, entity)]


def detection_scores(
    rows: Sequence[Labelled], found: Sequence[Sequence[Span]], entities: Sequence[str]
) -> dict[str, float]:
    """Score a detector against the labels.

    Args:
        found: spans of each text that the detector found.

    Returns:
        `recall` over all values of these types (found if 80 % of the characters are, as any type),
        `recall_<entity>` for each that occurs, `recall_names_lower_case` over the people in texts
        without a capital letter, and `precision`: the share of hits of which half is personal data.
    """
    outcomes: dict[str, list[bool]] = defaultdict(list)
    right: list[bool] = []
    for row, hits in zip(rows, found, strict=True):
        spans = [Span(*span) for span in row["spans"]]
        lower = not any(char.isupper() for char in row["text"])
        for span in spans:
            if span.entity in entities:
                hit = _covered(span, hits) >= COVERED
                outcomes["recall"].append(hit)
                outcomes[f"recall_{span.entity}"].append(hit)
                if span.entity == "PERSON" and lower:
                    outcomes["recall_names_lower_case"].append(hit)
        right += [_covered(hit, spans) >= RIGHT for hit in hits if hit.entity in entities]
    if right:
        outcomes["precision"] = right
    first = ("recall", "precision")
    names = [*(n for n in first if n in outcomes), *sorted(outcomes.keys() - set(first))]
    return {name: sum(outcomes[name]) / len(outcomes[name]) for name in names}


def _covered(span: Span, others: Iterable[Span]) -> float:
    """Return the share of a span's characters that are in any of the others."""
    places: set[int] = set()
    for other in others:
        places.update(range(max(span.start, other.start), min(span.end, other.end)))
    return len(places) / max(1, span.end - span.start)
